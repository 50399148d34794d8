"""Many samples: a key for each of them, and large numbers in chunks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..eager import staged
from ..numerics import State
from ..scan import Trajectory


def leading(x: Any, why: str) -> int:
    """The length of the leading axis that all leaves of x share."""
    shapes = [jnp.shape(a) for a in jax.tree.leaves(x)]
    sizes = {shape[0] if shape else None for shape in shapes}
    size = sizes.pop() if len(sizes) == 1 else None
    if size is None:
        raise ValueError(f"{why}: all of x needs one leading axis of samples; got shapes {shapes}")
    return size


def each(run: Callable, *arguments: Any) -> Any:
    """`run` of each sample, under vmap: what single calls return. Saved states come as [k, n, ..]."""
    out = jax.vmap(run)(*arguments)
    if not isinstance(out, Trajectory):
        return out
    return Trajectory(out.x, out.t[0], jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), out.xs))


def in_chunks(run: Callable, x: State, key: Any, keyed: bool, size: Any) -> Any:
    """`run(x, key)` of `size` samples at a time, so that the memory is that of one chunk.

    It is a loop of one compiled program. Samples that fill up the last chunk are computed and dropped.

    Args:
        run: of a chunk and its key.
        x: all samples at the start.
        key: None; a key, of which chunk i gets fold_in(key, i); or one for each sample.
        keyed: whether it is one for each sample.
        size: samples at a time.
    """
    n = leading(x, f"batch_size={size} draws samples in chunks")
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"batch_size is a number of samples, at least 1; got {size!r}")
    size = min(size, n)
    count = -(-n // size)
    place = np.minimum(np.arange(count * size), n - 1).reshape(count, size)
    chunk = lambda tree, at: jax.tree.map(lambda a: a[at], tree)

    def one(at: Any, i: Any) -> Any:
        if keyed:
            return run(chunk(x, at), chunk(key, at))
        return run(chunk(x, at), None if key is None else jax.random.fold_in(key, i))

    if staged():
        out = jax.lax.map(lambda entry: one(*entry), (jnp.asarray(place), jnp.arange(count)))
    else:
        parts = [one(at, i) for i, at in enumerate(place)]
        out = jax.tree.map(lambda *a: jnp.stack(a), *parts)
    join = lambda a: a.reshape(-1, *a.shape[2:])[:n]
    if isinstance(out, Trajectory):
        xs = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), out.xs)
        xs = jax.tree.map(lambda a: a.reshape(len(a), -1, *a.shape[3:])[:, :n], xs)
        return Trajectory(jax.tree.map(join, out.x), out.t[0], xs)
    return jax.tree.map(join, out)
