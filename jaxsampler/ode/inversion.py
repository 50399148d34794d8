r"""Inversion: the noise that a sample came from, and editing by sampling from it under another condition.

any deterministic step    the same step on the rising grid; its error is that of the solver, twice
                          (DDIM inversion [Song et al. 2021a])
refine > 0                DDIM steps solved for the noisier state by fixed-point iteration
                          [Garibi et al. 2024, ReNoise; Pan et al. 2023]
reversible solvers        exact to rounding, whatever the number of steps: both parts of the state are kept
rf_solver                 the midpoint rule on a rectified flow, on the rising grid
                          [Wang et al. 2024a, RF-Solver]

inverted = js.inversion.invert(denoiser, x0, solver=js.solvers.obelm(), steps=50)
again = js.inversion.regenerate(denoiser, inverted)          # x0
edited = js.inversion.regenerate(another, inverted)          # x0 under another condition
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ..front_door import sample
from ..numerics import Arr, Grid, Key, Real, State
from ..paths import Denoiser, Path, grids
from ..paths.grids.checks import intervals
from ..scan import Adjoint, Solver, run
from ..scan.driver import drive
from ..scan.observers import with_entry
from ..scan.protocol import Watch
from ..solvers import ddim
from ..solvers.reversible import ddim_rows, linear, noise
from ..tables import Step
from .adjoint_dpm import rising_table

Entries = PyTree[Arr | Real] | None  # of `per_step`


class Inverted(NamedTuple):
    """What `invert` found.

    Attributes:
        x: the noise x_T.
        state: all parts of a reversible solver's state, else None.
        solver, grid: what it was inverted by.

    Example:
        >>> denoiser = js.Denoiser(lambda x, t: 0 * x + 2.0, js.CondOT(), "velocity")
        >>> inverted = js.inversion.invert(denoiser, jnp.zeros(1), grid=[1.0, 0.5, 0.25])
        >>> inverted.x.tolist(), inverted.state, inverted.solver.name, inverted.grid.tolist()
        ([1.5], None, 'ddim', [1.0, 0.5, 0.25])
    """

    x: State
    state: tuple | None
    solver: Any
    grid: np.ndarray


class _From(eqx.Module):
    """A reversible solver that starts from a given state and may go backwards."""

    solver: Any
    state: tuple
    backwards: bool = eqx.field(static=True, default=False)

    def init(self, x: State, rows: PyTree[Arr | Real]) -> tuple:
        return self.state

    def step(self, model: Callable, state: tuple, row: PyTree[Arr | Real], key: Key | None) -> tuple:
        return (self.solver.reverse if self.backwards else self.solver.step)(model, state, row, key)

    def final(self, state: tuple) -> tuple:
        return state


def invert(
    denoiser: Denoiser,
    x: State,
    *,
    solver: Step | Solver = ddim,
    grid: Grid | None = None,
    steps: int | None = None,
    refine: int = 0,
    per_step: Entries = None,
    adjoint: Adjoint | None = None,
    progress: bool = False,
    jit: bool = True,
) -> Inverted:
    """Return the state at the first (noisiest) grid time that samples to `x` at the last one.

    Args:
        solver: a deterministic step, or a reversible solver (edict, bdia, obelm, reversible_heun,
            mccallum_foster).
        grid, steps: as in `sample`; by default 50 steps.
        refine: fixed-point iterations per step, for first-order steps, which are then DDIM's.
        per_step: entries of the grid's intervals, in the order of sampling.
        adjoint, progress, jit: as in `run`.

    Example:
        >>> denoiser = js.Denoiser(lambda x, t: jnp.tanh(x), js.VP(), "data")
        >>> inverted = js.inversion.invert(denoiser, jnp.ones(1), solver=js.solvers.bdia(), steps=3)
        >>> again = js.inversion.regenerate(denoiser, inverted)
        >>> print(f"{inverted.x[0]:.2f} -> {again[0]:.4f}")
        1.85 -> 1.0000
    """
    path = denoiser.path
    if not isinstance(path, Path):
        raise ValueError("inversion works on one path, not on a system")
    n = intervals(steps, grid, 50)
    grid = np.asarray(grids.checked(path, grids.default(path, n) if grid is None else grid))
    flipped = jax.tree.map(lambda a: jnp.asarray(a)[::-1], per_step)
    options: dict = dict(adjoint=adjoint, progress=progress, per_step=flipped, jit=jit)
    reversible: Any = solver
    if hasattr(solver, "reverse"):
        if refine:
            raise ValueError("a reversible solver inverts exactly: leave refine out")
        rows, entries = _after_start(solver, path, grid, per_step)
        back, options["per_step"] = (jax.tree.map(lambda a: a[::-1], tree) for tree in (rows, entries))
        last = denoiser if entries is None else with_entry(denoiser, jax.tree.map(lambda a: a[-1], entries))
        state = drive(
            _From(solver, reversible.arrive(last, x, rows), True), back, denoiser, x, watch=Watch(**options)
        )
        return Inverted(state[0], state, solver, grid)
    if not isinstance(solver, Step):
        raise TypeError(
            f"invert takes a step of js.solvers or a reversible solver, not {type(solver).__name__}"
        )
    if solver.stochastic:
        raise ValueError(
            f"{solver.name} draws noise, so it has no inverse; "
            "take a deterministic solver, such as ddim or obelm()"
        )
    if refine:
        if solver.order != 1 or solver.kind not in ("data", "noise"):
            raise ValueError(f"refine solves first-order steps: take ddim, or {solver.name} without refine")
        return Inverted(_refined(denoiser, x, grid, refine, options), None, solver, grid)
    return Inverted(
        run(denoiser, rising_table(solver, path, grid, denoiser.kind), x, **options), None, solver, grid
    )


def regenerate(denoiser: Denoiser, inverted: Inverted, **options: Any) -> Any:
    """Sample from `inverted` with the same solver and grid; `denoiser` may be of another condition.

    Options are those of `sample`.

    Example:
        >>> flow = lambda v: js.Denoiser(lambda x, t: 0 * x + v, js.CondOT(), "velocity")
        >>> inverted = js.inversion.invert(flow(2.0), jnp.zeros(1), grid=[1.0, 0.5, 0.25])
        >>> [js.inversion.regenerate(flow(v), inverted).tolist() for v in (2.0, 3.0)]
        [[0.0], [-0.75]]
    """
    solver, grid = inverted.solver, inverted.grid
    if inverted.state is None:
        return sample(denoiser, inverted.x, x=inverted.x, key=None, solver=solver, grid=grid, **options)
    if "save" in options:
        raise ValueError("states are not saved here; sample from inverted.x to see them")
    rows, options["per_step"] = _after_start(solver, denoiser.path, grid, options.get("per_step"))
    return solver.final(
        drive(_From(solver, inverted.state), rows, denoiser, inverted.x, watch=Watch(**options))
    )


def edit(
    source: Denoiser,
    target: Denoiser,
    x: State,
    *,
    per_step: tuple[Entries, Entries] = (None, None),
    **options: Any,
) -> Any:
    """Invert `x` under `source`, then sample under `target`.

    Args:
        per_step: entries for the two.
        **options: as in `invert`.

    Example:
        >>> flow = lambda v: js.Denoiser(lambda x, t: 0 * x + v, js.CondOT(), "velocity")
        >>> js.inversion.edit(flow(2.0), flow(3.0), jnp.zeros(1), grid=[1.0, 0.5, 0.25]).tolist()
        [-0.75]
    """
    inverted = invert(source, x, per_step=per_step[0], **options)
    return regenerate(target, inverted, **({} if per_step[1] is None else {"per_step": per_step[1]}))


def _after_start(
    solver: Any, path: Path | dict[str, Path], grid: np.ndarray, per_step: Entries
) -> tuple[Any, Any]:
    """The rows that have an inverse, and their entries: a row that only starts the second state has none."""
    if per_step is not None and getattr(solver, "carries_slope", False):
        raise ValueError(
            f"{type(solver).__name__} carries its slope from interval to interval: "
            "it cannot be undone with per_step entries"
        )
    rows, k = solver.rows(path, grid), solver.starting_rows
    entries = (
        None
        if per_step is None
        else jax.tree.map(lambda a: jnp.asarray(a)[int(np.isfinite(rows.end[:k]).sum()) :], per_step)
    )
    return jax.tree.map(lambda a: a[k:], rows), entries


def _refined(denoiser: Denoiser, x: State, grid: np.ndarray, refine: int, options: dict) -> Any:
    """DDIM steps a x_t + b eps(x_t) = x_s solved for x_t by iterating x_t <- (x_s - b eps(x_t))/a."""
    path: Any = denoiser.path
    rows = jax.tree.map(lambda a: a[::-1], ddim_rows(path, grid))
    return drive(_FixedPoint(refine), rows, denoiser, x, watch=Watch(**options))


class _FixedPoint(eqx.Module):
    """One row is one interval, upwards."""

    iterations: int = eqx.field(static=True)

    def init(self, x: State, rows: PyTree[Arr | Real]) -> tuple:
        return (x,)

    def step(self, model: Denoiser, state: tuple, row: Any, key: Key | None) -> tuple:
        below, eps, (a, b) = model.centred(state[0]), noise(model), (row.c["a"], row.c["b"])

        def iterate(above, _):
            return linear((1 / a, below), (-b / a, eps(above, row.t))), None

        above = linear((1 / a, below))
        above = jax.lax.scan(iterate, above, None, length=self.iterations + 1)[0]
        return (model.uncentred(above),)

    def final(self, state: tuple) -> State:
        return state[0]
