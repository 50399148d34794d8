"""The settings of a search: the keys of a config of `jaxsampler search`, and the names of its methods."""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any

from ... import config
from ...config import Count, Length, Natural, NonNegative, Positive, Range
from ...search.evolution import evolve, random_search
from ...search.predictor import s3
from ...search.vary import VARY, leaves_of
from ...spelling import nearest
from ..bench.problems import PROBLEMS

SEARCHES: dict[str, Callable] = {"random": random_search, "evolve": evolve, "s3": s3}
HANDMADE, HANDMADE_FRECHET = "handmade", "handmade, by Frechet distance"
TRANSFERRED, DISTILLED, INCONSISTENT = "transferred from ", "distilled", ", inconsistent"
# what every result depends on; schedules and learned tables depend on more
COMPARED = ("problem", "seed", "held_out", "test", "screen", "rivals", "batch", "samples", "real")
SCORED = ("budget", "scored")
LEARNED = ("noises", "starts", "seeds", "finalists", "iterations", "rate", "split")
Calls = Annotated[tuple[Annotated[int, Range(2, 10_000)], ...], Length(1, 1000)]


def slug(method: str) -> str:
    """Return a method's name as file names have it."""
    return "_".join(method.replace(",", "").lower().split())


def parsed(method: str) -> tuple[bool, tuple[str, ...], bool]:
    """Return whether a table starts from distilled ones, what its stages free, and if it is consistent."""
    first, *others = method.removesuffix(INCONSISTENT).split(" then ")
    stages = tuple(others if first == DISTILLED else (first, *others))
    return first == DISTILLED, stages, not method.endswith(INCONSISTENT)


@dataclasses.dataclass(frozen=True)
class Search:
    """What is searched, and on how much noise, rounded up to whole batches of the problem."""

    problem: str
    calls: Calls = (3, 4, 5, 6, 7, 8, 9, 10)  # a search for each number of network calls
    methods: tuple[str, ...] = ("relaxation then table",)
    seed: Annotated[int, Range(0, 2**30)] = 0
    noises: Count = 1024  # noises that tables are fitted to
    held_out: Count = 2048  # noises that choose
    test: Count = 4096  # noises that judge
    screen: Count = 256  # held-out noises on which all hand-made samplers are compared
    rivals: Count = 8  # the best of them, which are compared on all held-out noises
    starts: Count = 4  # rivals that a learned table starts from, of different solvers first
    seeds: Count = 1  # learned tables from each start
    finalists: Natural = 0  # learned tables that continue after the first third of the iterations; 0: all
    iterations: Count = 1500  # of Adam for a learned table
    batch: Count = 256  # noises in an iteration
    rate: NonNegative = (
        0.0  # learning rate of the table's weights; 0: as measured for long runs, short ones need more
    )
    split: tuple[Positive, ...] = ()  # shares of the stages in the iterations; empty: those of `learn`
    budget: Count = 2000  # schedules that a search scores
    scored: Count = 64  # held-out noises that a schedule is scored on
    samples: Natural = 2000  # test noises for the Frechet distance; 0: do not measure it
    real: Count = 10_000  # real samples for the Frechet distance

    def matters(self, method: str) -> dict[str, Any]:
        """Return the keys that a result of the method depends on, besides a table that is transferred."""
        names = COMPARED
        if method in SEARCHES:
            names += SCORED
        elif not method.startswith((HANDMADE, TRANSFERRED)):
            names += LEARNED
        return {name: getattr(self, name) for name in names}

    def __post_init__(self):
        config.check(self)
        if self.problem not in PROBLEMS:
            raise ValueError(f"unknown problem {self.problem!r}; {nearest(self.problem, PROBLEMS)}")
        for method in self.methods:
            self._known(method)
        others = [m for m in self.methods if m not in SEARCHES and not m.startswith(TRANSFERRED)]
        learned = [m for m in others if parsed(m)[1]]
        stages = {len(parsed(m)[1]) for m in learned}
        if self.split and stages - {len(self.split)}:
            raise ValueError(
                "key 'split' needs a positive share for each stage of every method; "
                f"got {list(self.split)} for {learned}"
            )
        if self.samples > self.test:
            raise ValueError(
                f"key 'samples' must be at most {self.test}, the number of test noises; got {self.samples}"
            )

    def _known(self, method: str) -> None:
        """Raise ValueError if there is no such method, or it has nothing to find."""
        name = method.removeprefix(TRANSFERRED)
        if name != method:
            if name not in PROBLEMS:
                raise ValueError(f"unknown problem in the method {method!r}; {nearest(name, PROBLEMS)}")
            return
        if method in SEARCHES:
            return
        distilled, stages, consistent = parsed(method)
        try:
            free = {leaf for stage in stages for leaf in leaves_of(stage)}
        except ValueError:
            known = [
                *SEARCHES,
                *VARY,
                "relaxation then table",
                DISTILLED,
                *(TRANSFERRED + p for p in PROBLEMS),
            ]
            raise ValueError(f"unknown method {method!r}; {nearest(method, known)}") from None
        if distilled and stages and "weights" not in free:
            raise ValueError(
                f"the method {method!r} starts from distilled tables but frees no weights: "
                "end it with 'then table'"
            )
        if consistent and free == {"amplitude"}:
            raise ValueError(
                f"the method {method!r} leaves nothing free: amplitudes need {INCONSISTENT!r} at its end"
            )
