r"""`jaxsampler search CONFIG`: better tables for one problem, method by method, judged on noise that no search has seen.

For every number of calls the best hand-made sampler of the library is found first (`handmade`): the start of the searches, and what they
are measured against. Three sets of noises: those that tables are fitted to, those that choose (among hand-made samplers, starts, schedules,
iterations), and those that judge, once. A method is "random", "evolve", "s3" (schedules), or what a learned table leaves free, "grid",
"relaxation", "table", in stages joined by " then "; ", inconsistent" at the end frees A and the sums of B as well. "transferred from NAME"
searches nothing: it is the table found for another problem with as many calls (by a study with the same --out, else the shipped one),
carried to this problem's path (`transfer`).

Each result is kept when it is there, with its table and card; a study that was stopped goes on with the first missing one, and within it.
"""

import contextlib
import dataclasses
import io
import itertools
import json
import time
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxsampler import metrics, pretrained
from jaxsampler.adjoints import Direct
from jaxsampler.bench.problems import PATHS, PROBLEMS, Problem
from jaxsampler.config import nearest
from jaxsampler.files import write
from jaxsampler.tables import Table

from .errors import ratio, squared
from .evolve import evolve, random_search
from .handmade import Handmade, best, handmade
from .learn import learn_best
from .learnable import learnable, leaves_of
from .predictor import s3
from .score import rmse
from .space import Space
from .transfer import transfer

SEARCHES: dict[str, Callable] = {"random": random_search, "evolve": evolve, "s3": s3}
HANDMADE, HANDMADE_FRECHET = "handmade", "handmade, by Frechet distance"
TRANSFERRED, INCONSISTENT = "transferred from ", ", inconsistent"


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
    starts: int = 4  # hand-made samplers, each of another solver, that a learned table starts from
    seeds: int = 1  # learned tables from each start
    finalists: int = 0  # so many of them go on after the first third of the iterations; 0: all
    iterations: int = 1500
    batch: int = 256
    budget: int = 2000  # schedules that a search scores
    scored: int = 64  # noises that a schedule is scored on
    samples: int = 2000  # of the test noises for the Frechet distance; 0: not measured
    real: int = 10_000  # real samples that they are compared with

    def __post_init__(self):
        if self.problem not in PROBLEMS:
            raise ValueError(f"unknown problem {self.problem!r}; {nearest(self.problem, PROBLEMS)}")
        for method in self.methods:
            name = method.removeprefix(TRANSFERRED)
            if name != method and name not in PROBLEMS:
                raise ValueError(f"unknown problem in the method {method!r}; {nearest(name, PROBLEMS)}")
            if method not in SEARCHES and name == method:
                for part in method.removesuffix(INCONSISTENT).split(" then "):
                    try:
                        leaves_of(part)
                    except ValueError:
                        known = [*SEARCHES, "grid", "relaxation", "table", "relaxation then table", *(TRANSFERRED + p for p in PROBLEMS)]
                        raise ValueError(f"unknown method {method!r}; {nearest(method, known)}") from None
        for name in ("noises", "held_out", "test", "screen", "rivals", "starts", "seeds", "iterations", "batch", "budget", "scored"):
            if getattr(self, name) < 1:
                raise ValueError(f"key {name!r} must be at least 1; got {getattr(self, name)}")
        if not self.calls or min(self.calls) < 2:
            raise ValueError(f"calls are numbers of network calls, at least 2; got {self.calls}")


@dataclasses.dataclass(frozen=True)
class Result:
    """A sampler found: `what` it is, its RMSE on the noises that chose it and on those that judge, and the ratio to the best hand-made one.

    low, high: bootstrap 95% interval of the ratio; trimmed: the ratio without the worst hundredth of each. frechet: distance of the
    samples' features to real ones, with its interval, if measured. numbers: free ones. dropped: schedules without a score. mark: of all
    else that the result depends on.
    """

    problem: str
    calls: int
    method: str
    what: str
    held_out: float
    rmse: float
    ratio: float
    low: float
    high: float
    trimmed: float
    frechet: float | None
    frechet_low: float | None
    frechet_high: float | None
    numbers: int
    dropped: int
    seconds: float
    file: str
    mark: str


@dataclasses.dataclass(frozen=True)
class Found:
    """A sampler before it is judged."""

    table: Table
    what: str
    held_out: float
    numbers: int = 0
    dropped: int = 0


