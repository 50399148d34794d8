"""Solver schedules as arrays: the choices of `solvers.usf.Decision` for every interval of a grid, stacked and edited.

`space` says which schedules there are and how they mutate, `build` makes their tables.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Bool, Float, Int

CHOICES = ("order", "kind", "start", "nodes", "relaxation", "c", "corrector")


class Schedule(eqx.Module):
    """A solver schedule, or a stack of them (leading axes). Intervals beyond those of its grid, at the end, have time NaN."""

    times: Float[np.ndarray, "*b points"]
    order: Int[np.ndarray, "*b n"]
    kind: Int[np.ndarray, "*b n"]  # number of the kind in `space.kinds`
    start: Int[np.ndarray, "*b n"]  # states back from the latest: Decision.start = -1 - start
    nodes: Int[np.ndarray, "*b n derivatives"]  # m_1, m_2, ..; 0 where the order has no such derivative
    relaxation: Int[np.ndarray, "*b n"]  # number of the relaxation in `space.relaxations`
    c: Float[np.ndarray, "*b n"]  # of the linear relaxation 1 + c h
    corrector: Int[np.ndarray, "*b n"]  # its order; 0: none
    assumed: Bool[np.ndarray, "*b"]  # whether the first output is that of x0 = 0

    def __getitem__(self, i: Any) -> "Schedule":
        """Some of a stack."""
        return jax.tree.map(lambda a: np.asarray(a[i]), self)

    def __len__(self) -> int:
        return len(self.times)


def join(parts: Sequence[Schedule]) -> Schedule:
    """Stacks one after another."""
    return jax.tree.map(lambda *a: np.concatenate(a), *parts)


def stack(schedules: Sequence[Schedule]) -> Schedule:
    """Schedules of one space along a new leading axis."""
    return jax.tree.map(lambda *a: np.stack(a), *schedules)


def unstack(schedules: Schedule) -> list[Schedule]:
    """The schedules of a stack."""
    return [schedules[i] for i in range(len(schedules))]


def edited(schedules: Schedule, which: np.ndarray, edit: Callable[[Schedule], Schedule]) -> Schedule:
    """The stack with those of `which` (booleans) edited."""
    out = jax.tree.map(np.copy, schedules)
    for i in np.flatnonzero(which):
        for column, entry in zip(jax.tree.leaves(out), jax.tree.leaves(edit(schedules[i])), strict=True):
            column[i] = entry
    return out


def _each(s: Schedule, edit: Callable[[np.ndarray], np.ndarray], times: np.ndarray) -> Schedule:
    """Choices edited along the intervals, other times; room for intervals as before."""
    room = len(s.times)
    times = np.append(times, np.full(room - len(times), np.nan))
    return dataclasses.replace(
        s, times=times, **{name: edit(getattr(s, name))[: room - 1] for name in CHOICES}
    )


def delete(s: Schedule, k: int) -> Schedule:
    """Without the inner point k, and the choices of the interval that ended there."""
    return _each(
        s, lambda a: np.concatenate([a[: k - 1], a[k:], a[-1:]]), np.delete(s.times[np.isfinite(s.times)], k)
    )


def insert(s: Schedule, j: int, share: float) -> Schedule:
    """Interval j split in two that choose alike."""
    t = s.times[np.isfinite(s.times)]
    return _each(
        s,
        lambda a: np.concatenate([a[: j + 1], a[j:]]),
        np.insert(t, j + 1, t[j] + share * (t[j + 1] - t[j])),
    )
