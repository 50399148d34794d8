r"""Run a table over its rows with one compiled loop.

One row is one model call is one scan iteration. The table is an argument of the jitted function, never a constant in it, so another solver,
grid or order of the same shape reuses the compilation. Coefficients are cast to the dtype of the state (float32 at least for
times); the sum over registers is elementwise, so no accelerator rounds it to a lower precision.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from ..numerics import Arr, axpy, cast, is_traced, normal, on_host, wide
from ..paths.base import Path
from ..paths.predictions import Denoiser, convert, match, weights
from ..tables.table import Table
from .adjoints import Adjoint
from .brownian import Brownian
from .brownian import spans as brownian_spans
from .driver import drive
from .protocol import Save, StepEnd


class Rows(eqx.Module):
    """What the driver scans: the tables of all parts, their times, and the angles between which draws are increments."""

    tables: list[Table]
    spans: list | None
    t: Arr
    end: Arr
    when: Any

    def __init__(self, tables: PyTree, spans: list | None):
        parts, structure = _parts(tables)
        self.t, self.end = parts[0].t, parts[0].end
        self.when = structure.unflatten([part.end for part in parts])
        # what is scanned has one leading axis, which `start` has not
        self.tables, self.spans = (
            [eqx.tree_at(lambda table: table.start, part, None) for part in parts],
            spans,
        )


class TableSolver(eqx.Module):
    """The four functions of a `Table`, or of one table for each part of the state.

    Noise is drawn per draw index, or given as an array in order of use, or by a Brownian path for each part.
    """

    starts: list[Float[Arr, " 2"]]
    key: Any
    noise: Any
    structure: Any = eqx.field(static=True)

    def draw(self, part: int, i: Any, span: Any, like: PyTree) -> Any:
        """Standard normal draw i of a part, None if no noise is to be had."""
        if span is not None:
            return self.noise[part].draw(span, like)
        if self.noise is not None:  # a draw that is not there is NaN, unless its weight is zero
            noise = self.structure.flatten_up_to(self.noise)[part]
            return jax.tree.map(
                lambda z, a: jnp.asarray(z).at[i].get(mode="fill", fill_value=jnp.nan).astype(a.dtype),
                noise,
                like,
            )
        key = self.key if self.key is None or len(self.starts) == 1 else jax.random.fold_in(self.key, part)
        return None if key is None else normal(jax.random.fold_in(key, i), like)

    def init(self, x: PyTree, rows: Rows) -> tuple:
        """Start scale and noise, empty registers."""
        parts, memory = self.structure.flatten_up_to(x), []
        for p, (start, table) in enumerate(zip(self.starts, rows.tables, strict=True)):
            memory.append(
                jax.tree.map(lambda a, regs=table.regs: jnp.stack([jnp.zeros_like(a)] * regs), parts[p])
            )
            scaled = axpy(start[0], parts[p], 0.0, parts[p])
            z = None if rows.spans is not None else self.draw(p, 0, None, parts[p])
            parts[p] = _add_noise(scaled, start[1], z)
        return self.structure.unflatten(parts), memory

    def step(self, model: Callable, state: tuple, row: Rows, key: Any = None) -> tuple:
        """One row of the recurrence."""
        x, memory = state
        times, forms = ([getattr(table, name) for table in row.tables] for name in ("t", "form"))
        outputs = model(x, self.structure.unflatten(times), self.structure.unflatten(forms))
        parts, outputs, new = self.structure.flatten_up_to(x), self.structure.flatten_up_to(outputs), []
        for p, table in enumerate(row.tables):
            z = self.draw(p, table.draw, None if row.spans is None else row.spans[p], parts[p])
            part, registers = _advance(table, parts[p], memory[p], outputs[p])
            parts[p] = _add_noise(part, table.C, z)
            new.append(registers)
        return self.structure.unflatten(parts), new

    def final(self, state: tuple) -> PyTree:
        """The state after the last row."""
        return state[0]


def _advance(row: Table, x: PyTree, memory: PyTree, m: PyTree) -> tuple[PyTree, PyTree]:
    """The row's update without its noise, and the registers after it."""

    def write(registers, a, b):  # a slice, unlike a scatter, keeps the sharding of the state
        registers = jax.lax.dynamic_update_index_in_dim(registers, a, row.keep, 0)
        return jax.lax.dynamic_update_index_in_dim(registers, b, row.slot, 0)

    def update(a, registers):
        return sum((cast(row.B[r], a) * registers[r] for r in range(row.B.shape[-1])), cast(row.A, a) * a)

    memory = jax.tree.map(write, memory, x, m)
    return jax.tree.map(update, x, memory), memory