def study(c: Search, p: Problem, folder: Path, progress: bool = True) -> list[Result]:
    """All results of `c` on its problem `p`; tables, cards and results.json lie in `folder`."""
    file = folder / "results.json"
    task = Task(c, p, folder, progress)
    wanted = list(itertools.product(c.calls, (HANDMADE, *([HANDMADE_FRECHET] if c.samples else []), *c.methods)))
    marks = {which: task.mark_of(*which) for which in wanted}  # a table that is not there to be transferred is missed before any work
    known = {(r.calls, r.method): r for r in read(file) if r.mark == marks.get((r.calls, r.method), task.mark)}
    for calls, method in wanted:
        if (calls, method) not in known:
            if progress:
                print(f"{c.problem}, {calls} calls: {method}", flush=True)
            known[calls, method] = task.result(calls, method)
            write(file, json.dumps([dataclasses.asdict(r) for r in known.values()], indent=1).encode())
    return [known[which] for which in wanted]


def slug(method: str) -> str:
    """A method's name in the names of files."""
    return "_".join(method.replace(",", "").lower().split())


def read(file: Path) -> list[Result]:
    """The results of a study so far; ValueError if the file is something else."""
    if not file.exists():
        return []
    try:
        return [Result(**entry) for entry in json.loads(file.read_text())]
    except (ValueError, TypeError):
        raise ValueError(f"{file} is not the results of a search: delete it, or give another --out") from None


