"""Windows share every pixel out exactly, and a tiled network is the whole one."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxsampler as js
from jaxsampler.commands.restore import Restorer, Tiled, photo, tiles
from jaxsampler.commands.restore.tiles import CELL, sides, windows

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


@given(height=cells, width=cells, size=st.integers(20, 100), overlap=st.integers(1, 9))
def test_windows_hold_no_more_than_they_may(height, width, size, overlap):
    """And see no more pixels in all than squares of that size do."""
    most, overlap = (8 * size) ** 2, 8 * overlap
    if height * width <= most:
        return
    h, w = sides(height, width, most, overlap)
    assert h * w <= most
    assert h % CELL == w % CELL == 0
    count = lambda n, side: 1 if n <= side else -(-(n - overlap) // (side - overlap))
    seen = lambda h, w: count(height, h) * count(width, w) * h * w
    assert seen(h, w) <= seen(min(8 * size, height), min(8 * size, width))


def test_too_few_pixels_for_their_overlap():
    with pytest.raises(ValueError, match="windows of 4096 pixels cannot overlap by 192"):
        sides(1024, 768, 64**2, 192)


def test_an_image_is_whole_unless_memory_asks(net):
    """Memory is that of the device; 12 million pixels of the shipped network take 3 GB."""
    shipped = jax.eval_shape(
        lambda: eqx.tree_at(lambda n: n.unet.stem.weight, net, jnp.zeros((3, 3, 24, 48)))
    )
    gigabyte = 2**30
    assert tiles.fitting(shipped, 8 * gigabyte).windows(3000, 4000) == []
    assert len(tiles.fitting(shipped, gigabyte).windows(3000, 4000)) == 8
    assert tiles.fitting(shipped, gigabyte).windows(768, 1024) == []
    assert tiles.fitting(shipped, 0).size == 2 * 192  # some windows must do
    assert tiles.available() > 2**28


@pytest.mark.parametrize("widths", [(8, 8), (24, 32, 48)])
def test_a_call_takes_the_memory_it_is_said_to_take(widths):
    """What XLA reserves for a call, against the bytes that decide between whole and windows."""
    make = lambda key: js.nn.RestorationNet(
        (0.1,) * 10, std=0.5, widths=widths, depth=1, embedding=8, key=key
    )
    net, x = jax.eval_shape(make, jax.random.key(0)), jax.ShapeDtypeStruct((1, 256, 320, 3), jnp.float32)
    t, task = jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
    about = jax.jit(lambda net, x, t, mu, task: net(x, t, mu, task)).lower(net, x, t, x, task).compile()
    reserved = about.memory_analysis().temp_size_in_bytes / (256 * 320 * widths[0])
    assert 0.3 * tiles.NEEDED < reserved < tiles.NEEDED


def test_each_window_moves_the_bar(net, capsys):
    """Two calls through four windows."""
    image = np.random.default_rng(0).random((200, 250, 3), np.float32)
    tiled = Tiled(net, 184, 96)
    count = len(tiled.windows(224, 256))
    Restorer(tiled, steps=2)(image, "derain", progress=True)
    said = capsys.readouterr().err
    assert count > 1
    assert f"{2 * count}/{2 * count}" in said
    assert "rainy" in said
    Restorer(tiled, steps=2)(image, "derain")
    assert capsys.readouterr().err == ""


def test_the_network_is_called_once_for_each_window_of_a_row(net, monkeypatch):
    """Nothing but the network sees windows, and a whole image is one call a row."""
    look, calls = photo._look, []

    def counted(seen, out):
        calls.append(seen[1].shape if seen[5] is None else seen[5].down.shape + seen[5].across.shape)
        return look(seen, out)

    counted.lower = look.lower
    monkeypatch.setattr(photo, "_look", counted)
    image = np.zeros((96, 128, 3), np.float32)
    for tiled, expected in (
        (Tiled(net), [(1, 96, 128, 3)] * 3),
        (Tiled(net, 96, 32), [(96, 80)] * 6),
    ):
        calls.clear()
        Restorer(tiled, steps=3)(image, "derain")
        assert calls == expected
