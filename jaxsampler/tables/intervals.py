"""A step run on unit vectors for many intervals at once: times are columns, one entry for each interval.

Formulas are arithmetic on what `ts[-2]`, `ts[-1]` and the path say, so they take columns [n, 1] as they take
numbers. A formula or a path that does not (it branches on values, counts the times, looks at the first one)
raises, or disagrees with single intervals where the two are compared; then every interval is run by itself,
which is also what says what is wrong with a step.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..numerics import Arr, is_traced
from .steps import Step
from .units import UnitRun, checked_run

Known = tuple[list, UnitRun]  # unit vectors, and the run on them
FEWEST = 6  # intervals of one step for which the columns pay
MOST = 256  # and for which memory stays small
CLOSE = 1e-9  # relative to the largest coefficient: more than rounding, less than any other formula


class Columns(Sequence):
    """The grid as seen from n intervals at once, counted from the last time; entries are columns [n, 1]."""

    def __init__(self, columns: list):
        self._columns = columns

    def __getitem__(self, index: Any) -> Any:
        ends = (index.start, index.stop) if isinstance(index, slice) else (index,)
        if any(i is not None and not -len(self._columns) <= i < 0 for i in ends):
            raise LookupError("only the last times are the same ones for every interval")
        found = self._columns[index]
        return Columns(found) if isinstance(index, slice) else found

    def __iter__(self):  # of a slice: q, t, s = ts[-3:]
        return iter(self._columns)

    def __len__(self) -> int:
        raise LookupError("the number of times differs between intervals")


def runs(path: Any, grid: Arr, steps: Sequence[Step]) -> dict[int, Known]:
    """{interval: its run} of the intervals that could be run together; the others are left out."""
    groups: dict[int, list[int]] = {}
    for i, step in enumerate(steps):
        groups.setdefault(id(step), []).append(i)
    found: dict[int, Known] = {}
    for members in groups.values():
        for some in (members[k : k + MOST] for k in range(0, len(members), MOST)):
            if len(some) >= FEWEST:
                found |= _together(path, grid, steps[some[0]], some)
    return found


def _together(path: Any, grid: Arr, step: Step, members: list[int]) -> dict[int, Known]:
    """{interval: run} of one step, or nothing if it must be run on each interval by itself."""
    back = max(step.past, step.states, step.inputs) + 2
    last = np.array(members) + 1
    ts = Columns([np.asarray(grid)[last - k][:, None] for k in range(back - 1, -1, -1)])
    try:
        basis, run = checked_run(step, path, ts)
        if is_traced(run.inputs, run.times, run.result, run.corrected):
            return {}
        split = [(basis, _split(run, k, len(members), basis)) for k in range(len(members))]
        for k in {0, len(members) // 2, len(members) - 1}:
            if not _agree(split[k], checked_run(step, path, grid[: members[k] + 2])):
                return {}
    except Exception:  # run alone, each interval says what is wrong with it
        return {}
    return dict(zip(members, split, strict=True))


def _split(run: UnitRun, k: int, n: int, basis: list) -> UnitRun:
    """What the run is on the k-th of n intervals."""

    def vector(v: Any) -> Any:
        if any(v is unit for unit in basis):
            return v
        v = np.asarray(v)
        return v[k] if v.ndim == 2 else v

    def time(t: Any) -> Any:
        return np.broadcast_to(np.asarray(t), (n, 1))[k, 0]

    vectors, times = [vector(v) for v in run.inputs], [time(t) for t in run.times]
    return UnitRun(vectors, times, vector(run.result), vector(run.corrected))


def _agree(one: Known, other: Known) -> bool:
    """Whether two runs of an interval are equal but for rounding, with the same states left as they were."""
    (basis, a), (own, b) = one, other
    pairs = [*zip(a.inputs, b.inputs, strict=True), (a.result, b.result), (a.corrected, b.corrected)]
    for v, w in pairs:
        size = np.abs(np.where(np.isfinite(w), w, 0.0)).max()
        if (v is basis[0]) != (w is own[0]) or not np.allclose(v, w, CLOSE, CLOSE * size, equal_nan=True):
            return False
    return np.allclose(a.times, b.times, 1e-12, 0.0, equal_nan=True)
