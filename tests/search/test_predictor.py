"""S^3's predictor: what it sees, its loss, that it ranks schedules it has not seen, and the search that it
steers.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import jaxsampler as js
from jaxsampler.search.evolution import random_search
from jaxsampler.search.known_schedules import known
from jaxsampler.search.predictor import Predictor, embed, fit, kendall, predicted, ranking_loss, s3
from jaxsampler.search.score import rmse
from jaxsampler.search.space import Space

VP = js.VP()
SPACE = Space(VP, 4, relaxations={"linear": 0.7, "dpmsolver-2": 0.3}, starts={0: 0.8, 1: 0.2})
KEY = jax.random.key(0)
DENOISER = js.models.gaussian_mixture(np.array([[1.0, 0.5], [-0.8, -0.3]]), 0.3, VP)
X = jax.random.normal(jax.random.key(1), (32, 2))
SCORE = rmse(DENOISER, X, js.run(DENOISER, js.tabulate(VP, js.grids.quadratic(VP, 100), js.solvers.unipc), X))


def test_the_loss_is_the_mean_hinge_over_ordered_pairs():
    rng = np.random.default_rng(0)
    p, y = rng.standard_normal(7), np.array([3.0, 1.0, 2.0, 2.0, 5.0, 4.0, 0.0])
    short = [max(0.0, 1.0 - (p[b] - p[a])) for a, b in itertools.permutations(range(7), 2) if y[a] < y[b]]
    assert len(short) == 20  # one tie
    got = ranking_loss(jnp.asarray(p, jnp.float32), jnp.asarray(y, jnp.float32))
    assert float(got) == pytest.approx(np.mean(short), rel=1e-5)
    assert float(ranking_loss(2 * jnp.asarray(y, jnp.float32), jnp.asarray(y, jnp.float32))) == 0
    assert float(ranking_loss(jnp.zeros(3), jnp.ones(3))) == 0


def test_kendall_is_scipys_without_ties():
    rng = np.random.default_rng(0)
    a = rng.standard_normal(50)
    b = a + rng.standard_normal(50)
    assert kendall(a, b) == pytest.approx(scipy.stats.kendalltau(a, b).statistic)
    assert kendall(a, -a) == -1


def test_every_choice_shows():
    """Changing any one choice of a schedule changes what the network sees, in its interval only (times: next
    to it too).
    """
    s = SPACE.sample(np.random.default_rng(3), 200)
    base = embed(SPACE, s)
    assert np.all(np.isfinite(base)) and np.abs(base).max() < 20
    for name in ("order", "kind", "start", "nodes", "relaxation", "c", "corrector", "times"):
        column = np.copy(getattr(s, name))
        if name == "times":
            column[:, 2] *= 0.95
        elif name == "c":
            column[:, 1] += 0.01
        else:
            column[:, 1] = 1 - np.minimum(column[:, 1], 1)
        changed = np.any(embed(SPACE, dataclasses.replace(s, **{name: column})) != base, axis=-1)
        assert changed[:, 1].all()
        assert not changed[:, [0, 3, 4] if name == "times" else [0, 2, 3, 4]].any()
    assert np.all((base != 0).any(-1)[:, 4] == s.assumed)  # no fifth interval, nothing there


def test_what_lies_beyond_the_end_does_not_count():
    s = SPACE.sample(np.random.default_rng(0), 50)
    x = jnp.asarray(embed(SPACE, s[~s.assumed]))
    predictor = Predictor(x.shape[-1], key=KEY)
    rank = jax.jit(jax.vmap(predictor))
    np.testing.assert_allclose(rank(x), rank(x[:, :4]), rtol=1e-5, atol=1e-6)
    assert np.abs(rank(x) - rank(x[:, jnp.array([1, 0, 2, 3, 4])])).max() > 1e-4  # their order does


def test_it_ranks_schedules_that_it_has_not_seen():
    s = SPACE.sample(np.random.default_rng(0), 600)
    scores, x = SCORE(SPACE.tables(s)), embed(SPACE, s)
    predictor = fit(x[:400], scores[:400], KEY, updates=300)
    tau = kendall(predicted(predictor, x[400:]), scores[400:])
    assert tau > 0.45
    shuffled = fit(x[:400], np.random.default_rng(1).permutation(scores[:400]), KEY, updates=300)
    assert abs(kendall(predicted(shuffled, x[400:]), scores[400:])) < 0.35


def test_the_search_beats_random_search_and_what_it_began_with():
    _, report = s3(SCORE, SPACE, key=KEY, budget=500, size=60, candidates=300, updates=300, progress=False)
    _, drawn = random_search(SCORE, SPACE, key=KEY, budget=500, progress=False)
    began = SCORE(SPACE.tables(known(SPACE))).min()
    assert report.score < 0.7 * drawn.score and report.score < 0.8 * began
    stages = len(np.unique(report.archive.generation))
    assert len(report.taus) == stages - 1
    assert np.isnan(report.archive.predicted[report.archive.generation == 0]).all()
    later = report.archive[report.archive.generation == 1]
    assert np.all(np.diff(later.predicted) >= 0)  # the best predicted come first
    assert np.mean(later.scores) < 0.8 * np.mean(report.archive.scores[report.archive.generation == 0])


@pytest.mark.parametrize("options", [{"candidates": 10}, {"updates": 0}, {"parents": 0}])
def test_bad_input(options):
    with pytest.raises(ValueError, match="candidates >= size; got"):
        s3(SCORE, SPACE, key=KEY, budget=40, size=20, progress=False, **options)
