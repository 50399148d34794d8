r"""The four functions of a table: one row is one model call is one scan iteration.

    mem[keep] <- x;   mem[slot] <- model(x, t);   x <- A x + sum_r B_r mem_r + C z

Coefficients are cast to the dtype of the state (float32 at least for times). The sum over registers is
elementwise, so no accelerator rounds it to a lower precision.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..numerics import Arr, Key, Scalar, State, axpy, cast, namespace, normal, widened
from ..tables import Table
from ..threefry import elementwise


class Columns(NamedTuple):
    """A `Table` but for its `start`: what is scanned has one leading axis."""

    t: Arr
    A: Arr
    B: Arr
    C: Arr
    end: Arr
    slot: Arr
    keep: Arr
    draw: Arr
    lift: Arr | None
    lift_draw: Arr | None = None


class Rows(NamedTuple):
    """What the driver scans.

    Attributes:
        tables: those of all parts.
        spans: the angles between which draws are increments of a Brownian path.
        begin: the time of x_T; None if it is that of the first call.
        asked: the weights that make the prediction that the row wants from a network's, None where that is
            its own.
        t, end: times of the first part.
        when: the times that hooks get.
    """

    tables: list[Columns]
    spans: list | None
    asked: Any
    t: Arr
    end: Arr
    when: Any
    begin: Arr | None = None


def rows_of(
    tables: Table | dict[str, Table], spans: list | None, asked: Any = None, draws: list | None = None
) -> Rows:
    """The rows of one table, or of one for each part of the state; `draws` are those of `seen`."""
    parts, structure = parts_of(tables)
    columns = []
    for p, part in enumerate(parts):
        known = {name: getattr(part, name) for name in Columns._fields[:-1]}
        columns.append(Columns(**known, lift_draw=None if draws is None else draws[p]))
    t, start = parts[0].t, parts[0].begin
    begin = None if start is None or parts[0].lift is None else namespace(t).full_like(t, start)
    when = structure.unflatten([part.end for part in parts])
    return Rows(
        columns,
        spans,
        asked,
        parts[0].t,
        parts[0].end,
        when,
        begin,
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TableSolver:
    """The four functions of a `Table`, or of one table for each part of the state.

    Noise is drawn per draw index, or given as an array in order of use, or by a Brownian path for each part.
    A start of None leaves x_T as it is.
    """

    starts: list  # of [2] or None; JAX puts other things in the places of leaves, too
    key: Any
    noise: Any
    structure: Any = dataclasses.field(metadata={"static": True})

    def draw(self, part: int, i: Scalar, span: Arr | None, like: State) -> Any:
        """Standard normal draw i of a part; None without a key or a noise array."""
        if span is not None:
            return self.noise[part].draw(span, like)
        if self.noise is not None:  # a draw that is not there is NaN, unless its weight is zero
            noise = self.structure.flatten_up_to(self.noise)[part]
            pick = lambda z, a: jnp.asarray(z).at[i].get(mode="fill", fill_value=jnp.nan).astype(a.dtype)
            return jax.tree.map(pick, noise, like)
        if self.key is None:
            return None
        key = elementwise(self.key)
        key = key if len(self.starts) == 1 else jax.random.fold_in(key, part)
        return normal(jax.random.fold_in(key, i), like)

    def init(self, x: State, rows: Rows) -> tuple:
        """Start scale and noise, empty registers."""
        parts, memory = self.structure.flatten_up_to(x), []
        for p, (start, table) in enumerate(zip(self.starts, rows.tables, strict=True)):
            empty = lambda a, regs=table.B.shape[-1]: jnp.stack([jnp.zeros_like(a)] * regs)
            memory.append(jax.tree.map(empty, parts[p]))
            if start is None:
                continue
            scaled = axpy(start[0], parts[p], 0.0, parts[p])
            z = None if rows.spans is not None else self.draw(p, 0, None, parts[p])
            parts[p] = _add_noise(scaled, start[1], z)
        return self.structure.unflatten(parts), memory

    def step(self, model: Callable, state: tuple, row: Rows, key: Key | None = None) -> tuple:
        """One row of the recurrence."""
        x, memory = state
        outputs = model(x, self.structure.unflatten([table.t for table in row.tables]), row.asked)
        parts, outputs, new = self.structure.flatten_up_to(x), self.structure.flatten_up_to(outputs), []
        for p, table in enumerate(row.tables):
            z = self.draw(p, table.draw, None if row.spans is None else row.spans[p], parts[p])
            part, registers = _advance(table, parts[p], memory[p], outputs[p])
            parts[p] = _add_noise(part, table.C, z)
            new.append(registers)
        return self.structure.unflatten(parts), new

    def lifted(self, state: tuple, row: Rows) -> tuple:
        """The state at the row's call, of that at the end of the interval before: churn, for instance."""
        x, memory = state
        parts = self.structure.flatten_up_to(x)
        for p, table in enumerate(row.tables):
            if table.lift is not None:
                drawn: Any = table.lift_draw
                moved = _moved(table.lift, parts[p], memory[p])
                parts[p] = _add_noise(moved, table.lift[1], self.draw(p, drawn, None, parts[p]))
        return self.structure.unflatten(parts), memory

    def final(self, state: tuple) -> State:
        """The state after the last row."""
        return state[0]


