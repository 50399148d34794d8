r"""From a textbook step to its table: run it on unit vectors in float64, and nobody expands a coefficient by hand.

How a step becomes rows. Its j-th call is row j. The row's update leads from the input of call j to the input of call j+1 (or to the next
grid time). What the current state cannot express goes through registers: outputs, and the state at the step's first call (`keep`)
where the step calls more than once. Whatever precedes the first call (churn, a jump back in time) folds into the row before it, or
into `start`. Registers follow from what steps declare, never from numeric zeros, so the shape does not depend on the grid.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..numerics import is_traced, namespace, on_host
from ..paths import grids
from ..paths.base import Path
from ..paths.predictions import linear_form, weights
from .steps import Past, Step, schedule
from .table import Table

MAX_CALLS = 16  # per step; only sizes the unit vectors


def basis_size(step: Step) -> int:
    """Number of values that a step may combine: x, past outputs, past states, inputs of past outputs, draws, outputs."""
    return 1 + step.past + step.states + step.inputs + step.noises + MAX_CALLS


def unit_run(step: Step, path: Any, ts: Any, basis: list) -> tuple[list, list, Any, Any]:
    """Run a step on `basis` = [x, past.., states.., inputs.., z.., outputs..]: inputs and times of its calls, result, corrected state."""
    inputs, times = [], []
    cuts = np.cumsum([1, step.past, step.states, step.inputs, step.noises])
    past = Past(*(basis[a:b] for a, b in itertools.pairwise(cuts[:4])))
    zs, outputs = tuple(basis[cuts[3] : cuts[4]]), basis[cuts[4] :]

    def model(x, t):
        if step.assumed is not None:
            return step.assumed(path, t, step.kind) * x
        if len(inputs) == MAX_CALLS:
            raise ValueError(
                f"{step.name} calls the model more than {MAX_CALLS} times in one step; split it into several steps"
            )
        inputs.append(x)
        times.append(t)
        return outputs[len(inputs) - 1]

    result = step.formula(path, ts, basis[0], past, model, zs[0] if len(zs) == 1 else zs)
    result, corrected = result if isinstance(result, tuple) else (result, basis[0])
    return inputs, times, result, corrected


class _Remembered:
    """A path whose functions of one number are remembered: steps ask for the same few values again and again."""

    def __init__(self, path: Path):
        self._path = path

    @property
    def __class__(self):  # isinstance sees the path: a step may ask what it runs on
        return type(self._path)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._path, name)
        if not callable(value):
            return value
        known: dict = {}

        def remembered(*args):
            if is_traced(args):  # the same tracer is the same number, as long as it is alive
                key = tuple(a if isinstance(a, str) else id(a) for a in args)
                if key not in known:
                    known[key] = value(*args), args
                return known[key][0]
            try:
                key = tuple(a if isinstance(a, str) else float(a) for a in args)
            except TypeError:  # an array of times
                return value(*args)
            if key not in known:
                with on_host():
                    known[key] = value(*args)
            return known[key]

        setattr(self, name, remembered)
        return remembered


class _Points(tuple):
    """The scalars of a traced grid, each one tracer however often it is read: then `_Remembered` knows it again."""

    @property
    def dtype(self) -> Any:
        return self[0].dtype

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return _Points(found) if isinstance(index, slice) else found


def _check_linear(step: Step, path: Any, ts: np.ndarray, units: list) -> None:
    """Superposition: random vectors through the step must equal the same combination of its unit responses."""
    scales = np.array([1e-3, 1.0, 1e3])  # a clip or an offset shows at one of them
    random = np.random.default_rng(0).standard_normal((len(units[0]), 3)) * scales
    inputs, _, result, corrected = unit_run(step, path, ts, list(random))
    for got, unit in zip([*inputs, result, corrected], units, strict=True):
        finite = np.all(
            np.isfinite(unit)
        )  # a singular end of the path is found, and named, once the table is made
        if finite and not np.allclose(
            got / scales, unit @ random / scales, rtol=1e-6, atol=1e-9 * np.abs(unit).max(), equal_nan=True
        ):
            raise ValueError(
                f"{step.name} is not linear in (x, past, model outputs, z), so it has no table; "
                "implement the four functions of js.Solver (rows, init, step, final) instead"
            )


def _plus(a: dict, b: dict) -> dict:
    """The sum of two linear forms {value: weight}."""
    return a | {value: a.get(value, 0.0) + weight for value, weight in b.items()}


def _ratio(a: Any, b: Any) -> Any:
    """a/b, and 0 where b = 0."""
    xp = namespace(a, b)
    return xp.where(b == 0, 0.0, a / xp.where(b == 0, 1.0, b))


@dataclasses.dataclass
class _Row:
    """A row under construction; B maps values ("m" or "x", row that made it) to weights."""

    t: Any
    kind: Any
    A: Any
    B: dict
    C: Any
    draw: int
    noisy: bool
    end: Any = np.nan


def tabulate(
    path: Path, grid: Any, solver: Any, *, to_zero: bool | None = None, from_noise: bool | None = None
) -> Table:
    """The table of `solver` (a step, or a list with one step per interval) on `grid`, n+1 decreasing times.

    to_zero, from_noise: whether the last interval takes the solver's step into sigma = 0, the first its step out of alpha = 0; None
    looks it up (False if the grid is traced: say so if it ends or starts there, else the samples are NaN).
    A traced grid gives a traced, differentiable table.
    """
    grid = grids.checked(path, grid)
    n = len(grid) - 1
    if is_traced(grid):
        return _table(
            path,
            *_rows(path, grid, schedule(solver, n, to_zero=bool(to_zero), from_noise=bool(from_noise))),
            grid,
        )
    with on_host():
        zero = bool(np.asarray(path.sigma(grid[-1])) == 0) if to_zero is None else to_zero
        pure = bool(np.asarray(path.alpha(grid[0])) == 0) if from_noise is None else from_noise
    steps = schedule(solver, n, to_zero=zero, from_noise=pure)
    known: Any = _Remembered(path)
    if is_traced(
        [step.given for step in steps]
    ):  # an option such as eta: its arithmetic is staged, that of the path is not
        return _table(known, *_rows(known, grid, steps), grid)
    return assemble(known, grid, steps)


def tabulate_points(path: Path, grid: Any, steps: Sequence[Step]) -> Table:
    """`tabulate` for a traced grid and steps that read single times only, `ts[-2]` and the like: a fraction of the program to compile."""
    known: Any = _Remembered(path)
    return _table(known, *_rows(known, _Points(grid), steps), grid)


def assemble(path: Any, grid: np.ndarray, steps: Sequence[Step]) -> Table:
    """The table of one step per interval of a concrete grid, which may also rise (as backward solves need it)."""
    with on_host():
        table = _table(path, *_rows(path, grid, steps), grid)
        finite = [
            np.isfinite(c).reshape(table.nfe, -1).all(-1) for c in (table.A, table.B, table.C, table.form)
        ]
        bad = ~np.all(finite, axis=0)
        if np.any(bad):
            t = table.t[int(np.argmax(bad))]
            raise ValueError(
                f"the coefficients of row {int(np.argmax(bad))} (model call at t={t:g}, alpha={float(path.alpha(t)):.3g}, "
                f"sigma={float(path.sigma(t)):.3g}) are not finite: this solver cannot use that end of the path; "
                "keep the grid away from it, or use a data-kind solver"
            )
    return table


def _rows(path: Any, grid: Any, steps: Sequence[Step]) -> tuple[list[_Row], list, dict]:
    """Rows of all steps, (scale, noise) before the first one, and the last row that reads each value."""
    rows: list[_Row] = []
    first: list[int] = []  # row of the first call of each interval
    origins: list[
        dict | None
    ] = []  # state at the start of each interval as {value: weight}, as corrected by its step
    last_use: dict[tuple[str, int], int] = {}
    start, draws = [1.0, 0.0], 0

    for i, step in enumerate(steps):
        if step.noises and not path.gaussian:
            name = path.__class__.__name__
            raise ValueError(
                f"{step.name} draws Gaussian noise, which that of this {name} path is not; use a deterministic solver like edm"
            )
        ts = grid[: i + 2]
        basis = list(np.eye(basis_size(step), dtype=grid.dtype))
        inputs, times, result, corrected = unit_run(step, path, ts, basis)
        if not is_traced(inputs, result):
            _check_linear(step, path, ts, [*inputs, result, corrected])
        calls, f = len(inputs), len(rows)
        first.append(f)
        before = int(step.noises > 0 and (step.churn or not calls))  # draws that enter before the first call
        if step.noises - before > calls:
            raise ValueError(
                f"{step.name} declares {step.noises} noises for {calls} model calls: one draw per row"
            )
        z_at = 1 + step.past + step.states + step.inputs
        m_at = z_at + step.noises

        past = []  # each past output as {value: weight}, in the kind that this step works in
        for k in range(i - 1, i - 1 - step.past, -1):
            p, assumed = first[k], steps[k].assumed
            if assumed is not None:
                past.append(
                    {value: w * assumed(path, grid[k], step.kind) for value, w in (origins[k] or {}).items()}
                )
            elif rows[p].kind == step.kind:
                past.append({("m", p): 1.0})
            else:
                u, w = weights(path, rows[p].t, rows[p].kind, step.kind)
                past.append({("x", p): u, ("m", p): w})
        for state in origins[i - step.states : i][::-1]:
            if state is None:
                raise ValueError(
                    f"{step.name} at interval {i} reads a state that is not kept: that of a step with churn or without a call"
                )
            past.append(state)
        for k in range(i - 1, i - 1 - step.inputs, -1):
            past.append({("x", first[k]): 1.0} if steps[k].assumed is None else origins[k] or {})
        for value in (v for terms in past for v in terms):
            last_use[value] = f + calls - 1

        def registers(vector, calls, past=past, m_at=m_at, f=f):
            """{value: weight} of everything in `vector` but the state and the noise."""
            out: dict = {}
            for j, terms in enumerate(past):
                for value, weight in terms.items():
                    out[value] = out.get(value, 0.0) + weight * vector[1 + j]
            return out | {("m", f + c): vector[m_at + c] for c in range(calls)}

        entry = inputs[0] if calls else result
        if step.assumed is not None:  # an interval without a call: x_T is known from the state at its end
            start = [entry[0], 0.0]
            origins.append({("x", 0): 1 / entry[0]})
            continue
        if entry is not basis[0]:  # what precedes the first call belongs to the row before
            noise = entry[z_at] if step.noises else 0.0
            if not rows:
                start = [entry[0], noise]
            else:
                last = rows[-1]
                last.A, last.C = entry[0] * last.A, entry[0] * last.C + noise
                last.B = {value: entry[0] * b for value, b in last.B.items()}
                for value, b in registers(entry, 0).items():
                    last.B[value] = last.B.get(value, 0.0) + b
                if before:
                    if last.noisy:
                        raise ValueError(
                            f"{step.name} draws noise before its first call, the step before it at its end: one draw per row"
                        )
                    last.draw, last.noisy = draws, True

        for c in range(calls):
            # the update from the input of call c to `target`, with the state at `entry` as the unit of x
            target = inputs[c + 1] if c + 1 < calls else result
            target = target - _ratio(target[0], entry[0]) * entry + _ratio(target[0], entry[0]) * basis[0]
            here = (
                inputs[c] - _ratio(inputs[c][0], entry[0]) * entry + _ratio(inputs[c][0], entry[0]) * basis[0]
            )
            own = (
                z_at + before + c - (calls - (step.noises - before))
            )  # basis index of the draw of this update
            noisy, entered = own >= z_at + before, own - 1 >= z_at + before
            if c == 0:
                A, rest = target[0], {}
            else:  # noise of the update before lives in the current state only; without any, restart from the kept state
                A = _ratio(target[own - 1], here[own - 1]) if entered else 0.0
                target = target - A * here
                rest = {("x", f): target[0]}
                last_use["x", f] = f + calls - 1
            C = target[own] if noisy else 0.0
            stale = [target[k] for k in range(z_at, m_at) if not (noisy and k == own)]
            if not is_traced(target) and np.any(np.abs(stale) > 1e-9 * np.abs(target).max()):
                raise ValueError(
                    f"{step.name} uses one draw in two updates, or its draws out of order: one draw per row, in order"
                )
            last_use["m", f + c] = f + calls - 1
            rows.append(
                _Row(
                    times[c],
                    step.kind,
                    A,
                    _plus(registers(target, c + 1), rest),
                    C,
                    draws + own - z_at if noisy else draws,
                    noisy,
                )
            )
        draws += step.noises
        whole = calls > 0 and entry is basis[0]
        if corrected is not basis[0] and not whole:
            raise ValueError(f"{step.name} corrects its state: its first call must be at that state")
        if not whole and f == 0 and i > 0:
            raise ValueError(
                f"{step.name} changes the state before its first call, so it cannot follow a step that assumes its output"
            )
        origins.append(_plus({("x", f): corrected[0]}, registers(corrected, calls)) if whole else None)
        if not rows:
            raise ValueError(f"{step.name} makes no model call, so it cannot come first")
        rows[-1].end = ts[-1]
    if not rows:
        raise ValueError(f"{steps[0].name} makes no model call, so it cannot be the only step")
    return rows, start, last_use


def _table(path: Path, rows: list[_Row], start: list, last_use: dict, grid: Any) -> Table:
    """Assign registers (each value holds one from the row that makes it to the last row that reads it) and assemble the columns."""
    nfe = len(rows)
    holder: list[tuple[str, int] | None] = []  # value in each register
    register: dict[tuple[str, int], int] = {}
    slot, keep = np.zeros(nfe, np.int32), np.zeros(nfe, np.int32)

    def allocate(value, r):
        for k, held in enumerate(holder):
            if held is None or last_use[held] < r:
                holder[k] = value
                break
        else:
            k = len(holder)
            holder.append(value)
        register[value] = k
        return k

    weights_at: list[dict[int, Any]] = []
    for r, row in enumerate(rows):
        slot[r] = allocate(("m", r), r)
        keep[r] = (
            allocate(("x", r), r) if ("x", r) in last_use else slot[r]
        )  # kept first, then overwritten by the output
        weights_at.append({register[value]: b for value, b in row.B.items()})

    def column(values):
        xp = namespace(*values) if is_traced(values) else np
        dtype = jnp.result_type(float) if xp is jnp and not is_traced(grid) else grid.dtype
        return xp.stack([xp.asarray(v, dtype) for v in values])

    t = column([row.t for row in rows])
    xp, form = namespace(t), namespace(t).zeros((nfe, 2), t.dtype)
    for kind in dict.fromkeys(row.kind for row in rows):
        pair = xp.stack(
            [xp.broadcast_to(xp.asarray(v, t.dtype), (nfe,)) for v in linear_form(path, t, kind)], -1
        )
        form = xp.where(np.array([row.kind == kind for row in rows])[:, None], pair, form)
    return Table(
        t=t,
        A=column([row.A for row in rows]),
        B=column([column([w.get(k, 0.0) for k in range(len(holder))]) for w in weights_at]),
        C=column([row.C for row in rows]),
        form=form,
        end=column([row.end for row in rows]),
        slot=slot,
        keep=keep,
        draw=np.array([row.draw for row in rows], np.int32),
        start=column(start),
    )
