"""The loop that all samplers share: scan a `Solver` over its rows, with observers that cost nothing when off.

Observers are saved states, the progress bar, hooks at the ends of grid intervals, and the check for
non-finite values.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ..convolutions import fast
from ..eager import once
from ..numerics import Key, State, common, is_traced, namespace, varying_like
from ..paths import Denoiser
from ..paths.predictions import match
from .adjoints import RecursiveCheckpoint
from .observers import (
    all_finite,
    entry_of_row,
    fault_messages,
    noting,
    observed,
    row_after,
    saved_points,
    saved_times,
    with_data,
    with_entry,
)
from .progress import Bar, begin, tick
from .protocol import Carry, Scanned, StepEnd, Stopped, Trajectory, Watch, hook_time


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Iteration:
    """The body of the scan: the solver's step and its observers."""

    solver: Any  # JAX puts other things in the places of leaves, too
    model: Any
    key: Any
    denoiser: Any
    hook: Any
    bar: Bar | None = dataclasses.field(metadata={"static": True})
    data: bool = dataclasses.field(metadata={"static": True})
    check: bool = dataclasses.field(metadata={"static": True})
    observe: bool = dataclasses.field(metadata={"static": True})

    def __call__(self, carry: Carry, scanned: Scanned) -> Carry:
        state, saved, fault = carry
        row, i, slot, is_end, entry = scanned
        key, hook_key = None, None
        if self.key is not None:  # the hooks' keys come from a branch of their own
            key = jax.random.fold_in(self.key, i)
            hook_key = jax.random.fold_in(jax.random.fold_in(self.key, 2**31 - 1), i)
        outputs_finite: list = []
        said: list = []
        model = _in_loop(with_data(self.model) if self.data else self.model)
        model = model if entry is None else with_entry(model, entry)
        model = noting(model, said) if self.data else model
        model = observed(model, outputs_finite) if self.check and self.observe else model
        state = self.solver.lifted(state, row) if hasattr(self.solver, "lifted") else state
        state = self.solver.step(model, state, row, key)
        if self.check:
            outputs = jnp.stack(outputs_finite).all() if outputs_finite else jnp.asarray(True)
            healthy = outputs & all_finite(state[0])
            fault = jnp.minimum(fault, jnp.where(healthy, fault, jnp.where(outputs, 2 * i + 1, 2 * i)))
        if self.hook is not None:
            hooked = lambda x: self._hooked(self.hook, x, hook_time(row), hook_key)
            state = (jax.lax.cond(is_end, hooked, lambda x: x, state[0]), *state[1:])
        if saved is not None:
            write = lambda buffer, x: jax.lax.dynamic_update_index_in_dim(buffer, x, slot, 0)
            saved = jax.tree.map(write, saved, said[0] if self.data else state[0])
        if self.bar is not None:
            tick(i, self.bar)
        return Carry(state, saved, fault)

    def reverse(self, carry: Carry, scanned: Scanned) -> Carry:
        """The carry before this iteration, by the solver's own inverse; what was saved is left as it is."""
        key = None if self.key is None else jax.random.fold_in(self.key, scanned.index)
        model = _in_loop(self.model)
        model = model if scanned.entry is None else with_entry(model, scanned.entry)
        return carry._replace(state=self.solver.reverse(model, carry.state, scanned.row, key))

    def _hooked(self, hook: Any, x: State, t: Any, key: Key | None) -> State:
        whole = x if self.denoiser is None else self.denoiser.uncentred(x)
        new = match(fast(hook)(StepEnd(whole, t, key)), x)
        return new if self.denoiser is None else self.denoiser.centred(new)


def _in_loop(model: Callable) -> Callable:
    """The model, with convolutions that are fast in loops."""
    return model.in_loop() if isinstance(model, Denoiser) else fast(model)


DEFAULT = RecursiveCheckpoint()


