"""What is seen of a run on the way: saved states, what calls say of x_0, faults, the intervals of rows."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ..numerics import Arr, State, is_traced, namespace
from ..paths import Denoiser
from ..paths.predictions import called, convert
from .protocol import Save


def with_data(model: Any) -> Callable:
    """The model of a table's rows, returning beside the prediction what the call says of x_0 - mu."""
    denoiser = model.model

    def both(*args: Any) -> tuple[State, State]:
        said: list = []

        def net(x, t, *extra):
            m = called(denoiser.net, x, t, *extra)
            to_data = lambda path, m, x, t: convert(m, x, t, path, source=denoiser.kind, target="data")
            said.append(denoiser.centred(denoiser.each(to_data, m, x, t)))
            return m

        noting = dataclasses.replace(model, model=Denoiser(net, denoiser.path, denoiser.kind))
        return noting(*args), said[0]

    return both


def noting(model: Callable, said: list) -> Callable:
    """The model, noting in `said` the second of its results."""

    def noting(*args: Any) -> State:
        m, x0 = model(*args)
        said.append(x0)
        return m

    return noting


def observed(model: Callable, finite: list) -> Callable:
    """The model, noting in `finite` whether each output is."""
    if isinstance(model, Denoiser):
        return Denoiser(observed(model.net, finite), model.path, model.kind)

    def watched(*args):
        m = model(*args)
        fine = all_finite(m)
        weights = jax.tree.leaves(args[2]) if len(args) > 2 else []
        for weight in weights:  # of the conversion to what the row wants: not the network's fault
            fine = fine | ~jnp.isfinite(weight).all()
        finite.append(fine)
        return m

    return watched


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


def entry_of_row(per_step: PyTree, end: Arr) -> Arr:
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


def all_finite(x: State) -> Any:
    return jnp.stack([jnp.isfinite(a).all() for a in jax.tree.leaves(x)]).all()


def saved_points(save: Save, end: Arr) -> tuple[np.ndarray, Any]:
    """Grid indices to save, and for each row the buffer slot that it writes (the last one is waste)."""
    if isinstance(save, int) or save is None or len(save) == 0:
        raise ValueError(
            f"save must be None, 'all', 'data' or a list of indices of grid points, got {save!r}"
        )
    xp = namespace(end)
    is_end = ~xp.isnan(end)
    count = xp.cumsum(is_end)  # index of the grid point that a row's interval ends at
    if xp is jnp:
        if isinstance(save, str) or any(i < 0 for i in save):
            raise ValueError(
                "save='all', 'data' and negative indices count intervals, which a traced table does not "
                "show: close over the table, or give indices >= 0"
            )
        points = np.asarray(save)
    else:
        n = int(is_end.sum())
        if isinstance(save, str) and save not in ("all", "data"):
            raise ValueError(f"save must be None, 'all', 'data' or indices of grid points, got {save!r}")
        given = range(n + 1) if isinstance(save, str) else save
        points = np.array([i + n + 1 if i < 0 else i for i in given])
        if np.any((points < 0) | (points > n)):
            raise ValueError(f"save indices must lie in [{-n - 1}, {n}]: the grid has {n + 1} points")
    if len(set(points.tolist())) != len(points):
        raise ValueError(f"save indices repeat: give each grid point once, got {save!r}")
    if isinstance(save, str) and save == "data":  # by the first row of each interval, at its first time
        where = interval(end)
        begins = (where < points[-1]) & (np.diff(where, prepend=-1) > 0)
        return points, np.where(begins, where, len(points)).astype(np.int32)
    hit = is_end[:, None] & (count[:, None] == points[None, :])
    return points, xp.where(hit.any(1), hit.argmax(1), len(points)).astype(np.int32)


def saved_times(points: np.ndarray, slot: Arr, end: Arr, start: Any) -> Array:
    """The times of the saved states; the last slot is waste."""
    if is_traced(slot, end, start):
        t = jnp.full(len(points) + 1, jnp.nan).at[slot].set(jnp.asarray(end, jnp.result_type(float)))
        return jnp.where(points == 0, start, t[:-1])
    n = int((~np.isnan(end)).sum())
    if len(points) == n + 1:  # all of them
        return jnp.asarray(np.append(start, end[~np.isnan(end)]), jnp.result_type(float))
    t = np.full(len(points) + 1, np.nan)
    t[slot] = end
    return jnp.asarray(np.where(points == 0, start, t[:-1]), jnp.result_type(float))


def row_after(end: Arr, stop: int, first: int = 0) -> int:
    """The number of rows before grid point `stop`."""
    if is_traced(end):
        raise ValueError(
            "stop= counts grid intervals, which a traced table does not show: close over the table"
        )
    ends = np.flatnonzero(~np.isnan(np.asarray(end)))
    done = int((ends < first).sum())
    if isinstance(stop, bool) or not isinstance(stop, int | np.integer) or not done < stop < len(ends):
        raise ValueError(
            f"stop is a grid point between the first ({done}) and the last ({len(ends)}) of this run, "
            f"got {stop!r}"
        )
    return int(ends[stop - 1]) + 1


def fault_messages(rows: Any) -> list[str]:
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
        for what in (
            "the network returned a non-finite value",
            "the state became non-finite; where alpha = 0 a noise or score network, and where sigma = 0 a "
            "data network, may not tell what the solver wants",
        )
    ]
