r"""Evolutionary search of solver schedules, as the released code of S^3 does it, and random search to compare it with.

The parents are the best schedules scored so far; a child is the mutation of one of them, after a crossover with another in some cases.

Reference: Liu et al. 2023 (USF), released code.
"""

from typing import Any

import numpy as np

from ..tables.table import Table
from .archive import Archive, Report, run_search
from .known_schedules import known
from .schedules import Schedule, join
from .score import Score
from .space import Space


def children(space: Space, parents: Schedule, rng: np.random.Generator, count: int) -> Schedule:
    """`count` mutations of random parents, crossed with another before that with probability `space.crossing`."""
    made = parents[rng.integers(len(parents), size=count)]
    crossed = np.flatnonzero(rng.random(count) < space.crossing)
    if len(crossed):
        others = parents[rng.integers(len(parents), size=len(crossed))]
        order = np.argsort(np.concatenate([np.setdiff1d(np.arange(count), crossed), crossed]), kind="stable")
        rest = made[np.setdiff1d(np.arange(count), crossed)]
        made = join([rest, space.cross(rng, made[crossed], others)])[order]
    return space.mutate(rng, made)


def first(space: Space, start: Schedule, rng: np.random.Generator, count: int) -> Schedule:
    """The first generation: `start`, and random schedules up to `count`."""
    more = count - len(start)
    return join([start, space.sample(rng, more)]) if more > 0 else start


def unpredicted(schedules: Schedule) -> np.ndarray:
    """Nothing is predicted of them."""
    return np.full(len(schedules), np.nan)


def evolve(
    score: Score,
    space: Space,
    *,
    key: Any,
    budget: int,
    start: Schedule | None = None,
    size: int = 128,
    parents: int = 15,
    **options: Any,
) -> tuple[Table, Report]:
    """The schedule of `space` with the lowest score that an evolution finds, as a table [Liu et al. 2023, released code].

    budget: schedules to score. start: a stack of schedules to begin with (default: `known(space)`, the multistep solvers), filled up to
    `size`, that of a generation, with random ones. options: `final_score`, `finalists`, `folder`, `progress`, see `run_search`, which also
    says what a score is.
    """
    if size < 1 or parents < 1:
        raise ValueError(f"size and parents are at least 1; got {size} and {parents}")
    start = known(space) if start is None else start

    def propose(before: Archive, rng: np.random.Generator, generation: int) -> tuple[Schedule, np.ndarray]:
        made = (
            children(space, before.schedules[before.ranked(parents)], rng, size)
            if generation
            else first(space, start, rng, size)
        )
        return made, unpredicted(made)

    settings = {"method": "evolve", "size": size, "parents": parents}
    return run_search(
        propose, score, space, key=key, budget=budget, start=start, settings=settings, **options
    )


def random_search(
    score: Score,
    space: Space,
    *,
    key: Any,
    budget: int,
    size: int = 128,
    **options: Any,
) -> tuple[Table, Report]:
    """The best of `budget` random schedules: what a search has to beat. Arguments as of `evolve`."""
    if size < 1:
        raise ValueError(f"size is at least 1; got {size}")

    def propose(before: Archive, rng: np.random.Generator, generation: int) -> tuple[Schedule, np.ndarray]:
        made = space.sample(rng, size)
        return made, unpredicted(made)

    settings = {"method": "random", "size": size}
    return run_search(propose, score, space, key=key, budget=budget, start=None, settings=settings, **options)
