"""The searches of a study on one problem: the noises, the hand-made samplers to beat, and what each method finds."""

import contextlib
import dataclasses
import io
import math
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ... import metrics, pretrained
from ...files import write
from ...scan.adjoints import Direct
from ...search.baselines import Handmade, best
from ...search.distillation import distill, waypoints
from ...search.error_measures import squared
from ...search.learning import learn_best
from ...search.parametrisation import learnable
from ...search.score import rmse
from ...search.space import Space
from ...search.transfers import transfer
from ...search.vary import leaves_of
from ...solvers import dpmpp_2m
from ...tables.table import Table
from ..bench.problems import PATHS, Problem
from .settings import HANDMADE, HANDMADE_FRECHET, SEARCHES, TRANSFERRED, Search, parsed, slug


@dataclasses.dataclass(frozen=True)
class Found:
    """A sampler before it is judged."""

    table: Table
    what: str
    held_out: float
    numbers: int = 0
    dropped: int = 0


def off(samples: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Mean squared errors [n], in float64."""
    return squared(samples.astype(np.float64), reference.astype(np.float64))


class Task:
    """One problem's searches; what they share (noises, converged samples, hand-made samplers) is made when first needed."""

    def __init__(self, c: Search, p: Problem, folder: Path, progress: bool):
        self.c, self.p, self.folder, self.progress = c, p, folder, progress
        self.batch = p.chunk if p.bound else c.batch  # in which samples are scored
        self.small = p.sized(c.batch)
        self.key = jax.random.key(c.seed)
        self._screened: dict[int, list[Handmade]] = {}
        self._rivals: dict[int, list[Handmade]] = {}
        self._distilled: dict[tuple[int, bool], list[tuple[Handmade, Found]]] = {}
        self._baselines: dict[int, np.ndarray] = {}

    def noises(self, what: str, n: int) -> tuple[np.ndarray, np.ndarray]:
        """x_T of one of the three sets and the converged samples, whole batches, kept in the folder."""
        seed = 3 * self.c.seed + ("fit", "choose", "judge").index(what)
        whole = math.lcm(self.batch, self.c.batch)
        x = self.p.start(-(-n // whole) * whole, seed)
        file = self.folder / f"{what}_{self.p.fingerprint(len(x), seed)}.npy"
        if not file.exists():
            buffer, exact = io.BytesIO(), self.p.converged(x)
            if not np.isfinite(exact).all():
                raise ValueError(
                    f"{np.sum(~np.isfinite(off(exact, x)))} of {len(x)} converged samples of {self.p.name} are not finite"
                )
            np.save(buffer, exact)
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

    def screened(self, calls: int) -> list[Handmade]:
        """All hand-made samplers, best first, by the first of the held-out noises."""
        if calls not in self._screened:
            n = -(-self.c.screen // self.batch) * self.batch
            x, exact = (a[:n] for a in self.choose)
            self._screened[calls] = best(self.p.denoiser, self.p.path, x, exact, calls, batch=self.batch)
        return self._screened[calls]

    def rivals(self, calls: int) -> list[Handmade]:
        """The best hand-made samplers, by the held-out noises."""
        if calls not in self._rivals:
            chosen = self.screened(calls)[: self.c.rivals]
            self._rivals[calls] = best(
                self.p.denoiser, self.p.path, *self.choose, calls, batch=self.batch, chosen=chosen
            )
        return self._rivals[calls]

    def file(self, calls: int, method: str) -> Path:
        """Where the table of a result lies."""
        return self.folder / f"{self.p.name}_{calls}_{slug(method)}_{self.mark_of(calls, method)}.safetensors"

    def by_hand(self, calls: int) -> tuple[str, Table]:
        """The best hand-made sampler and its name: the one saved, if the study has come so far."""
        file = self.file(calls, HANDMADE)
        if file.exists():
            return Table.about(file)["what"], Table.load(file)
        top = self.rivals(calls)[0]
        return top.name, top.table

    def baseline(self, calls: int) -> np.ndarray:
        """Errors of the best hand-made sampler on the noises that judge."""
        if calls not in self._baselines:
            x, reference = self.judge
            self._baselines[calls] = off(self.p.run(self.by_hand(calls)[1], x), reference)
        return self._baselines[calls]

    def mark_of(self, calls: int, method: str) -> str:
        """Of all that a result depends on besides its calls and method."""
        mark = self.p.fingerprint(*sorted(self.c.matters(method).items()))
        if not method.startswith(TRANSFERRED):
            return mark
        return mark + self.p.fingerprint(
            *(a.tobytes() for a in jax.tree.leaves(self.elsewhere(calls, method)[0]))
        )

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
        return Found(
            moved,
            f"{card.get('method', 'found')} on {name}",
            float(np.sqrt(off(self.p.run(moved, x), exact).mean())),
        )

    def search(self, calls: int, method: str) -> Found:
        """What the method finds."""
        if method.startswith(TRANSFERRED):
            return self.transferred(calls, method)
        if method == HANDMADE:
            top = self.rivals(calls)[0]
            return Found(top.table, top.name, top.score)
        if method == HANDMADE_FRECHET:
            x = self.choose[0][: self.c.samples]
            top = min(
                self.rivals(calls), key=lambda h: self.distance(self.p.features(self.p.run(h.table, x)))
            )
            return Found(top.table, top.name, top.score)
        folder = self.folder / f"{calls}_{slug(method)}_{self.mark_of(calls, method)}"
        if method in SEARCHES:
            return self.schedule(calls, SEARCHES[method], folder)
        distilled, stages, consistent = parsed(method)
        if not stages:
            return self.distilled(calls, consistent)[0][1]
        return self.learned(calls, stages, consistent, folder, distilled)

    def schedule(self, calls: int, find: Callable, folder: Path) -> Found:
        """A schedule of solvers."""
        space = Space(self.p.path, calls)
        batch = self.batch if self.p.bound else min(self.batch, self.c.scored)
        few = tuple(a[: -(-self.c.scored // batch) * batch] for a in self.choose)
        score, final = (
            rmse(self.p.denoiser, *a, batch=b) for a, b in ((few, batch), (self.choose, self.batch))
        )
        table, report = find(
            score,
            space,
            key=self.key,
            budget=self.c.budget,
            final_score=final,
            folder=folder,
            progress=self.progress,
        )
        return Found(
            table, f"{report.evaluated} schedules scored", float(report.final), dropped=report.dropped
        )

    def distilled(self, calls: int, consistent: bool) -> list[tuple[Handmade, Found]]:
        """A table distilled on each kind of grid, as the best solver by hand on it has it, with that solver; best first."""
        if (calls, consistent) not in self._distilled:
            firsts: dict[str, Handmade] = {}
            for made in self.screened(calls):
                if len(made.grid) - 1 == calls:
                    firsts.setdefault(made.family, made)
            ways = partial(waypoints, self.p.denoiser, self.p.path, batch=self.batch, progress=self.progress)
            (x, _), (chosen, exact), found = self.fit, self.choose, []
            for made in firsts.values():
                teacher = x, ways(made.grid, x)
                given: dict = {
                    "consistent": consistent,
                    "noises": len(x),
                    "held_out": 0,
                    "batch": self.batch,
                    "teacher": teacher,
                }
                table, _ = distill(self.p.denoiser, self.p.path, made.grid, **given)
                score = float(np.sqrt(off(self.p.run(table, chosen), exact).mean()))
                rows = calls - bool(
                    consistent and self.p.path.sigma(made.grid[-1]) == 0
                )  # the last one is the last output then
                numbers = rows * (rows - 1) // 2 if consistent else rows * (rows + 3) // 2
                found.append((made, Found(table, f"on {made.family}", score, numbers)))
            self._distilled[calls, consistent] = sorted(
                found, key=lambda pair: np.nan_to_num(pair[1].held_out, nan=np.inf)
            )
        return self._distilled[calls, consistent]

    def starts(self, calls: int, free: str, consistent: bool) -> list[Handmade]:
        """The best hand-made sampler of each solver that can be varied so, then the best of the others."""
        firsts, others = {}, []
        for rival in self.rivals(calls):
            with contextlib.suppress(ValueError):  # not every solver has derivative estimates to relax
                learnable(self.p.path, rival.solver, rival.grid, vary=free, consistent=consistent)
                if firsts.setdefault(rival.name.split(",")[0], rival) is not rival:
                    others.append(rival)
        if not firsts:
            raise ValueError(
                f"none of the {self.c.rivals} best hand-made samplers of {calls} calls can be varied by {free}: raise `rivals`"
            )
        return [*firsts.values(), *others][: self.c.starts]

    def learned(
        self, calls: int, stages: tuple[str, ...], consistent: bool, folder: Path, distilled: bool
    ) -> Found:
        """A learned table, from the best starts."""
        if distilled:
            chosen = self.distilled(calls, consistent)[: self.c.starts]
            names = [f"distilled on {made.family}" for made, _ in chosen]
            starts = [
                (dpmpp_2m, made.grid, found.table) for made, found in chosen
            ]  # corrections of it reach any table
        else:
            made = self.starts(
                calls,
                "+".join(dict.fromkeys(leaf for stage in stages for leaf in leaves_of(stage))),
                consistent,
            )
            names, starts = [m.name for m in made], [(m.solver, m.grid) for m in made]
        teacher = tuple(np.concatenate([a, b]) for a, b in zip(self.fit, self.choose, strict=True))
        table, reports = learn_best(
            self.small,
            self.p.path,
            starts,
            key=self.key,
            seeds=self.c.seeds,
            finalists=self.c.finalists or None,
            vary=stages,
            consistent=consistent,
            noises=len(self.fit[0]),
            held_out=len(self.choose[0]),
            iterations=self.c.iterations,
            batch=self.c.batch,
            rates=dict.fromkeys(("amplitude", "weights"), self.c.rate) if self.c.rate else None,
            split=self.c.split or None,
            teacher=teacher,
            adjoint=Direct(unroll=self.p.bound),
            folder=folder,
            progress=self.progress,
        )
        k = int(np.argmin([r.best for r in reports]))
        return Found(table, f"from {names[k // self.c.seeds]}", reports[k].best, reports[k].numbers[-1])
