"""All that a search remembers: the schedules it has scored. It is also its file, so a killed search goes on with the same bits.

A generation is a function of (key, its number, the archive before it): nothing else is carried from one to the next, and a file holds
whole generations only, or the start of one.
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
from ..numerics import on_host
from ..tables.table import Table
from .schedules import Schedule
from .score import Score
from .space import Space

Proposal = tuple[
    Schedule, Float[np.ndarray, " b"]
]  # schedules and what was predicted of them, NaN if nothing was


class Archive(eqx.Module):
    """Scored schedules in the order of scoring; NaN scores are of those that were dropped."""

    schedules: Schedule
    scores: Float[np.ndarray, " b"]
    predicted: Float[np.ndarray, " b"]
    generation: Int[np.ndarray, " b"]

    def __getitem__(self, which: Any) -> "Archive":
        return jax.tree.map(lambda a: np.asarray(a[which]), self)

    def __len__(self) -> int:
        return len(self.scores)

    def ranked(self, count: int) -> Int[np.ndarray, " k"]:
        """The numbers of the schedules with the lowest scores, the best first; fewer than `count` if fewer have a score."""
        order = np.argsort(self.scores, kind="stable")[:count]  # NaN last
        return order[np.isfinite(self.scores[order])]


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """What a search found. `score` is that of `best`, `final` its score by `final_score` (None without).

    history: [k, 2], schedules scored and the best score among them, after every generation. dropped: schedules whose score was not finite.
    taus: Kendall's tau between prediction and score of the schedules that a predictor chose, per stage. seconds: of all runs of a resumed
    search.
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


def entropy(key: Any) -> list[int]:
    """The numbers of a JAX key, old or new style."""
    data = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    return [int(v) for v in np.asarray(data).ravel()]


def evaluate(score: Score, tables: Table) -> np.ndarray:
    """The scores [b] in float64, NaN where not finite; errors if they are not one number for each table."""
    values = np.asarray(score(tables))
    b = len(tables.t)
    if values.shape != (b,) or values.dtype.kind not in "fiu":
        raise ValueError(
            f"score must return one number for each of the {b} stacked tables, got {values.dtype} of shape {values.shape}; "
            "js.search.each(f) makes a score of a function of one table"
        )
    values = values.astype(np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def keep(file: Path, archive: Archive, settings: dict, seconds: float) -> None:
    """The archive as one safetensors file, its settings beside it in a card."""
    checkpoint.save(file, archive, {"settings": settings, "seconds": round(seconds, 3)})


def restore(file: Path, settings: dict, like: Archive) -> tuple[Archive, float]:
    """The archive at `file` and the seconds it took; ValueError if it is of another search."""
    card = checkpoint.read_card(file)
    old = card.get("settings", {})
    if old != settings:
        changed = sorted(k for k in {*old, *settings} if old.get(k) != settings.get(k))
        raise ValueError(
            f"{file.parent} holds a search with another {', '.join(changed)}: use another folder or delete it."
        )
    arrays, names = checkpoint.read(file), checkpoint.named(like)
    if arrays.keys() != names.keys():
        raise ValueError(
            f"{file} is not the state of a search by this version: use another folder or delete it."
        )
    return jax.tree_util.tree_map_with_path(lambda p, _: arrays[checkpoint.spell(p)], like), float(
        card["seconds"]
    )


def fingerprint(space: Space, start: Schedule | None) -> dict[str, Any]:
    """What must be the same for a search to go on: choices in their order, and digests of arrays."""
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
    key: Any,
    budget: int,
    start: Schedule | None,
    settings: dict[str, Any],
    final_score: Score | None = None,
    finalists: int = 10,
    folder: str | Path | None = None,
    progress: bool = True,
) -> tuple[Table, Report]:
    """Propose, score and remember, generation by generation, until `budget` schedules are scored; the table of the best.

    propose: (archive, generator, number) -> schedules of a generation and what is predicted of them. settings: of the method. score: of
    stacked tables, one number each (see `rmse`, `frechet`, `each`); a schedule whose score is not finite is dropped and counted.
    final_score: scores the best `finalists` again, on other noise and more of it, and the best of these is returned. folder: the state is
    written there after every generation, and a search found there goes on: killed and started again it ends with the same bits, and it
    may go on with a larger budget.
    Raises ValueError if every first score is NaN, the score has the wrong shape, or the folder holds another search.
    """
    if budget < 1:
        raise ValueError(f"budget is the number of schedules to score, at least 1; got {budget}")
    if finalists < 1:
        raise ValueError(f"finalists is the number of schedules to score again, at least 1; got {finalists}")
    none = np.zeros(0)
    archive = Archive(space.sample(np.random.default_rng(0), 1)[:0], none, none, np.zeros(0, np.int32))
    numbers, seconds = entropy(key), 0.0
    settings = json.loads(
        json.dumps({**fingerprint(space, start), **settings, "key": numbers})
    )  # as they will be read back
    file = None if folder is None else Path(folder) / "state.safetensors"
    if file is not None and file.exists():
        archive, seconds = restore(file, settings, archive)
        _same_score(score, space, archive, file)
    generation = int(archive.generation.max(initial=0))
    with tqdm(
        total=budget, initial=len(archive), disable=not progress, unit="schedule", mininterval=1
    ) as bar:
        while len(archive) < budget:
            began = time.monotonic()
            before = archive[archive.generation < generation]
            rng = np.random.default_rng([*numbers, generation])
            schedules, predicted = propose(before, rng, generation)
            done = len(archive) - len(
                before
            )  # a larger budget goes on within the generation that the last one cut
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
            f"{file.parent} holds a search by another score: its first schedule scored {first.scores[0]:.6g} there"
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
