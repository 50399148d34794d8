"""Windows share every pixel out exactly, and a tiled network is the whole one."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsampler.commands.restore import Restorer, Tiled
from jaxsampler.commands.restore.tiles import windows

cells = st.integers(1, 400).map(lambda n: 8 * n)


@given(length=cells, size=st.integers(4, 100), share=st.floats(0.0, 0.7))
def test_weights_sum_to_one_at_every_pixel(length, size, share):
    starts, weights = windows(length, 8 * size, 8 * max(1, int(share * size)))
    total = np.zeros(length)
    for start, weight in zip(starts, weights, strict=True):
        assert 0 <= start <= length - len(weight)
        assert start % 8 == 0
        total[start : start + len(weight)] += weight
    np.testing.assert_allclose(total, 1, atol=1e-6)
    assert weights.min() >= 0


def test_windows_ignore_the_outer_quarter_of_their_overlap():
    starts, weights = windows(576, 192, 64)
    assert len(starts) > 2
    for weight in weights[1:-1]:
        assert not weight[:16].any()
        assert not weight[-16:].any()
        np.testing.assert_allclose(weight[64:-64], 1, atol=1e-6)
    assert weights[0][0] == weights[-1][-1] == 1  # the image's own edges are kept


@pytest.mark.parametrize("bad", [(100, 64, 16), (128, 60, 16), (128, 64, 12), (128, 64, 0), (128, 64, 64)])
def test_windows_refuse_what_they_cannot_cover(bad):
    with pytest.raises(ValueError, match="overlap < size"):
        windows(*bad)


def difference(net, overlap):
    """Largest difference between the tiled and the whole network on noise, 256 x 224 pixels through windows
    of 160.
    """
    x, mu = (jax.random.uniform(jax.random.key(k), (2, 256, 224, 3)) for k in (2, 3))
    t, task = jnp.array(40.0), jnp.array([1, 7])
    whole = eqx.filter_jit(net)(x, t, mu, task)
    tiled = eqx.filter_jit(Tiled(net, 160, overlap))(x, t, mu, task)
    assert float(jnp.abs(whole - x).max()) > 0.05
    return float(jnp.abs(whole - tiled).max())


def test_tiled_network_is_the_whole_network(net):
    assert difference(net, 96) < 1e-5  # a quarter, 24 pixels, exceeds what a pixel sees


def test_too_small_an_overlap_would_show(net):
    assert difference(net, 16) > 1e-3


def test_tiles_leave_no_seam_in_a_restored_photo(net):
    image = np.random.default_rng(0).random((200, 250, 3), np.float32)
    whole = Restorer(Tiled(net, 768), steps=3)(image, "derain")
    tiled = Restorer(Tiled(net, 160, 96), steps=3)(image, "derain")
    np.testing.assert_allclose(tiled, whole, atol=2e-5)
    assert whole.std() > 0.05
