"""What a user may say for `like`, `key`, `solver` and `grid`, and what each of these means."""

from types import FunctionType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..numerics import Grid, Key, Like, State
from ..paths import Denoiser
from ..paths.grids import checks
from ..solvers import by_name
from ..spelling import nearest
from ..tables import Table


def check_denoiser(denoiser: Any, like: Any) -> None:
    if isinstance(denoiser, Denoiser):
        return
    if isinstance(like, Denoiser):
        raise TypeError("denoiser and like are swapped: js.sample(denoiser, like, key=..)")
    name = denoiser.__name__ if isinstance(denoiser, type) else type(denoiser).__name__
    raise TypeError(
        f"denoiser must be a js.Denoiser(net, path, kind), got {name}: the sampler must know the path and "
        "what the network predicts"
    )


def like_of(like: Like | None, x: State | None) -> Like:
    """Arrays or `ShapeDtypeStruct`s that samples are shaped like; a tuple of whole numbers is a shape."""
    if like is None:
        if x is None:
            raise TypeError(
                "missing like: give the shape of the samples, such as (16, 32, 32, 3), or x, the "
                "starting state"
            )
        like = x
    like = jax.tree.map(_leaf, like, is_leaf=_is_shape)
    for leaf in jax.tree.leaves(like):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(f"samples are floating point: `like` has dtype {leaf.dtype}; use jnp.float32")
    return like


def _is_shape(a: Any) -> bool:
    whole = lambda n: isinstance(n, int | np.integer) and not isinstance(n, bool)
    return isinstance(a, tuple) and not hasattr(a, "_fields") and all(map(whole, a))


def _leaf(a: Any) -> Any:
    if _is_shape(a):
        return jax.ShapeDtypeStruct(a, jnp.float32)
    return a if isinstance(a, jax.ShapeDtypeStruct) else jnp.asarray(a)


def key_of(key: Any) -> tuple[Key | None, bool]:
    """The key, and whether it is an array of them, one for each sample."""
    if key is None:
        return None, False
    if isinstance(key, list | tuple):
        if not key:
            raise ValueError("key is an empty list: give one key for each sample")
        key = jnp.stack([jnp.asarray(k) for k in key])
    if isinstance(key, bool | int | float | np.number):
        raise TypeError(f"key={key!r} is a number: use key=jax.random.key({int(key)})")
    if not hasattr(key, "dtype"):
        raise TypeError(f"key must come from jax.random.key(seed), got {type(key).__name__}")
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed and (key.dtype != jnp.uint32 or key.ndim == 0):
        raise TypeError(f"key must come from jax.random.key(seed), got an array {key.dtype}{list(key.shape)}")
    axes = key.ndim - (0 if typed else 1)
    if axes > 1:
        raise ValueError(
            f"key is an array of keys of shape {list(key.shape[:axes])}: give one key, or a vector of them"
        )
    return key, axes == 1


def solver_of(solver: Any) -> Any:
    """The solver itself, where it is given by its name or as (name, options)."""
    if isinstance(solver, str):
        return by_name(solver.lower())
    if isinstance(solver, tuple) and solver and isinstance(solver[0], str):
        if len(solver) == 2 and isinstance(solver[1], dict):
            return by_name(solver[0].lower(), **solver[1])
        if not all(isinstance(s, str) for s in solver):
            raise TypeError(f"a solver with options is (name, {{option: value}}), got {solver!r}")
    if isinstance(solver, list | tuple):
        return [solver_of(s) for s in solver]
    if isinstance(solver, type | FunctionType):
        raise TypeError(f"solver is {solver.__name__} itself: call it, {solver.__name__}()")
    if isinstance(solver, dict):
        return {name: solver_of(s) for name, s in solver.items()}
    return solver


def is_table(solver: Any) -> bool:
    """Whether the solver is a table, or one for each part of a system."""
    return isinstance(solver, Table) or (
        isinstance(solver, dict) and bool(solver) and all(isinstance(v, Table) for v in solver.values())
    )


def intervals(steps: Any, grid: Grid | dict | None, solver: Any) -> int:
    """The number of intervals of the default grid."""
    if steps is not None and is_table(solver):
        raise ValueError(f"steps={steps} beside a Table: the table has its rows already; leave out steps")
    return checks.intervals(steps, grid, len(solver) if isinstance(solver, list | tuple) else 20)


def check_grid(grid: Any) -> None:
    if callable(grid) and not hasattr(grid, "shape"):
        name = getattr(grid, "__name__", "f")
        raise TypeError(f"grid is the function {name} itself: call it, {name}(path, steps)")
    if isinstance(grid, str):
        from ..paths import grids

        names = [n for n in vars(grids) if not n.startswith("_")]
        raise TypeError(f"grid={grid!r} is a name: use js.grids.NAME(path, steps); {nearest(grid, names)}")


def check_instances(**given: Any) -> None:
    """Refuse a class where one of its objects belongs."""
    for what, value in given.items():
        if isinstance(value, type):
            raise TypeError(f"{what} is the class {value.__name__}: make one, {value.__name__}()")
