"""Discrete-time networks: the label of every convention, the Denoiser that carries it, and the published
schedules.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsampler as js
from jaxsampler.paths.labels import label

TIMES = np.array([1.0, 0.7303, 0.25, 0.001, 0.0004, 0.0])


@pytest.mark.parametrize(
    ("convention", "N", "scale", "want"),
    [  # by hand from the published codes' formulas, at TIMES
        ("time", None, None, [1.0, 0.7303, 0.25, 0.001, 0.0004, 0.0]),
        ("index", 1000, None, [999.0, 729.3, 249.0, 0.0, 0.0, 0.0]),
        ("index", 1000, 1000, [999.0, 729.3, 249.0, 0.0, 0.0, 0.0]),
        ("index", 4000, None, [3999.0, 2920.2, 999.0, 3.0, 0.6, 0.0]),
        ("index", 4000, 1000, [999.75, 730.05, 249.75, 0.75, 0.15, 0.0]),
        ("stretched", 1000, None, [999.0, 729.5697, 249.75, 0.999, 0.3996, 0.0]),
        ("stretched", 500, 1000, [998.0, 728.8394, 249.5, 0.998, 0.3992, 0.0]),
        ("score_sde", None, None, [999.0, 729.5697, 249.75, 0.999, 0.3996, 0.0]),
        ("flow", None, None, [1000.0, 730.3, 250.0, 1.0, 0.4, 0.0]),
    ],
)
def test_labels(convention, N, scale, want):
    """On the host in float64, and the same under jit in float32."""
    np.testing.assert_allclose(label(TIMES, convention, N, scale), want, rtol=1e-12, atol=1e-10)
    single = jax.jit(lambda t: label(t, convention, N, scale))(jnp.asarray(TIMES, jnp.float32))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, want, rtol=1e-6, atol=1e-3)


def test_network_time_of_a_path():
    """By default its training indices, however many."""
    path = js.DiscreteVP.linear(50, 1e-3, 0.3)
    np.testing.assert_allclose(path.network_time(np.arange(1, 51) / 50), np.arange(50), atol=1e-12)
    assert path.network_time(0.5, "index", scale=1000) == pytest.approx(480.0)
    assert path.network_time(0.5, "score_sde") == 499.5


class Seen(eqx.Module):
    """Returns its weight times the label that it is given."""

    weight: jax.Array

    def __call__(self, x, n):
        return self.weight * jnp.broadcast_to(jnp.asarray(n, x.dtype), x.shape)


def test_the_network_sees_its_training_indices():
    """Along a whole sampling run, on the grid of the training indices; and at the end of the first level,
    index 0.
    """
    path = js.DiscreteVP.scaled_linear()
    seen = []
    net = lambda x, n: jax.debug.callback(lambda n: seen.append(float(n)), n, ordered=True) or 0.1 * x
    js.sample(
        js.discrete(net, path, "noise"),
        jnp.zeros(3),
        key=jax.random.key(0),
        solver=js.solvers.dpm_1,
        grid=js.grids.trailing(path, 4),
    )
    jax.effects_barrier()
    np.testing.assert_allclose(seen, [999, 749, 499, 249], atol=1e-3)


def test_rounded_labels_are_whole():
    """For networks with a table of embeddings; rounding is to the nearest, where float32 leaves 899.99994."""
    path = js.DiscreteVP.linear()
    table = jnp.arange(1000.0) ** 2
    model = js.discrete(lambda x, n: jnp.broadcast_to(table[n], x.shape), path, "noise", rounded=True)
    for index in (0, 123, 899, 999):
        t = jnp.float32((index + 1) / 1000)
        assert float(jax.jit(lambda t: model(jnp.zeros(2), t, "noise"))(t)[0]) == index**2


@pytest.mark.parametrize(
    ("path", "convention", "want"),
    [(js.VP(), "score_sde", 749.25), (js.CondOT(), "flow", 750.0), (js.VP(), "time", 0.75)],
)
def test_continuous_paths(path, convention, want):
    model = js.discrete(Seen(jnp.float32(2.0)), path, "noise", convention)
    np.testing.assert_allclose(model(jnp.zeros(3), jnp.float32(0.75), "noise"), 2 * want, rtol=1e-6)


def test_the_networks_arrays_are_leaves():
    """Gradients reach the weights through the wrapper; conversion to another kind happens at the path's time,
    not the label's.
    """
    path = js.DiscreteVP.linear()
    t = jnp.float32(0.4)

    def loss(weight):
        return js.discrete(Seen(weight), path, "noise")(jnp.ones(3), t, "data").sum()

    slope = jax.grad(loss)(jnp.float32(0.01))
    np.testing.assert_allclose(slope, -3 * path.sigma(0.4) / path.alpha(0.4) * 399, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: js.discrete(abs, js.DiscreteVP.linear(), "noise", "indx"),
            "unknown convention 'indx'; did you mean 'index'?",
        ),
        (
            lambda: js.discrete(abs, js.DiscreteVP.linear(), "noise", "1"),
            "valid names are flow, index, score_sde, stretched, time",
        ),
        (
            lambda: js.discrete(abs, js.VP(), "noise"),
            "'index' counts the N noise levels of a discrete schedule: use a js.DiscreteVP path",
        ),
        (lambda: js.discrete(abs, js.DiscreteVP.linear(), "ex"), "unknown prediction kind 'ex'"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        make()


# --- schedules


def test_zero_terminal_snr():
    """Lin et al. 2024, alg. 1, on Stable Diffusion's levels: the last pure noise, the first unchanged, alpha
    affine in itself.
    """
    path = js.DiscreteVP.scaled_linear()
    zero = path.zero_terminal_snr()
    old, new = (np.sqrt(p.alphas_cumprod) for p in (path, zero))
    assert new[-1] == 0.0
    np.testing.assert_allclose(new[0], old[0], rtol=1e-14)
    np.testing.assert_allclose(np.diff(new) / np.diff(old), old[0] / (old[0] - old[-1]), rtol=1e-9)
    assert (zero.alpha(1.0), zero.sigma(1.0)) == (0.0, 1.0)
    betas = 1 - np.array(zero.alphas_cumprod[1:]) / np.array(zero.alphas_cumprod[:-1])
    assert betas[-1] == 1.0
    assert np.all((betas > 0) & (betas <= 1))


def test_zero_terminal_snr_is_sampled_from_its_end():
    """A v network on the trailing grid, from pure noise: on data at one point the sample is that point."""
    path = js.DiscreteVP.scaled_linear().zero_terminal_snr()
    point = jnp.asarray([0.4, -0.2, 0.9])

    def v(x, index):
        t = (index + 1) / 1000
        a, s = (
            path.alpha(t),
            path.sigma(t),
        )  # eps from the state, where it is known: v = alpha eps - sigma x0, at alpha = 0 just -x0
        eps = (x - a * point) / s
        return a * eps - s * point

    out = js.sample(js.discrete(v, path, "v"), point, key=jax.random.key(3), grid=js.grids.trailing(path, 5))
    np.testing.assert_allclose(out, point, atol=1e-5)


def test_cosine_betas():
    """Nichol & Dhariwal 2021, eq. 17: the cosine's own ratios, but the last betas never above 0.999."""
    T = 200
    path = js.DiscreteVP.cosine(T)
    bar = np.array(path.alphas_cumprod)
    betas = 1 - bar / np.array([1.0, *bar[:-1]])
    f = [np.cos((i / T + 0.008) / 1.008 * np.pi / 2) ** 2 for i in range(T + 1)]
    np.testing.assert_allclose(bar[:-1], np.array(f[1:-1]) / f[0], rtol=1e-9)
    assert betas[-1] == pytest.approx(0.999, rel=1e-9)
    assert np.all(betas[:-1] < 0.999)
    assert js.DiscreteVP.cosine(T, max_beta=0.5).alphas_cumprod[-1] > bar[-1] * 10
    np.testing.assert_allclose(
        path.alpha(np.arange(1, T) / T), js.CosineVP().alpha(np.arange(1, T) / T), rtol=1e-8
    )


def test_clipped_levels():
    """The published wrapper drops levels of lam < -5.1 and names the rest (n+1)/N': indices are kept, labels
    of 1000 are not.
    """
    path = js.DiscreteVP.cosine(1000)
    short = path.clipped()
    kept = len(short.alphas_cumprod)
    t = np.arange(1, 1001) / 1000
    assert kept == np.sum(path.lam(t) >= -5.1) < 1000
    assert short.alphas_cumprod == path.alphas_cumprod[:kept]
    own = np.arange(1, kept + 1) / kept
    np.testing.assert_allclose(short.alpha(own), path.alpha(t[:kept]), rtol=1e-12)
    np.testing.assert_allclose(short.network_time(own), np.arange(kept), atol=1e-9)
    published = short.network_time(own, "index", scale=1000)  # 1000 max(t - 1/N', 0)
    np.testing.assert_allclose(published, 1000 * (own - 1 / kept), atol=1e-9)
    assert np.abs(published - np.arange(kept)).max() > 1
    assert js.DiscreteVP.linear().clipped() == js.DiscreteVP.linear()  # nothing to drop
