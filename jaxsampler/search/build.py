r"""The tables of hundreds of schedules at once, by the formulas of `js.solvers.usf` on arrays of schedules.

`tabulate` follows one solver row by row. Here all schedules advance together: every state is a combination of
x_T and the data predictions,

    x_i = a_i x_T + sum_j b_ij m_j,

held as an array [nfe + 1, schedules]; schedules that decide alike at interval i take the step in one call.
These combinations are also the rows: register 0 keeps x_T, register j + 1 the output of row j, and A = 0, so
all tables of one NFE have one shape. Rows ask for data predictions; a step in another kind combines them with
the states that they were made at.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ..numerics import on_host
from ..paths import Path
from ..paths.predictions import weights
from ..solvers.unified_framework import advance, predict
from ..tables import Table
from .schedules import Schedule


@runtime_checkable
class Choices(Protocol):
    """What tables need to know of a `Space`."""

    @property
    def nfe(self) -> int: ...
    @property
    def path(self) -> Path: ...
    @property
    def kinds(self) -> Mapping: ...
    @property
    def statistics(self) -> Any: ...
    @property
    def decision(self) -> Callable: ...


def build(space: Choices, schedules: Schedule) -> Table:
    """Return the stacked tables [b] of a stack of schedules."""
    b, n = len(schedules), space.nfe
    columns = {
        "t": np.zeros((b, n)),
        "B": np.zeros((b, n, n + 1)),
        "end": np.zeros((b, n)),
        "start": np.zeros((b, 2)),
        "begin": schedules.times[:, 0].copy(),
    }
    with on_host():
        for assumed in (False, True):
            which = np.flatnonzero(schedules.assumed == assumed)
            if len(which):
                for name, column in _rows(space, schedules[which], assumed).items():
                    columns[name][which] = column
    numbers = np.broadcast_to(np.arange(1, n + 1, dtype=np.int32), (b, n))
    keep = numbers.copy()
    keep[:, 0] = 0
    none = np.zeros((b, n))
    form = np.stack([none + 1, none], -1)
    return Table(
        A=none,
        C=none.copy(),
        form=form,
        slot=numbers.copy(),
        keep=keep,
        draw=np.zeros((b, n), np.int32),
        **columns,
    )


def _rows(space: Choices, s: Schedule, assumed: bool) -> dict[str, np.ndarray]:
    """Return the columns of tables that all assume their first output, or all call the network for it."""
    n, b = space.nfe + int(assumed), len(s)
    t = s.times[:, : n + 1].T
    path: Any = _Points(space.path, t)
    unit = np.eye(space.nfe + 1)[:, :, None] * np.ones(b)  # [value, entry, schedule]
    known = {name: space.statistics if name == "fitted" else name for name in space.kinds}
    outputs: dict[Any, list] = {kind: [] for kind in known.values()}
    states, rows = [unit[0]], []
    for i in range(n):
        m = unit[i + 1 - int(assumed)] if i or not assumed else 0 * unit[0]  # x0 = 0
        for kind, made in outputs.items():
            u, w = weights(path, path.at(i), "data", kind)
            made.append(u * states[i] + w * m)
        if i:
            _correct(space, path, s, i, states, outputs)
        ahead = np.empty_like(unit[0])
        for columns, d in _alike(space, s, i):
            back = range(i, i - 1 - max(d.points), -1)
            times = [path.at(j, columns) for j in back]
            past = [outputs[d.kind][j][:, columns] for j in back]
            ahead[:, columns] = predict(
                d,
                path,
                path.at(i + 1, columns),
                states[i + d.start + 1][:, columns],
                times,
                past,
                s.c[columns, i],
            )
        states.append(ahead)
        rows.append(ahead.copy())  # a corrector changes the state, not what the output was made at
    first = states[1][0] if assumed else np.ones(b)  # the input of the first row in units of x_T
    B = np.stack(rows[int(assumed) :]).transpose(2, 0, 1)
    B[:, :, 0] /= first[:, None]
    at = slice(int(assumed), -1)
    return {"t": t[at].T, "end": t[int(assumed) + 1 :].T, "B": B, "start": np.stack([first, 0 * first], 1)}


class _Points:
    """A path at the grid points [points, schedules]; formulas pass on indices into them in place of times."""

    def __init__(self, path: Path, t: np.ndarray):
        self._path, self._index = path, np.arange(t.size).reshape(t.shape)
        for name in ("alpha", "sigma", "lam", "rho"):
            setattr(self, name, np.asarray(getattr(path, name)(t)).ravel().__getitem__)
        self.form = lambda kind, at: path.form(kind, t.ravel()[at])

    def at(self, point: int, columns: Any = slice(None)) -> np.ndarray:
        """What stands for the times of these schedules at a grid point."""
        return self._index[point, columns]

    @property
    def __class__(self):  # isinstance sees the path that this stands in for
        return type(self._path)


def _correct(space: Choices, path: Any, s: Schedule, i: int, states: list, outputs: dict) -> None:
    """Redo the states at point i with the output there, where interval i - 1 has a corrector."""
    for columns, d in _alike(space, s, i - 1):
        if d.corrector is None:
            continue
        points = [
            (path.at(i - j, columns), outputs[d.kind][i - j][:, columns])
            for j in (1, 0, *range(2, d.corrector))
        ]
        counts = (d.corrector - 1,) * (d.corrector - 1)
        states[i][:, columns] = advance(
            path, path.at(i, columns), states[i - 1][:, columns], points, counts, d.kind
        )


def _alike(space: Choices, s: Schedule, i: int) -> list:
    """Return (indices of the schedules, their decision at interval i up to c) for each one that occurs."""
    choices = [s.order, s.kind, s.start, *np.moveaxis(s.nodes, -1, 0), s.relaxation, s.corrector]
    rows, inverse = np.unique(np.stack([a[:, i] for a in choices], 1), axis=0, return_inverse=True)
    out = []
    for g, (order, kind, start, *nodes, relaxation, corrector) in enumerate(rows):
        columns = np.flatnonzero(inverse == g)
        out.append((columns, space.decision(order, kind, start, nodes, relaxation, 0.0, corrector)))
    return out
