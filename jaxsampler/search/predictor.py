r"""S^3: the search that asks a predictor which schedules are worth scoring [Liu et al. 2023, sec. 5].

A network ranks schedules: the choices of each interval are embedded, an LSTM runs over the intervals, and an
MLP reads its last state. It is trained on all schedules scored so far by the pairwise hinge loss

    mean over pairs (a better than b) of max(0, margin - (P(b) - P(a)))

and so predicts order, not values: scores of any scale will do. Each stage draws many candidates by mutation
of the best schedules, ranks them, scores only the top, adds those to the archive and trains anew.

Reference: Liu et al. 2023 (USF: a unified sampling framework for solver searching of diffusion probabilistic
models), sec. 5.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from ..numerics import Key, on_host
from ..tables import Table
from .archive import Archive, Report, entropy, run_search
from .evolution import children, first, unpredicted
from .known_schedules import known
from .schedules import Schedule
from .score import Score
from .space import Space

BATCH = 64  # schedules whose pairs are compared in one update
RATE = 2e-2  # of Adam, at the start


def embed(space: Space, schedules: Schedule) -> Float[np.ndarray, "b n features"]:
    """Return the features of each interval: its times and its choices, one-hot; 0 beyond the schedule's end.

    Times are given in t and in lam, scaled to about [0, 1].
    """
    path, n = space.path, space.width
    low = min(float(g[g > 0].min()) for base in space.bases.values() for g in base)
    with np.errstate(invalid="ignore"), on_host():
        t = np.clip(schedules.times, 0.5 * low, path.t_max)  # so that lam is finite; NaN stays NaN
        lam, ends = np.asarray(path.lam(t)), np.asarray(path.lam(np.array([0.999 * path.t_max, 0.5 * low])))
    place = np.clip((lam - ends[0]) / (ends[1] - ends[0]), -1, 1)
    numbers = [
        schedules.times[:, :-1] / path.t_max,
        place[:, :-1],
        place[:, 1:],
        np.diff(place, axis=1),
        10 * schedules.c,
    ]
    end = schedules.times[:, 1:]
    last = np.isfinite(end) & (end == np.nanmin(schedules.times, axis=1)[:, None])
    numbers += [last, np.repeat(schedules.assumed[:, None], n, 1)]
    sizes = {
        "order": space.highest + 1,
        "kind": len(space.kinds),
        "start": max(space.starts) + 1,
        "relaxation": len(space.relaxations),
    }
    one_hot = [np.eye(size)[getattr(schedules, name)] for name, size in sizes.items()]
    one_hot.append(np.eye(space.highest + 2)[np.minimum(schedules.corrector, space.highest + 1)])
    features = np.concatenate([np.stack(numbers, -1), *one_hot, schedules.nodes], -1)
    used = np.arange(n)[None] < space.nfe + schedules.assumed.astype(int)[:, None]
    return np.where(used[..., None], features, 0.0).astype(np.float32)


class Predictor(eqx.Module):
    """Embedding, LSTM over the intervals, MLP: a number, lower for schedules predicted to be better."""

    enter: eqx.nn.Linear
    cell: eqx.nn.LSTMCell
    leave: eqx.nn.MLP

    def __init__(self, features: int, width: int = 64, *, key: Key):
        k1, k2, k3 = jax.random.split(key, 3)
        self.enter = eqx.nn.Linear(features, width, key=k1)
        self.cell = eqx.nn.LSTMCell(width, width, key=k2)
        self.leave = eqx.nn.MLP(width, "scalar", width, 1, key=k3)

    def __call__(self, intervals: Float[Array, "n features"]) -> Float[Array, ""]:
        used = jnp.any(intervals != 0, 1)  # intervals beyond the end change nothing

        def advance(state: tuple, interval: tuple[Array, Bool[Array, ""]]) -> tuple[tuple, None]:
            new = self.cell(jax.nn.relu(self.enter(interval[0])), state)
            return jax.tree.map(lambda a, b: jnp.where(interval[1], a, b), new, state), None

        nothing = jnp.zeros(self.cell.hidden_size, intervals.dtype)
        (h, _), _ = jax.lax.scan(advance, (nothing, nothing), (intervals, used))
        return self.leave(h)


def ranking_loss(
    predicted: Float[Array, " b"], scores: Float[Array, " b"], margin: float = 1.0
) -> Float[Array, ""]:
    """Return the pairwise hinge loss over all pairs with different scores."""
    better = (scores[:, None] < scores[None, :]).astype(predicted.dtype)
    short = jax.nn.relu(margin - (predicted[None, :] - predicted[:, None]))
    return jnp.sum(better * short) / jnp.maximum(jnp.sum(better), 1)


@eqx.filter_jit
def _train(
    predictor: Predictor, batches: Float[Array, "updates b n features"], scores: Float[Array, "updates b"]
) -> Predictor:
    """Train by Adam with a cosine rate, one update per batch."""
    optimiser = optax.adam(optax.cosine_decay_schedule(RATE, len(batches)))
    weights, rest = eqx.partition(predictor, eqx.is_inexact_array)

    def loss(weights: Predictor, x: Array, y: Array) -> Array:
        return ranking_loss(jax.vmap(eqx.combine(weights, rest))(x), y)

    def update(state: tuple, batch: tuple) -> tuple[tuple, None]:
        weights, memory = state
        with jax.numpy_dtype_promotion("standard"):  # optax raises its decay rates to an integer power
            change, memory = optimiser.update(jax.grad(loss)(weights, *batch), memory)
        return (eqx.apply_updates(weights, change), memory), None

    (weights, _), _ = jax.lax.scan(update, (weights, optimiser.init(weights)), (batches, scores))
    return eqx.combine(weights, rest)


def fit(
    features: Float[np.ndarray, "b n f"],
    scores: Float[np.ndarray, " b"],
    key: Key,
    *,
    updates: int = 1000,
    width: int = 64,
) -> Predictor:
    """Train a predictor from scratch on scored schedules, on `BATCH` random ones in each update."""
    rng = np.random.default_rng(entropy(key))
    ranks = np.unique(scores, return_inverse=True)[1]  # float32 may not tell two scores apart
    which = rng.integers(len(scores), size=(updates, BATCH))
    predictor = Predictor(features.shape[-1], width, key=key)
    return _train(predictor, jnp.asarray(features[which]), jnp.asarray(ranks[which], jnp.float32))


@eqx.filter_jit
def _predicted(predictor: Predictor, features: Float[Array, "b n f"]) -> Float[Array, " b"]:
    return jax.vmap(predictor)(features)


def predicted(predictor: Predictor, features: Float[np.ndarray, "b n f"]) -> Float[np.ndarray, " b"]:
    """Return the predicted rank of each schedule; lower is better."""
    return np.asarray(_predicted(predictor, jnp.asarray(features)), np.float64)


def kendall(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """Return Kendall's tau-a: the share of pairs that a and b order alike minus the share of the others."""
    n = len(a)
    agree = np.sign(a[:, None] - a[None]) * np.sign(b[:, None] - b[None])
    return float(agree.sum() / (n * (n - 1))) if n > 1 else np.nan


