"""The front door: draw the prior, tabulate the solver, run it."""

import warnings
from collections.abc import Callable
from types import FunctionType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .eager import Latest, once
from .numerics import Grid, Key, Like, State, is_traced, on_host
from .paths import Denoiser, Path, grids
from .scan import Adjoint, Sampler, Solver, StepEnd
from .scan.driver import drive
from .scan.protocol import Save, Watch
from .scan.run_table import run_watched
from .solvers import dpmpp_2m
from .tables import Table, tabulate


def sample(
    denoiser: Callable,
    like: Like,
    *,
    key: Key | None,
    solver: Sampler | dict | Callable = dpmpp_2m,
    grid: Grid | dict | None = None,
    steps: int = 20,
    x: State | None = None,
    adjoint: Adjoint | None = None,
    save: Save = None,
    progress: bool = False,
    hook: Callable[[StepEnd], State] | None = None,
    noise: PyTree | None = None,
    check: bool = False,
    per_step: PyTree | None = None,
    jit: bool = True,
) -> Any:
    """Return samples shaped like `like`, or a `Trajectory` if `save` is given.

    For a system (a denoiser with a dict of paths) `like`, x and a `Table` are dicts with its names; solver
    and grid may be.

    Args:
        denoiser: the network with its path and the kind of its prediction.
        like: array, `jax.ShapeDtypeStruct`, or a pytree of them.
        key: for the start and the solver's noise; None if neither is drawn.
        solver: a step such as `js.solvers.dpmpp_2m`, a list of steps (one per interval), a `Table`, or a
            `js.Solver`.
        grid: decreasing times, by default `js.grids.default(path, steps)`.
        steps: number of intervals of the default grid.
        x: the starting state. By default it is drawn from the path's prior at the first time of the grid,
            mu + prior_std_at(t) eps. That leaves out the data in x, alpha (x_0 - mu): below t_max there may
            be much of it, and a warning says so.
        adjoint, save, progress, hook, noise, check, per_step, jit: as in `run`.

    Raises:
        TypeError: `denoiser` is not a Denoiser, or samples would not be floating point.
        ValueError: a key is missing, or shapes, grid and solver do not fit together.

    Example:
        >>> denoiser = js.models.gaussian_mixture(jnp.array([[2.0], [-2.0]]), 0.1, js.VP())
        >>> x = js.sample(denoiser, jnp.zeros((64, 1)), key=jax.random.key(0), steps=10)
        >>> bool((abs(abs(x) - 2.0) < 0.5).all())
        True
    """
    if not isinstance(denoiser, Denoiser):
        raise TypeError(
            f"denoiser must be a js.Denoiser(net, path, kind), got {type(denoiser).__name__}: the sampler "
            "must know the path and what the network predicts"
        )
    path = denoiser.path
    like = jax.tree.map(lambda a: a if isinstance(a, jax.ShapeDtypeStruct) else jnp.asarray(a), like)
    for leaf in jax.tree.leaves(like):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(f"samples are floating point: `like` has dtype {leaf.dtype}; use jnp.float32")
    if x is None and key is None:
        raise ValueError("drawing x_T needs key=jax.random.key(seed); or pass x, the starting state")
    if isinstance(solver, type | FunctionType):
        raise TypeError(f"solver is {solver.__name__} itself: call it, {solver.__name__}()")
    if isinstance(solver, Solver) and noise is not None:
        raise ValueError(
            "noise= is for tables; give it to this solver itself, as in js.solvers.mr_published(noise=...)"
        )
    watch = Watch(adjoint, save, progress, hook, check, per_step, jit)
    sampler, first = _planned(denoiser, solver, grid, steps)
    if x is None:
        _warn_of_missing_data(denoiser, first)
    start = (key, like, x, first if x is None else None)
    x, noise_key = (
        once(_begin, Denoiser(_any_network, path, denoiser.kind), *start) if jit else _begin(denoiser, *start)
    )
    if jax.tree.map(jnp.shape, x) != jax.tree.map(jnp.shape, like):
        raise ValueError(
            f"x has shape {jax.tree.map(jnp.shape, x)}, like {jax.tree.map(jnp.shape, like)}; they must be "
            "equal"
        )
    if isinstance(solver, Solver):
        return drive(solver, sampler, denoiser, x, key=noise_key, watch=watch)
    return run_watched(denoiser, sampler, x, key=noise_key, noise=noise, watch=watch)


def _planned(denoiser: Denoiser, solver: Any, grid: Any, steps: int) -> tuple[Any, Any]:
    """What is scanned (a table, a dict of them, or the rows of a `Solver`), and when it begins.

    It begins at a time, a dict of times, or at None, the path's t_max.
    """
    tables = solver.values() if isinstance(solver, dict) else [solver]
    if all(isinstance(table, Table) for table in tables):
        if grid is not None:
            raise ValueError(
                "a Table has its grid already: leave grid out, or give the step that the table was made from"
            )
        first = lambda table: _number(table.first) if table.t.ndim == 1 else None  # a stack is refused later
        return solver, denoiser.each(lambda _, table: first(table), solver)
    path = denoiser.path
    if isinstance(solver, Solver) and not isinstance(path, dict):
        times = grids.checked(path, _times(path, steps) if grid is None else grid)
        return solver.rows(path, times), _number(times[0])
    made = lambda path, grid, solver: tabulate(path, _times(path, steps) if grid is None else grid, solver)
    each = lambda a: a if isinstance(a, dict) or not isinstance(path, dict) else dict.fromkeys(path, a)
    made_tables = denoiser.each(made, each(grid), each(solver))
    return made_tables, denoiser.each(lambda _, table: _number(table.begin), made_tables)


def _number(t: Any) -> Any:
    """A time that is known, as a number: part of the program that draws."""
    return t if t is None or is_traced(t) else float(t)


MUCH = 0.25  # alpha/sigma from which a warning tells that a drawn start leaves out the data in it


def _warn_of_missing_data(denoiser: Denoiser, first: Any) -> None:
    """Warn if the start is below t_max, where much of x is data."""

    def check(path, t):
        if t is None or is_traced(t) or t >= path.t_max:
            return
        with on_host():
            share = float(path.alpha(t)) / max(float(path.sigma(t)), 1e-30)
        if share > MUCH:
            warnings.warn(
                f"the grid begins at t={t:g}, where x holds data too (alpha/sigma = {share:.2g}), and x is "
                f"drawn without: start the grid at t_max={path.t_max:g}, or pass "
                "x=path.perturb(x_0, t, eps)",
                stacklevel=5,
            )

    denoiser.each(check, first)


def _any_network(x: State, t: Any) -> State:
    """In the place of the network, on which the start does not depend: one program serves them all."""
    return x


def _begin(
    denoiser: Denoiser, key: Key | None, like: Like, x: State | None, first: Any
) -> tuple[State, Key | None]:
    """The state at the first time and the key of the solver's noise."""
    keys: Any = [None, None] if key is None else jax.random.split(key)
    return denoiser.prior(keys[0], like, first) if x is None else x, keys[1]


_grids = Latest(128)  # by path and number of intervals


def _times(path: Path, steps: int) -> np.ndarray:
    """The default grid."""
    return _grids.made((path.law, steps), lambda: grids.default(path, steps))