def drive(
    solver: Any,
    rows: Any,
    model: Callable,
    x: State | Carry,
    *,
    key: Key | None = None,
    watch: Watch | None = None,
    denoiser: Denoiser | None = None,
    observe: bool = False,
    first: int = 0,
) -> Any:
    """Scan `solver.step` over `rows` and return the sample, a `Trajectory`, or the `Stopped` run.

    Args:
        solver: the four functions of `Solver`.
        rows: what it iterates over.
        model: what its steps call.
        x: the state at the start; what the rows before `first` handed on.
        key: of the solver's noise and of hooks.
        watch: observers and the adjoint.
        denoiser: whose mu the state of a table leaves out.
        observe: whether `check` tells bad outputs from bad states; the solver must not call the model inside
            control flow.
        first: the row to begin with.
    """
    watch = Watch() if watch is None else watch
    n, points, slot = rows.end.shape[0], np.zeros(0, int), np.zeros(rows.end.shape[0], np.int32)
    if watch.save is not None:
        points, slot = saved_points(watch.save, rows.end)
    data = isinstance(watch.save, str) and watch.save == "data"
    if data and (denoiser is None or not observe):
        raise ValueError(
            "save='data' takes x_0 from the network calls of a table: it needs a Denoiser and a solver that "
            f"is a table, not {type(solver).__name__}; a hook can call the denoiser itself"
        )
    where = None if watch.per_step is None else entry_of_row(watch.per_step, rows.end)
    bar = Bar.of(n) if watch.progress else None
    body = _Iteration(solver, model, key, denoiser, watch.hook, bar, data, watch.check, observe)
    scanned = Scanned(rows, None, slot, ~namespace(rows.end).isnan(rows.end), where)
    last = n if watch.stop is None else row_after(rows.end, watch.stop, first)
    if (first, last) != (0, n):
        scanned = jax.tree.map(lambda a: a[first:last], scanned)
    adjoint = DEFAULT if watch.adjoint is None else watch.adjoint
    plan: Any = getattr(adjoint, "planned", None)
    adjoint = adjoint if plan is None else plan(body, scanned)
    saving = None if watch.save is None else tuple(points.tolist())
    args = adjoint, body, scanned, x, watch.per_step, _Part(saving, first, last, n)
    out, saved, fault = once(_loop, *args) if watch.jit else _loop(*args)
    if watch.check and (is_traced(fault) or fault < 2 * n):
        out = _unless_fault(out, fault, n, rows)
    if watch.stop is not None:
        carry = Carry(out, saved, fault)
        return Stopped(carry, solver, rows, model, key, denoiser, watch, observe, last)
    if saved is None:
        return out
    begin = getattr(rows, "begin", None)
    start = begin[0] if begin is not None else rows.t[0] if hasattr(rows, "t") else np.nan
    return Trajectory(out, saved_times(points, slot, rows.end, start), saved)


def _unless_fault(out: PyTree, fault: jax.Array, n: int, rows: Any) -> PyTree:
    """`out`, or the error of the first fault, on whichever device it was."""
    first = common(jnp.asarray(fault))
    number = jnp.clip(first, 0, 2 * n - 1)
    if first is fault or not is_traced(fault):
        return eqx.branched_error_if(out, first < 2 * n, number, fault_messages(rows))
    # devices of a `shard_map` differ in `out`, not in the error: a zero that waits for it joins them
    zero = eqx.branched_error_if(jnp.zeros(()), first < 2 * n, number, fault_messages(rows))
    return jax.tree.map(lambda a: a + zero.astype(a.dtype), out)


@dataclasses.dataclass(frozen=True)
class _Part:
    """What is constant in the program: the grid points to save, and which of the rows are run."""

    points: tuple[int, ...] | None
    first: int
    last: int
    rows: int


def _loop(
    adjoint: Any,
    body: _Iteration,
    scanned: Scanned,
    x: State | Carry,
    per_step: PyTree,
    part: _Part,
) -> Carry:
    """What is compiled: the sample, the saved states, and the number of the first fault.

    In place of the sample there is the solver's state if rows are left.
    """
    carry = x if part.first else _start(body, scanned, x, part)
    index = np.arange(part.first, part.last, dtype=np.int32)
    if body.bar is not None:
        index = begin(body.bar, index)
    entry = scanned.entry
    if entry is not None:  # rows of padding come after the last interval
        entry = jax.tree.map(lambda a: jnp.asarray(a).at[scanned.entry].get(mode="clip"), per_step)
    scanned = scanned._replace(index=index, entry=entry)
    carry = adjoint.loop(body, carry, scanned)
    if part.last < part.rows:
        return carry
    out, saved = body.solver.final(carry.state), carry.saved
    if body.data:  # the end is data
        saved = jax.tree.map(lambda buffer, x: buffer.at[-2].set(x), saved, carry.state[0])
    if body.denoiser is not None:
        out = body.denoiser.uncentred(out)
        saved = None if saved is None else body.denoiser.uncentred(saved)
    return Carry(out, None if saved is None else jax.tree.map(lambda a: a[:-1], saved), carry.fault)


def _start(body: _Iteration, scanned: Scanned, x: State, part: _Part) -> Carry:
    """The carry before the first row."""
    x = x if body.denoiser is None else body.denoiser.centred(x)
    state, saved, points = body.solver.init(x, scanned.row), None, part.points
    if points is not None:
        blank = lambda a: jnp.broadcast_to(jnp.full_like(a, jnp.nan), (len(points) + 1, *a.shape))
        saved = jax.tree.map(blank, state[0])
        if 0 in points and not body.data:
            write = lambda buffer, a: jax.lax.dynamic_update_index_in_dim(buffer, a, points.index(0), 0)
            saved = jax.tree.map(write, saved, state[0])
    state, fault = varying_like((state, jnp.asarray(2 * part.rows, jnp.int32)), x)
    return Carry(state, saved, fault)
