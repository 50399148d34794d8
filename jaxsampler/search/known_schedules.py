"""Schedules of solvers that one knows: how to write decisions as a schedule of a space, and the multistep solvers that it contains."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ..paths import grids
from ..solvers.fitted_kind import FittedKind
from ..solvers.unified_framework import Decision
from .schedules import Schedule, stack
from .space import Space


def encode(space: Space, grid: Any, decisions: Sequence[Decision], *, assumed: bool = False) -> Schedule:
    """The schedule of these decisions on this grid (`assumed`: the first output is); ValueError if it is not in the space."""
    written = _written(space, grid, decisions, assumed)
    out = space.valid(stack([written]))[0]
    if not all(
        np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
        for a, b in zip(*map(jax.tree.leaves, (written, out)), strict=True)
    ):
        raise ValueError(
            "these decisions are not valid here: more points than there are, or a choice that an end of the path forbids"
        )
    return out


def _written(space: Space, grid: Any, decisions: Sequence[Decision], assumed: bool) -> Schedule:
    """The decisions as arrays, valid or not."""
    grid, n = grids.checked(space.path, grid), space.nfe + int(assumed)
    if len(grid) != n + 1 or len(decisions) != n or n > space.width:
        raise ValueError(
            f"{space.nfe} calls need {n} decisions on {n + 1} times; got {len(decisions)} on {len(grid)}"
        )
    s = jax.tree.map(lambda a: np.zeros_like(a[0]), space.sample(np.random.default_rng(0), 1))
    s = dataclasses.replace(
        s, times=np.full(space.width + 1, np.nan), assumed=np.array(assumed), order=np.ones_like(s.order)
    )
    s.times[: n + 1] = grid
    kinds, relaxations = list(space.kinds), list(space.relaxations)
    for i, d in enumerate(decisions):
        kind = "fitted" if isinstance(d.kind, FittedKind) else d.kind
        how, c = d.relaxation, 0.0
        if how is None or isinstance(how, tuple):
            how, c = "linear", 0.0 if how is None else float(how[1])
        if kind == "fitted" and d.relaxation is None and how not in relaxations:
            how = relaxations[0]  # which it does not use
        if kind not in kinds or d.order > space.highest or (d.order > 1 and how not in relaxations):
            raise ValueError(
                f"decision {i} is not in the space: kind {kind!r}, order {d.order}, relaxation {d.relaxation!r}"
            )
        s.order[i], s.kind[i], s.start[i], s.corrector[i] = (
            d.order,
            kinds.index(kind),
            -1 - d.start,
            d.corrector or 0,
        )
        s.nodes[i, : d.order - 1] = d.counts
        s.relaxation[i], s.c[i] = (relaxations.index(how), c) if d.order > 1 else (0, 0.0)
    return s


def known(space: Space) -> Schedule:
    """The multistep solvers that the space contains, on each of its grids, stacked: every kind and order, with and without corrector.

    2M, 3M, UniP and UniPC ("vary") are among them.
    """
    made = []
    for n, base in space.bases.items():
        for kind, p in itertools.product(space.kinds, space.orders):
            what: Any = space.statistics if kind == "fitted" else kind
            plain = (
                ["linear"] if "linear" in space.relaxations or kind == "fitted" else list(space.relaxations)
            )
            for how in space.relaxations if p == 2 and kind != "fitted" else plain:
                relaxation = None if how == "linear" else how
                for extra in {None, 1 if space.corrector > 0 else None}:
                    orders = [min(i + 1, p) for i in range(n)]
                    decisions = [
                        Decision(
                            q, what, relaxation=relaxation if q > 1 else None, corrector=extra and q + extra
                        )
                        for q in orders
                    ]
                    made += [_written(space, grid, decisions, n > space.nfe) for grid in base]
    return space.valid(stack(made))
