"""The loop that all samplers share: scan a `Solver` over its rows, with observers that cost nothing when off.

Observers are saved states, the progress bar, hooks at the ends of grid intervals, and the check for non-finite values.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ..numerics import is_traced, namespace
from ..paths.predictions import Denoiser, match
from .adjoints import Adjoint, RecursiveCheckpoint
from .progress import Bar, begin, tick
from .protocol import Save, Scanned, StepEnd, Trajectory


class _Body(eqx.Module):
    """One scan iteration with its observers; its leaves (network, conditioning, noise) are what is differentiated."""

    solver: Any
    model: Callable
    key: Any
    centre: Denoiser | None
    hook: Callable | None
    bar: Bar | None = eqx.field(static=True)
    check: bool = eqx.field(static=True)
    observe: bool = eqx.field(static=True)

    def __call__(self, carry: tuple, scanned: Scanned) -> tuple:
        state, saved, fault = carry
        row, i, slot, is_end, entry = scanned
        key, hook_key = None, None
        if self.key is not None:  # the hooks' keys come from a branch of their own
            key, hook_key = (
                jax.random.fold_in(k, i) for k in (self.key, jax.random.fold_in(self.key, 2**31 - 1))
            )
        outputs_finite: list = []
        model = self.model if entry is None else with_entry(self.model, entry)
        model = _observed(model, outputs_finite) if self.check and self.observe else model
        state = self.solver.step(model, state, row, key)
        if self.check:
            code = (
                jnp.where(jnp.stack(outputs_finite).all(), 2 * i + 1, 2 * i) if outputs_finite else 2 * i + 1
            )
            healthy = _all_finite(state[0]) & (jnp.stack(outputs_finite).all() if outputs_finite else True)
            fault = jnp.minimum(fault, jnp.where(healthy, fault, code))
        if self.hook is not None:
            hooked = lambda x: self._hooked(self.hook, x, getattr(row, "when", row.end), hook_key)
            x = jax.lax.cond(is_end, hooked, lambda x: x, state[0])
            state = (x, *state[1:])
        if saved is not None:
            saved = jax.tree.map(
                lambda buffer, x: jax.lax.dynamic_update_index_in_dim(buffer, x, slot, 0), saved, state[0]
            )
        if self.bar is not None:
            tick(i, self.bar)
        return state, saved, fault

    def reverse(self, carry: tuple, scanned: Scanned) -> tuple:
        """The carry before this iteration, by the solver's own inverse; what was saved is left as it is."""
        state, saved, fault = carry
        key = None if self.key is None else jax.random.fold_in(self.key, scanned.index)
        model = self.model if scanned.entry is None else with_entry(self.model, scanned.entry)
        return self.solver.reverse(model, state, scanned.row, key), saved, fault

    def _hooked(self, hook: Any, x: PyTree, t: Any, key: Any) -> PyTree:
        whole = x if self.centre is None else self.centre.uncentred(x)
        new = match(hook(StepEnd(whole, t, key)), x)
        return new if self.centre is None else self.centre.centred(new)


def _observed(model: Any, finite: list) -> Any:
    """The model, noting in `finite` whether each output is."""
    if isinstance(model, Denoiser):
        return Denoiser(_observed(model.net, finite), model.path, model.kind)

    def observed(*args):
        m = model(*args)
        finite.append(_all_finite(m))
        return m

    return observed


def with_entry(model: Any, entry: PyTree) -> Any:
    """The model, its network given the entry of this step as a last argument."""
    if isinstance(model, Denoiser):
        return Denoiser(with_entry(model.net, entry), model.path, model.kind)
    return lambda *args: model(*args, entry)


def interval(end: Any) -> Any:
    """Index of the grid interval of each row, from the ends of intervals."""
    xp = namespace(end)
    is_end = ~xp.isnan(end)
    return xp.cumsum(is_end) - is_end.astype(int)


def _entries(per_step: PyTree, end: Any) -> PyTree:
    """The entry of each row, gathered by its interval."""
    where = interval(end)
    n = None if is_traced(end) else int((~np.isnan(end)).sum())
    for leaf in jax.tree.leaves(per_step):
        if jnp.ndim(leaf) == 0 or (n is not None and len(leaf) != n):
            raise ValueError(
                f"per_step needs one entry for each of the {n} grid intervals as leading axis; got shape {jnp.shape(leaf)}"
            )
    return jax.tree.map(
        lambda a: jnp.asarray(a).at[where].get(mode="clip"), per_step
    )  # rows of padding come after the last


