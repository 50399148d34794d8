"""Schedules of known solvers: decisions written as a schedule of a space, and a space's multistep solvers."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ..numerics import Grid
from ..paths import grids
from ..solvers import Decision, FittedKind
from .schedules import Schedule, stack
from .space import Space


def encode(space: Space, grid: Grid, decisions: Sequence[Decision], *, assumed: bool = False) -> Schedule:
    """Return the schedule of these decisions on this grid.

    Args:
        space: the space that the schedule must belong to.
        grid: its times.
        decisions: one for each interval.
        assumed: whether the first output is assumed, not called for.

    Raises:
        ValueError: if the schedule is not in the space.

    Example:
        >>> space = js.search.Space(js.VP(), 2, assumed=0.0)
        >>> first, second = js.solvers.Decision(), js.solvers.Decision(2)
        >>> schedule = js.search.encode(space, [1.0, 0.5, 0.1], [first, second])
        >>> schedule.times.tolist(), schedule.order.tolist()
        ([1.0, 0.5, 0.1], [1, 2])
        >>> two_m = js.tabulate(js.VP(), [1.0, 0.5, 0.1], js.solvers.dpmpp_2m(form="taylor"))
        >>> x, model = jnp.ones(2), js.models.gaussian_mixture(np.zeros((1, 2)), 1.0, js.VP())
        >>> bool(jnp.allclose(js.run(model, space.table(schedule), x), js.run(model, two_m, x), atol=1e-5))
        True
    """
    written = _written(space, grid, decisions, assumed)
    out = space.valid(stack([written]))[0]
    pairs = zip(*map(jax.tree.leaves, (written, out)), strict=True)
    if not all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in pairs):
        raise ValueError(
            "these decisions are not valid here: they use more points than there are, "
            "or a choice that an end of the path forbids"
        )
    return out


def _written(space: Space, grid: Grid, decisions: Sequence[Decision], assumed: bool) -> Schedule:
    """Return the decisions as arrays, valid or not."""
    grid, n = grids.checked(space.path, grid), space.nfe + int(assumed)
    if len(grid) != n + 1 or len(decisions) != n or n > space.width:
        raise ValueError(
            f"{space.nfe} calls need {n} decisions on {n + 1} times; got {len(decisions)} on {len(grid)}"
        )
    s = jax.tree.map(lambda a: np.zeros_like(a[0]), space.sample(np.random.default_rng(0), 1))
    times = np.full(space.width + 1, np.nan)
    s = dataclasses.replace(s, times=times, assumed=np.array(assumed), order=np.ones_like(s.order))
    s.times[: n + 1] = grid
    kinds, relaxations = list(space.kinds), list(space.relaxations)
    for i, d in enumerate(decisions):
        kind = "fitted" if isinstance(d.kind, FittedKind) else d.kind
        how, c = d.relaxation, 0.0
        if how is None or isinstance(how, tuple):
            how, c = "linear", 0.0 if how is None else float(how[1])
        if kind == "fitted" and d.relaxation is None and how not in relaxations:
            how = relaxations[0]  # unused
        if kind not in kinds or d.order > space.highest or (d.order > 1 and how not in relaxations):
            raise ValueError(
                f"decision {i} is not in the space: "
                f"kind {kind!r}, order {d.order}, relaxation {d.relaxation!r}"
            )
        s.order[i], s.kind[i] = d.order, kinds.index(kind)
        s.start[i], s.corrector[i] = -1 - d.start, d.corrector or 0
        s.nodes[i, : d.order - 1] = d.counts
        s.relaxation[i], s.c[i] = (relaxations.index(how), c) if d.order > 1 else (0, 0.0)
    return s


def known(space: Space) -> Schedule:
    """Return the multistep solvers of the space, on each of its grids, as a stack of schedules.

    These are all kinds and orders, with and without corrector; 2M, 3M, UniP and UniPC ("vary") are among
    them.

    Example:
        >>> space = js.search.Space(js.VP(), 4, orders={1: 1.0, 2: 1.0}, corrector=0.0, assumed=0.0)
        >>> schedules = js.search.known(space)
        >>> sorted({tuple(order) for order in schedules.order.tolist()})
        [(1, 1, 1, 1), (1, 2, 2, 2)]
    """
    made = []
    for n, base in space.bases.items():
        for kind, p in itertools.product(space.kinds, space.orders):
            what: Any = space.statistics if kind == "fitted" else kind
            linear = "linear" in space.relaxations or kind == "fitted"
            plain = ["linear"] if linear else list(space.relaxations)
            for how in space.relaxations if p == 2 and kind != "fitted" else plain:
                relaxation = None if how == "linear" else how
                for extra in {None, 1 if space.corrector > 0 else None}:
                    orders = [min(i + 1, p) for i in range(n)]
                    relaxed = lambda q, r=relaxation: r if q > 1 else None
                    decisions = [
                        Decision(q, what, relaxation=relaxed(q), corrector=extra and q + extra)
                        for q in orders
                    ]
                    made += [_written(space, grid, decisions, n > space.nfe) for grid in base]
    return space.valid(stack(made))
