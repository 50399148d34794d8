"""Matching losses on Gaussian data, where the best denoiser and its loss are known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsampler.paths.exact import gaussian_mixture
from jaxsampler.paths.gaussian import EDM, VP, CondOT
from jaxsampler.paths.mean_reverting import MeanReverting
from jaxsampler.paths.predictions import convert
from jaxsampler.training import losses, times, weights
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

    # Any other function does worse by the weighted mean square of its difference: an offset, and too bold a
    # gain.
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


# Every kind of prediction, every weight, every distribution of times: on Gaussian data N(M, S^2), posterior
# variance in closed form.

PATHS = {"vp": VP(), "cond_ot": CondOT(), "edm": EDM(), "mr": MeanReverting(jnp.float32(MU), std=0.5)}
WEIGHTS = {
    "uniform": weights.uniform,
    "snr": weights.snr,
    "min_snr": weights.min_snr(5.0),
    "edm": weights.edm(S),
    "sigmoid": weights.sigmoid(1.0),
}
KINDS = {
    "data": losses.data_matching,
    "noise": losses.noise_matching,
    "v": losses.v_matching,
    "score": losses.score_matching,
    "velocity": losses.velocity_matching,
}


def predictor(path, kind, shift=0.0):
    """The true prediction of a kind; `shift` moves its data."""
    model = gaussian_mixture(jnp.full((1, 3), M), S, path)
    off = lambda x, t: convert(model(x, t) + shift, x, t, path, source="data", target=kind)
    return jax.vmap(off)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_with_a_weight_the_kind_does_not_matter(path):
    """The weight is that of the error of data: a shift of 0.1 in every pixel costs 0.01 E w; the rest is the
    posterior variance.
    """
    x0 = M + S * jax.random.normal(jax.random.key(0), (4000, 3))
    when, key = times.uniform(0.1, 0.9), jax.random.key(1)
    u = (np.arange(20_000) + 0.5) / 20_000
    t = path.t_max * (0.1 + 0.8 * u)
    alpha, sigma = path.alpha(t), path.sigma(t)
    spread = S**2 * sigma**2 / ((alpha * S) ** 2 + sigma**2)
    for name, weight in WEIGHTS.items():
        got = [
            float(f(predictor(path, kind, 0.1), path, key, x0, times=when, weight=weight))
            for kind, f in KINDS.items()
        ]
        w = np.asarray(weight(jnp.asarray(np.log(alpha / sigma))))
        want = (w * (spread + 0.01)).mean()
        noise = np.sqrt(2 * np.mean((w * (spread + 0.01)) ** 2) / x0.size)
        np.testing.assert_allclose(got, got[0], rtol=2e-3, err_msg=name)
        assert abs(got[0] - want) < 4 * noise, name


def test_without_a_weight_the_error_is_that_of_the_kind():
    """A shift of c in the prediction itself costs c^2 more, whatever the kind; for the score, by default,
    sigma^2 c^2.
    """
    path, key = VP(), jax.random.key(1)
    x0 = M + S * jax.random.normal(jax.random.key(0), (2000, 3))
    when = times.uniform(0.3, 0.3)
    sigma = float(path.sigma(0.3))
    for kind, f in KINDS.items():
        true = predictor(path, kind)
        off = lambda x, t, true=true: true(x, t) + 3.0
        best, worse = (float(f(net, path, key, x0, times=when)) for net in (true, off))
        assert worse - best == pytest.approx(9 * (sigma**2 if kind == "score" else 1), rel=0.1), kind


def test_the_least_flow_matching_loss_between_normals_is_half_pi():
    """CondOT, N(0,1) to N(0,1): v* = (2t-1) x/((1-t)^2 + t^2), and its loss is pi/2 (an integral over t done
    by hand).
    """
    x0 = jax.random.normal(jax.random.key(0), (100_000, 2))
    best = lambda x, t: ((2 * t - 1) / ((1 - t) ** 2 + t**2))[:, None] * x
    value = float(losses.flow_matching(best, CondOT(), jax.random.key(1), x0, times=times.uniform()))
    assert value == pytest.approx(np.pi / 2, abs=4 * 2.3 / np.sqrt(2e5))
    middle = float(losses.flow_matching(best, CondOT(), jax.random.key(1), x0, times=times.logit_normal()))
    assert middle > np.pi / 2 + 0.05  # the middle is the hardest


def test_edms_loss_of_the_best_denoiser_is_one_at_every_level():
    """Gaussian data with the standard deviation that the preconditioning assumes: nothing is left for the
    network but unit noise.
    """
    x0 = S * jax.random.normal(jax.random.key(0), (50_000, 2))
    best = lambda x, s: (S**2 / (S**2 + s**2))[:, None] * x
    for mean in (-3.0, -1.2, 1.0):
        value = float(losses.edm(best, EDM(), jax.random.key(1), x0, sigma_data=S, mean=mean, std=1.0))
        assert value == pytest.approx(1, abs=4 * np.sqrt(2 / x0.size))


def test_weights_at_a_signal_to_noise_ratio_of_four():
    lam = jnp.log(jnp.array([2.0]))
    values = {
        "uniform": 1,
        "snr": 4,
        "min_snr": 4,
        "edm": (0.25 + S**2) / (0.5 * S) ** 2,
        "sigmoid": 4 / (1 + 4 / np.e),
    }
    for name, want in values.items():
        assert float(WEIGHTS[name](lam)[0]) == pytest.approx(want, rel=1e-5), name
    assert float(weights.min_snr(3.0)(lam)[0]) == pytest.approx(3)


def test_labels_are_forgotten_by_chance():
    label = jnp.arange(20_000, dtype=jnp.int32) % 10
    got = np.asarray(losses.forget(jax.random.key(0), label, 0.1, 10))
    kept = got != 10
    np.testing.assert_array_equal(got[kept], np.asarray(label)[kept])
    assert 1 - kept.mean() == pytest.approx(0.1, abs=4 * np.sqrt(0.09 / 20_000))
    np.testing.assert_array_equal(losses.forget(jax.random.key(0), label, 0.0, 10), label)