def s3(
    score: Score,
    space: Space,
    *,
    key: Key,
    budget: int,
    start: Schedule | None = None,
    size: int = 128,
    candidates: int = 1024,
    parents: int = 15,
    updates: int = 1000,
    **options: Any,
) -> tuple[Table, Report]:
    """Return what the predictor-based multi-stage search S^3 finds [Liu et al. 2023, sec. 5]; see `evolve`.

    Each stage trains the predictor, draws children of the best schedules, and scores those that it ranks
    highest. `report.taus` measures how well it ordered those, which is harder than ordering any: they are all
    good.

    Args:
        score: see `evolve`.
        space: see `evolve`.
        key: see `evolve`.
        budget: see `evolve`.
        start: see `evolve`.
        size: schedules that a stage scores.
        candidates: children that a stage draws.
        parents: the best schedules so far that may have children.
        updates: of the predictor in a stage.
        options: see `evolve`.

    Example:
        >>> space = js.search.Space(js.VP(), 2, corrector=0.0, assumed=0.0)
        >>> smallest = js.search.each(lambda table: abs(table.B).max())
        >>> few = dict(start=space.sample(np.random.default_rng(0), 6), size=6, candidates=12, updates=5)
        >>> run = dict(key=jax.random.key(0), budget=12, progress=False) | few
        >>> table, report = js.search.s3(smallest, space, **run)
        >>> np.isnan(report.archive.predicted).tolist() == 6 * [True] + 6 * [False]  # none in the first stage
        True
    """
    if size < 1 or parents < 1 or updates < 1 or candidates < size:
        raise ValueError(
            "need size, parents, updates >= 1 and candidates >= size; "
            f"got {size}, {parents}, {updates} and {candidates}"
        )
    start = known(space) if start is None else start

    def propose(before: Archive, rng: np.random.Generator, stage: int) -> tuple[Schedule, np.ndarray]:
        if not stage:
            made = first(space, start, rng, size)
            return made, unpredicted(made)
        scored = before[np.isfinite(before.scores)]
        seed = jax.random.key(int(rng.integers(2**31)))
        predictor = fit(embed(space, scored.schedules), scored.scores, seed, updates=updates)
        drawn = children(space, before.schedules[before.ranked(parents)], rng, candidates)
        rank = predicted(predictor, embed(space, drawn))
        top = np.argsort(rank, kind="stable")[:size]
        return drawn[top], rank[top]

    settings = {
        "method": "s3",
        "size": size,
        "parents": parents,
        "candidates": candidates,
        "updates": updates,
    }
    run = {"key": key, "budget": budget, "start": start, "settings": settings}
    table, report = run_search(propose, score, space, **run, **options)
    return table, dataclasses.replace(report, taus=_taus(report.archive))


def _taus(archive: Archive) -> tuple[float, ...]:
    taus = []
    for stage in np.unique(archive.generation):
        known = np.isfinite(archive.predicted) & np.isfinite(archive.scores)
        part = archive[(archive.generation == stage) & known]
        if len(part) > 1:
            taus.append(kendall(part.predicted, part.scores))
    return tuple(taus)