class Task:
    """One problem's searches; what they share (noises, converged samples, hand-made samplers) is made when first needed."""

    def __init__(self, c: Search, p: Problem, folder: Path, progress: bool):
        self.c, self.p, self.folder, self.progress = c, p, folder, progress
        self.batch = p.chunk if p.bound else c.batch
        plain = {k: v for k, v in dataclasses.asdict(c).items() if k not in ("calls", "methods")}
        self.mark = p.fingerprint(*sorted(plain.items()))
        self.key = jax.random.key(c.seed)
        self._rivals: dict[int, list[Handmade]] = {}
        self._errors: dict[int, np.ndarray] = {}

    def noises(self, what: str, n: int) -> tuple[np.ndarray, np.ndarray]:
        """x_T of one of the three sets and the converged samples, whole batches, kept in the folder."""
        seed = 3 * self.c.seed + ("fit", "choose", "judge").index(what)
        x = self.p.start(-(-n // self.batch) * self.batch, seed)
        file = self.folder / f"{what}_{self.p.fingerprint(len(x), seed)}.npy"
        if not file.exists():
            buffer = io.BytesIO()
            np.save(buffer, self.p.converged(x))
            write(file, buffer.getvalue())
        return x, np.load(file)

    @cached_property
    def fit(self) -> tuple[np.ndarray, np.ndarray]:
        return self.noises("fit", self.c.noises)

    @cached_property
    def choose(self) -> tuple[np.ndarray, np.ndarray]:
        return self.noises("choose", self.c.held_out)

    @cached_property
    def judge(self) -> tuple[np.ndarray, np.ndarray]:
        return self.noises("judge", self.c.test)

    @cached_property
    def real(self) -> metrics.Gaussian:
        return metrics.gaussian(self.p.features(self.p.real("test", self.c.real)))

    def distance(self, features: np.ndarray) -> float:
        """Frechet distance to real samples."""
        return metrics.frechet(features, self.real)

    def rivals(self, calls: int) -> list[Handmade]:
        """The best hand-made samplers, by the held-out noises."""
        if calls not in self._rivals:
            rate = partial(best, self.p.denoiser, self.p.path, rows=calls, batch=self.batch)
            n = -(-self.c.screen // self.batch) * self.batch
            screened = rate(*(a[:n] for a in self.choose), chosen=handmade(self.p.path, calls))
            self._rivals[calls] = rate(*self.choose, chosen=screened[: self.c.rivals])
        return self._rivals[calls]

    def result(self, calls: int, method: str) -> Result:
        """Search, then judge."""
        began, c = time.monotonic(), self.c
        found = self.search(calls, method)
        seconds = time.monotonic() - began
        x, reference = self.judge
        samples = self.p.run(found.table, x)
        errors = squared(samples.astype(np.float64), reference.astype(np.float64))
        if calls not in self._errors:
            base = self.rivals(calls)[0].table
            self._errors[calls] = squared(self.p.run(base, x).astype(np.float64), reference.astype(np.float64))
        compared = ratio(errors, self._errors[calls])
        distance, low, high = None, None, None
        if c.samples:
            features = self.p.features(samples[: c.samples])
            distance, (low, high) = metrics.frechet(features, self.real), metrics.interval(self.distance, features)
        made = Result(
            problem=self.p.name,
            calls=calls,
            method=method,
            what=found.what,
            held_out=found.held_out,
            rmse=float(np.sqrt(errors.mean())),
            **compared._asdict(),
            frechet=distance,
            frechet_low=low,
            frechet_high=high,
            numbers=found.numbers,
            dropped=found.dropped,
            seconds=seconds,
            file=f"{self.p.name}_{calls}_{slug(method)}.safetensors",
            mark=self.mark_of(calls, method),
        )
        card = dataclasses.asdict(made) | {
            "path": repr(self.p.path),
            "baseline": self.rivals(calls)[0].name,
            "config": dataclasses.asdict(c),
        }
        found.table.save(self.folder / made.file, **card)
        return made

    def mark_of(self, calls: int, method: str) -> str:
        """Of all that a result depends on besides its calls and method."""
        if not method.startswith(TRANSFERRED):
            return self.mark
        return self.mark + self.p.fingerprint(*(a.tobytes() for a in jax.tree.leaves(self.elsewhere(calls, method)[0])))

    def elsewhere(self, calls: int, method: str) -> tuple[Table, dict[str, Any]]:
        """The table found for the problem that the method names, and its card."""
        name = method.removeprefix(TRANSFERRED)
        file = self.folder.parent / f"{name}_{calls}.safetensors"
        if file.exists():
            return Table.load(file), Table.about(file)
        try:
            return pretrained.table(name, calls), pretrained.table_card(name, calls)
        except ValueError as e:
            raise ValueError(f"nothing to transfer: there is no {file}, and of those shipped {e}") from None

    def transferred(self, calls: int, method: str) -> Found:
        """What was found for another problem, on this one's path."""
        (table, card), (x, exact) = self.elsewhere(calls, method), self.choose
        name = method.removeprefix(TRANSFERRED)
        moved = transfer(table, PATHS[name], self.p.path)
        errors = squared(self.p.run(moved, x).astype(np.float64), exact.astype(np.float64))
        return Found(moved, f"{card.get('method', 'found')} on {name}", float(np.sqrt(errors.mean())))

    def search(self, calls: int, method: str) -> Found:
        """What the method finds."""
        if method.startswith(TRANSFERRED):
            return self.transferred(calls, method)
        if method == HANDMADE:
            top = self.rivals(calls)[0]
            return Found(top.table, top.name, top.score)
        if method == HANDMADE_FRECHET:
            x = self.choose[0][: self.c.samples]
            top = min(self.rivals(calls), key=lambda h: self.distance(self.p.features(self.p.run(h.table, x))))
            return Found(top.table, top.name, top.score)
        if method in SEARCHES:
            return self.schedule(calls, SEARCHES[method], self.folder / f"{calls}_{method}_{self.mark}")
        stages = tuple(method.removesuffix(INCONSISTENT).split(" then "))
        return self.learned(calls, stages, method.endswith(INCONSISTENT), self.folder / f"{calls}_{slug(method)}_{self.mark}")

    def schedule(self, calls: int, find: Callable, folder: Path) -> Found:
        """A schedule of solvers."""
        space = Space(self.p.path, calls)
        batch = self.batch if self.p.bound else min(self.batch, self.c.scored)
        few = tuple(a[: -(-self.c.scored // batch) * batch] for a in self.choose)
        score, final = (rmse(self.p.denoiser, *a, batch=b) for a, b in ((few, batch), (self.choose, self.batch)))
        table, report = find(score, space, key=self.key, budget=self.c.budget, final_score=final, folder=folder, progress=self.progress)
        return Found(table, f"{report.evaluated} schedules scored", float(report.final), dropped=report.dropped)

    def learned(self, calls: int, stages: tuple[str, ...], inconsistent: bool, folder: Path) -> Found:
        """A learned table, from the best starts that can be varied so."""
        path, starts = self.p.path, {}
        free = "+".join(dict.fromkeys(leaf for stage in stages for leaf in leaves_of(stage)))
        for rival in self.rivals(calls):
            with contextlib.suppress(ValueError):  # not every solver has derivative estimates to relax
                learnable(path, rival.solver, rival.grid, vary=free, consistent=not inconsistent)
                starts.setdefault(rival.name.split(",")[0], rival)
        if not starts:
            raise ValueError(
                f"none of the {self.c.rivals} best hand-made samplers of {calls} calls can be varied by {stages}: raise `rivals`"
            )
        chosen = list(starts.values())[: self.c.starts]
        teacher = tuple(np.concatenate([a, b]) for a, b in zip(self.fit, self.choose, strict=True))
        table, reports = learn_best(
            self.p.denoiser,
            path,
            [(s.solver, s.grid) for s in chosen],
            key=self.key,
            seeds=self.c.seeds,
            finalists=self.c.finalists or None,
            vary=stages,
            consistent=not inconsistent,
            noises=len(self.fit[0]),
            held_out=len(self.choose[0]),
            iterations=self.c.iterations,
            batch=self.batch,
            teacher=teacher,
            adjoint=Direct(unroll=self.p.bound),
            folder=folder,
            progress=self.progress,
        )
        k = int(np.argmin([r.best for r in reports]))
        return Found(table, f"from {chosen[k // self.c.seeds].name}", reports[k].best, reports[k].numbers[-1])
