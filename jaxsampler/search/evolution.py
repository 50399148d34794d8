r"""Evolutionary search of solver schedules, as in the released code of S^3, and random search for comparison.

The parents are the best schedules scored so far. A child is the mutation of one of them, in some cases after
a crossover with another.

Reference: Liu et al. 2023 (USF), released code.
"""

from typing import Any

import numpy as np

from ..numerics import Key
from ..tables import Table
from .archive import Archive, Report, run_search
from .known_schedules import known
from .schedules import Schedule, join
from .score import Score
from .space import Space


def children(space: Space, parents: Schedule, rng: np.random.Generator, count: int) -> Schedule:
    """Return `count` mutations of random parents, some crossed with another parent first."""
    made = parents[rng.integers(len(parents), size=count)]
    crossed = np.flatnonzero(rng.random(count) < space.crossing)
    if len(crossed):
        others = parents[rng.integers(len(parents), size=len(crossed))]
        order = np.argsort(np.concatenate([np.setdiff1d(np.arange(count), crossed), crossed]), kind="stable")
        rest = made[np.setdiff1d(np.arange(count), crossed)]
        made = join([rest, space.cross(rng, made[crossed], others)])[order]
    return space.mutate(rng, made)


def first(space: Space, start: Schedule, rng: np.random.Generator, count: int) -> Schedule:
    """Return the first generation: `start`, filled up to `count` with random schedules."""
    more = count - len(start)
    return join([start, space.sample(rng, more)]) if more > 0 else start


def unpredicted(schedules: Schedule) -> np.ndarray:
    """Return the predicted ranks of schedules without a prediction: NaN."""
    return np.full(len(schedules), np.nan)


def evolve(
    score: Score,
    space: Space,
    *,
    key: Key,
    budget: int,
    start: Schedule | None = None,
    size: int = 128,
    parents: int = 15,
    **options: Any,
) -> tuple[Table, Report]:
    """Return the table of lowest score that evolution finds, and a report [Liu et al. 2023, released code].

    Args:
        score: one number per stacked table, lower is better (see `rmse`, `frechet`, `each`). A schedule whose
            score is not finite is dropped and counted.
        space: where the schedules live.
        key: decides everything that is drawn.
        budget: number of schedules to score.
        start: a stack of schedules to start from, by default `known(space)`, the multistep solvers; filled up
            to a generation with random ones.
        size: schedules in a generation.
        parents: the best schedules so far that may have children.
        options: `final_score`, which scores the best `finalists` again, on other and more noise; `folder`,
            where the state is kept and a killed search resumes; `progress`.

    Raises:
        ValueError: if every first score is NaN, the score has the wrong shape, or the folder holds another
            search.

    Example:
        >>> space = js.search.Space(js.VP(), 2, corrector=0.0, assumed=0.0)
        >>> smallest = js.search.each(lambda table: abs(table.B).max())
        >>> start = space.sample(np.random.default_rng(0), 8)
        >>> run = dict(key=jax.random.key(0), budget=24, start=start, size=8, progress=False)
        >>> table, report = js.search.evolve(smallest, space, **run)
        >>> table.nfe, bool(report.score < smallest(space.tables(start)).min())
        (2, True)
    """
    if size < 1 or parents < 1:
        raise ValueError(f"size and parents are at least 1; got {size} and {parents}")
    start = known(space) if start is None else start

    def propose(before: Archive, rng: np.random.Generator, generation: int) -> tuple[Schedule, np.ndarray]:
        if not generation:
            made = first(space, start, rng, size)
        else:
            made = children(space, before.schedules[before.ranked(parents)], rng, size)
        return made, unpredicted(made)

    settings = {"method": "evolve", "size": size, "parents": parents}
    return run_search(
        propose, score, space, key=key, budget=budget, start=start, settings=settings, **options
    )


def random_search(
    score: Score,
    space: Space,
    *,
    key: Key,
    budget: int,
    size: int = 128,
    **options: Any,
) -> tuple[Table, Report]:
    """Return the table of the best of `budget` random schedules, and a report: what a search must beat.

    The arguments are those of `evolve`.

    Example:
        >>> space = js.search.Space(js.VP(), 2)
        >>> smallest = js.search.each(lambda table: abs(table.B).max())
        >>> table, report = js.search.random_search(
        ...     smallest, space, key=jax.random.key(0), budget=8, progress=False
        ... )
        >>> len(report.archive), bool(report.score == min(report.archive.scores))
        (8, True)
    """
    if size < 1:
        raise ValueError(f"size is at least 1; got {size}")

    def propose(before: Archive, rng: np.random.Generator, generation: int) -> tuple[Schedule, np.ndarray]:
        made = space.sample(rng, size)
        return made, unpredicted(made)

    settings = {"method": "random", "size": size}
    return run_search(propose, score, space, key=key, budget=budget, start=None, settings=settings, **options)
