"""What a study of searches is told: the keys of a config of `jaxsampler search`, and the names of methods (see `study`)."""

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
COMPARED = (
    "problem",
    "seed",
    "held_out",
    "test",
    "screen",
    "rivals",
    "batch",
    "samples",
    "real",
)  # what every result depends on
SCORED = ("budget", "scored")  # and schedules
LEARNED = ("noises", "starts", "seeds", "finalists", "iterations", "rate", "split")  # and learned tables


def slug(method: str) -> str:
    """A method's name in the names of files."""
    return "_".join(method.replace(",", "").lower().split())


def parsed(method: str) -> tuple[bool, tuple[str, ...], bool]:
    """Of a learned table: whether distilled ones are its start, what its stages free, and whether it is consistent."""
    first, *others = method.removesuffix(INCONSISTENT).split(" then ")
    return (
        first == DISTILLED,
        tuple(others if first == DISTILLED else (first, *others)),
        not method.endswith(INCONSISTENT),
    )


@dataclasses.dataclass(frozen=True)
class Search:
    """What is searched, and on how much noise. Noises are rounded up to whole batches of the problem."""

    problem: str
    calls: tuple[int, ...] = (3, 4, 5, 6, 7, 8, 9, 10)
    methods: tuple[str, ...] = ("relaxation then table",)
    seed: int = 0
    noises: int = 1024  # that tables are fitted to
    held_out: int = 2048  # that choose
    test: int = 4096  # that judge
    screen: int = 256  # on which all hand-made samplers are compared; the `rivals` best of them then on the held-out noises
    rivals: int = 8
    starts: int = 4  # hand-made samplers that a learned table starts from, of other solvers as far as the rivals have them
    seeds: int = 1  # learned tables from each start
    finalists: int = 0  # so many of them go on after the first third of the iterations; 0: all
    iterations: int = 1500
    batch: int = 256  # noises of an iteration
    rate: float = 0.0  # of the table's weights; 0: as measured for long runs (`fit.default_rates`), short ones want more
    split: tuple[float, ...] = ()  # shares of the stages in the iterations; empty: those of `learn`
    budget: int = 2000  # schedules that a search scores
    scored: int = 64  # noises that a schedule is scored on
    samples: int = 2000  # of the test noises for the Frechet distance; 0: not measured
    real: int = 10_000  # real samples that they are compared with

    def matters(self, method: str) -> dict[str, Any]:
        """The keys that a result of the method depends on; the table that is transferred comes to them."""
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
        for name in (
            "noises",
            "held_out",
            "test",
            "screen",
            "rivals",
            "starts",
            "seeds",
            "iterations",
            "batch",
            "budget",
            "scored",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"key {name!r} must be at least 1; got {getattr(self, name)}")
        for name in ("rate", "finalists", "samples"):
            if getattr(self, name) < 0:
                raise ValueError(f"key {name!r} must not be negative; got {getattr(self, name)}")
        learned = [
            m for m in self.methods if m not in SEARCHES and not m.startswith(TRANSFERRED) and parsed(m)[1]
        ]
        if self.split and (
            min(self.split) <= 0 or any(len(parsed(m)[1]) != len(self.split) for m in learned)
        ):
            raise ValueError(
                f"key 'split' has a positive share for each stage of every method; got {list(self.split)} for {learned}"
            )
        if self.samples > self.test:
            raise ValueError(
                f"key 'samples' is how many of the {self.test} test noises the Frechet distance is of; got {self.samples}"
            )
        if not self.calls or min(self.calls) < 2:
            raise ValueError(f"calls are numbers of network calls, at least 2; got {self.calls}")

    def _known(self, method: str) -> None:
        """ValueError if there is no such method, or it could find nothing."""
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
                f"the method {method!r} begins at distilled tables but frees no weights: end it with 'then table'"
            )
        if consistent and free == {"amplitude"}:
            raise ValueError(
                f"the method {method!r} leaves nothing free: amplitudes are for tables with '{INCONSISTENT.strip(', ')}'"
            )
