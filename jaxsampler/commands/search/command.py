r"""`jaxsampler search CONFIG`: better tables for one problem, method by method, judged on noise that no search has seen.

For every number of calls the best hand-made sampler of the library is found first (`handmade`): the start of the searches, and what they
are measured against. Three sets of noises: those that tables are fitted to, those that choose (among hand-made samplers, starts, schedules,
iterations), and those that judge, once. A method is "random", "evolve", "s3" (schedules), or what a learned table leaves free, "grid",
"relaxation", "table", "table+scale", in stages joined by " then "; "distilled", alone or before these, is the work of `distill` on each
kind of grid; ", inconsistent" at the end frees A and the sums of B as well. "transferred from NAME" searches nothing: it is the table
found for another problem with as many calls (by a study with the same --out, else the shipped one), carried to this problem's path
(`transfer`).

Each result is kept when it is there, with its table and card; a study that was stopped goes on with the first missing one, and within it.
"""

import dataclasses
import itertools
import json
import time
from pathlib import Path

import jax
import numpy as np

from ... import metrics
from ...files import write
from ...search.error_measures import ratio
from ..bench.problems import Problem
from .problem import Task, off
from .settings import HANDMADE, HANDMADE_FRECHET, Search


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


def study(c: Search, p: Problem, folder: Path, progress: bool = True) -> list[Result]:
    """All results of `c` on its problem `p`; tables, cards and results.json lie in `folder`."""
    file = folder / "results.json"
    task = Task(c, p, folder, progress)
    wanted = list(
        itertools.product(c.calls, (HANDMADE, *([HANDMADE_FRECHET] if c.samples else []), *c.methods))
    )
    marks = {
        which: task.mark_of(*which) for which in wanted
    }  # a table that is not there to be transferred is missed before any work
    before = read(file)
    known = {(r.calls, r.method): r for r in before if r.mark == marks.get((r.calls, r.method))}
    others = [
        r for r in before if r not in known.values()
    ]  # of another config, or of methods that this one has not
    for calls, method in wanted:
        if (calls, method) not in known:
            if (
                method == HANDMADE
            ):  # nothing compiled for fewer calls is used again, and each program holds memory
                jax.clear_caches()
            if progress:
                print(f"{c.problem}, {calls} calls: {method}", flush=True)
            known[calls, method] = judged(task, calls, method)
            write(
                file,
                json.dumps([dataclasses.asdict(r) for r in (*others, *known.values())], indent=1).encode(),
            )
    return [known[which] for which in wanted]


def judged(task: Task, calls: int, method: str) -> Result:
    """Search, then judge; the table with its card is saved in the folder."""
    c, p, file = task.c, task.p, task.file(calls, method)
    name, _ = task.by_hand(calls)  # not of the time that the search takes
    began = time.monotonic()
    found = task.search(calls, method)
    seconds = time.monotonic() - began
    samples = p.run(found.table, task.judge[0])
    errors = off(samples, task.judge[1])
    compared = ratio(errors, task.baseline(calls))
    distance, low, high = None, None, None
    if c.samples:
        features = p.features(samples[: c.samples])
        distance, (low, high) = (
            metrics.frechet(features, task.real),
            metrics.interval(task.distance, features),
        )
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
    card = dataclasses.asdict(made) | {
        "path": repr(p.path),
        "baseline": name,
        "config": dataclasses.asdict(c),
    }
    found.table.save(file, **card)
    return made


def read(file: Path) -> list[Result]:
    """The results of a study so far; ValueError if the file is something else."""
    if not file.exists():
        return []
    try:
        return [Result(**entry) for entry in json.loads(file.read_text())]
    except (ValueError, TypeError):
        raise ValueError(f"{file} is not the results of a search: delete it, or give another --out") from None
