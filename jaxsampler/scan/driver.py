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
from jaxtyping import Array, PyTree

from ..convolutions import fast
from ..eager import once
from ..numerics import Arr, Key, State, is_traced, namespace
from ..paths import Denoiser
from ..paths.predictions import match
from .adjoints import RecursiveCheckpoint
from .progress import Bar, begin, tick
from .protocol import Carry, Save, Scanned, StepEnd, Trajectory, Watch, hook_time


class _Iteration(eqx.Module):
    """The body of the scan: the solver's step and its observers."""

    solver: Any
    model: Callable
    key: Key | None
    denoiser: Denoiser | None
    hook: Callable | None
    bar: Bar | None = eqx.field(static=True)
    check: bool = eqx.field(static=True)
    observe: bool = eqx.field(static=True)

    def __call__(self, carry: Carry, scanned: Scanned) -> Carry:
        state, saved, fault = carry
        row, i, slot, is_end, entry = scanned
        key, hook_key = None, None
        if self.key is not None:  # the hooks' keys come from a branch of their own
            key = jax.random.fold_in(self.key, i)
            hook_key = jax.random.fold_in(jax.random.fold_in(self.key, 2**31 - 1), i)
        outputs_finite: list = []
        model = _in_loop(self.model) if entry is None else with_entry(_in_loop(self.model), entry)
        model = _observed(model, outputs_finite) if self.check and self.observe else model
        state = self.solver.step(model, state, row, key)
        if self.check:
            outputs = jnp.stack(outputs_finite).all() if outputs_finite else jnp.asarray(True)
            healthy = outputs & _all_finite(state[0])
            fault = jnp.minimum(fault, jnp.where(healthy, fault, jnp.where(outputs, 2 * i + 1, 2 * i)))
        if self.hook is not None:
            hooked = lambda x: self._hooked(self.hook, x, hook_time(row), hook_key)
            state = (jax.lax.cond(is_end, hooked, lambda x: x, state[0]), *state[1:])
        if saved is not None:
            write = lambda buffer, x: jax.lax.dynamic_update_index_in_dim(buffer, x, slot, 0)
            saved = jax.tree.map(write, saved, state[0])
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


def _observed(model: Callable, finite: list) -> Callable:
    """The model, noting in `finite` whether each output is."""
    if isinstance(model, Denoiser):
        return Denoiser(_observed(model.net, finite), model.path, model.kind)

    def observed(*args):
        m = model(*args)
        finite.append(_all_finite(m))
        return m

    return observed


def with_entry(model: Callable, entry: PyTree) -> Callable:
    """The model, its network given the entry of this interval as a last argument."""
    if isinstance(model, Denoiser):
        return Denoiser(with_entry(model.net, entry), model.path, model.kind)
    return lambda *args: model(*args, entry)


def interval(end: Arr) -> Arr:
    """Index of the grid interval of each row, from the ends of intervals."""
    xp = namespace(end)
    is_end = ~xp.isnan(end)
    return xp.cumsum(is_end) - is_end.astype(int)


def _entry_of_row(per_step: PyTree, end: Arr) -> Arr:
    """The number of each row's entry, that of its interval."""
    where = interval(end)
    n = None if is_traced(end) else int((~np.isnan(end)).sum())
    for leaf in jax.tree.leaves(per_step):
        if jnp.ndim(leaf) == 0 or (n is not None and len(leaf) != n):
            raise ValueError(
                f"per_step needs one entry for each of the {n} grid intervals as leading axis; "
                f"got shape {jnp.shape(leaf)}"
            )
    return where


def _all_finite(x: State) -> Any:
    return jnp.stack([jnp.isfinite(a).all() for a in jax.tree.leaves(x)]).all()


def _saved_points(save: Save, end: Arr) -> tuple[np.ndarray, Any]:
    """Grid indices to save, and for each row the buffer slot that it writes (the last one is waste)."""
    if isinstance(save, int) or save is None or len(save) == 0:
        raise ValueError(f"save must be None, 'all' or a list of indices of grid points, got {save!r}")
    xp = namespace(end)
    is_end = ~xp.isnan(end)
    count = xp.cumsum(is_end)  # index of the grid point that a row's interval ends at
    if xp is jnp:
        if isinstance(save, str) or any(i < 0 for i in save):
            raise ValueError(
                "save='all' and negative indices count intervals, which a traced table does not show: "
                "close over the table, or give indices >= 0"
            )
        points = np.asarray(save)
    else:
        n = int(is_end.sum())
        if isinstance(save, str) and save != "all":
            raise ValueError(f"save must be None, 'all' or indices of grid points, got {save!r}")
        given = range(n + 1) if isinstance(save, str) else save
        points = np.array([i + n + 1 if i < 0 else i for i in given])
        if np.any((points < 0) | (points > n)):
            raise ValueError(f"save indices must lie in [{-n - 1}, {n}]: the grid has {n + 1} points")
    if len(set(points.tolist())) != len(points):
        raise ValueError(f"save indices repeat: give each grid point once, got {save!r}")
    hit = is_end[:, None] & (count[:, None] == points[None, :])
    return points, xp.where(hit.any(1), hit.argmax(1), len(points)).astype(np.int32)


