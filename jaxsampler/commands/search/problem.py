"""The searches on one problem: the noises, the hand-made samplers to beat, and what each method finds."""

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
from ...files import seal, unsealed, write
from ...search.baselines import Handmade, best
from ...search.distillation import distill, waypoints
from ...search.error_measures import squared
from ...search.parametrisation import learnable
from ...search.score import rmse
from ...search.several_starts import learn_best
from ...search.space import Space
from ...search.transfers import transfer
from ...search.vary import leaves_of
from ...solvers import dpmpp_2m
from ...tables import Table
from ..bench.problems import PATHS, Problem
from ..clock import clock
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
    """Return the mean squared errors [n], in float64."""
    return np.asarray(squared(samples.astype(np.float64), reference.astype(np.float64)))


class Task:
    """The searches on one problem, with the noises, converged samples and hand-made samplers they share."""

    def __init__(self, c: Search, p: Problem, folder: Path, progress: bool):
        self.c, self.p, self.folder, self.progress = c, p, folder, progress
        self.batch = p.chunk if p.bound else c.batch  # samples that are scored at once
        self.small = p.sized(c.batch)
        self.key = jax.random.key(c.seed)
        self._screened: dict[int, list[Handmade]] = {}
        self._rivals: dict[int, list[Handmade]] = {}
        self._distilled: dict[tuple[int, bool], list[tuple[Handmade, Found]]] = {}
        self._baselines: dict[int, np.ndarray] = {}

    def busy(self, what: str) -> contextlib.AbstractContextManager:
        """A clock for work of minutes that tells nothing itself."""
        return clock(what) if self.progress else contextlib.nullcontext()

    def noises(self, what: str, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Return x_T of one of the three sets and the converged samples, which are kept in the folder."""
        seed = 3 * self.c.seed + ("fit", "choose", "judge").index(what)
        whole = math.lcm(self.batch, self.c.batch)
        x = self.p.start(-(-n // whole) * whole, seed)
        file = self.folder / f"{what}_{self.p.fingerprint(len(x), seed)}.npy"
        data = unsealed(file, file.name)
        if data is None:
            label = f"converged samples to {what}" if self.progress else None
            buffer, exact = io.BytesIO(), self.p.run(self.p.fine, x, label=label)
            if not np.isfinite(exact).all():
                bad = np.sum(~np.isfinite(off(exact, x)))
                raise ValueError(f"{bad} of {len(x)} converged samples of {self.p.name} are not finite")
            np.save(buffer, exact)
            data = buffer.getvalue()
            write(file, seal(data, file.name))
        return x, np.load(io.BytesIO(data), allow_pickle=False)

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
        """Return the Frechet distance to real samples."""
        return metrics.frechet(features, self.real)

    def screened(self, calls: int) -> list[Handmade]:
        """Return all hand-made samplers, best first on the first of the held-out noises."""
        if calls not in self._screened:
            n = -(-self.c.screen // self.batch) * self.batch
            x, exact = (a[:n] for a in self.choose)
            with self.busy("all hand-made samplers"):
                self._screened[calls] = best(self.p.denoiser, self.p.path, x, exact, calls, batch=self.batch)
        return self._screened[calls]

    def rivals(self, calls: int) -> list[Handmade]:
        """Return the best hand-made samplers, best first on all held-out noises."""
        if calls not in self._rivals:
            options = {"batch": self.batch, "chosen": self.screened(calls)[: self.c.rivals]}
            x, exact = self.choose
            with self.busy("the best of them"):
                self._rivals[calls] = best(self.p.denoiser, self.p.path, x, exact, calls, **options)
        return self._rivals[calls]

    def file(self, calls: int, method: str) -> Path:
        """Return where the table of a result lies."""
        return self.folder / f"{self.p.name}_{calls}_{slug(method)}_{self.mark_of(calls, method)}.safetensors"

    def by_hand(self, calls: int) -> tuple[str, Table]:
        """Return the name and table of the best hand-made sampler: the one saved, if there is one."""
        file = self.file(calls, HANDMADE)
        if file.exists():
            return Table.about(file)["what"], Table.load(file)
        top = self.rivals(calls)[0]
        return top.name, top.table

    def baseline(self, calls: int) -> np.ndarray:
        """Return the errors of the best hand-made sampler on the noises that judge."""
        if calls not in self._baselines:
            x, reference = self.judge
            self._baselines[calls] = off(self.p.run(self.by_hand(calls)[1], x), reference)
        return self._baselines[calls]

    def mark_of(self, calls: int, method: str) -> str:
        """Return a mark of everything that a result depends on besides its calls and method."""
        mark = self.p.fingerprint(*sorted(self.c.matters(method).items()))
        if not method.startswith(TRANSFERRED):
            return mark
        table, _ = self.elsewhere(calls, method)
        return mark + self.p.fingerprint(*(a.tobytes() for a in jax.tree.leaves(table)))

    def elsewhere(self, calls: int, method: str) -> tuple[Table, dict[str, Any]]:
        """Return the table found for the problem that the method names, and its card."""
        name = method.removeprefix(TRANSFERRED)
        file = self.folder.parent / f"{name}_{calls}.safetensors"
        if file.exists():
            return Table.load(file), Table.about(file)
        try:
            return pretrained.table(name, calls), pretrained.table_card(name, calls)
        except ValueError as e:
            raise ValueError(f"nothing to transfer: there is no {file}, and of those shipped {e}") from None

    def transferred(self, calls: int, method: str) -> Found:
        """Carry what was found for another problem to this one's path."""
        (table, card), (x, exact) = self.elsewhere(calls, method), self.choose
        name = method.removeprefix(TRANSFERRED)
        moved = transfer(table, PATHS[name], self.p.path)
        score = float(np.sqrt(off(self.p.run(moved, x), exact).mean()))
        return Found(moved, f"{card.get('method', 'found')} on {name}", score)

    def find(self, calls: int, method: str) -> Found:
        """Return what the method finds."""
        if method.startswith(TRANSFERRED):
            return self.transferred(calls, method)
        if method == HANDMADE:
            top = self.rivals(calls)[0]
            return Found(top.table, top.name, top.score)
        if method == HANDMADE_FRECHET:
            x = self.choose[0][: self.c.samples]
            distance = lambda h: self.distance(self.p.features(self.p.run(h.table, x)))
            top = min(self.rivals(calls), key=distance)
            return Found(top.table, top.name, top.score)
        folder = self.folder / f"{calls}_{slug(method)}_{self.mark_of(calls, method)}"
        if method in SEARCHES:
            return self.schedule(calls, SEARCHES[method], folder)
        distilled, stages, consistent = parsed(method)
        if not stages:
            return self.distilled(calls, consistent)[0][1]
        return self.learned(calls, stages, consistent, folder, distilled)

    def schedule(self, calls: int, find: Callable, folder: Path) -> Found:
        """Search a schedule of solvers."""
        space = Space(self.p.path, calls)
        batch = self.batch if self.p.bound else min(self.batch, self.c.scored)
        x, exact = (a[: -(-self.c.scored // batch) * batch] for a in self.choose)
        score = rmse(self.p.denoiser, x, exact, batch=batch)
        final = rmse(self.p.denoiser, *self.choose, batch=self.batch)
        options = {"key": self.key, "budget": self.c.budget, "progress": self.progress}
        table, report = find(score, space, final_score=final, folder=folder, **options)
        what = f"{report.evaluated} schedules scored"
        return Found(table, what, float(report.final), dropped=report.dropped)

    def distilled(self, calls: int, consistent: bool) -> list[tuple[Handmade, Found]]:
        """Distil a table on the best hand-made sampler's grid of each kind; best first, with that sampler."""
        if (calls, consistent) not in self._distilled:
            firsts: dict[str, Handmade] = {}
            for made in self.screened(calls):
                if len(made.grid) - 1 == calls:
                    firsts.setdefault(made.family, made)
            ways = partial(waypoints, self.p.denoiser, self.p.path, batch=self.batch, progress=self.progress)
            (x, _), (chosen, exact), found = self.fit, self.choose, []
            for made in firsts.values():
                given: dict[str, Any] = {"noises": len(x), "held_out": 0, "teacher": (x, ways(made.grid, x))}
                given |= {"consistent": consistent, "batch": self.batch}
                table, _ = distill(self.p.denoiser, self.p.path, made.grid, **given)
                score = float(np.sqrt(off(self.p.run(table, chosen), exact).mean()))
                # into sigma = 0, a consistent table's last row is the last output
                rows = calls - bool(consistent and self.p.path.sigma(made.grid[-1]) == 0)
                numbers = rows * (rows - 1) // 2 if consistent else rows * (rows + 3) // 2
                found.append((made, Found(table, f"on {made.family}", score, numbers)))
            order = lambda pair: np.nan_to_num(pair[1].held_out, nan=np.inf)
            self._distilled[calls, consistent] = sorted(found, key=order)
        return self._distilled[calls, consistent]

    def starts(self, calls: int, free: str, consistent: bool) -> list[Handmade]:
        """Return the best hand-made sampler of each solver that can be varied, then the next best."""
        firsts, others = {}, []
        for rival in self.rivals(calls):
            with contextlib.suppress(ValueError):  # not every solver has derivative estimates to relax
                learnable(self.p.path, rival.solver, rival.grid, vary=free, consistent=consistent)
                if firsts.setdefault(rival.name.split(",")[0], rival) is not rival:
                    others.append(rival)
        if not firsts:
            raise ValueError(
                f"none of the {self.c.rivals} best hand-made samplers of {calls} calls "
                f"can be varied by {free}: raise `rivals`"
            )
        return [*firsts.values(), *others][: self.c.starts]

    def learned(
        self, calls: int, stages: tuple[str, ...], consistent: bool, folder: Path, distilled: bool
    ) -> Found:
        """Learn a table from the best starts."""
        if distilled:
            chosen = self.distilled(calls, consistent)[: self.c.starts]
            names = [f"distilled on {made.family}" for made, _ in chosen]
            # the corrections of this solver reach any table
            starts = [(dpmpp_2m, made.grid, found.table) for made, found in chosen]
        else:
            free = "+".join(dict.fromkeys(leaf for stage in stages for leaf in leaves_of(stage)))
            made = self.starts(calls, free, consistent)
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
            folder=folder,
            progress=self.progress,
        )
        k = int(np.argmin([r.best for r in reports]))
        return Found(table, f"from {names[k // self.c.seeds]}", reports[k].best, reports[k].numbers[-1])
