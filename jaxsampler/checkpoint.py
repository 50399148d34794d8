"""Arrays of a pytree in one safetensors file, with a JSON card beside it.

The name of an array is its key path, so a file can be read without the code that wrote it and a mismatch can
be named. The structure is not stored: `load` fills the arrays of a tree `like` built by the caller. Dtypes
are numpy's (no bfloat16, no keys). Files are written whole or not at all.
"""

import hashlib
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from safetensors import SafetensorError
from safetensors.numpy import load as parse

from .files import from_json, read_some, write, write_arrays

T = TypeVar("T")
ARRAY = (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)
MOST_HEADER = 2**27  # bytes
DTYPES = {  # as safetensors names numpy's
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "U16": np.uint16,
    "I16": np.int16,
    "F16": np.float16,
    "U32": np.uint32,
    "I32": np.int32,
    "F32": np.float32,
    "U64": np.uint64,
    "I64": np.int64,
    "F64": np.float64,
    "C64": np.complex64,
}
Card: TypeAlias = dict[str, Any]  # what JSON can hold


def save(path: str | Path, tree: PyTree, card: Card | None = None) -> None:
    """Write the array leaves of `tree` to `path`, and `card` as JSON beside it (suffix .json)."""
    if card is not None:
        write(Path(path).with_suffix(".json"), (json.dumps(card, indent=2) + "\n").encode())
    write_arrays(path, named(tree))


def load(path: str | Path, like: T) -> T:
    """Return `like`, a tree of arrays or of `jax.ShapeDtypeStruct`, with its arrays read from `path`.

    Raises:
        ValueError: the file is missing or corrupt, or its names, shapes or dtypes are not those of `like`.
    """
    expected = named(like)

    def check(header: dict[str, jax.ShapeDtypeStruct]) -> None:
        for name, want in expected.items():
            if name not in header:
                raise ValueError(f"{path} has no array {name!r}: another model or version saved it.")
            array = header[name]
            if array.shape != want.shape or array.dtype != want.dtype:
                has, needs = (f"{a.dtype}{list(a.shape)}" for a in (array, want))
                raise ValueError(f"{path}: array {name!r} is {has}, the model needs {needs}.")
        for name in sorted(header):
            if name not in expected:
                raise ValueError(
                    f"{path} holds an array {name!r} that the model lacks: another model saved it."
                )

    arrays = read(path, check)
    return jax.tree_util.tree_map_with_path(
        lambda p, x: jnp.asarray(arrays[spell(p)]) if isinstance(x, ARRAY) else x, like
    )


def resume(path: str | Path, start: T, card: Card) -> T:
    """Return the state that a run with this card saved at `path`, or `start` if there is none.

    Raises:
        ValueError: the state there belongs to a run with another card; the error names what differs.
    """
    if not Path(path).exists():
        return start
    expect(path, card)
    return load(path, start)


def expect(path: str | Path, card: Card) -> None:
    """Raise a ValueError that names what differs if the card beside `path` is not this one."""
    settings = json.loads(json.dumps(card))  # as they are read back
    if (old := read_card(path)) != settings:
        changed = sorted(k for k in {*old, *settings} if old.get(k) != settings.get(k))
        found = f"{Path(path).parent} holds a run with another {', '.join(changed)}"
        raise ValueError(f"{found}: use another folder or delete it.")


def digest(tree: PyTree) -> str:
    """SHA-256, in hexadecimal, of the arrays of a tree, numpy arrays included."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        if hasattr(leaf, "dtype"):
            found.update(f"{leaf.dtype}{leaf.shape}".encode() + np.asarray(leaf).tobytes())
    return found.hexdigest()


def read(
    path: str | Path, check: Callable[[dict[str, jax.ShapeDtypeStruct]], None] = lambda header: None
) -> dict[str, np.ndarray]:
    """All arrays of a safetensors file, by name.

    Args:
        check: raises if the shapes and dtypes of the file's header are not those wanted, before the arrays
            are read.
    """
    path = Path(path)
    try:
        with path.open("rb") as opened:
            start = opened.read(8)
            length = int.from_bytes(start, "little")
            longest = min(path.stat().st_size - 8, MOST_HEADER)
            if not 0 < length <= longest or not stat.S_ISREG(path.stat().st_mode):
                raise ValueError(f"its header of {length} bytes is incomplete")
            header = from_json(opened.read(length))
        if not isinstance(header, dict):
            raise ValueError("its header is no object")
        header.pop("__metadata__", None)
        found = {name: _told(entry) for name, entry in header.items()}
    except OSError as e:
        raise ValueError(f"cannot read {path}: {e.strerror}.") from None
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(f"{path} is corrupt ({str(e).splitlines()[0]}): fetch or train it again.") from None
    check(found)
    return _open(path, parse)


def _told(entry: dict[str, Any]) -> jax.ShapeDtypeStruct:
    """Shape and dtype as the header of a safetensors file has them."""
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"it holds arrays of {entry['dtype']}, which numpy lacks")
    return jax.ShapeDtypeStruct(tuple(int(n) for n in entry["shape"]), DTYPES[entry["dtype"]])


def read_card(path: str | Path) -> Card:
    """The JSON card beside the weights at `path`."""
    file = Path(path).with_suffix(".json")
    card = _open(file, from_json, read_some)
    if not isinstance(card, dict):
        raise ValueError(f"{file} is not a card: it holds a {type(card).__name__}, not a JSON object.")
    return card


def _open(
    path: str | Path, decode: Callable[[bytes], Any], reading: Callable[[Path], bytes] = Path.read_bytes
) -> Any:
    try:
        return decode(reading(Path(path)))
    except OSError as e:
        raise ValueError(f"cannot read {path}: {e.strerror}.") from None
    except (SafetensorError, ValueError) as e:
        raise ValueError(f"{path} is corrupt ({str(e).splitlines()[0]}): fetch or train it again.") from None


def named(tree: PyTree) -> dict[str, Any]:
    """The array leaves of `tree` by key path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {spell(path): leaf for path, leaf in leaves if isinstance(leaf, ARRAY)}


def spell(path: jax.tree_util.KeyPath) -> str:
    """A key path as dotted words: `unet.encoder.0.1.film.weight`."""
    return jax.tree_util.keystr(path, simple=True, separator=".")
