"""Dynamic thresholding against counts and limits that do not use its formula, and as a wrapper like any
other.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import gaussian

import jaxsampler as js

pytestmark = pytest.mark.usefixtures("x64")
PATH = js.VP()
T = jnp.asarray(0.5)


def limited(x0, **options):
    """What becomes of the prediction x0 at any x, t."""
    denoiser = js.Denoiser(lambda x, t: x0, PATH, "data")
    return js.guidance.dynamic_threshold(denoiser, **options)(jax.tree.map(jnp.zeros_like, x0), T)


def test_by_hand():
    """|x0| = 0..10, the 0.85 quantile is 8.5: what is above saturates, the rest shrinks by 8.5."""
    x0 = jnp.asarray([0.0, -1, 2, -3, 4, -5, 6, -7, 8, -9, 10])
    np.testing.assert_allclose(
        limited(x0, ratio=0.85),
        [0, -1 / 8.5, 2 / 8.5, -3 / 8.5, 4 / 8.5, -5 / 8.5, 6 / 8.5, -7 / 8.5, 8 / 8.5, -1, 1],
    )


def test_a_sample_within_range_is_left_alone():
    x0 = jnp.asarray([0.3, -0.9, 0.1])
    np.testing.assert_array_equal(limited(x0), x0)
    np.testing.assert_allclose(limited(x0, max_value=2.0), x0 / 2)


def test_ratio_is_the_share_that_is_not_clipped():
    x0 = 5 * jax.random.normal(jax.random.key(0), (100, 100))
    for ratio in (0.5, 0.9, 0.995):
        out = limited(x0, ratio=ratio)
        assert abs(float((jnp.abs(out) < 1).mean()) - ratio) < 2e-4
        inside = jnp.abs(out) < 1
        np.testing.assert_allclose(
            (x0 / out)[inside], (x0 / out)[inside][0], rtol=1e-12
        )  # one factor for all


def test_axes_tell_samples_apart():
    """Along the axes of a sample it is the vmap of the whole; a small sample beside a large one is not
    shrunk.
    """
    x0 = jnp.stack(
        [jax.random.normal(jax.random.key(i), (4, 5)) * scale for i, scale in enumerate((0.1, 1.0, 30.0))]
    )
    each = jnp.stack([limited(a, ratio=0.8) for a in x0])
    np.testing.assert_allclose(limited(x0, ratio=0.8, axes=(1, 2)), each, rtol=1e-12)
    np.testing.assert_allclose(jax.vmap(lambda a: limited(a, ratio=0.8))(x0), each, rtol=1e-12)
    np.testing.assert_array_equal(each[0], x0[0])
    rows = jnp.stack([limited(a, ratio=0.8) for a in x0.reshape(-1, 5)]).reshape(x0.shape)
    np.testing.assert_allclose(limited(x0, ratio=0.8, axes=-1), rows, rtol=1e-12)


def test_leaves_of_a_pytree_are_one_sample():
    a, b = jnp.asarray([0.1, -0.2, 0.3]), jnp.asarray([[4.0, -8.0]])
    out = limited({"a": a, "b": b}, ratio=0.9)
    whole = limited(jnp.concatenate([a, b.ravel()]), ratio=0.9)
    np.testing.assert_allclose(jnp.concatenate([out["a"], out["b"].ravel()]), whole, rtol=1e-12)


def test_options_may_be_learned_without_recompilation():
    """Gradients with respect to the ratio (between two order statistics) and the bound, by hand; one trace
    for all values.
    """
    x0 = jnp.asarray([0.0, 1.0, 2.0, 3.0, 5.0])

    @jax.jit
    @chex.assert_max_traces(n=1)
    def total(ratio, max_value):
        return limited(x0, ratio=ratio, max_value=max_value).sum()

    slopes = jax.jit(jax.grad(total, (0, 1)))
    # ratio 0.9 lies at index 3.6: q = 3 + 0.6 * 2 = 4.2, dq/dratio = 8; the sum of the unclipped is 6, of the
    # rest 1
    by_ratio, by_bound = slopes(0.9, 1.0)
    np.testing.assert_allclose([by_ratio, by_bound], [-6 / 4.2**2 * 8, 0.0], rtol=1e-9)
    by_ratio, by_bound = slopes(0.8, 10.0)
    np.testing.assert_allclose([by_ratio, by_bound], [0.0, -11 / 100], rtol=1e-9)
    total(0.9, 1.0), total(0.8, 2.0)


def test_low_precision_is_decided_in_float32():
    """bfloat16 in, bfloat16 out; the quantile of a long ramp is not rounded to its neighbours."""
    x0 = jnp.linspace(0, 4, 1001).astype(jnp.bfloat16)
    out = limited(x0, ratio=0.5)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32)[250], 0.5, atol=5e-3)
    # the 0.995 quantile of 2,000 is number 1989; in bfloat16 it would be one of the last, from 1991 on
    two = jnp.where(jnp.arange(2000) < 1991, 2.0, 8.0).astype(jnp.bfloat16)
    np.testing.assert_array_equal(limited(two, ratio=0.995).astype(jnp.float32), 1.0)
    naive = jnp.quantile(two, jnp.asarray(0.995, jnp.bfloat16))
    assert float(naive) > 2


def test_on_a_sampler():
    """Wrapping a noise network: samples of data far outside [-1, 1] end up inside, those of data inside do
    not change.
    """
    wide, small = (gaussian(PATH, mean=0.0, std=std)[0] for std in (4.0, 0.05))
    x = jax.random.normal(jax.random.key(3), (50,))
    for denoiser, changed in ((wide, True), (small, False)):
        noise_net = js.Denoiser(lambda x, t, d=denoiser: d(x, t, "noise"), PATH, "noise")
        guided = js.guidance.dynamic_threshold(noise_net, ratio=0.95)
        assert guided.kind == "data"
        table = js.tabulate(PATH, js.grids.append_zero(js.grids.log_snr(PATH, 10)), js.solvers.dpmpp_2m)
        plain, out = js.run(denoiser, table, x), js.run(guided, table, x)
        assert bool(jnp.abs(plain).max() > 1) == changed
        assert float(jnp.abs(out).max()) <= 1
        if not changed:
            np.testing.assert_allclose(out, plain, rtol=1e-9)


def test_user_errors():
    denoiser = gaussian(PATH)[0]
    with pytest.raises(TypeError, match=r"wraps a js\.Denoiser"):
        js.guidance.dynamic_threshold(denoiser.net)
    with pytest.raises(ValueError, match="ratio=1.5"):
        js.guidance.dynamic_threshold(denoiser, ratio=1.5)
    with pytest.raises(ValueError, match="max_value=0"):
        js.guidance.dynamic_threshold(denoiser, max_value=0)
