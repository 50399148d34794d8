"""Where a run starts: at the prior, at a given state, or at data with noise of a time in the middle."""

import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..eager import Latest, once
from ..numerics import Grid, Key, Like, Real, State, axpy, is_traced, on_host
from ..paths import Denoiser, Path
from ..paths.predictions import each, spread


def start(
    denoiser: Denoiser, key: Key | None, like: Like, x: State | None, first: Any, level: Any, jit: bool
) -> tuple[State, Key | None]:
    """The state at the first grid time, and the key of the solver's noise.

    Args:
        denoiser: whose paths say how noise is added; the network is not called.
        key: None if nothing is drawn.
        like: what the state is shaped like.
        x: the state; None for a draw of the prior; with `level`, clean data.
        first: the time of the prior, None for the path's t_max.
        level: (alpha, sigma) that make x noisy, None if x is the state itself.
        jit: keep the compiled program.
    """
    if key is None and (x is None or level is not None):
        what = "drawing x_T needs key=jax.random.key(seed); or pass x, the starting state"
        noised = "strength= and t_start= add noise to x: pass key=jax.random.key(seed)"
        raise ValueError(what if x is None else noised)
    if x is not None:
        x = jax.tree.map(jnp.asarray, x)
        if jax.tree.map(jnp.shape, x) != jax.tree.map(jnp.shape, like):
            raise ValueError(
                f"x has shape {jax.tree.map(jnp.shape, x)}, like {jax.tree.map(jnp.shape, like)}; they must "
                "be equal"
            )
    if x is None:
        _warn_of_missing_data(denoiser, first)
    rest = (key, like, x, first if x is None else None, level)
    if not jit:
        return _begin(denoiser, *rest)
    return once(_begin, Denoiser(_any_network, denoiser.path, denoiser.kind), *rest)


MUCH = 0.25  # alpha/sigma from which a warning tells that a drawn start leaves out the data in it


def _warn_of_missing_data(denoiser: Denoiser, first: Any) -> None:
    """Warn if the start is below t_max, where much of x is data."""

    def check(path, t):
        if t is None or is_traced(t) or t >= path.t_max:
            return
        share = _shares.made((path.law, t), lambda: _share(path, t))
        if share > MUCH:
            warnings.warn(
                f"the grid begins at t={t:g}, where x holds data too (alpha/sigma = {share:.2g}), and x is "
                f"drawn without: start the grid at t_max={path.t_max:g}, or pass "
                "x=path.perturb(x_0, t, eps)",
                stacklevel=6,
            )

    each(denoiser.path, check, spread(denoiser.path, first))


_shares = Latest(128)  # by path and time


def _share(path: Path, t: float) -> float:
    """alpha/sigma."""
    with on_host():
        return float(path.alpha(t)) / max(float(path.sigma(t)), 1e-30)


def _any_network(x: State, t: Any) -> State:
    """In the place of the network, on which the start does not depend: one program serves them all."""
    return x


def _begin(
    denoiser: Denoiser, key: Key | None, like: Like, x: State | None, first: Any, level: Any
) -> tuple[State, Key | None]:
    keys: Any = [None, None] if key is None else jax.random.split(key)
    if x is None:
        return denoiser.prior(keys[0], like, first), keys[1]
    if level is None:
        return x, keys[1]
    add = lambda path, y, level, eps: axpy(level[0], y, level[1], eps)
    y = denoiser.each(add, denoiser.centred(x), level, denoiser.noise(keys[0], x))
    return denoiser.uncentred(y), keys[1]


def kept(n: int, strength: Real | None, t_start: Any, grid: Grid | None) -> int:
    """How many of n intervals a start in the middle leaves: the last ones.

    Args:
        n: intervals of the grid.
        strength: keeps the last ceil(strength n).
        t_start: keeps those from the first grid time that is not after it.
        grid: the times, for `t_start`.
    """
    if strength is not None:
        if is_traced(strength) or not 0 < float(strength) <= 1:
            shown = "a traced value" if is_traced(strength) else strength
            raise ValueError(f"strength is a share of the intervals, above 0 and at most 1; got {shown}")
        return math.ceil(float(strength) * n - 1e-9)
    if is_traced(t_start, grid):
        raise ValueError("t_start= cuts the grid: neither may be traced")
    later = np.flatnonzero(np.asarray(grid) <= float(t_start) * (1 + 1e-9))
    if len(later) == 0 or later[0] == n:
        first, last = (float(np.asarray(grid)[i]) for i in (0, -1))
        raise ValueError(f"t_start={t_start} leaves no interval of the grid {first:g} -> {last:g}")
    return n - int(later[0])


def middle(
    denoiser: Denoiser, strength: Real | None, t_start: Any, grid: Any, solver: Any
) -> tuple[Any, Any, Any]:
    """The grid, the solver and the time of a start in the middle; for a system, dicts of them."""
    if strength is not None and t_start is not None:
        raise ValueError("strength= and t_start= both say where to start: give one")
    count = lambda path, grid, t: kept(len(grid) - 1, strength, t, grid)
    left = denoiser.each(count, grid, denoiser.spread(t_start))
    if isinstance(left, dict) and len(set(left.values())) > 1:
        raise ValueError(
            f"the parts of a system run together: t_start leaves {left} intervals of their grids"
        )
    k = next(iter(left.values())) if isinstance(left, dict) else left
    grid = denoiser.each(lambda path, grid: grid[len(grid) - 1 - k :], grid)
    cut = lambda s: s[len(s) - k :] if isinstance(s, list) else s
    solver = {name: cut(s) for name, s in solver.items()} if isinstance(solver, dict) else cut(solver)
    return grid, solver, denoiser.each(_weights, grid)


def _weights(path: Path, grid: Grid) -> tuple[Any, Any]:
    """alpha and sigma at the first grid time: exact unless it is traced."""
    if is_traced(grid):
        return path.alpha(grid[0]), path.sigma(grid[0])
    with on_host():
        return np.asarray(path.alpha(grid[0]), np.float64), np.asarray(path.sigma(grid[0]), np.float64)
