"""Arrays of a pytree in one safetensors file, with a JSON card beside it.

The name of an array is its key path, so a file can be read without the code that wrote it and a mismatch can
be named. The structure is not stored: `load` fills the arrays of a tree `like` built by the caller. Dtypes
are numpy's (no bfloat16, no keys). Files are written whole or not at all.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from safetensors import SafetensorError
from safetensors.numpy import load as parse
from safetensors.numpy import save as serialise

from .files import write

T = TypeVar("T")
ARRAY = (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)
Card: TypeAlias = dict[str, Any]  # what JSON can hold


def save(path: str | Path, tree: PyTree, card: Card | None = None) -> None:
    """Write the array leaves of `tree` to `path`, and `card` as JSON beside it (suffix .json)."""
    if card is not None:
        write(Path(path).with_suffix(".json"), (json.dumps(card, indent=2) + "\n").encode())
    write(path, serialise({name: np.asarray(leaf) for name, leaf in named(tree).items()}))


def load(path: str | Path, like: T) -> T:
    """Return `like`, a tree of arrays or of `jax.ShapeDtypeStruct`, with its arrays read from `path`.

    Raises:
        ValueError: the file is missing or corrupt, or its names, shapes or dtypes are not those of `like`.
    """
    arrays = read(path)
    expected = named(like)
    for name, want in expected.items():
        if name not in arrays:
            raise ValueError(f"{path} has no array {name!r}: another model or version saved it.")
        array = arrays[name]
        if array.shape != want.shape or array.dtype != want.dtype:
            has, needs = (f"{a.dtype}{list(a.shape)}" for a in (array, want))
            raise ValueError(f"{path}: array {name!r} is {has}, the model needs {needs}.")
    for name in sorted(arrays):
        if name not in expected:
            raise ValueError(f"{path} holds an array {name!r} that the model lacks: another model saved it.")
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


def read(path: str | Path) -> dict[str, np.ndarray]:
    """All arrays of a safetensors file, by name."""
    return _open(path, parse)


def read_card(path: str | Path) -> Card:
    """The JSON card beside the weights at `path`."""
    file = Path(path).with_suffix(".json")
    card = _open(file, json.loads)
    if not isinstance(card, dict):
        raise ValueError(f"{file} is not a card: it holds a {type(card).__name__}, not a JSON object.")
    return card


def _open(path: str | Path, decode: Callable[[bytes], Any]) -> Any:
    try:
        return decode(Path(path).read_bytes())
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
