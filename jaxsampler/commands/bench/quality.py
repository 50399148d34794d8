r"""How good the samples of every solver are at every number of network calls: `jaxsampler bench quality`.

For each problem (`problems`), number of calls and solver (`line_up`) there is one cell, from the same starts
x_T:

    rmse      to the converged solution from the same x_T (deterministic solvers): is the equation solved
    frechet   Frechet distance between features of the samples and of real test data, and
    sliced    sliced Wasserstein distance between them: are the samples right

each with a bootstrap interval over the samples. Two more cells say what the distances can be at best: "real",
as many other real samples against the same test data (the floor), and "converged", the model's own. A network
makes the converged solution wrong, so a solver may be closer to the data than it.

All tables of one problem and number of calls have one shape, so there is one compilation for all solvers;
DPM-Solver-v3, which has no table, has its own. Each finished cell goes into a CSV file; a run that was
stopped goes on with what is missing there.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, cast

import jax
import numpy as np

from ... import config, metrics, solvers
from ...config import Count, Length, Range, Seed
from ...paths import VP
from ...scan import Solver
from ...spelling import nearest
from ...tables import Table, pad
from . import line_up
from .cells import Cell, read, save
from .problems import PROBLEMS, Problem, problem

DETERMINISTIC = (
    "ddim",
    "dpmpp_2m",
    "dpmpp_3m lower_order_final=true",
    "unipc order=2",
    "unipc order=3",
    "deis order=2",
    "deis order=3",
    "ipndm",
    "dpmpp_2s",
    "dpm_3",
    "edm",
    "heun",
    "dpm_v3 order=2",
)
STOCHASTIC = ("euler_ancestral", "dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_sde", "edm s_churn=10")
Names = Annotated[tuple[str, ...], Length(1, 100)]
Several = Annotated[int, Range(2, 10**9)]


@dataclasses.dataclass(frozen=True)
class Quality:
    """What is measured; `grids`, `samples` and `most` have an entry for each of `problems`."""

    problems: Names = ("mixture", "empirical", "fashion_edm", "fashion_flow")
    grids: tuple[str, ...] = ("log_snr", "karras", "karras", "uniform")
    samples: tuple[Several, ...] = (2000, 500, 500, 500)
    most: tuple[Count, ...] = (50, 50, 20, 20)  # no more calls than these
    calls: Annotated[tuple[Count, ...], Length(1, 1000)] = (3, 4, 5, 6, 8, 10, 15, 20, 50)
    solvers: tuple[str, ...] = DETERMINISTIC + STOCHASTIC
    tables: tuple[str, ...] = ()  # learned ones: .safetensors files whose card names their problem
    v3: tuple[str, ...] = ("mixture", "fashion_edm")  # where DPM-Solver-v3's statistics are estimated
    statistics: Several = 256  # from this many real samples
    real: Several = 10_000  # test samples to compare with
    resamples: Several = 50  # of the bootstrap
    seed: Seed = 0

    def __post_init__(self):
        config.check(self)
        for name in self.problems:
            if name not in PROBLEMS:
                raise ValueError(f"unknown problem {name!r}; {nearest(name, PROBLEMS)}")
        for key in ("grids", "samples", "most"):
            if len(getattr(self, key)) != len(self.problems):
                n, has = len(self.problems), len(getattr(self, key))
                raise ValueError(f"key {key!r} needs one entry for each of the {n} problems, it has {has}")
        one, zero = np.ones(4), np.zeros(4)
        flat = solvers.Statistics.of(VP(), np.arange(4.0), one, zero, zero)  # any will do to check options
        for entry in self.tabulated:
            line_up.step(entry)
        for entry in self.fitted:
            line_up.solver(entry, statistics=flat)
        for name in self.grids:
            line_up.grid(name)

    @property
    def fitted(self) -> tuple[str, ...]:
        """Solver entries that need statistics."""
        return tuple(entry for entry in self.solvers if entry.split()[:1] == ["dpm_v3"])

    @property
    def tabulated(self) -> tuple[str, ...]:
        """Solver entries that have a table."""
        return tuple(entry for entry in self.solvers if entry not in self.fitted)


def measure(
    c: Quality, file: Path, build: Callable[[str], Problem] = problem, progress: bool = True
) -> list[Cell]:
    """Return all cells of `c`; those in `file` are read, each new one is added to it at once.

    Args:
        build: name -> problem.
    """
    from threadpoolctl import threadpool_limits
    from tqdm import tqdm

    known = read(file)
    tables = [(entry, *learned(entry)) for entry in c.tables]
    cells = []
    # The bootstrap's matrices are small and many: on shared cores, threads made it 80 times slower.
    with threadpool_limits(1, "blas"):
        for i, name in enumerate(c.problems):
            mine = [(label, table) for label, of, table in tables if of == name]
            task = Task(c, i, build(name), file.parent, mine)
            for solver, calls, job in tqdm(task.jobs(), desc=name, unit="cell", disable=not progress):
                cell = known.get((name, solver, calls, task.mark))
                if cell is None:
                    cell = known[name, solver, calls, task.mark] = job()
                    save(file, known.values())
                cells.append(cell)
    return cells


def learned(file: str) -> tuple[str, Table]:
    """Load (problem, table) of a saved table; ValueError if its card does not name one of the problems."""
    name = Table.about(file).get("problem")
    if name not in PROBLEMS:
        fix = f"save the table with problem=, one of {', '.join(PROBLEMS)}"
        raise ValueError(f"the card of {file} names the problem {name!r}; {fix}")
    return name, Table.load(file)


class Task:
    """One problem's cells; what they share (starts, converged samples, ..) is made when first needed."""

    def __init__(self, c: Quality, i: int, p: Problem, folder: Path, tables: list[tuple[str, Table]]):
        self.c, self.p, self.folder, self.tables = c, p, folder, tables
        self.n, self.most = c.samples[i], c.most[i]
        self.grid, self.x = line_up.grid(c.grids[i]), p.start(c.samples[i], c.seed)
        self.shared: dict[str, Any] = {}
        self.mark = p.fingerprint(c.grids[i], self.n, c.real, c.resamples, c.statistics, c.seed)

    def jobs(self) -> list[tuple[str, int, Callable[[], Cell]]]:
        """List (solver, calls, how to measure): the two references, then all solvers by number of calls."""
        jobs: list = [("real", 0, self.floor), ("converged", self.p.fine.nfe, self.limit)]
        columns = {}
        for calls in (k for k in self.c.calls if k <= self.most):
            columns[calls] = line_up.line_up(self.p.path, self.c.tabulated, self.grid, calls)
            columns[calls] |= {Path(name).stem: table for name, table in self.tables if table.nfe == calls}
        regs = max((table.regs for column in columns.values() for table in column.values()), default=1)
        for calls, column in columns.items():
            warm: list = []  # whether this shape is compiled already
            for name, table in column.items():
                jobs.append((name, calls, lambda a=(name, calls, table, regs, warm): self.table(*a)))
            for entry in self.c.fitted if self.p.name in self.c.v3 else ():
                jobs.append((entry, calls, lambda a=(entry, calls): self.fitted(*a)))
        return jobs

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """make(), called the first time only."""
        if name not in self.shared:
            self.shared[name] = make()
        return self.shared[name]

    def exact(self) -> np.ndarray:
        """The converged samples."""
        label = f"{self.p.name}, converged"
        return self.once("exact", lambda: self.p.run(self.p.fine, self.x, label=label))

    def table(self, name: str, calls: int, table: Table, regs: int, warm: list) -> Cell:
        """Measure a table; all tables of `calls` calls have `regs` registers, hence one compilation."""
        padded = pad(table, nfe=calls, regs=regs)
        if not warm:
            self.p.run(padded, self.x[:1], self.c.seed)
            warm.append(True)
        began = time.perf_counter()
        x = self.p.run(padded, self.x, self.c.seed)
        seconds = (time.perf_counter() - began) / self.n
        return self.cell(name, calls, x, table.nfe, bool(table.draws), seconds)

    def fitted(self, name: str, calls: int) -> Cell:
        """Measure DPM-Solver-v3."""
        solver = cast(Solver, line_up.solver(name, statistics=self.once("statistics", self.estimate)))
        grid = self.grid(self.p.path, calls)
        self.p.drive(solver, grid, self.x[:1])
        began = time.perf_counter()
        x = self.p.drive(solver, grid, self.x)
        return self.cell(name, calls, x, calls, False, (time.perf_counter() - began) / self.n)

    def estimate(self) -> solvers.Statistics:
        """Estimate DPM-Solver-v3's statistics from training data; keep them in a file beside the cells."""
        file = self.folder / f"v3_{self.p.name}_{self.mark}.safetensors"
        if not file.exists():
            data = self.p.real("train", self.c.statistics)
            options = {"samples": self.c.statistics, "n": 60, "batch": 16, "progress": False}
            solvers.ems(self.p.single, data, key=jax.random.key(self.c.seed), **options).save(file)
        return solvers.Statistics.load(file)

    def floor(self) -> Cell:
        """Measure as many real training samples as are drawn from every solver."""
        return self.cell("real", 0, self.p.real("train", self.n), 0, True, math.nan)

    def limit(self) -> Cell:
        """Measure the converged samples, which all deterministic solvers tend to."""
        return self.cell("converged", self.p.fine.nfe, self.exact(), self.p.fine.nfe, False, math.nan)

    def cell(self, name: str, calls: int, x: np.ndarray, rows: int, stochastic: bool, seconds: float) -> Cell:
        """Measure samples x."""
        sizes = calls, rows, stochastic, len(x), self.c.real
        made = Cell(self.p.name, name, *sizes, seconds=seconds, mark=self.mark)
        found: dict[str, Iterator[float]] = {}
        among = lambda statistic, values: iter(
            (statistic(values), *metrics.interval(statistic, values, resamples=self.c.resamples))
        )
        if not stochastic:
            found["rmse"] = among(lambda s: float(np.sqrt(s.mean())), metrics.squares(x, self.exact()))
        if np.all(np.isfinite(x)):
            real, slices = self.once("reference", self.reference)
            found["frechet"] = among(lambda f: metrics.frechet(f, real), self.p.features(x))
            found["sliced"] = among(lambda s: metrics.wasserstein(s, slices), metrics.project(x))
        values = {key: next(v) for kind, v in found.items() for key in (kind, f"{kind}_low", f"{kind}_high")}
        return dataclasses.replace(made, **values)

    def reference(self) -> tuple[metrics.Gaussian, metrics.Quantiles]:
        """Features and projections of the test data, to which distances are measured."""
        real = self.p.real("test", self.c.real)
        return metrics.gaussian(self.p.features(real)), metrics.quantiles(metrics.project(real), self.n)
