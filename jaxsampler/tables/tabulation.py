r"""From a textbook step to its table: run it on unit vectors in float64, and nobody expands a coefficient by
hand.

`rows` turns the steps of all intervals into rows of named values; here values get registers, and rows become
columns.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..eager import Latest
from ..numerics import Arr, Grid, is_traced, namespace, on_host
from ..paths import Path, grids
from ..paths.predictions import linear_form
from .remembered import Points, Remembered
from .rows import NOISE, STATE, Row, Rows, Value
from .scheduling import schedule
from .steps import Step
from .table import Table
from .tamed import Tamed


def tabulate(
    path: Path,
    grid: Grid,
    solver: Any,
    *,
    to_zero: bool | None = None,
    from_noise: bool | None = None,
) -> Table:
    """Return the table of `solver` on `grid`.

    Args:
        path: the schedule.
        grid: n+1 decreasing times. A traced grid gives a traced, differentiable table. Its derivatives are
            finite: one that does not exist (sigma of VP at t = 0, lam at alpha = 0) counts as 0.
        solver: a step, or a list with one step per interval, taken literally (but for a first one that
            cannot leave alpha = 0, such as `dpmpp_2s`: its own step for that takes its place).
        to_zero: whether the last interval takes the solver's step into sigma = 0. None looks it up; of a
            traced grid it takes the answer to be no, so say True if the grid ends there, else the samples are
            NaN.
        from_noise: whether the first interval takes the solver's step out of alpha = 0; None as above.

    Raises:
        ValueError: the grid does not decrease within [0, t_max], the schedule does not fit it, the solver
            cannot use an end of the path, or a step is not linear.

    Example:
        >>> table = js.tabulate(js.CondOT(), [1.0, 0.5, 0.0], js.solvers.euler)
        >>> table.A.tolist(), table.B[:, 0].tolist()
        ([1.0, 1.0], [-0.5, -0.5])
    """
    grid = grids.checked(path, grid)
    if is_traced(grid):
        steps = schedule(solver, len(grid) - 1, to_zero=bool(to_zero), from_noise=bool(from_noise))
        tamed: Any = Tamed(path)
        return _table(tamed, Rows(tamed, grid, steps), grid)
    steps = [step for step in _listed(solver) if isinstance(step, Step)]
    if is_traced([step.given for step in steps]) or not all(step.ours for step in steps):
        return _concrete(path, grid, solver, to_zero, from_noise)  # a user's step may read what changes
    key = path.law, grid.tobytes(), tuple(_listed(solver)), to_zero, from_noise
    known = TABLES.made(key, lambda: _concrete(path, grid, solver, to_zero, from_noise))
    return jax.tree.map(np.copy, known)  # the caller may write into it


TABLES = Latest(128)  # by path, grid and solver


def _listed(solver: Any) -> Sequence:
    return solver if isinstance(solver, list | tuple) else [solver]


def _concrete(path: Path, grid: Arr, solver: Any, to_zero: bool | None, from_noise: bool | None) -> Table:
    n = len(grid) - 1
    with on_host():
        zero = bool(np.asarray(path.sigma(grid[-1])) == 0) if to_zero is None else to_zero
        pure = bool(np.asarray(path.alpha(grid[0])) == 0) if from_noise is None else from_noise
    steps = schedule(solver, n, to_zero=zero, from_noise=pure)
    _warn_of_near_times(path, grid, steps)
    known: Any = Remembered(path)
    if is_traced(
        [step.given for step in steps]
    ):  # an option such as eta: its arithmetic is staged, that of the path is not
        return _table(known, Rows(known, grid, steps), grid)
    return assemble(known, grid, steps)


NEAR = 1e-4  # of the interval before or after, in lam


def _warn_of_near_times(path: Path, grid: Arr, steps: Sequence[Step]) -> None:
    """Warn if a multistep solver divides by a step that is tiny against those around it."""
    with on_host():
        h = np.diff(np.asarray(path.lam(grid), np.float64)) if len(grid) > 2 else np.empty(0)
    around = np.maximum(np.append(h[1:], 0.0), np.append(0.0, h[:-1]))
    tiny = np.isfinite(h) & np.isfinite(around) & (h < NEAR * around)
    reads = [i for i in np.flatnonzero(tiny).tolist() if any(step.past for step in steps[i : i + 4])]
    if reads:
        i = reads[0]
        warnings.warn(
            f"grid[{i}]={grid[i]:.9g} and grid[{i + 1}]={grid[i + 1]:.9g} are nearly equal: {steps[-1].name} "
            "divides differences of outputs by this step, so their rounding is multiplied by "
            f"{around[i] / max(h[i], 1e-300):.1g}; drop one of the two times, or take a solver of one step",
            stacklevel=5,
        )


def tabulate_points(path: Path, grid: Any, steps: Sequence[Step]) -> Table:
    """`tabulate` for a traced grid and steps that read single times only, `ts[-2]` and the like: less to
    compile.
    """
    tamed: Any = Tamed(path)
    known: Any = Remembered(tamed)
    return _table(known, Rows(known, Points(grid), steps), grid)


def assemble(path: Any, grid: Arr, steps: Sequence[Step]) -> Table:
    """The table of one step per interval of a concrete grid, which may also rise (as backward solves need
    it).
    """
    with on_host():
        table = _table(path, Rows(path, grid, steps), grid)
        finite = [
            np.isfinite(c).reshape(table.nfe, -1).all(-1) for c in (table.A, table.B, table.C, table.form)
        ]
        bad = ~np.all(finite, axis=0)
        if np.any(bad):
            t = table.t[int(np.argmax(bad))]
            last = steps[-1].to_zero
            into_zero = last is not None and float(path.sigma(grid[-1])) == 0
            raise ValueError(
                f"the coefficients of row {int(np.argmax(bad))} (model call at t={t:g}, "
                f"alpha={float(path.alpha(t)):.3g}, sigma={float(path.sigma(t)):.3g}) are not finite: "
                + (
                    f"{steps[-1].name} cannot step into sigma = 0, and a list of steps is taken literally; "
                    f"end it with {last.name}"
                    if into_zero and last is not None
                    else "this solver cannot use that end of the path; keep the grid away from it, or use a "
                    "data-kind solver"
                )
            )
    return table


SHARES = (0.15, 0.4, 0.65, 0.9)  # of t_max, where a path is told from others


def mark_of(path: Path) -> Arr | None:
    """(t, alpha, sigma) at some times of a path; None if it depends on traced values."""
    own: Any = path
    while hasattr(own, "_path"):  # of what remembers or tames it
        own = own._path
    if is_traced(own):
        return None
    with on_host():
        rows = [(t, path.alpha(t), path.sigma(t)) for t in (share * path.t_max for share in SHARES)]
        return np.asarray(rows, np.float64)


class _Registers:
    """Which register holds which value: each value holds one from the row that makes it to the last row that
    reads it.
    """

    def __init__(self, last_use: dict[Value, int]):
        self.last_use = last_use
        self.holder: list[Value] = []  # value in each register
        self.of: dict[Value, int] = {}

    def allocate(self, value: Value, r: int) -> int:
        """A register for a value that row r makes: the first one that is free by then."""
        for k, held in enumerate(self.holder):
            if self.last_use[held] < r:
                self.holder[k] = value
                break
        else:
            k = len(self.holder)
            self.holder.append(value)
        self.of[value] = k
        return k


def _table(path: Path, built: Rows, grid: Any) -> Table:
    """Assign registers and assemble the columns."""
    rows, nfe = built.rows, len(built.rows)
    registers = _Registers(built.last_use)
    lifts: list[dict[int, Any]] = []
    slot, keep = np.zeros(nfe, np.int32), np.zeros(nfe, np.int32)
    weights_at: list[dict[int, Any]] = []
    for r, row in enumerate(rows):
        slot[r] = registers.allocate(("m", r), r)
        kept = ("x", r) in built.last_use  # kept first, then overwritten by the output
        keep[r] = registers.allocate(("x", r), r) if kept else slot[r]
        weights_at.append({registers.of[value]: b for value, b in row.B.items()})
        moved = built.lifts.get(r, {})
        lifts.append({registers.of[value]: w for value, w in moved.items() if value not in (STATE, NOISE)})

    def column(values: Sequence) -> Any:
        xp = namespace(*values) if is_traced(values) else np
        dtype = jnp.result_type(float) if xp is jnp and not is_traced(grid) else grid.dtype
        return xp.stack([xp.asarray(v, dtype) for v in values])

    def per_register(weights: list) -> Any:
        return column([column([w.get(k, 0.0) for k in range(len(registers.holder))]) for w in weights])

    t = column([row.t for row in rows])
    lift, mark = None, mark_of(path)
    if built.lifted:
        moves = [built.lifts.get(r, {}) for r in range(nfe)]
        scale, noise = (
            column([moved.get(v, none) for moved in moves]) for v, none in ((STATE, 1.0), (NOISE, 0.0))
        )
        lift = namespace(scale, t).concatenate([scale[:, None], noise[:, None], per_register(lifts)], axis=1)
    return Table(
        t=t,
        A=column([row.A for row in rows]),
        B=per_register(weights_at),
        C=column([row.C for row in rows]),
        form=_forms(path, t, rows),
        end=column([row.end for row in rows]),
        slot=slot,
        keep=keep,
        draw=np.array([row.draw for row in rows], np.int32),
        start=column(built.start),
        begin=namespace(t).asarray(grid[0], t.dtype),
        lift=lift,
        made_on=None if mark is None else namespace(t).asarray(mark, t.dtype),
    )


def _forms(path: Path, t: Any, rows: Sequence[Row]) -> Any:
    """The linear form (a, b) of the kind that each row wants."""
    xp, form = namespace(t), namespace(t).zeros((len(rows), 2), t.dtype)
    for kind in dict.fromkeys(row.kind for row in rows):
        both = [xp.broadcast_to(xp.asarray(v, t.dtype), (len(rows),)) for v in linear_form(path, t, kind)]
        form = xp.where(np.array([row.kind == kind for row in rows])[:, None], xp.stack(both, -1), form)
    return form
