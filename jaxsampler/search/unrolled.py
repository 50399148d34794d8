r"""Deterministic tables in unrolled form: each state as a combination of x_0 and the outputs so far.

    x_n = A_n x_0 + sum_{j<n} B_nj m_j,        m_j = D(x_j, t_j) the data prediction of row j,  A_0 = 1

Any prediction, past states, registers or correctors of a table's rows come to these numbers; A [N+1] and B
[N+1, N] are the table's coordinates in `learnable` and `distill`. x_0 is x_T after the table's `start`,
without the mean of a path that has one.
"""

from typing import Any

import numpy as np
from jaxtyping import Float

from ..numerics import Arr, is_traced, namespace
from ..paths import Path
from ..paths.predictions import weights
from ..tables import Table


def unrolled(table: Table, path: Path) -> tuple[Float[Arr, " states"], Float[Arr, "states n"]]:
    """Return A [N+1] and B [N+1, N] of a deterministic table; ValueError if it draws noise."""
    if not is_traced(table) and table.draws:
        raise ValueError(
            "a table that draws noise has no unrolled form in the network's outputs alone: "
            "take a deterministic table"
        )
    xp, n = namespace(table.t), table.nfe
    units = np.eye(n + 1, dtype=table.t.dtype)
    u, w = weights(path, table.t, (1.0, 0.0), (table.form[:, 0], table.form[:, 1]))
    memory: list[Any] = [np.zeros_like(units[0])] * table.regs
    states = [xp.asarray(units[0])]
    for k in range(n):
        memory[int(table.keep[k])] = states[-1]
        memory[int(table.slot[k])] = u[k] * states[-1] + w[k] * units[k + 1]
        states.append(table.A[k] * states[-1] + sum(table.B[k, r] * memory[r] for r in range(table.regs)))
    states = xp.stack(states)
    return states[:, 0], states[:, 1:]


def from_unrolled(
    base: Table, t: Float[Arr, " n"], A: Float[Arr, " states"], B: Float[Arr, "states n"]
) -> Table:
    """Return the table with network times t and a register per output; intervals end as in `base`.

    A counts from x_T after the start of `base`; the first call sees A_0 times that.
    """
    xp, ratio, index = namespace(t, A, B), A[1:] / A[:-1], np.arange(len(t), dtype=np.int32)
    return Table(
        t=t,
        A=ratio,
        B=B[1:] - ratio[:, None] * B[:-1],
        C=xp.zeros_like(ratio),
        form=xp.stack([xp.ones_like(t), xp.zeros_like(t)], -1),
        end=base.end,
        slot=index,
        keep=index,
        draw=np.zeros(len(t), np.int32),
        start=base.start * A[0],
        begin=base.begin,
        made_on=base.made_on,
    )


def interpolation(t: Float[Arr, " n"], q: Float[Arr, " n"]) -> Float[Arr, "n n"]:
    """Return L: row j evaluates the Lagrange polynomial of outputs j, j-1, j-2.

    It does so at t_{j-1} + q_j (t_j - t_{j-1})."""
    xp, n = namespace(t), len(t)
    rows = [xp.asarray(np.eye(n)[0], t.dtype)]
    for j in range(1, n):
        nodes = range(j, max(j - 3, -1), -1)
        at = t[j - 1] + q[j] * (t[j] - t[j - 1])
        row = xp.zeros_like(t)
        for i in nodes:
            part = 1.0
            for k in nodes:
                part = part * (at - t[k]) / (t[i] - t[k]) if k != i else part
            row = row + part * np.eye(n, dtype=t.dtype)[i]
        rows.append(row)
    return xp.stack(rows)
