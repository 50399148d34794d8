"""Matching losses on Gaussian data, where the best denoiser and its loss are known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsampler.paths import VP
from jaxsampler.tabulated import MeanReverting
from jaxsampler.training.losses import matching, stratified

M, S = 0.7, 0.4  # data: N(M, S^2)
MU = 0.2


@pytest.mark.parametrize("path", [VP(), MeanReverting(jnp.float32(MU), std=0.5)], ids=["VP", "MeanReverting"])
def test_the_true_denoiser_minimises_it(path):
    n, mu = 40_000, MU if isinstance(path, MeanReverting) else 0.0
    k1, k2, k3 = jax.random.split(jax.random.key(0), 3)
    x0 = M + S * jax.random.normal(k1, (n, 3))
    t = stratified(k2, n, 0.05 * path.t_max, 0.9 * path.t_max)
    alpha, sigma = (np.asarray(f(np.asarray(t, np.float64))) for f in (path.alpha, path.sigma))
    variance = (alpha * S) ** 2 + sigma**2

    def truth(x, t):
        gain = jnp.asarray((alpha * S**2 / variance)[:, None], x.dtype)
        centre = jnp.asarray((mu + alpha * (M - mu))[:, None], x.dtype)
        return M + gain * (x - centre)

    weight = 1 / (0.1 + t / path.t_max)
    best = float(matching(truth, path, x0, t, k3, weight=lambda _: weight))
    spread = np.asarray(weight) ** 2 * S**2 * sigma**2 / variance  # posterior variance, weighted
    assert abs(best - spread.mean()) < 4 * np.sqrt(2 * np.mean(spread**2) / (3 * n))

    # Any other function does worse by the weighted mean square of its difference: an offset, and too bold a gain.
    w2, gained = np.asarray(weight) ** 2, (alpha * S**2) ** 2 / variance  # Var of E[x0|x]
    for other, excess in (
        (lambda x, t: truth(x, t) + 0.2, 0.04 * w2.mean()),
        (lambda x, t: 1.5 * truth(x, t) - 0.5 * M, 0.25 * (w2 * gained).mean()),
    ):
        worse = float(matching(other, path, x0, t, k3, weight=lambda _: weight)) - best
        assert worse == pytest.approx(excess, rel=0.1)


def test_every_sample_has_its_own_noise_and_time():
    """At sigma's end the state says nothing about x0 for some samples and everything for others."""
    path = VP()
    x0 = jnp.ones((4, 2, 2, 1)) * jnp.arange(4.0)[:, None, None, None]
    t = jnp.array([0.0, 0.0, 1.0, 1.0])
    seen = []
    matching(lambda x, t: seen.append((x, t)) or x, path, x0, t, jax.random.key(0))
    x, times = seen[0]
    np.testing.assert_array_equal(times, t)
    np.testing.assert_allclose(x[:2], x0[:2], atol=1e-6)
    assert np.abs(x[2:] - x0[2:]).min() > 1e-3
    assert np.abs(x[2] - x[3] - float(path.alpha(1.0)) * (x0[2] - x0[3])).max() > 0.1


def test_stratified_times_fill_every_stratum_once():
    t = np.asarray(stratified(jax.random.key(3), 16, 2.0, 10.0))
    np.testing.assert_array_equal(np.sort(np.floor((t - 2) / 0.5)), np.arange(16))
    first = [float(stratified(jax.random.key(s), 4, 0.0, 1.0)[0]) for s in range(200)]
    assert np.mean(first) == pytest.approx(0.5, abs=4 * 0.289 / np.sqrt(200))  # each alone is uniform
