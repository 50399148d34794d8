"""The memory of a search: the schedules it has scored. Kept in a file, so that a killed search can resume.

A generation is a function of (key, its number, the archive before it). Nothing else is carried from one
generation to the next, and a file holds whole generations only, or the start of one.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from .. import checkpoint
from ..numerics import Arr, Key, on_host
from ..tables import Table
from .schedules import Schedule
from .score import Score
from .space import Space

Proposal = tuple[
    Schedule, Float[np.ndarray, " b"]
]  # schedules and their predicted ranks, NaN without a prediction


class Archive(eqx.Module):
    """Scored schedules in the order of scoring; a dropped schedule has the score NaN."""

    schedules: Schedule
    scores: Float[np.ndarray, " b"]
    predicted: Float[np.ndarray, " b"]
    generation: Int[np.ndarray, " b"]

    def __getitem__(self, which: Arr | slice) -> "Archive":
        return jax.tree.map(lambda a: np.asarray(a[which]), self)

    def __len__(self) -> int:
        return len(self.scores)

    def ranked(self, count: int) -> Int[np.ndarray, " k"]:
        """Return the indices of the `count` lowest scores, best first, or of all if there are fewer."""
        order = np.argsort(self.scores, kind="stable")[:count]  # NaN last
        return order[np.isfinite(self.scores[order])]


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """What a search found.

    Attributes:
        best: the schedule returned.
        score: its score.
        final: its score by `final_score`, None without one.
        history: schedules scored and the best score among them, after every generation.
        evaluated: schedules scored.
        dropped: schedules whose score was not finite.
        seconds: wall time, summed over all runs of a resumed search.
        archive: all schedules with their scores.
        taus: per stage, Kendall's tau between prediction and score of the schedules that a predictor chose.

    Example:
        >>> space = js.search.Space(js.VP(), 2)
        >>> smallest = js.search.each(lambda table: abs(table.B).max())
        >>> run = dict(key=jax.random.key(0), budget=20, size=10, progress=False)
        >>> table, report = js.search.random_search(smallest, space, **run)
        >>> report.evaluated, report.dropped, report.history[:, 0].tolist()
        (20, 0, [10.0, 20.0])
        >>> bool(report.score == smallest(js.stack([table]))[0])
        True
    """

    best: Schedule
    score: float
    final: float | None
    history: Float[np.ndarray, "k 2"]
    evaluated: int
    dropped: int
    seconds: float
    archive: Archive
    taus: tuple[float, ...] = ()


def entropy(key: Key) -> list[int]:
    """Return the numbers of a JAX key, typed or raw."""
    data = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    return [int(v) for v in np.asarray(data).ravel()]


def evaluate(score: Score, tables: Table) -> np.ndarray:
    """Return the scores [b] in float64, NaN where not finite; ValueError unless each table has one."""
    values = np.asarray(score(tables))
    b = len(tables.t)
    if values.shape != (b,) or values.dtype.kind not in "fiu":
        raise ValueError(
            f"score must return one number for each of the {b} stacked tables, "
            f"got {values.dtype} of shape {values.shape}: "
            "js.search.each(f) makes a score of a function of one table"
        )
    values = values.astype(np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def keep(file: Path, archive: Archive, settings: dict, seconds: float) -> None:
    """Save the archive as one safetensors file, with its settings in the card beside it."""
    checkpoint.save(file, archive, {"settings": settings, "seconds": round(seconds, 3)})


def restore(file: Path, settings: dict, like: Archive) -> tuple[Archive, float]:
    """Return the archive in `file` and the seconds it took; ValueError if it belongs to another search."""
    card = checkpoint.read_card(file)
    old = card.get("settings", {})
    if old != settings:
        changed = sorted(k for k in {*old, *settings} if old.get(k) != settings.get(k))
        raise ValueError(
            f"{file.parent} holds a search with another {', '.join(changed)}: "
            "use another folder or delete it."
        )
    arrays, names = checkpoint.read(file), checkpoint.named(like)
    if arrays.keys() != names.keys():
        raise ValueError(
            f"{file} is not the state of a search by this version: use another folder or delete it."
        )
    archive = jax.tree_util.tree_map_with_path(lambda p, _: arrays[checkpoint.spell(p)], like)
    return archive, float(card["seconds"])


def fingerprint(space: Space, start: Schedule | None) -> dict[str, Any]:
    """Return what must not change when a search resumes: choices in their order, and digests of arrays."""
    choices = {
        f.name: getattr(space, f.name)
        for f in dataclasses.fields(space)
        if f.name not in ("path", "grids", "statistics")
    }
    choices = {name: list(v.items()) if isinstance(v, Mapping) else v for name, v in choices.items()}
    times = [g for base in space.bases.values() for g in base]
    with on_host():
        levels = [
            np.asarray(f(np.linspace(0.01, 1, 33) * space.path.t_max))
            for f in (space.path.alpha, space.path.sigma)
        ]
    statistics = (
        () if space.statistics is None else (space.statistics.lam, *space.statistics.l, *space.statistics.s)
    )
    arrays = {"path": levels, "grids": times, "statistics": statistics, "start": jax.tree.leaves(start)}
    return choices | {
        name: hashlib.sha256(b"".join(np.asarray(a).tobytes() for a in group)).hexdigest()
        for name, group in arrays.items()
    }


def run_search(
    propose: Callable[[Archive, np.random.Generator, int], Proposal],
    score: Score,
    space: Space,
    *,
    key: Key,
    budget: int,
    start: Schedule | None,
    settings: dict[str, Any],
    final_score: Score | None = None,
    finalists: int = 10,
    folder: str | Path | None = None,
    progress: bool = True,
) -> tuple[Table, Report]:
    """Propose and score schedules, generation by generation; return the table of the best and a report.

    Args:
        propose: (archive, generator, number) -> the schedules of a generation and their predicted ranks.
        score: one number per stacked table, lower is better (see `rmse`, `frechet`, `each`). A schedule whose
            score is not finite is dropped and counted.
        space: where the schedules live.
        key: decides everything that is drawn.
        budget: number of schedules to score.
        start: the schedules that the method starts from, part of the fingerprint of the search.
        settings: those of the method, kept with the state.
        final_score: scores the best `finalists` again, on other and more noise; the best of these is
            returned.
        finalists: number of schedules that `final_score` scores.
        folder: where the state is written after every generation. A search found there resumes: killed and
            restarted, it ends with the same bits; it may resume with a larger budget.
        progress: whether to show a progress bar.

    Raises:
        ValueError: if every first score is NaN, the score has the wrong shape, or the folder holds another
            search.
    """
    if budget < 1:
        raise ValueError(f"budget is the number of schedules to score, at least 1; got {budget}")
    if finalists < 1:
        raise ValueError(f"finalists is the number of schedules to score again, at least 1; got {finalists}")
    none = np.zeros(0)
    archive = Archive(space.sample(np.random.default_rng(0), 1)[:0], none, none, np.zeros(0, np.int32))
    numbers, seconds = entropy(key), 0.0
    settings = {**fingerprint(space, start), **settings, "key": numbers}
    settings = json.loads(json.dumps(settings))  # as they will be read back
    file = None if folder is None else Path(folder) / "state.safetensors"
    if file is not None and file.exists():
        archive, seconds = restore(file, settings, archive)
        _same_score(score, space, archive, file)
    generation = int(archive.generation.max(initial=0))
    shown = {"disable": not progress, "unit": "schedule", "mininterval": 1}
    with tqdm(total=budget, initial=len(archive), **shown) as bar:
        while len(archive) < budget:
            began = time.monotonic()
            before = archive[archive.generation < generation]
            rng = np.random.default_rng([*numbers, generation])
            schedules, predicted = propose(before, rng, generation)
            done = len(archive) - len(
                before
            )  # a larger budget resumes within the generation that the last one cut
            part = np.arange(done, min(len(schedules), done + budget - len(archive)))
            if len(part):
                values = evaluate(score, space.tables(schedules[part]))
                new = Archive(
                    schedules[part], values, predicted[part], np.full(len(part), generation, np.int32)
                )
                archive = jax.tree.map(lambda a, b: np.concatenate([a, b]), archive, new)
            if not np.any(np.isfinite(archive.scores)):
                raise ValueError(
                    f"all of the first {len(archive)} schedules scored NaN or infinite: is the score right?"
                )
            seconds += time.monotonic() - began
            if file is not None:
                keep(file, archive, settings, seconds)
            bar.update(len(part))
            bar.set_postfix(best=f"{np.nanmin(archive.scores):.4g}", refresh=False)
            generation += 1
    return _result(archive[np.arange(min(budget, len(archive)))], space, final_score, finalists, seconds)


def _same_score(score: Score, space: Space, archive: Archive, file: Path) -> None:
    first = archive[np.flatnonzero(np.isfinite(archive.scores))[:1]]
    if len(first) and not np.allclose(
        evaluate(score, space.tables(first.schedules)), first.scores, rtol=1e-3
    ):
        raise ValueError(
            f"{file.parent} holds a search by another score: "
            f"its first schedule scored {first.scores[0]:.6g}; use another folder or delete it"
        )


def _result(
    archive: Archive, space: Space, final_score: Score | None, finalists: int, seconds: float
) -> tuple[Table, Report]:
    top, final = archive.ranked(1 if final_score is None else finalists), None
    best = int(top[0])
    if final_score is not None:
        values = evaluate(final_score, space.tables(archive.schedules[top]))
        if not np.any(np.isfinite(values)):
            raise ValueError(f"final_score is NaN or infinite for all of the best {len(top)} schedules")
        best, final = int(top[np.nanargmin(values)]), float(np.nanmin(values))
    last = np.flatnonzero(np.diff(archive.generation, append=np.int32(-1)))
    lowest = np.fmin.accumulate(archive.scores)
    report = Report(
        best=archive.schedules[best],
        score=float(archive.scores[best]),
        final=final,
        history=np.stack([last + 1.0, lowest[last]], 1),
        evaluated=len(archive),
        dropped=int(np.sum(~np.isfinite(archive.scores))),
        seconds=seconds,
        archive=archive,
    )
    return space.table(report.best), report
