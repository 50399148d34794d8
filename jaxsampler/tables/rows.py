r"""How a step becomes rows: one row for each of its network calls.

    time          t                     ..                    s = next grid time
    step          x -> call 0 -> .. input of call 1 -> call 1 -> .. x at s
    row f         |<----- A, B, C ----->|                     |     from the input of call 0 to the input of
                                                              call 1
    row f + 1                           |<----- A, B, C ----->|     from the input of call 1 to x at s
    registers     m_f (and x_f, kept)   m_{f+1}                     outputs, and the state at the first call

The update of a row leads from the input of its call to the input of the next one, or to the next grid time.
What the current state cannot express goes through registers: outputs ("m", row), and the state ("x", row) at
the first call of a step that makes several. Whatever precedes the first call of a step (churn, a jump back in
time) belongs to the row before it, or to `start`. Registers follow from what steps declare, never from
numeric zeros, so the shape of a table does not depend on the grid.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..numerics import Time, is_traced, namespace
from ..paths.predictions import weights
from . import intervals
from .steps import Step
from .units import UnitRun, basis_size, checked_run, unit_run

Value = tuple[str, int]  # ("m" or "x", the row that makes it)
STATE, NOISE = ("state", -1), ("noise", -1)  # those at hand


class Combination(dict):
    """A linear combination of values, {value: weight}."""

    def __add__(self, other: "Combination") -> "Combination":
        return Combination(self | {value: self.get(value, 0.0) + weight for value, weight in other.items()})

    def __rmul__(self, factor: Any) -> "Combination":
        return Combination({value: factor * weight for value, weight in self.items()})

    __array_ufunc__ = None  # numpy numbers leave the product to this class


@dataclasses.dataclass
class Row:
    """A row under construction: x <- A x + B . values + C z of its draw."""

    t: Time
    kind: Any
    A: Any
    B: Combination
    C: Any
    draw: int
    noisy: bool
    end: Any = np.nan


@dataclasses.dataclass
class _Interval:
    """One step on its interval, run on unit vectors: where each value lies among them, and what the past ones
    are made of.
    """

    step: Step
    time: Any  # at its end
    first: int  # its first row
    past: list[Combination]  # what the step reads of earlier intervals: outputs, states, inputs
    basis: list
    inputs: list
    times: list
    result: Any
    corrected: Any

    @property
    def calls(self) -> int:
        return len(self.inputs)

    @property
    def before(self) -> int:
        """Number of draws that enter before the first call."""
        return int(self.step.noises > 0 and (self.step.churn or not self.calls))

    @property
    def z_at(self) -> int:
        """Where the draws begin among the unit vectors; the outputs follow them."""
        return 1 + self.step.past + self.step.states + self.step.inputs

    @property
    def m_at(self) -> int:
        return self.z_at + self.step.noises

    @property
    def entry(self) -> Any:
        """The state at the first call."""
        return self.inputs[0] if self.calls else self.result

    @property
    def whole(self) -> bool:
        """Whether the state of the step is the one at its first call, so that later steps can read it."""
        return self.calls > 0 and self.entry is self.basis[0]

    def registers(self, vector: Any, calls: int) -> Combination:
        """Everything in `vector` but the state and the noise, with the outputs of the first `calls` calls."""
        out = Combination()
        for j, terms in enumerate(self.past):
            out = out + vector[1 + j] * terms
        return out + Combination({("m", self.first + c): vector[self.m_at + c] for c in range(calls)})


class Rows:
    """The rows of a schedule, made interval by interval.

    Attributes:
        rows: one for each network call.
        start: scale of x_T and weight of draw 0 before the first row.
        last_use: the last row that reads each value.
        lifts: what leads from the end of an interval to the first call of the next one, by the row that does.
        lifted: whether there are such moves.
    """

    def __init__(self, path: Any, grid: Any, steps: Sequence[Step]):
        self.path, self.grid, self.steps = path, grid, steps
        self._traced = is_traced(grid) or is_traced(grid[-1])  # an array, or its times one by one
        self._known = {} if self._traced else intervals.runs(path, grid, steps)
        self.rows: list[Row] = []
        self.start: list = [1.0, 0.0]
        self.lifts: dict[int, Combination] = {}  # of the state (None) and of values
        self.lifted = False
        self.last_use: dict[Value, int] = {}
        self._first: list[int] = []  # row of the first call of each interval
        self._origins: list[
            Combination | None
        ] = []  # state at the start of each interval, as corrected by its step
        self._draws = 0
        for i, step in enumerate(steps):
            if step.noises and not path.gaussian:
                raise ValueError(
                    f"{step.name} draws Gaussian noise, which that of this {path.__class__.__name__} path is "
                    "not; "
                    "use a deterministic solver like edm"
                )
            interval = self._run(i, step)
            if step.assumed is not None:  # an interval without a call: x_T is known from the state at its end
                self.start = [interval.entry[0], 0.0]
                self._origins.append(Combination({("x", 0): 1 / interval.entry[0]}))
                continue
            self._enter(interval)
            for c in range(interval.calls):
                self.rows.append(self._row(interval, c))
            self._arrive(interval)
        if not self.rows:
            raise ValueError(f"{steps[0].name} makes no model call, so it cannot be the only step")

    def _run(self, i: int, step: Step) -> _Interval:
        """Run the step of interval i on unit vectors, check it, and note what it reads."""
        basis, run = self._known.get(i) or self._alone(i, step)
        end = self.grid[i + 1]
        interval = _Interval(step, end, len(self.rows), self._past(i, step), basis, *run)
        self._first.append(interval.first)
        if step.noises - interval.before > interval.calls:
            raise ValueError(
                f"{step.name} declares noises={step.noises} for {interval.calls} model calls: a row can add "
                "one draw, "
                "so declare at most one for each call"
            )
        for value in (v for terms in interval.past for v in terms):
            self.last_use[value] = interval.first + interval.calls - 1
        return interval

    def _alone(self, i: int, step: Step) -> tuple[list, UnitRun]:
        """(unit vectors, the run on them) of one interval."""
        ts = self.grid[: i + 2]
        if not self._traced:
            return checked_run(step, self.path, ts)
        basis = list(np.eye(basis_size(step), dtype=self.grid.dtype))
        return basis, unit_run(step, self.path, ts, basis)

    def _past(self, i: int, step: Step) -> list[Combination]:
        """What the step reads of earlier intervals, in the kind that it works in."""
        past: list[Combination] = []
        for k in range(i - 1, i - 1 - step.past, -1):
            p, assumed = self._first[k], self.steps[k].assumed
            if assumed is not None:
                past.append(assumed(self.path, self.grid[k], step.kind) * (self._origins[k] or Combination()))
            elif self.rows[p].kind == step.kind:
                past.append(Combination({("m", p): 1.0}))
            else:
                u, w = weights(self.path, self.rows[p].t, self.rows[p].kind, step.kind)
                past.append(Combination({("x", p): u, ("m", p): w}))
        for state in self._origins[i - step.states : i][::-1]:
            if state is None:
                raise ValueError(
                    f"{step.name} at interval {i} reads a state that is not kept: that of a step with churn "
                    "or without a call"
                )
            past.append(state)
        for k in range(i - 1, i - 1 - step.inputs, -1):
            assumed = self.steps[k].assumed is not None
            past.append(
                (self._origins[k] or Combination()) if assumed else Combination({("x", self._first[k]): 1.0})
            )
        return past

    def _enter(self, interval: _Interval) -> None:
        """What precedes the first call belongs to the row before, or to the start."""
        entry, step = interval.entry, interval.step
        if entry is interval.basis[0]:
            return
        noise = entry[interval.z_at] if step.noises else 0.0
        self.lifted = True
        if not self.rows:
            self.start = [entry[0], noise]
            return
        last = self.rows[-1]
        last.A, last.C = entry[0] * last.A, entry[0] * last.C + noise
        last.B = entry[0] * last.B + interval.registers(entry, 0)
        moved = Combination({STATE: entry[0], NOISE: noise}) + interval.registers(entry, 0)
        self.lifts[len(self.rows) - 1] = moved
        if interval.before:
            if last.noisy:
                raise ValueError(
                    f"{step.name} draws noise before its first call and the step before it at its end: a row "
                    "can add one "
                    "draw, so put a step without noise between them"
                )
            last.draw, last.noisy = self._draws, True

    def _row(self, interval: _Interval, c: int) -> Row:
        """The update from the input of call c to the next input or the result, with the state at the first
        call as its unit.
        """
        step, entry, unit = interval.step, interval.entry, interval.basis[0]
        target = interval.inputs[c + 1] if c + 1 < interval.calls else interval.result
        target = target - _ratio(target[0], entry[0]) * entry + _ratio(target[0], entry[0]) * unit
        here = interval.inputs[c] - _ratio(interval.inputs[c][0], entry[0]) * entry
        here = here + _ratio(interval.inputs[c][0], entry[0]) * unit
        first_draw = interval.z_at + interval.before
        own = (
            first_draw + c - (interval.calls - (step.noises - interval.before))
        )  # unit vector of this update's draw
        noisy, entered = own >= first_draw, own - 1 >= first_draw
        if c == 0:
            A, rest = target[0], Combination()
        else:  # noise of the last update is in the state only; without noise, restart from the kept state
            A = _ratio(target[own - 1], here[own - 1]) if entered else 0.0
            target = target - A * here
            rest = Combination({("x", interval.first): target[0]})
            self.last_use["x", interval.first] = interval.first + interval.calls - 1
        stale = [target[k] for k in range(interval.z_at, interval.m_at) if not (noisy and k == own)]
        if not is_traced(target) and np.any(np.abs(stale) > 1e-9 * np.abs(target).max()):
            raise ValueError(
                f"{step.name} uses a draw in two updates, or its draws out of order: each draw may enter one "
                "update only, in order"
            )
        self.last_use["m", interval.first + c] = interval.first + interval.calls - 1
        return Row(
            t=interval.times[c],
            kind=step.kind,
            A=A,
            B=interval.registers(target, c + 1) + rest,
            C=target[own] if noisy else 0.0,
            draw=self._draws + own - interval.z_at if noisy else self._draws,
            noisy=noisy,
        )

    def _arrive(self, interval: _Interval) -> None:
        """Note the state that later steps may read, and where the last row of the interval arrives."""
        step, first = interval.step, interval.first
        self._draws += step.noises
        if interval.corrected is not interval.basis[0] and not interval.whole:
            raise ValueError(f"{step.name} corrects its state: its first call must be at that state")
        if not interval.whole and first == 0 and len(self._origins) > 0:
            raise ValueError(
                f"{step.name} changes the state before its first call, so it cannot follow a step that "
                "assumes its output"
            )
        corrected = interval.corrected
        kept = Combination({("x", first): corrected[0]}) + interval.registers(corrected, interval.calls)
        self._origins.append(kept if interval.whole else None)
        if not self.rows:
            raise ValueError(f"{step.name} makes no model call, so it cannot come first")
        self.rows[-1].end = interval.time


def _ratio(a: Any, b: Any) -> Any:
    """a/b, and 0 where b = 0."""
    xp = namespace(a, b)
    return xp.where(b == 0, 0.0, a / xp.where(b == 0, 1.0, b))
