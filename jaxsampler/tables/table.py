r"""A sampler is data: a table of numbers that one scan runs.

Almost every fixed-grid sampler is one linear recurrence with one network call per row,

    m_n = model(x_n, t_n);   mem[keep_n] <- x_n;   mem[slot_n] <- m_n
    x_{n+1} = A_n x_n + sum_r B_{n,r} mem_r + C_n z_n,

so a solver is known by its coefficients (`tabulate` finds them). Heun, single-step solvers, churn, mixed
orders and special last steps are all rows; order, kind and length change as data, so the network is traced
once and nothing recompiles. A table is also a small file.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float, Int

from ..files import from_json, write_arrays
from ..numerics import Arr, Scalar, is_traced, namespace

MOST_DRAWS = 16  # of noise for each row: steps need one or two


class Table(eqx.Module):
    """The coefficients of a sampler: a pytree of host float64 arrays (jax arrays if made from a traced grid).

    Attributes:
        t: times of the network calls; their number is the NFE.
        A: weight of the state.
        B: weights of the registers.
        C: weight of the row's draw.
        form: the prediction that a row wants, as two numbers (a, b) of a (x_0 - mu) + b eps.
        end: the grid time that the row arrives at, NaN inside an interval.
        slot: register that the output is written to.
        keep: register that the state is written to before.
        draw: which standard normal draw the row adds.
        start: x_T is scaled by start[0] and gets start[1] times draw 0 before the first call.
        begin: the time of x_T, the first of the grid; None if it is not known.
        lift: what a row does to the state at the end of an interval before it arrives at the next call, as
            churn does: its scale, and the weights of the row's draw and of the registers. A, B and C contain
            it; saved states and hooks see the state without. None: no row does.
        made_on: (t, alpha, sigma) at some times of the path that the table was made on, by which `run` tells
            another path; None if it is not known.

    Example:
        >>> js.tabulate(js.VP(), js.grids.log_snr(js.VP(), 5), js.solvers.dpmpp_2m)
        <Table: 5 calls, 2 registers, t = 1 -> 0.001>
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
    begin: Float[Arr, "*b"] | np.floating | None = None
    lift: Float[Arr, "*b nfe more"] | None = None
    made_on: Float[Arr, "*b times 3"] | None = None

    def __repr__(self) -> str:
        if not all(isinstance(a, Arr) for a in (self.t, self.B, self.end, self.C)):
            return "<Table without its arrays>"  # mapped by jax.tree.map, say
        many = "".join(f"{n} x " for n in self.t.shape[:-1])
        facts = [f"{many}{self.nfe} calls", f"{self.regs} register{'s' if self.regs != 1 else ''}"]
        if is_traced(self.t, self.end, self.C):
            facts.append("traced")
        else:
            facts += [f"t = {np.max(self.t):g} -> {np.nanmin(self.end):g}"]
            facts += ["draws noise"] if self.draws else []
        return f"<Table: {', '.join(facts)}>"

    @property
    def nfe(self) -> int:
        """Number of network calls."""
        return self.t.shape[-1]

    @property
    def regs(self) -> int:
        """Number of registers."""
        return self.B.shape[-1]

    @property
    def first(self) -> Scalar | None:
        """The time whose prior x_T is drawn from; None is t_max of the path, as for a transferred table."""
        first = self.t[0] if self.begin is None else self.begin
        if is_traced(self.start, first):
            return first
        scaled = self.start[0] != 1 and self.start[1] == 0
        return None if scaled and (self.begin is None or first == self.t[0]) else first

    @property
    def draws(self) -> int:
        """Number of noise draws that the table may use (concrete tables only)."""
        used = np.asarray(self.draw)[np.asarray(self.C) != 0]
        return max(int(used.max()) + 1 if used.size else 0, int(np.any(np.asarray(self.start)[..., 1] != 0)))

    def save(self, path: str | Path, /, **about: Any) -> None:
        """Write the table, bit for bit, as a safetensors file; `about` goes into its header as a card.

        Raises:
            TypeError: a value of `about` cannot be encoded as JSON.
            OSError: the file cannot be written; there is none then.
        """
        for name, value in about.items():
            try:
                json.dumps(value)
            except (TypeError, ValueError) as e:
                raise TypeError(
                    f"cannot save {name}={value!r} about a table: {e}; give strings, numbers, lists or dicts"
                ) from None
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        arrays = {name: a for name, a in given.items() if a is not None}
        write_arrays(path, arrays, {"about": json.dumps(about)})

    @staticmethod
    def load(path: str | Path) -> "Table":
        """Read the table that `save` wrote; ValueError if the file is missing, corrupt or not a table."""
        return _read(path)[0]

    @staticmethod
    def about(path: str | Path) -> dict[str, Any]:
        """Read the card of a saved table; ValueError as for `load`."""
        return _read(path)[1]


