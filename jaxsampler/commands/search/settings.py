"""The settings of a search: the keys of a config of `jaxsampler search`, and the names of its methods."""

import dataclasses
from collections.abc import Callable
from typing import Any

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
COUNTS = ("noises", "held_out", "test", "screen", "rivals", "starts", "seeds", "iterations", "batch")


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
    calls: tuple[int, ...] = (3, 4, 5, 6, 7, 8, 9, 10)  # a search for each number of network calls
    methods: tuple[str, ...] = ("relaxation then table",)
    seed: int = 0
    noises: int = 1024  # noises that tables are fitted to
    held_out: int = 2048  # noises that choose
    test: int = 4096  # noises that judge
    screen: int = 256  # held-out noises on which all hand-made samplers are compared
    rivals: int = 8  # the best of them, which are compared on all held-out noises
    starts: int = 4  # rivals that a learned table starts from, of different solvers first
    seeds: int = 1  # learned tables from each start
    finalists: int = 0  # learned tables that continue after the first third of the iterations; 0: all
    iterations: int = 1500  # of Adam for a learned table
    batch: int = 256  # noises in an iteration
    rate: float = (
        0.0  # learning rate of the table's weights; 0: as measured for long runs, short ones need more
    )
    split: tuple[float, ...] = ()  # shares of the stages in the iterations; empty: those of `learn`
    budget: int = 2000  # schedules that a search scores
    scored: int = 64  # held-out noises that a schedule is scored on
    samples: int = 2000  # test noises for the Frechet distance; 0: do not measure it
    real: int = 10_000  # real samples for the Frechet distance

    def matters(self, method: str) -> dict[str, Any]:
        """Return the keys that a result of the method depends on, besides a table that is transferred."""
        names = COMPARED
        if method in SEARCHES:
            names += SCORED
        elif not method.startswith((HANDMADE, TRANSFERRED)):
            names += LEARNED
        return {name: getattr(self, name) for name in names}

    def __post_init__(self):
        if self.problem not in PROBLEMS:
            raise ValueError(f"unknown problem {self.problem!r}; {nearest(self.problem, PROBLEMS)}")
        for method in self.methods:
            self._known(method)
        for name in (*COUNTS, *SCORED):
            if getattr(self, name) < 1:
                raise ValueError(f"key {name!r} must be at least 1; got {getattr(self, name)}")
        for name in ("rate", "finalists", "samples"):
            if getattr(self, name) < 0:
                raise ValueError(f"key {name!r} must not be negative; got {getattr(self, name)}")
        others = [m for m in self.methods if m not in SEARCHES and not m.startswith(TRANSFERRED)]
        learned = [m for m in others if parsed(m)[1]]
        stages = {len(parsed(m)[1]) for m in learned}
        if self.split and (min(self.split) <= 0 or stages - {len(self.split)}):
            raise ValueError(
                "key 'split' needs a positive share for each stage of every method; "
                f"got {list(self.split)} for {learned}"
            )
        if self.samples > self.test:
            raise ValueError(
                f"key 'samples' must be at most {self.test}, the number of test noises; got {self.samples}"
            )
        if not self.calls or min(self.calls) < 2:
            raise ValueError(f"key 'calls' needs numbers of network calls, at least 2; got {self.calls}")

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