def drive(
    solver: Any,
    rows: Any,
    model: Callable,
    x: State,
    *,
    key: Key | None = None,
    watch: Watch | None = None,
    denoiser: Denoiser | None = None,
    observe: bool = False,
) -> Any:
    """Scan `solver.step` over `rows` and return the sample, or a `Trajectory`.

    Args:
        solver: the four functions of `Solver`.
        rows: what it iterates over.
        model: what its steps call.
        x: the state at the start.
        key: of the solver's noise and of hooks.
        watch: observers and the adjoint.
        denoiser: whose mu the state of a table leaves out.
        observe: whether `check` tells bad outputs from bad states; the solver must not call the model inside
            control flow.
    """
    watch = Watch() if watch is None else watch
    n, points, slot = rows.end.shape[0], np.zeros(0, int), np.zeros(rows.end.shape[0], np.int32)
    if watch.save is not None:
        points, slot = _saved_points(watch.save, rows.end)
    where = None if watch.per_step is None else _entry_of_row(watch.per_step, rows.end)
    body = _Iteration(
        solver, model, key, denoiser, watch.hook, Bar.of(n) if watch.progress else None, watch.check, observe
    )
    scanned = Scanned(rows, None, slot, ~namespace(rows.end).isnan(rows.end), where)
    adjoint = RecursiveCheckpoint() if watch.adjoint is None else watch.adjoint
    plan: Any = getattr(adjoint, "planned", None)
    adjoint = adjoint if plan is None else plan(body, scanned)
    saving = None if watch.save is None else _Points(tuple(points.tolist()))
    args = adjoint, body, scanned, x, watch.per_step, saving
    out, saved, fault = once(_loop, *args) if watch.jit else _loop(*args)
    if watch.check and (is_traced(fault) or fault < 2 * n):
        number = jnp.clip(fault, 0, 2 * n - 1)
        out = eqx.branched_error_if(out, fault < 2 * n, number, _fault_messages(rows))
    if saved is None:
        return out
    start = rows.t[0] if hasattr(rows, "t") else np.nan
    return Trajectory(out, _saved_times(points, slot, rows.end, start), saved)


@dataclasses.dataclass(frozen=True)
class _Points:
    """Indices of the grid points to save: one constant of the program."""

    points: tuple[int, ...]


def _loop(
    adjoint: Any,
    body: _Iteration,
    scanned: Scanned,
    x: State,
    per_step: PyTree,
    saving: _Points | None,
) -> tuple[State, State | None, Array]:
    """What is compiled: the sample, the saved states, and the number of the first fault."""
    x = x if body.denoiser is None else body.denoiser.centred(x)
    n, state = len(scanned.slot), body.solver.init(x, scanned.row)
    saved = None
    if saving is not None:
        points = saving.points
        blank = lambda a: jnp.broadcast_to(jnp.full_like(a, jnp.nan), (len(points) + 1, *a.shape))
        saved = jax.tree.map(blank, state[0])
        if 0 in points:
            write = lambda buffer, a: jax.lax.dynamic_update_index_in_dim(buffer, a, points.index(0), 0)
            saved = jax.tree.map(write, saved, state[0])
    index = np.arange(n, dtype=np.int32) if body.bar is None else begin(body.bar, n)
    entry = scanned.entry
    if entry is not None:  # rows of padding come after the last interval
        entry = jax.tree.map(lambda a: jnp.asarray(a).at[scanned.entry].get(mode="clip"), per_step)
    scanned = scanned._replace(index=index, entry=entry)
    carry = Carry(state, saved, jnp.asarray(2 * n, jnp.int32))
    state, saved, fault = adjoint.loop(body, carry, scanned)
    out = body.solver.final(state)
    if body.denoiser is not None:
        out = body.denoiser.uncentred(out)
        saved = None if saved is None else body.denoiser.uncentred(saved)
    return out, None if saved is None else jax.tree.map(lambda a: a[:-1], saved), fault


def _saved_times(points: np.ndarray, slot: Arr, end: Arr, start: Any) -> Array:
    """The times of the saved states; the last slot is waste."""
    if is_traced(slot, end, start):
        t = jnp.full(len(points) + 1, jnp.nan).at[slot].set(jnp.asarray(end, jnp.result_type(float)))
        return jnp.where(points == 0, start, t[:-1])
    t = np.full(len(points) + 1, np.nan)
    t[slot] = end
    return jnp.asarray(np.where(points == 0, start, t[:-1]), jnp.result_type(float))


def _fault_messages(rows: Any) -> list[str]:
    n = rows.end.shape[0]
    times = getattr(rows, "t", None)
    when = (
        [""] * n
        if times is None or is_traced(times)
        else [f" (model call at t={float(t):.6g})" for t in times]
    )
    where = [f"row {i} of {n}{w}" for i, w in enumerate(when)]
    return [
        f"{w}: {what}"
        for w in where
        for what in ("the network returned a non-finite value", "the state became non-finite")
    ]
