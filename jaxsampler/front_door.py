"""The front door: draw the prior, tabulate the solver, run it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .paths import grids
from .paths.predictions import Denoiser
from .scan.adjoints import Adjoint
from .scan.driver import drive
from .scan.protocol import Save, Solver, StepEnd
from .scan.table_solver import run
from .solvers.exponential import dpmpp_2m
from .tables.table import Table
from .tables.tabulation import tabulate


def sample(
    denoiser: Callable,
    like: PyTree,
    *,
    key: Any,
    solver: Any = dpmpp_2m,
    grid: Any = None,
    steps: int = 20,
    x: PyTree | None = None,
    adjoint: Adjoint | None = None,
    save: Save = None,
    progress: bool = False,
    hook: Callable[[StepEnd], PyTree] | None = None,
    noise: PyTree | None = None,
    check: bool = False,
    per_step: PyTree | None = None,
) -> Any:
    """Samples shaped like `like`, or a `Trajectory` if `save` is given.

    like: array, `jax.ShapeDtypeStruct` or a pytree of them. key: for the prior and the solver's noise (None if neither is drawn).
    solver: a step such as `js.solvers.dpmpp_2m`, a list of steps, one per interval, a `Table`, or a `js.Solver`. grid: decreasing times,
    by default `js.grids.default(path, steps)`, `steps` intervals. x: the starting state x_T, by default drawn from the path's prior.
    For a system (a denoiser with a dict of paths) `like`, x and a `Table` are dicts with its names, solver and grid may be.
    The other arguments are those of `run`.
    """
    if not isinstance(denoiser, Denoiser):
        raise TypeError(
            f"denoiser must be a js.Denoiser(net, path, kind), got {type(denoiser).__name__}: the sampler must know the path and what "
            "the network predicts"
        )
    path = denoiser.path
    like = jax.tree.map(lambda a: a if isinstance(a, jax.ShapeDtypeStruct) else jnp.asarray(a), like)
    for leaf in jax.tree.leaves(like):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(f"samples are floating point: `like` has dtype {leaf.dtype}; use jnp.float32")
    prior_key, noise_key = (None, None) if key is None else jax.random.split(key)
    if x is None:
        if key is None:
            raise ValueError("drawing x_T needs key=jax.random.key(seed); or pass x, the starting state")
        x = denoiser.prior(prior_key, like)
    if jax.tree.map(jnp.shape, x) != jax.tree.map(jnp.shape, like):
        raise ValueError(
            f"x has shape {jax.tree.map(jnp.shape, x)}, like {jax.tree.map(jnp.shape, like)}; they must be equal"
        )
    if isinstance(solver, type):
        raise TypeError(f"solver is the class {solver.__name__}; call it: {solver.__name__}()")
    options: dict = dict(
        adjoint=adjoint, save=save, progress=progress, hook=hook, check=check, per_step=per_step
    )

    if isinstance(solver, Table) or (
        isinstance(solver, dict) and all(isinstance(v, Table) for v in solver.values())
    ):
        if grid is not None:
            raise ValueError(
                "a Table has its grid already: leave grid out, or give the step that the table was made from"
            )
        return run(denoiser, solver, x, key=noise_key, noise=noise, **options)
    if isinstance(path, dict):
        each = lambda a: a if isinstance(a, dict) else dict.fromkeys(path, a)
        tabulated = lambda path, grid, solver: tabulate(
            path, grids.default(path, steps) if grid is None else grid, solver
        )
        return run(
            denoiser,
            denoiser.each(tabulated, each(grid), each(solver)),
            x,
            key=noise_key,
            noise=noise,
            **options,
        )
    grid = grids.default(path, steps) if grid is None else grid
    if isinstance(solver, Solver):
        if noise is not None:
            raise ValueError(
                "noise= is for tables; give it to this solver itself, as in js.solvers.mr_published(noise=...)"
            )
        return drive(
            solver, solver.rows(path, grids.checked(path, grid)), denoiser, x, key=noise_key, **options
        )
    return run(denoiser, tabulate(path, grid, solver), x, key=noise_key, noise=noise, **options)
