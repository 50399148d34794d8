"""Classifier-free guidance where guided laws are known: Gaussians with one variance, whose product of powers
is a Gaussian again.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import gaussian, random_net

import jaxsampler as js

pytestmark = pytest.mark.usefixtures("x64")
PATH = js.VP()
GRID = js.grids.log_snr(PATH, 12)
X = np.asarray([1.2, -0.4, 0.1])


def of_kind(denoiser, kind):
    return js.Denoiser(lambda x, t: denoiser(x, t, kind), denoiser.path, kind)


@pytest.mark.parametrize("kinds", [("data", "data"), ("noise", "v"), ("score", "velocity")])
def test_shifts_the_mean_of_gaussians(kinds):
    """p_u^(1-w) p_c^w of N(0.2, s^2) and N(0.7, s^2) is N(0.2 + 0.5 w, s^2) at every noise level: its flow is
    known.
    """
    w = 3.0
    cond, uncond = (
        of_kind(gaussian(PATH, mean, 0.4)[0], kind) for mean, kind in zip((0.7, 0.2), kinds, strict=True)
    )
    guided = js.guidance.classifier_free(cond, uncond, w)
    assert guided.kind == kinds[0]
    table = js.tabulate(PATH, GRID, js.solvers.dpmpp_3s)
    exact = gaussian(PATH, 0.2 + 0.5 * w, 0.4)[0]
    np.testing.assert_allclose(js.run(guided, table, X), js.run(exact, table, X), rtol=1e-10)


def test_weights_zero_and_one():
    cond, uncond = (js.Denoiser(random_net(seed), PATH, "noise") for seed in (1, 2))
    for w, want in ((0.0, uncond), (1.0, cond)):
        np.testing.assert_allclose(
            js.guidance.classifier_free(cond, uncond, w)(X, jnp.asarray(0.5)),
            want(X, jnp.asarray(0.5)),
            rtol=1e-12,
        )


def test_two_callables_give_a_callable():
    guided = js.guidance.classifier_free(lambda x, t: 2 * x, lambda x, t: x - t, 0.5)
    np.testing.assert_allclose(guided(X, 0.25), 1.5 * X - 0.125, rtol=1e-12)


def test_the_weight_may_be_learned():
    """Its gradient through the sampler against the known law: the mean's share in the sample times 0.5; no
    recompilation.
    """
    cond, uncond = (gaussian(PATH, mean, 0.4)[0] for mean in (0.7, 0.2))
    table = js.tabulate(PATH, GRID, js.solvers.dpmpp_2m)

    @jax.jit
    @chex.assert_max_traces(n=2)
    def sample(w):
        return js.run(js.guidance.classifier_free(cond, uncond, w), table, X)[0]

    by_mean = jax.grad(lambda mean: js.run(gaussian(PATH, mean, 0.4)[0], table, X)[0])
    np.testing.assert_allclose(jax.grad(sample)(3.0), 0.5 * by_mean(1.7), rtol=1e-9)
    sample(2.0), sample(5.0)


def test_a_weight_per_interval():
    """w=None takes one weight for each grid interval, all calls of a step included: as two samplers one after
    the other.
    """
    cond, uncond = (js.Denoiser(random_net(seed), PATH, "noise") for seed in (1, 2))
    weights = jnp.where(jnp.arange(12) < 5, 1.0, 4.0)
    run = lambda model, grid, x, **k: js.run(model, js.tabulate(PATH, grid, js.solvers.dpmpp_2s), x, **k)
    got = run(js.guidance.classifier_free(cond, uncond), GRID, X, per_step=weights)
    first = run(js.guidance.classifier_free(cond, uncond, 1.0), GRID[:6], X)
    np.testing.assert_allclose(
        got, run(js.guidance.classifier_free(cond, uncond, 4.0), GRID[5:], first), rtol=1e-10
    )


def test_entries_reach_the_networks_through_wrappers():
    """A guidance interval inside dynamic thresholding, and networks that take an entry of their own under a
    fixed weight.
    """
    cond, uncond = (js.Denoiser(random_net(seed), PATH, "noise") for seed in (1, 2))
    table, ones = js.tabulate(PATH, GRID, js.solvers.dpmpp_2m), jnp.ones(12)
    nested = js.guidance.dynamic_threshold(js.guidance.classifier_free(cond, uncond), ratio=0.6)
    fixed = js.guidance.dynamic_threshold(js.guidance.classifier_free(cond, uncond, 2.0), ratio=0.6)
    np.testing.assert_allclose(
        js.run(nested, table, X, per_step=2 * ones), js.run(fixed, table, X), rtol=1e-12
    )
    scaled = js.Denoiser(lambda x, t, scale: scale * cond.net(x, t), PATH, "noise")
    plain = js.Denoiser(lambda x, t, scale: uncond.net(x, t), PATH, "noise")
    got = js.run(js.guidance.classifier_free(scaled, plain, 2.0), table, X, per_step=3 * ones)
    tripled = js.Denoiser(lambda x, t: 3.0 * cond.net(x, t), PATH, "noise")
    np.testing.assert_allclose(
        got, js.run(js.guidance.classifier_free(tripled, uncond, 2.0), table, X), rtol=1e-12
    )


def test_on_mean_reverting_paths():
    """mu is no part of what is extrapolated: guiding between a network and itself changes nothing."""
    path = js.MeanReverting(jnp.asarray([0.2, 0.5, 0.9]))
    data = js.Denoiser(random_net(1), path, "data")
    guided = js.guidance.classifier_free(data, of_kind(data, "noise"), 7.0)
    np.testing.assert_allclose(guided(X, jnp.asarray(40.0)), data(X, jnp.asarray(40.0)), rtol=1e-9)


def test_user_errors():
    one, other = gaussian(PATH)[0], gaussian(js.VP(0.2, 15.0))[0]
    with pytest.raises(ValueError, match="one path"):
        js.guidance.classifier_free(one, other, 2.0)
    with pytest.raises(TypeError, match="two Denoisers, or two callables"):
        js.guidance.classifier_free(one, other.net, 2.0)
    with pytest.raises(TypeError, match="per_step=weights"):
        js.run(js.guidance.classifier_free(one, one), js.tabulate(PATH, GRID, js.solvers.dpmpp_2m), X)