def _parts(tables: PyTree) -> tuple[list[Table], Any]:
    """The tables of all parts and how they make up the state: one table for all of it, or a dict of them."""
    return jax.tree.flatten(tables, is_leaf=lambda a: isinstance(a, Table))


def run(
    model: Callable,
    table: Table | dict[str, Table],
    x: PyTree,
    *,
    key: Any = None,
    noise: PyTree | None = None,
    adjoint: Adjoint | None = None,
    save: Save = None,
    progress: bool = False,
    hook: Callable[[StepEnd], PyTree] | None = None,
    check: bool = False,
    per_step: PyTree | None = None,
) -> Any:
    """Run `table` from x_T = `x` (any pytree of floats) and return x at the last grid time, or a `Trajectory` if `save` is given.

    A dict of tables runs a system: x is a dict with the same names, each part on its own grid, and the model gets a dict of times.

    model: a `Denoiser` (asked for the kind that each row wants; the state then is x - mu of its path), or a callable (x, t) that returns
    that kind. key: draws the noise, folded in per draw. noise: array [draws, *x.shape] (or a pytree of them) in order of use instead;
    or "brownian": increments of one Brownian path, the same whatever the grid (see `brownian`). adjoint: how gradients flow (default
    `RecursiveCheckpoint()`). save: None, "all", or indices of grid points (0 is the start). progress: a bar on stderr. hook:
    `hook(StepEnd) -> x`, called at the end of every grid interval. check: report the first row with a non-finite network output or
    state, and its time, as an error (costs a host callback). per_step: a pytree of arrays with one entry for each grid interval
    (guidance weights, prompts); the network is called as net(x, t, entry).
    A traced stochastic table without noise cannot be seen to need it: its result is NaN.
    """
    _check_tables(table)
    x = _float_state(x)
    denoiser = model if isinstance(model, Denoiser) else None
    dtype = wide(x)
    brownian = isinstance(noise, str) and noise == "brownian"
    _check_noise(table, key, None if brownian else noise, x)

    # concrete tables stay numpy, also under jit, so that what depends on them (saved points, messages) is known
    if denoiser is not None:
        if isinstance(table, dict) and not isinstance(denoiser.path, dict):
            raise ValueError(
                f"tables for {sorted(table)}, but the denoiser has one path: give js.Denoiser a dict of paths with these names"
            )
        denoiser.each(lambda path, table: _check_kind(model.kind, path, table), table)
    parts, structure = _parts(table)
    spans = None
    if brownian:
        if denoiser is None or key is None:
            raise ValueError(
                "noise='brownian' needs key=, and a Denoiser: its path tells how noise runs with time"
            )
        paths = (
            [denoiser.path]
            if isinstance(denoiser.path, Path)
            else [denoiser.path[name] for name in sorted(denoiser.path)]
        )
        spans = [brownian_spans(part, path).astype(dtype) for part, path in zip(parts, paths, strict=True)]
        noise = [Brownian(jax.random.fold_in(key, p)) for p in range(len(parts))]
    elif not (
        is_traced(table)
        or any(part.draws for part in parts)
        or hook is not None
        or getattr(adjoint, "variance_reduction", 0)
    ):
        key = None  # nothing to draw
    parts = jax.tree.map(lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, parts)
    x = x if denoiser is None else denoiser.centred(x)
    if key is None and noise is None and is_traced(table):
        noisy = jnp.stack([(part.C != 0).any() | (part.start[1] != 0) for part in parts]).any()
        x = jax.tree.map(lambda a: a + cast(jnp.where(noisy, jnp.nan, 0.0), a), x)
    return drive(
        TableSolver([part.start for part in parts], key, noise, structure),
        Rows(structure.unflatten(parts), spans),
        eqx.Partial(_predict, model),
        x,
        key=key,
        adjoint=adjoint,
        save=save,
        progress=progress,
        hook=hook,
        check=check,
        per_step=per_step,
        centre=denoiser,
        observe=True,
    )


