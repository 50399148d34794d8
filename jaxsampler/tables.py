r"""A sampler is data: a table of numbers that one scan runs.

Almost every fixed-grid sampler is one linear recurrence with one network call per row,

    m_n = model(x_n, t_n);   mem[keep_n] <- x_n;   mem[slot_n] <- m_n
    x_{n+1} = A_n x_n + sum_r B_{n,r} mem_r + C_n z_n,

so a solver is known by its coefficients (`tabulate` finds them). Heun, single-step solvers, churn, mixed orders and special last steps are
all rows; order, kind and length change as data, so the network is traced once and nothing recompiles.
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float, Int

from .numerics import Arr, namespace


class Table(eqx.Module):
    """The coefficients of a sampler; a pytree of host float64 arrays (jax arrays if made from a traced grid).

    `nfe = len(table.t)` network calls. `form`: the prediction that a row wants as two numbers (a, b) of a (x0 - mu) + b eps. `draw`:
    which standard normal draw the row adds. `end`: the grid time that the row arrives at, NaN inside an interval.
    `start`: x_T is scaled by start[0] and gets start[1] times draw 0 before the first call.
    """

    t: Float[Arr, "*b nfe"]
    A: Float[Arr, "*b nfe"]
    B: Float[Arr, "*b nfe regs"]
    C: Float[Arr, "*b nfe"]
    form: Float[Arr, "*b nfe 2"]
    end: Float[Arr, "*b nfe"]
    slot: Int[Arr, "*b nfe"]
    keep: Int[Arr, "*b nfe"]
    draw: Int[Arr, "*b nfe"]
    start: Float[Arr, "*b 2"]

    @property
    def nfe(self) -> int:
        """Number of network calls."""
        return self.t.shape[-1]

    @property
    def regs(self) -> int:
        """Number of registers."""
        return self.B.shape[-1]

    @property
    def draws(self) -> int:
        """Number of noise draws that the table may use (concrete tables only)."""
        used = np.asarray(self.draw)[np.asarray(self.C) != 0]
        return max(int(used.max()) + 1 if used.size else 0, int(np.any(np.asarray(self.start)[..., 1] != 0)))


def pad(table: Table, *, nfe: int | None = None, regs: int | None = None) -> Table:
    """The same sampler as a larger table: rows that change nothing (but do call the network) at the end, unused registers.

    Tables of one shape share one compilation, and stack.
    """
    if table.t.ndim != 1:
        raise ValueError("pad tables before stacking them: js.stack pads to a common shape by itself")
    nfe, regs = table.nfe if nfe is None else nfe, table.regs if regs is None else regs
    if nfe < table.nfe or regs < table.regs:
        raise ValueError(f"cannot pad a table of nfe={table.nfe}, regs={table.regs} to the smaller nfe={nfe}, regs={regs}")
    more, xp = nfe - table.nfe, namespace(table.t)

    def rows(column, fill=None):
        """`more` copies of the last row, or of `fill`."""
        tail = column[-1:] if fill is None else xp.full_like(column[-1:], fill)
        return xp.concatenate([column, xp.repeat(tail, more, 0)])

    B = xp.pad(rows(table.B, 0.0), [(0, 0), (0, regs - table.regs)])
    return Table(
        t=rows(table.t),
        A=rows(table.A, 1.0),
        B=B,
        C=rows(table.C, 0.0),
        form=rows(table.form),
        end=rows(table.end, np.nan),
        slot=rows(table.slot),
        keep=rows(table.keep),
        draw=rows(table.draw),
        start=table.start,
    )


def stack(tables: Sequence[Table]) -> Table:
    """Tables padded to a common shape and stacked along a new leading axis, for `vmap`."""
    if not tables:
        raise ValueError("no tables to stack")
    nfe, regs = max(t.nfe for t in tables), max(t.regs for t in tables)
    return jax.tree.map(lambda *a: namespace(*a).stack(a), *[pad(t, nfe=nfe, regs=regs) for t in tables])
