"""`js.sample`: draw the start, tabulate the solver, run it."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import PyTree

from ..eager import Latest
from ..numerics import Grid, Key, Like, Real, State, is_traced
from ..paths import Denoiser, grids
from ..paths.predictions import each, spread
from ..scan import Adjoint, Sampler, Solver, StepEnd
from ..scan.driver import drive
from ..scan.protocol import Save, Watch
from ..scan.run_table import run_watched
from ..solvers import dpmpp_2m
from ..tables import Step, tabulate
from . import arguments, many
from .starting import middle, start


def sample(
    denoiser: Denoiser,
    like: Like | None = None,
    *,
    key: Key | list | None = None,
    solver: Sampler | dict | Callable | str | tuple = dpmpp_2m,
    grid: Grid | dict | None = None,
    steps: int | None = None,
    x: State | None = None,
    strength: Real | None = None,
    t_start: Real | dict | None = None,
    batch_size: int | None = None,
    stop: int | None = None,
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
        like: array, `jax.ShapeDtypeStruct`, a shape (of float32), or a pytree of them; by default x.
        key: for the start and the solver's noise; None if neither is drawn. A vector or list of n keys draws
            sample i, along the leading axis of all of x, from key i, as a call of its own would.
        solver: a step such as `js.solvers.dpmpp_2m`, its name, (name, {option: value}), a list of steps (one
            per interval), a `Table`, or a `js.Solver`.
        grid: decreasing times, by default `js.grids.default(path, steps)`.
        steps: number of intervals of the default grid, by default 20.
        x: the state at the first grid time. By default it is drawn from the path's prior there, mu +
            prior_std_at(t) eps. That leaves out the data in x, alpha (x_0 - mu): below t_max there may be
            much of it, and a warning says so.
        strength: start in the middle [Meng et al. 2022, SDEdit]. x is then clean data, noised with `key` to
            the start of the last ceil(strength n) of the grid's n intervals, which are run.
        t_start: the same, from the first grid time that is not after `t_start`.
        batch_size: samples that run at a time, where x has a leading axis of them. With one key, chunk i
            draws its noise from fold_in(key, i).
        stop, adjoint, save, progress, hook, noise, check, per_step, jit: as in `run`.

    Raises:
        TypeError: `denoiser` is not a Denoiser, or samples would not be floating point.
        ValueError: a key is missing, or shapes, grid and solver do not fit together.

    Example:
        >>> denoiser = js.models.gaussian_mixture(jnp.array([[2.0], [-2.0]]), 0.1, js.VP())
        >>> x = js.sample(denoiser, (64, 1), key=jax.random.key(0), steps=10)
        >>> bool((abs(abs(x) - 2.0) < 0.5).all())
        True
        >>> js.sample(denoiser, x=x + 0.3, key=jax.random.key(1), strength=0.3).shape
        (64, 1)
    """
    arguments.check_denoiser(denoiser, like)
    arguments.check_instances(adjoint=adjoint, x=x, like=like)
    arguments.check_grid(grid)
    like = arguments.like_of(like, x)
    key, keyed = arguments.key_of(key)
    solver = arguments.solver_of(solver)
    n, level = arguments.intervals(steps, grid, solver), None
    if arguments.is_table(solver):
        if grid is not None:
            raise ValueError(
                "a Table has its grid already: leave grid out, or give the step that the table was made from"
            )
    else:
        grid = _grids_of(denoiser, grid, n)
    if strength is not None or t_start is not None:
        if x is None or arguments.is_table(solver):
            raise ValueError(
                "strength= and t_start= start from x, clean data, on a part of the grid: "
                + ("pass x" if x is None else "give the step that the table was made from")
            )
        grid, solver, level = middle(denoiser, strength, t_start, grid, solver)
    if stop is not None and (keyed or batch_size is not None):
        what = "batch_size=" if batch_size is not None else "a vector of keys"
        raise ValueError(f"stop= keeps one run, and {what} makes several: give one of them, or use jax.vmap")
    watch = Watch(adjoint, save, progress, hook, check, per_step, jit, stop)
    run, first = _planned(denoiser, solver, grid, noise, watch)

    if noise is not None and not isinstance(noise, str) and (keyed or batch_size is not None):
        what = "a vector of keys" if keyed else "batch_size="
        raise ValueError(f"noise= holds the draws of all samples together: give it without {what}")
    if key is None or not keyed:
        x, noise_key = start(denoiser, key, like, x, first, level, jit)
        return (
            run(x, noise_key) if batch_size is None else many.in_chunks(run, x, noise_key, False, batch_size)
        )
    count = many.leading(like, f"key holds {len(key)} keys, one for each sample")
    if count != len(key):
        raise ValueError(f"key holds {len(key)} keys for {count} samples: give one for each, or a single key")
    single = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), like)
    begin = lambda key, x: start(denoiser, key, single, x, first, level, jit)
    x, keys = jax.vmap(begin, in_axes=(0, None if x is None else 0))(key, x)
    run_each = lambda x, keys: many.each(run, x, keys)
    return run_each(x, keys) if batch_size is None else many.in_chunks(run_each, x, keys, True, batch_size)


def _planned(denoiser: Denoiser, solver: Any, grid: Any, noise: PyTree | None, watch: Watch) -> tuple:
    """What takes (x, key) from the first grid time to the last; and when it begins.

    It begins at a time, a dict of times, or at None, the path's t_max.
    """
    path, table = denoiser.path, solver
    if arguments.is_table(solver):
        first = lambda _, table: (
            _number(table.first) if table.t.ndim == 1 else None
        )  # a stack is refused later
        begin = each(path, first, solver)
    elif not isinstance(path, dict) and not isinstance(solver, Step | list) and isinstance(solver, Solver):
        if noise is not None:
            raise ValueError(
                "noise= is for tables; give it to this solver itself, as in "
                "js.solvers.mr_published(noise=...)"
            )
        times = grids.checked(path, grid)
        rows = solver.rows(path, times)
        return lambda x, key: drive(solver, rows, denoiser, x, key=key, watch=watch), _number(times[0])
    else:
        table = each(path, tabulate, grid, spread(path, solver))
        begin = each(path, lambda _, table: _number(table.begin), table)
    return lambda x, key: run_watched(denoiser, table, x, key=key, noise=noise, watch=watch), begin


def _number(t: Any) -> Any:
    """A time that is known, as a number: part of the program that draws."""
    return t if t is None or is_traced(t) else float(t)


_known_grids = Latest(128)  # by path and number of intervals


def _grids_of(denoiser: Denoiser, grid: Any, n: int) -> Any:
    """The times, a dict of them for a system; by default those of each path."""
    if grid is None:
        made = lambda path: _known_grids.made((path.law, n), lambda: grids.default(path, n))
        return each(denoiser.path, made)
    return spread(denoiser.path, grid)