def _all_finite(x: PyTree) -> Any:
    return jnp.stack([jnp.isfinite(a).all() for a in jax.tree.leaves(x)]).all()


def _saved_points(save: Any, end: Any) -> tuple[np.ndarray, Any]:
    """Grid indices to save, and for each row the buffer slot that it writes (the last one is waste)."""
    if isinstance(save, int) or len(save) == 0:
        raise ValueError(f"save must be None, 'all' or a list of indices of grid points, got {save!r}")
    xp = namespace(end)
    is_end = ~xp.isnan(end)
    count = xp.cumsum(is_end)  # index of the grid point that a row's interval ends at
    if xp is jnp:
        if isinstance(save, str) or any(i < 0 for i in save):
            raise ValueError(
                "save='all' and negative indices need the number of intervals: a concrete table, or give indices >= 0"
            )
        points = np.asarray(save)
    else:
        n = int(is_end.sum())
        if isinstance(save, str) and save != "all":
            raise ValueError(f"save must be None, 'all' or indices of grid points, got {save!r}")
        points = (
            np.arange(n + 1) if isinstance(save, str) else np.array([i + n + 1 if i < 0 else i for i in save])
        )
        if np.any((points < 0) | (points > n)):
            raise ValueError(f"save indices must lie in [{-n - 1}, {n}]: the grid has {n + 1} points")
    if len(set(points.tolist())) != len(points):
        raise ValueError("save indices repeat")
    hit = is_end[:, None] & (count[:, None] == points[None, :])
    return points, xp.where(hit.any(1), hit.argmax(1), len(points)).astype(np.int32)


def drive(
    solver: Any,
    rows: PyTree,
    model: Callable,
    x: PyTree,
    *,
    key: Any = None,
    adjoint: Adjoint | None = None,
    save: Save = None,
    progress: bool = False,
    hook: Callable | None = None,
    check: bool = False,
    per_step: PyTree | None = None,
    centre: Denoiser | None = None,
    observe: bool = False,
) -> Any:
    """Scan `solver.step` over `rows`; see `run` for the options.

    centre: denoiser whose mu the state of a table leaves out. observe: `check` tells bad outputs from bad states (the solver must not
    call the model inside control flow).
    """
    n = rows.end.shape[0]
    state = solver.init(x, rows)
    saved, points, slot = None, np.zeros(0, int), np.zeros(n, np.int32)
    if save is not None:
        points, slot = _saved_points(save, rows.end)
        blank = lambda a: jnp.broadcast_to(jnp.full_like(a, jnp.nan), (len(points) + 1, *a.shape))
        saved = jax.tree.map(blank, state[0])
        if 0 in points:
            k = int(np.argmax(points == 0))
            saved = jax.tree.map(
                lambda buffer, a: jax.lax.dynamic_update_index_in_dim(buffer, a, k, 0), saved, state[0]
            )
    bar = Bar(n) if progress else None
    index = np.arange(n, dtype=np.int32) if bar is None else begin(bar, n)
    body = _Body(solver, model, key, centre, hook, bar, check, observe)
    fault = jnp.asarray(2 * n, jnp.int32)
    entries = None if per_step is None else _entries(per_step, rows.end)
    xs = Scanned(rows, index, slot, ~namespace(rows.end).isnan(rows.end), entries)
    state, saved, fault = (RecursiveCheckpoint() if adjoint is None else adjoint).loop(
        body, (state, saved, fault), xs
    )
    out = solver.final(state)
    if centre is not None:
        out = centre.uncentred(out)
        saved = None if saved is None else centre.uncentred(saved)
    if check:
        out = eqx.branched_error_if(out, fault < 2 * n, jnp.clip(fault, 0, 2 * n - 1), _fault_messages(rows))
    if save is None:
        return out
    t = jnp.full(len(points) + 1, jnp.nan).at[slot].set(jnp.asarray(rows.end, jnp.result_type(float)))
    t = jnp.where(np.append(points, -1) == 0, rows.t[0] if hasattr(rows, "t") else jnp.nan, t)
    return Trajectory(out, t[:-1], jax.tree.map(lambda a: a[:-1], saved))


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
