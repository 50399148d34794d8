"""Arrays of a pytree in one safetensors file, a JSON card beside it.

The name of an array is its key path, so a file can be read without the code that wrote it and a mismatch can be named. The structure
is not stored: `load` fills the arrays of a tree `like` built by the caller. Dtypes are numpy's (no bfloat16, no keys). Files are written
whole or not at all.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as parse
from safetensors.numpy import save as serialise

from .files import write

T = TypeVar("T")


def save(path: str | Path, tree: Any, card: dict[str, Any] | None = None) -> None:
    """The array leaves of `tree` at `path`; `card`, if given, as JSON beside it (suffix .json)."""
    if card is not None:
        write(Path(path).with_suffix(".json"), (json.dumps(card, indent=2) + "\n").encode())
    write(path, serialise({name: np.asarray(leaf) for name, leaf in named(tree).items()}))


def load(path: str | Path, like: T) -> T:
    """`like` with its arrays read from `path`.

    Raises ValueError in one line if the file is missing, corrupt, or its names, shapes or dtypes are not those of `like`.
    """
    arrays = read(path)
    expected = named(like)
    for name, want in expected.items():
        if name not in arrays:
            raise ValueError(f"{path} has no array {name!r}: it was saved by another model or version.")
        array = arrays[name]
        if array.shape != want.shape or array.dtype != want.dtype:
            raise ValueError(
                f"{path}: array {name!r} is {array.dtype}{list(array.shape)}, the model needs {want.dtype}{list(want.shape)}."
            )
    for name in sorted(arrays):
        if name not in expected:
            raise ValueError(
                f"{path} holds an array {name!r} that the model has not: it was saved by another model."
            )
    return jax.tree_util.tree_map_with_path(
        lambda p, x: jnp.asarray(arrays[spell(p)]) if eqx.is_array(x) else x, like
    )


def resume(path: str | Path, start: T, card: dict[str, Any]) -> T:
    """The state that a run with this card saved at `path`, else `start`; ValueError naming what differs if it is another run's."""
    if not Path(path).exists():
        return start
    expect(path, card)
    return load(path, start)


def expect(path: str | Path, card: dict[str, Any]) -> None:
    """ValueError naming what differs, unless the card beside `path` is this one: what lies there is another run's."""
    settings = json.loads(json.dumps(card))  # as they are read back
    if (old := read_card(path)) != settings:
        changed = sorted(k for k in {*old, *settings} if old.get(k) != settings.get(k))
        raise ValueError(
            f"{Path(path).parent} holds a run with another {', '.join(changed)}: use another folder or delete it."
        )


def digest(tree: Any) -> str:
    """SHA-256 of the arrays of a tree, numpy's too, in hexadecimal."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        if hasattr(leaf, "dtype"):
            found.update(f"{leaf.dtype}{leaf.shape}".encode() + np.asarray(leaf).tobytes())
    return found.hexdigest()


def read(path: str | Path) -> dict[str, np.ndarray]:
    """All arrays of a safetensors file by name."""
    return _open(path, parse)


def read_card(path: str | Path) -> dict[str, Any]:
    """The JSON card beside the weights at `path`."""
    file = Path(path).with_suffix(".json")
    card = _open(file, json.loads)
    if not isinstance(card, dict):
        raise ValueError(f"{file} is not a card: it holds a {type(card).__name__}, not an object.")
    return card


def _open(path: str | Path, decode: Callable[[bytes], Any]) -> Any:
    try:
        return decode(Path(path).read_bytes())
    except OSError as e:
        raise ValueError(f"cannot read {path}: {e.strerror}.") from None
    except (SafetensorError, ValueError) as e:
        raise ValueError(f"{path} is corrupt ({str(e).splitlines()[0]}): fetch or train it again.") from None


def named(tree: Any) -> dict[str, Any]:
    """The array leaves of `tree` by key path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {spell(path): leaf for path, leaf in leaves if eqx.is_array(leaf)}


def spell(path: tuple[Any, ...]) -> str:
    """A key path as dotted words: `unet.encoder.0.1.film.weight`."""
    return jax.tree_util.keystr(path, simple=True, separator=".")
