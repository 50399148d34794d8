"""The numbers of `comparison` as tables: what the command prints, and the files that `--full` writes."""

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from ... import data
from .comparison import FAMILY, Batch, Bench, Row, crops

Member = tuple[str, int]  # a name of FAMILY, calls
CALLS = (5, 10, 20, 100)
COMPARED = tuple(FAMILY)
CONVERGED = 200  # calls that stand for the exact solution of the ODE


class Distance(NamedTuple):
    """RMSE of an ODE solver to the converged solution from the same x_T, for one crop, in image units."""

    task: str
    solver: str
    calls: int
    rmse: float


class Target(NamedTuple):
    """One target of the project, and what was measured."""

    what: str
    wanted: str
    measured: str
    met: bool


def mean(rows: Iterable[Row], solver: str, calls: int, what: str = "psnr", task: str | None = None) -> float:
    """Mean of a column over the crops of one member (and task)."""
    found = [
        getattr(r, what) for r in rows if (r.solver, r.calls) == (solver, calls) and task in (None, r.task)
    ]
    return float(np.mean(found))


def markdown(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Format an aligned Markdown table: first column to the left, numbers to the right."""
    lines = [list(head), *map(list, body)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(head))]
    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    return "".join(
        "| "
        + " | ".join(
            cell.rjust(w) if k else cell.ljust(w)
            for k, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        + " |\n"
        for line in (lines[0], rule, *lines[1:])
    )


def name(member: Member) -> str:
    """`mr_ode 2 x10`: solver, order, calls."""
    return f"{member[0]} x{member[1]}" if member[1] else member[0]


def per_task(rows: list[Row], members: Sequence[Member]) -> str:
    """PSNR/SSIM per task and member, their means, calls and seconds per batch of ten."""

    def line(what: str, cell: Callable[[Member], str]) -> list[str]:
        return [what, *(cell(m) for m in columns)]

    def quality(task: str | None) -> Callable[[Member], str]:
        return lambda m: f"{mean(rows, *m, 'psnr', task):.2f}/{mean(rows, *m, 'ssim', task):.3f}"

    columns = [("input", 0), *members]
    body = [line(task, quality(task)) for task in data.TASKS] + [line("**mean**", quality(None))]
    body.append(line("network calls", lambda m: str(m[1])))
    body.append(line("seconds for ten", lambda m: f"{10 * mean(rows, *m, 'seconds'):.1f}" if m[1] else ""))
    return markdown(["PSNR (dB)/SSIM", *map(name, columns)], body)


def over_tasks(rows: list[Row]) -> str:
    """Mean PSNR/SSIM over all tasks for each solver and number of calls."""
    body = [
        [
            solver,
            *(f"{mean(rows, solver, calls):.2f}/{mean(rows, solver, calls, 'ssim'):.3f}" for calls in CALLS),
        ]
        for solver in COMPARED
    ]
    return markdown(["mean over tasks, PSNR/SSIM", *(f"{c} calls" for c in CALLS)], body)


def convergence(distances: list[Distance]) -> str:
    """RMSE to the converged ODE solution."""
    body = [[s, *(f"{rmse(distances, s, c):.5f}" for c in CALLS[:3])] for s in ("mr_ode 1", "mr_ode 2")]
    return markdown(
        [f"RMSE to the ODE solution ({CONVERGED} calls)", *(f"{c} calls" for c in CALLS[:3])], body
    )


def rmse(distances: list[Distance], solver: str, calls: int) -> float:
    """Root mean square over crops."""
    return float(np.sqrt(np.mean([d.rmse**2 for d in distances if (d.solver, d.calls) == (solver, calls)])))


def targets(rows: list[Row], distances: list[Distance], solver: str) -> list[Target]:
    """The targets, met or not, for the chosen member `solver`."""
    gain = {t: mean(rows, solver, 10, task=t) - mean(rows, "input", 0, task=t) for t in data.TASKS}
    worst = min(gain, key=lambda t: gain[t])
    out = [
        Target(
            f"every task gains PSNR ({solver} x10)",
            "> 0 dB",
            f"{gain[worst]:+.2f} dB ({worst})",
            gain[worst] > 0,
        ),
        Target(
            "mean gain",
            ">= 5 dB",
            f"{np.mean(list(gain.values())):+.2f} dB",
            float(np.mean(list(gain.values()))) >= 5,
        ),
    ]
    for calls, allowed in ((10, 0.3), (5, 0.8)):
        short = {
            t: mean(rows, "posterior", 100, task=t) - mean(rows, solver, calls, task=t) for t in data.TASKS
        }
        worst = max(short, key=lambda t: short[t])
        what = f"worst task, {solver} x{calls} below posterior x100"
        out.append(
            Target(what, f"<= {allowed} dB", f"{short[worst]:+.2f} dB ({worst})", short[worst] <= allowed)
        )
    ratio = rmse(distances, "mr_ode 2", 10) / rmse(distances, "mr_ode 1", 10)
    return [
        *out,
        Target(
            "RMSE to the ODE solution at 10 calls, order 2 / order 1", "<= 0.5", f"{ratio:.2f}", ratio <= 0.5
        ),
    ]


def full(bench: Bench, batches: Sequence[Batch]) -> tuple[list[Row], list[Distance]]:
    """Run every solver of COMPARED at all CALLS on every batch; measure distances to the converged ODE."""
    rows, distances = [], []
    members = [(solver, calls) for solver in COMPARED for calls in CALLS]
    for batch in tqdm(batches, unit="batch", desc="all held-out photos"):
        measured, images = bench.rows(batch, members)
        rows += measured
        exact, _ = bench.run(batch, bench.table(FAMILY["mr_ode 2"], CONVERGED))
        for solver in ("mr_ode 1", "mr_ode 2"):
            for calls in CALLS[:3]:
                errors = np.sqrt(np.square(images[solver, calls] - exact).mean((1, 2, 3)))
                distances += [
                    Distance(task, solver, calls, float(e))
                    for task, e in zip(data.TASKS, errors, strict=True)
                ]
    return rows, distances


def full_markdown(rows: list[Row], distances: list[Distance], solver: str) -> str:
    """All tables of the full comparison; `solver` is the chosen member."""
    members = [(solver, 5), (solver, 10), (solver, 20), ("posterior", 10), ("posterior", 100)]
    aims = [
        [t.what, t.wanted, t.measured, "yes" if t.met else "no"] for t in targets(rows, distances, solver)
    ]
    parts = (
        per_task(rows, members),
        over_tasks(rows),
        convergence(distances),
        markdown(["target", "wanted", "measured", "met"], aims),
    )
    return "\n".join(parts)


def as_csv(rows: Sequence[Row] | Sequence[Distance]) -> str:
    """Format as CSV, a header first."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(rows[0]._fields)
    writer.writerows([f"{v:.6g}" if isinstance(v, float) else v for v in r] for r in rows)
    return file.getvalue()


def choose(bench: Bench, each: int = 1) -> tuple[str, list[Row]]:
    """Find the member of MR Sampler with the best PSNR at 5 and 10 calls, on crops of packaged photos."""
    candidates = [s for s in FAMILY if s.startswith("mr_")]
    rows = []
    for batch in tqdm(list(crops(data.training_photos(), each=each)), unit="batch", desc="training photos"):
        rows += bench.rows(batch, [(s, calls) for s in candidates for calls in (5, 10)])[0]
    return max(candidates, key=lambda s: mean(rows, s, 5) + mean(rows, s, 10)), rows