def _advance(row: Columns, x: State, memory: State, m: State) -> tuple[State, State]:
    """The row's update without its noise, and the registers after it."""

    def write(registers, a, b):  # a slice, unlike a scatter, keeps the sharding of the state
        registers = jax.lax.dynamic_update_index_in_dim(registers, a, row.keep, 0)
        return jax.lax.dynamic_update_index_in_dim(registers, b, row.slot, 0)

    def update(a, registers):
        return _combined(row.A, row.B, a, registers)

    memory = jax.tree.map(write, memory, x, m)
    return jax.tree.map(update, x, memory), memory


def seen(table: Table) -> tuple[Table, Arr | None]:
    """The table whose rows end where their intervals do, and the draws of what then leads to the next call.

    The lift of a row, and the start before the first one, are made at the beginning of the next row.
    """
    if table.lift is None:
        return table, None
    xp, (scale, noise), rest = namespace(table.lift), table.lift[:, :2].T, table.lift[:, 2:]
    regs = rest.shape[1]
    first = xp.concatenate([xp.asarray(table.start, table.lift.dtype), xp.zeros(regs, table.lift.dtype)])
    own = dataclasses.replace(
        table,
        A=table.A / scale,
        B=(table.B - rest) / scale[:, None],
        C=(table.C - noise) / scale,
        start=xp.asarray([1.0, 0.0], table.lift.dtype),
        lift=xp.concatenate([first[None], table.lift[:-1]]),
    )
    draws = namespace(table.draw)
    return own, draws.concatenate([draws.zeros_like(table.draw[:1]), table.draw[:-1]])


def _moved(lift: Arr, x: State, memory: State) -> State:
    """The scaled state and the registers, without noise."""

    def leaf(a, registers):
        return _combined(lift[0], lift[2:], a, registers)

    return jax.tree.map(leaf, x, memory)


def _combined(scale: Scalar, weights: Arr, a: Arr, registers: Arr) -> Arr:
    """scale a + sum_r weights_r registers_r in the dtype of a, summed in float32 at least."""
    wider = widened(a)
    terms = (cast(weights[r], wider) * registers[r].astype(wider.dtype) for r in range(registers.shape[0]))
    return sum(terms, cast(scale, wider) * wider).astype(a.dtype)


def parts_of(tables: Table | dict[str, Table]) -> tuple[list[Table], Any]:
    """The tables of all parts and how they make up the state: one table for all of it, or a dict of them."""
    return jax.tree.flatten(tables, is_leaf=lambda a: isinstance(a, Table))


def _add_noise(x: State, weight: Scalar, z: State | None) -> State:
    """x + weight z; a draw that is missing (NaN) counts only if its weight is not zero."""
    if z is None:
        return x

    def leaf(a, b):
        wider = widened(a)
        drawn = jnp.where(jnp.isnan(b) & (weight == 0), 0, b).astype(wider.dtype)
        return (wider + cast(weight, wider) * drawn).astype(a.dtype)

    return jax.tree.map(leaf, x, z)
