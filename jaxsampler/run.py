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
from jaxtyping import Float, PyTree

from .adjoints import Adjoint
from .drive import Save, StepEnd, drive
from .numerics import Arr, axpy, cast, is_traced, normal, on_host
from .predictions import Denoiser, convert, match, weights
from .tables import Table


class TableSolver(eqx.Module):
    """The four functions of a `Table`; noise is drawn per draw index, or given as an array in order of use."""

    start: Float[Arr, " 2"]
    key: Any
    noise: Any

    def draw(self, i: Any, like: PyTree) -> Any:
        """Standard normal draw i, None if no noise is to be had."""
        if self.noise is not None:  # a draw that is not there is NaN, unless its weight is zero
            return jax.tree.map(lambda z, a: jnp.asarray(z).at[i].get(mode="fill", fill_value=jnp.nan).astype(a.dtype), self.noise, like)
        return None if self.key is None else normal(jax.random.fold_in(self.key, i), like)

    def init(self, x: PyTree, rows: Table) -> tuple:
        """Start scale and noise, empty registers."""
        z = self.draw(0, x)
        x = _add_noise(axpy(self.start[0], x, 0.0, x), self.start[1], z)
        return x, jax.tree.map(lambda a: jnp.zeros((rows.regs, *a.shape), a.dtype), x)

    def step(self, model: Callable, state: tuple, row: Table, key: Any = None) -> tuple:
        """One row of the recurrence."""
        x, mem = state
        m = model(x, row.t, row.form)
        z = self.draw(row.draw, x)

        def write(registers, a, b):
            return registers.at[row.keep].set(a).at[row.slot].set(b)

        def update(a, registers):
            return sum((cast(row.B[r], a) * registers[r] for r in range(row.B.shape[-1])), cast(row.A, a) * a)

        mem = jax.tree.map(write, mem, x, m)
        x = jax.tree.map(update, x, mem)
        return _add_noise(x, row.C, z), mem

    def final(self, state: tuple) -> PyTree:
        """The state after the last row."""
        return state[0]


def run(
    model: Callable,
    table: Table,
    x: PyTree,
    *,
    key: Any = None,
    noise: PyTree | None = None,
    adjoint: Adjoint | None = None,
    save: Save = None,
    progress: bool = False,
    hook: Callable[[StepEnd], PyTree] | None = None,
    check: bool = False,
) -> Any:
    """Run `table` from x_T = `x` (any pytree of floats) and return x at the last grid time, or a `Trajectory` if `save` is given.

    model: a `Denoiser` (asked for the kind that each row wants; the state then is x - mu of its path), or a callable (x, t) that returns
    that kind. key: draws the noise, folded in per draw. noise: array [draws, *x.shape] (or a pytree of them) in order of use instead.
    adjoint: how gradients flow (default `RecursiveCheckpoint()`). save: None, "all", or indices of grid points (0 is the start).
    progress: a bar on stderr. hook: `hook(StepEnd) -> x`, called at the end of every grid interval. check: report the first row with a
    non-finite network output or state, and its time, as an error (costs a host callback).
    A traced stochastic table without noise cannot be seen to need it: its result is NaN.
    """
    if not isinstance(table, Table):
        raise TypeError(f"run takes a Table (js.tabulate makes one), got {type(table).__name__}; js.sample runs other solvers")
    if table.t.ndim != 1:
        raise ValueError("a stack of tables runs under vmap: jax.vmap(lambda table, x: js.run(model, table, x))(tables, xs)")
    x = _float_state(x)
    path = model.path if isinstance(model, Denoiser) else None
    dtype = max([jnp.dtype(jnp.float32), *[a.dtype for a in jax.tree.leaves(x)]], key=lambda d: d.itemsize)
    _check_noise(table, key, noise, x)

    # a concrete table stays numpy, also under jit, so that what depends on it (saved points, messages) is known
    if isinstance(model, Denoiser) and not is_traced(table):
        with on_host():  # a kind that does not determine what a row wants (noise at alpha = 0) is found here, not as a NaN
            weights(model.path, table.t, model.kind, (table.form[..., 0], table.form[..., 1]))
    if not is_traced(table) and not table.draws and hook is None:
        key = None  # nothing to draw
    rows = jax.tree.map(lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, table)
    x = x if path is None else path.centred(x)
    if key is None and noise is None and is_traced(table):
        poison = jnp.where((rows.C != 0).any() | (rows.start[1] != 0), jnp.nan, 0.0)
        x = jax.tree.map(lambda a: a + cast(poison, a), x)
    return drive(
        TableSolver(rows.start, key, noise),
        eqx.tree_at(lambda table: table.start, rows, None),  # what is scanned has one leading axis
        eqx.Partial(_predict, model),
        x,
        key=key,
        adjoint=adjoint,
        save=save,
        progress=progress,
        hook=hook,
        check=check,
        centre=path,
    )


def _add_noise(x: PyTree, weight: Any, z: Any) -> PyTree:
    """x + weight z; a draw that is missing (NaN) counts only if its weight is not zero."""
    if z is None:
        return x
    return jax.tree.map(lambda a, b: a + cast(weight, a) * jnp.where(jnp.isnan(b) & (weight == 0), 0, b), x, z)


def _predict(model: Any, y: PyTree, t: Any, form: Any) -> PyTree:
    """The prediction that a row wants, at the centred state y."""
    if not isinstance(model, Denoiser):
        return match(model(y, t), y)
    x = model.path.uncentred(y)
    m = match(model.net(x, t), x)
    return convert(m, x, t, model.path, source=model.kind, target=(form[0], form[1]))


def _float_state(x: PyTree) -> PyTree:
    x = jax.tree.map(jnp.asarray, x)
    if not jax.tree.leaves(x):
        raise TypeError("the state x is empty: give x, or an array (or pytree of arrays) shaped like a sample")
    for leaf in jax.tree.leaves(x):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(f"the state must be floating point, got {leaf.dtype}; cast x with x.astype(jnp.float32)")
    return x


def _check_noise(table: Table, key: Any, noise: PyTree | None, x: PyTree) -> None:
    draws = 0 if is_traced(table.C, table.draw, table.start) else table.draws
    if noise is None:
        if key is None and draws:
            raise ValueError("this solver draws noise: pass key=jax.random.key(seed), or noise=array of shape [draws, *x.shape]")
        return
    if isinstance(noise, str) or jax.tree.structure(noise) != jax.tree.structure(x):
        raise ValueError(f"noise must be arrays like the state, {jax.tree.structure(x)}, each with a leading axis of draws")
    for z, a in zip(jax.tree.leaves(noise), jax.tree.leaves(x), strict=True):
        if jnp.shape(z)[1:] != a.shape or len(z) < draws:
            raise ValueError(f"noise must have shape [{draws} or more, {', '.join(map(str, a.shape))}], got {list(jnp.shape(z))}")
