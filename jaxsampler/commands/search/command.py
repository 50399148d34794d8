r"""`jaxsampler search CONFIG`: better tables for one problem, by several methods, judged on noise of its own.

For every number of calls the best hand-made sampler of the library comes first (`handmade`): learned tables
start there, and all results are measured against it. There are three sets of noises: tables are fitted to
one, one chooses (among hand-made samplers, starts, schedules, iterations), and one judges, once. The methods
are

    "random", "evolve", "s3"                           a search of schedules
    "grid", "relaxation", "table", "table+scale", ..   a learned table and what it leaves free;
                                                       " then " joins stages
    "distilled", alone or before such stages           the work of `distill` on each kind of grid
    "transferred from NAME"                            the table found for another problem with as many calls,
                                                       carried to this problem's path (`transfer`)

", inconsistent" at the end of a learned or distilled method frees A and the sums of B as well. The table to
transfer is that of a search with the same --out, else the shipped one.

Each result is kept, with its table and card. A search that was stopped resumes at the first missing result,
and within it.
"""

import dataclasses
import itertools
import json
import sys
import time
from pathlib import Path

import jax
import numpy as np

from ... import metrics
from ...files import from_json, write
from ...search.error_measures import ratio
from ..bench.problems import Problem
from .problem import Task, off
from .settings import HANDMADE, HANDMADE_FRECHET, Search


@dataclasses.dataclass(frozen=True)
class Result:
    """A sampler found, judged."""

    problem: str
    calls: int
    method: str
    what: str  # the sampler in words
    held_out: float  # RMSE on the noises that chose it
    rmse: float  # RMSE on the noises that judge
    ratio: float  # of this RMSE to that of the best hand-made sampler
    low: float  # of the ratio's bootstrap 95% interval
    high: float
    trimmed: float  # the ratio without the worst hundredth of the errors of each
    frechet: float | None  # distance between features of samples and of real data, if measured
    frechet_low: float | None  # of its 95% interval
    frechet_high: float | None
    numbers: int  # free ones
    dropped: int  # schedules without a score
    seconds: float  # of the search alone
    file: str  # of the table
    mark: str  # of everything else that the result depends on


def search(c: Search, p: Problem, folder: Path, progress: bool = True) -> list[Result]:
    """Return all results of `c` on its problem `p`; tables, cards and results.json lie in `folder`."""
    file = folder / "results.json"
    task = Task(c, p, folder, progress)
    by_hand = (HANDMADE, HANDMADE_FRECHET) if c.samples else (HANDMADE,)
    wanted = list(itertools.product(c.calls, (*by_hand, *c.methods)))
    marks = {
        which: task.mark_of(*which) for which in wanted
    }  # finds a missing table to transfer before any work
    before = read(file)
    known = {(r.calls, r.method): r for r in before if r.mark == marks.get((r.calls, r.method))}
    others = [
        r for r in before if r not in known.values()
    ]  # of another config, or of methods not in this one
    if progress and all(which in known for which in wanted):
        print(f"{folder} holds all of these results already: nothing was searched", file=sys.stderr)
    for calls, method in wanted:
        if (calls, method) not in known:
            if method == HANDMADE:
                jax.clear_caches()  # programs for fewer calls are not used again, and each holds memory
            if progress:
                print(f"{c.problem}, {calls} calls: {method}", flush=True)
            known[calls, method] = judged(task, calls, method)
            kept = [dataclasses.asdict(r) for r in (*others, *known.values())]
            write(file, json.dumps(kept, indent=1).encode())
    return [known[which] for which in wanted]


def judged(task: Task, calls: int, method: str) -> Result:
    """Find a sampler by a method, judge it, and save its table and card in the folder."""
    c, p, file = task.c, task.p, task.file(calls, method)
    name, _ = task.by_hand(calls)  # before the clock starts
    began = time.monotonic()
    found = task.find(calls, method)
    seconds = time.monotonic() - began
    samples = p.run(found.table, task.judge[0], label="judging" if task.progress else None)
    errors = off(samples, task.judge[1])
    compared = ratio(errors, task.baseline(calls))
    distance, low, high = None, None, None
    if c.samples:
        features = p.features(samples[: c.samples])
        distance = metrics.frechet(features, task.real)
        low, high = metrics.interval(task.distance, features)
    made = Result(
        problem=p.name,
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
        file=file.name,
        mark=task.mark_of(calls, method),
    )
    config = {"path": repr(p.path), "baseline": name, "config": dataclasses.asdict(c)}
    found.table.save(file, **dataclasses.asdict(made) | config)
    return made


def read(file: Path) -> list[Result]:
    """Return the results of a search so far; ValueError if the file is something else."""
    if not file.exists():
        return []
    try:
        return [Result(**entry) for entry in from_json(file.read_bytes())]
    except (ValueError, TypeError):
        raise ValueError(f"{file} is not the results of a search: delete it, or give another --out") from None