def _read(path: str | Path) -> tuple[Table, dict[str, Any]]:
    """Table and card, with every shape and dtype checked: the file may be anyone's."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
            about = from_json((file.metadata() or {}).get("about", "{}"))
    except OSError as e:
        raise ValueError(f"cannot read the table {path}: {e.strerror or 'there is no such file'}") from None
    except (SafetensorError, ValueError, TypeError) as e:
        raise ValueError(
            f"the table {path} is corrupt ({str(e).splitlines()[0]}): save or fetch it again"
        ) from None
    names = [f.name for f in fields(Table)]
    needed = {f.name for f in fields(Table) if f.default is not None}  # older files lack the others
    if not needed <= set(arrays) <= set(names) or arrays["t"].ndim < 1 or not isinstance(about, dict):
        raise ValueError(
            f"{path} is not a table: it holds {', '.join(sorted(arrays)[:4]) or 'nothing'}, ..; "
            "`table.save(path)` makes one"
        )
    *many, nfe = arrays["t"].shape
    for name in arrays:
        array, kind = arrays[name], "i" if name in ("slot", "keep", "draw") else "f"
        want = {
            "B": (*many, nfe, *arrays["B"].shape[-1:]),
            "form": (*many, nfe, 2),
            "start": (*many, 2),
            "begin": (*many,),
            "made_on": (*many, *(arrays["made_on"].shape[-2:-1] if "made_on" in arrays else ()), 3),
            "lift": (*many, nfe, arrays["B"].shape[-1] + 2),
        }
        want = want.get(name, (*many, nfe))
        if array.dtype.kind != kind or array.shape != want:
            raise ValueError(
                f"{path} is not a table: its {name} is {array.dtype}{list(array.shape)}, not {kind} of shape "
                f"{list(want)}"
            )
    regs, draws = arrays["B"].shape[-1], MOST_DRAWS * (nfe + 1)
    for name, most in {"slot": regs, "keep": regs, "draw": draws}.items():
        if np.any((arrays[name] < 0) | (arrays[name] >= most)):
            raise ValueError(f"the table {path} is broken: its {name} must lie between 0 and {most - 1}")
    return Table(**arrays), about


def pad(table: Table, *, nfe: int | None = None, regs: int | None = None) -> Table:
    """Return the same sampler as a larger table: rows that change nothing at the end, unused registers.

    Tables of one shape share one compilation, and stack. Rows of padding do call the network.

    Example:
        >>> table = js.tabulate(js.CondOT(), [1.0, 0.5, 0.0], js.solvers.euler)
        >>> js.pad(table, nfe=3, regs=2).B.tolist()
        [[-0.5, 0.0], [-0.5, 0.0], [0.0, 0.0]]
    """
    if table.t.ndim != 1:
        raise ValueError("pad tables before stacking them: js.stack pads to a common shape by itself")
    nfe, regs = table.nfe if nfe is None else nfe, table.regs if regs is None else regs
    if nfe < table.nfe or regs < table.regs:
        raise ValueError(
            f"cannot pad a table of nfe={table.nfe}, regs={table.regs} to the smaller nfe={nfe}, regs={regs}"
        )
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
        begin=table.begin,
        made_on=table.made_on,
        lift=None if table.lift is None else _padded_lift(table.lift, more, regs - table.regs),
    )


def _padded_lift(lift: Arr, nfe: int, regs: int) -> Arr:
    """With this many more rows that do nothing, and unused registers."""
    xp = namespace(lift)
    wider = xp.pad(lift, [(0, 0), (0, regs)])
    none = xp.zeros_like(wider[:1]).repeat(nfe, 0)
    return xp.concatenate([wider, none + xp.asarray(np.eye(1, wider.shape[1]), wider.dtype)])


def stack(tables: Sequence[Table]) -> Table:
    """Return the tables padded to a common shape and stacked along a new leading axis, for `vmap`.

    Example:
        >>> path = js.CondOT()
        >>> tables = [js.tabulate(path, js.grids.uniform(path, n), js.solvers.euler) for n in (2, 4)]
        >>> js.stack(tables)
        <Table: 2 x 4 calls, 1 register, t = 1 -> 0>
    """
    if not tables:
        raise ValueError("no tables to stack")
    nfe, regs = max(t.nfe for t in tables), max(t.regs for t in tables)
    padded = [pad(t, nfe=nfe, regs=regs) for t in tables]
    for name in ("begin", "made_on"):
        if any(getattr(t, name) is None for t in tables):
            padded = [dataclasses.replace(t, **{name: None}) for t in padded]
    if any(t.lift is not None for t in tables):
        none = np.zeros((nfe, regs + 2)) + np.eye(1, regs + 2)
        padded = [t if t.lift is not None else dataclasses.replace(t, lift=none) for t in padded]
    return jax.tree.map(lambda *a: namespace(*a).stack(a), *padded)
