"""The restoration network: a batch is its images, any size is its mirrored extension, and preconditioning is
linear regression.
"""

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsampler.nn.unet import RestorationNet, fold, unfold

RESIDUAL = (0.05, 0.2, 0.4)


run = eqx.filter_jit(lambda net, *inputs: net(*inputs))


def network(random: bool = True) -> RestorationNet:
    net = RestorationNet(RESIDUAL, std=0.3, widths=(8, 12), depth=1, embedding=16, key=jax.random.key(0))
    if not random:
        return net
    # Some branches start at zero; tests of what is computed need every leaf to matter.
    leaves, tree = jax.tree.flatten(net)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(
        tree, [x + 0.2 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    )


def images(*shape: int, seed: int = 2) -> tuple[jax.Array, jax.Array]:
    k1, k2 = jax.random.split(jax.random.key(seed))
    mu = jax.random.uniform(k1, (*shape, 3))
    return mu + 0.3 * jax.random.normal(k2, mu.shape), mu


def test_a_batch_is_its_images_with_their_own_times_and_tasks():
    net = network()
    x, mu = images(3, 12, 16)
    t, task = jnp.array([3.0, 40.0, 97.5]), jnp.array([2, 0, 1])
    together = run(net, x, t, mu, task)
    for i in range(3):
        np.testing.assert_allclose(together[i], run(net, x[i], t[i], mu[i], task[i]), atol=2e-5)
    shared = run(net, x, 40.0, mu, 1)
    np.testing.assert_allclose(shared[2], run(net, x[2], 40.0, mu[2], 1), atol=2e-5)
    assert np.abs(together[0] - shared[0]).max() > 1e-2  # neither time nor task is ignored
    assert np.abs(run(net, x, 40.0, mu, 0) - shared).max() > 1e-2


@pytest.mark.parametrize("size", [(13, 7), (1, 5), (8, 30)])
def test_any_size_is_its_mirrored_extension_cut_back(size):
    net = network()
    x, mu = images(*size)
    pad = [(0, -n % 4) for n in size] + [(0, 0)]
    whole = run(
        net, jnp.asarray(np.pad(x, pad, "symmetric")), 50.0, jnp.asarray(np.pad(mu, pad, "symmetric")), 1
    )
    np.testing.assert_allclose(run(net, x, 50.0, mu, 1), whole[: size[0], : size[1]], atol=2e-5)


def test_a_tile_sees_what_the_whole_sees():
    net = network()
    x, mu = images(96, 64)
    whole, tile = (
        run(net, x, 30.0, mu, 0),
        run(net, x[20:], 30.0, mu[20:], 0),
    )  # 20 is a multiple of the cell of 4
    np.testing.assert_allclose(tile[32:], whole[52:], atol=2e-5)
    assert np.abs(tile[:2] - whole[20:22]).max() > 1e-4  # where the tile is cut it cannot know


def test_gradient_reaches_every_leaf():
    net = network()
    x, mu = images(3, 8, 8)
    t, task = jnp.array([5.0, 50.0, 90.0]), jnp.arange(3)
    grad = eqx.filter_jit(eqx.filter_grad(lambda n: jnp.square(n(x, t, mu, task)).mean()))(net)
    chex.assert_tree_all_finite(grad)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grad):
        assert np.mean(np.abs(leaf) > 1e-9) > 0.5, (jax.tree_util.keystr(path), leaf)


@pytest.mark.parametrize("t", [2.0, 35.0, 100.0])
@pytest.mark.parametrize("task", [0, 2])
def test_with_a_silent_network_it_is_the_linear_regression(t, task):
    """x0 on x_t over Gaussian residuals, by least squares over draws; F = 0 at the start of training."""
    net = network(random=False)
    rng, n = np.random.default_rng(0), 400_000
    path = net.path(jnp.zeros(()))
    y0 = RESIDUAL[task] * rng.standard_normal(n)
    y = float(path.alpha(t)) * y0 + float(path.sigma(t)) * rng.standard_normal(n)
    slope = (y @ y0) / (y @ y)
    left = y0 - slope * y
    error = left.std() / y.std() / np.sqrt(n)

    x, mu = images(8, 8)
    out = np.asarray(run(net, x, t, mu, task) - mu, np.float64)
    measured = (out / np.asarray(x - mu, np.float64)).mean()
    assert abs(measured - slope) < 4 * error + 1e-6

    c_in, _, c_out = (float(c[0]) for c in net.scales(jnp.array([t]), jnp.array([task])))
    assert c_in * y.std() / net.std == pytest.approx(1, rel=5e-3)  # unit input
    assert left.std() / net.std / c_out == pytest.approx(1, rel=5e-3)  # unit target


def test_fold_keeps_neighbours_together():
    x = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    y = fold(x)
    assert y.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(np.sort(y[1, 1, 2]), np.sort(x[1, 2:4, 4:6].ravel()))
    np.testing.assert_array_equal(unfold(y), x)


@pytest.mark.parametrize("shapes", [((8, 8, 3), (8, 9, 3)), ((8, 8, 4), (8, 8, 4)), ((8, 3), (8, 3))])
def test_what_is_no_image_is_refused(shapes):
    with pytest.raises(ValueError, match="images of one shape"):
        network()(jnp.zeros(shapes[0]), 5.0, jnp.zeros(shapes[1]), 0)
