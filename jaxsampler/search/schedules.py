"""Solver schedules as arrays: the choices of `js.solvers.Decision` for every interval, stacked and edited.

`space` says which schedules there are and how they mutate, `build` makes their tables.
"""

import dataclasses
from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from ..numerics import Arr

CHOICES = ("order", "kind", "start", "nodes", "relaxation", "c", "corrector")


class Schedule(eqx.Module):
    """A solver schedule, or a stack of schedules (leading axes), made by `Space`.

    A schedule may have room for more intervals than its grid has: their times, at the end, are NaN.

    Example:
        >>> space = js.search.Space(js.VP(), 3, assumed=0.5)  # an assumed first output buys one more interval
        >>> schedules = space.sample(np.random.default_rng(0), 20)
        >>> len(schedules), schedules.times.shape, schedules[0].order.shape
        (20, (20, 5), (4,))
        >>> bool((np.isfinite(schedules.times).sum(1) == 4 + schedules.assumed).all())
        True
    """

    times: Float[np.ndarray, "*b points"]
    order: Int[np.ndarray, "*b n"]
    kind: Int[np.ndarray, "*b n"]  # index of the kind in `space.kinds`
    start: Int[np.ndarray, "*b n"]  # states back from the latest: Decision.start = -1 - start
    nodes: Int[np.ndarray, "*b n derivatives"]  # m_1, m_2, ..; 0 where the order has no such derivative
    relaxation: Int[np.ndarray, "*b n"]  # index of the relaxation in `space.relaxations`
    c: Float[np.ndarray, "*b n"]  # of the linear relaxation 1 + c h
    corrector: Int[np.ndarray, "*b n"]  # its order, 0 without one
    assumed: Bool[np.ndarray, "*b"]  # whether the first output is that of x0 = 0

    def __getitem__(self, i: int | np.integer | Arr | slice) -> "Schedule":
        """Return one or some schedules of a stack."""
        return jax.tree.map(lambda a: np.asarray(a[i]), self)

    def __len__(self) -> int:
        return len(self.times)


def join(parts: Sequence[Schedule]) -> Schedule:
    """Concatenate stacks."""
    return jax.tree.map(lambda *a: np.concatenate(a), *parts)


def stack(schedules: Sequence[Schedule]) -> Schedule:
    """Stack schedules of one space along a new leading axis."""
    return jax.tree.map(lambda *a: np.stack(a), *schedules)


def unstack(schedules: Schedule) -> list[Schedule]:
    """Return the schedules of a stack."""
    return [schedules[i] for i in range(len(schedules))]


def edited(schedules: Schedule, which: np.ndarray, edit: Callable[[Schedule], Schedule]) -> Schedule:
    """Return the stack with an edit of the schedules where `which` is True."""
    out = jax.tree.map(np.copy, schedules)
    for i in np.flatnonzero(which):
        for column, entry in zip(jax.tree.leaves(out), jax.tree.leaves(edit(schedules[i])), strict=True):
            column[i] = entry
    return out


def _each(s: Schedule, edit: Callable[[np.ndarray], np.ndarray], times: np.ndarray) -> Schedule:
    """Edit the choices along the intervals and replace the times, in the same room."""
    room = len(s.times)
    times = np.append(times, np.full(room - len(times), np.nan))
    choices = {name: edit(getattr(s, name))[: room - 1] for name in CHOICES}
    return dataclasses.replace(s, times=times, **choices)


def delete(s: Schedule, k: int) -> Schedule:
    """Take out the inner point k, and the choices of the interval that ended there."""
    times = np.delete(s.times[np.isfinite(s.times)], k)
    return _each(s, lambda a: np.concatenate([a[: k - 1], a[k:], a[-1:]]), times)


def insert(s: Schedule, j: int, share: float) -> Schedule:
    """Split interval j in two that choose alike."""
    t = s.times[np.isfinite(s.times)]
    times = np.insert(t, j + 1, t[j] + share * (t[j + 1] - t[j]))
    return _each(s, lambda a: np.concatenate([a[: j + 1], a[j:]]), times)