def _check_tables(tables: PyTree) -> None:
    if not isinstance(tables, Table) and not (
        isinstance(tables, dict) and all(isinstance(v, Table) for v in tables.values())
    ):
        raise TypeError(
            f"run takes a Table (js.tabulate makes one), got {type(tables).__name__}; js.sample runs other solvers"
        )
    parts = _parts(tables)[0]
    if any(part.t.ndim != 1 for part in parts):
        raise ValueError(
            "a stack of tables runs under vmap: jax.vmap(lambda table, x: js.run(model, table, x))(tables, xs)"
        )
    if len({part.nfe for part in parts}) > 1:
        raise ValueError(
            f"the parts of a system share their network calls: tables of {[part.nfe for part in parts]} rows cannot run together"
        )
    if not is_traced(parts) and len({np.isnan(part.end).tobytes() for part in parts}) > 1:
        raise ValueError(
            "the tables of a system must end their intervals in the same rows: use solvers of equal calls per step"
        )


def _check_kind(kind: str, path: Path, table: Table) -> None:
    """A kind that does not determine what a row wants (noise at alpha = 0) is found here, not as a NaN."""
    if not is_traced(table):
        with on_host():
            weights(path, table.t, kind, (table.form[..., 0], table.form[..., 1]))


def _add_noise(x: PyTree, weight: Any, z: Any) -> PyTree:
    """x + weight z; a draw that is missing (NaN) counts only if its weight is not zero."""
    if z is None:
        return x
    return jax.tree.map(
        lambda a, b: a + cast(weight, a) * jnp.where(jnp.isnan(b) & (weight == 0), 0, b), x, z
    )


def _predict(model: Any, y: PyTree, t: Any, form: Any, *extra: PyTree) -> PyTree:
    """The prediction that a row wants, at the centred state y."""
    if not isinstance(model, Denoiser):
        return match(model(y, t, *extra), y)
    x = model.uncentred(y)
    m = match(model.net(x, t, *extra), x)
    wanted = lambda path, m, x, t, form: convert(m, x, t, path, source=model.kind, target=(form[0], form[1]))
    return model.each(wanted, m, x, t, form)


def _float_state(x: PyTree) -> PyTree:
    x = jax.tree.map(jnp.asarray, x)
    if not jax.tree.leaves(x):
        raise TypeError(
            "the state x is empty: give x, or an array (or pytree of arrays) shaped like a sample"
        )
    for leaf in jax.tree.leaves(x):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"the state must be floating point, got {leaf.dtype}; cast x with x.astype(jnp.float32)"
            )
    return x


def _check_noise(table: PyTree, key: Any, noise: PyTree | None, x: PyTree) -> None:
    draws = 0 if is_traced(table) else max(part.draws for part in _parts(table)[0])
    if noise is None:
        if key is None and draws:
            raise ValueError(
                "this solver draws noise: pass key=jax.random.key(seed), or noise=array of shape [draws, *x.shape]"
            )
        return
    if isinstance(noise, str) or jax.tree.structure(noise) != jax.tree.structure(x):
        raise ValueError(
            f"noise must be 'brownian', or arrays like the state, {jax.tree.structure(x)}, each with a leading axis of draws"
        )
    for z, a in zip(jax.tree.leaves(noise), jax.tree.leaves(x), strict=True):
        if jnp.shape(z)[1:] != a.shape or len(z) < draws:
            raise ValueError(
                f"noise must have shape [{draws} or more, {', '.join(map(str, a.shape))}], got {list(jnp.shape(z))}"
            )
