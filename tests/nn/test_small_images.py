"""Networks for small images: a batch is its images, preconditioning is linear regression, labels and noise
levels count.
"""

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsampler.nn import Classifier, ClassUNet, EDMNet, FlowNet
from jaxsampler.training.generate import denoiser

SIGMA = 0.6
run = eqx.filter_jit(lambda net, *inputs: net(*inputs))


def shaken(net):
    """Some branches start at zero; tests of what is computed need every leaf to matter."""
    leaves, tree = jax.tree.flatten(net)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(
        tree, [x + 0.2 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    )


def unet() -> ClassUNet:
    return ClassUNet(1, 3, widths=(8, 12), depth=1, embedding=16, key=jax.random.key(0))


NETS = {"edm": shaken(EDMNet(unet(), SIGMA)), "flow": shaken(FlowNet(unet()))}
each = pytest.mark.parametrize("net", NETS.values(), ids=NETS)


def images(n: int, size: int = 8) -> jax.Array:
    return jax.random.normal(jax.random.key(2), (n, size, size, 1))


@each
def test_a_batch_is_its_images_with_their_own_times_and_labels(net):
    x, t, label = images(3), jnp.array([0.1, 0.4, 0.9]), jnp.array([2, 0, 3])
    together = run(net, x, t, label)
    for i in range(3):
        np.testing.assert_allclose(together[i], run(net, x[i], t[i], label[i]), atol=2e-5)
    np.testing.assert_allclose(
        run(net, x, t, None)[2], together[2], atol=2e-5
    )  # no label is the null class, 3
    assert np.abs(run(net, x, t, jnp.array([1, 1, 1])) - together).max((1, 2, 3)).min() > 1e-3
    assert np.abs(run(net, x, 0.4, label)[0] - together[0]).max() > 1e-3


@each
def test_gradient_reaches_every_leaf(net):
    x, t, label = images(4), jnp.array([0.05, 0.4, 0.7, 0.9]), jnp.arange(4)
    grad = eqx.filter_jit(eqx.filter_grad(lambda n: jnp.square(n(x, t, label)).mean()))(net)
    chex.assert_tree_all_finite(grad)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grad):
        assert np.mean(np.abs(leaf) > 1e-9) > 0.5, jax.tree_util.keystr(path)


@pytest.mark.parametrize("s", [0.02, 0.5, 20.0])
def test_with_a_silent_network_it_is_the_linear_regression(s):
    """x0 on x over Gaussian data of standard deviation SIGMA, by least squares over draws; F = 0 at the start
    of training.
    """
    net, rng, n = EDMNet(unet(), SIGMA), np.random.default_rng(0), 400_000
    x0 = SIGMA * rng.standard_normal(n)
    x = x0 + s * rng.standard_normal(n)
    slope = (x @ x0) / (x @ x)
    left = x0 - slope * x
    state = images(1)
    measured = np.asarray(run(net, state, s, None) / state, np.float64).mean()
    assert abs(measured - slope) < 4 * left.std() / x.std() / np.sqrt(n) + 1e-6

    # With F = 1 everywhere the rest is c_out: the size of what the regression leaves over.
    ones = eqx.tree_at(lambda m: m.unet.unet.head.bias, net, jnp.ones(4))
    c_out = np.asarray(run(ones, state, s, None) - run(net, state, s, None), np.float64).mean()
    assert c_out == pytest.approx(left.std(), rel=5e-3)


@each
def test_both_ends_are_finite_with_gradients(net):
    x = images(2)
    end = denoiser(net).path.t_max
    for t in (0.0, end):
        out, grad = eqx.filter_jit(jax.value_and_grad(lambda x, t: jnp.square(net(x, t)).sum()))(x, t)
        assert np.isfinite(out)
        assert np.all(np.isfinite(grad))
    if isinstance(net, EDMNet):
        np.testing.assert_allclose(
            run(net, x, 0.0, None), x, atol=1e-6
        )  # without noise the data are the state


def test_labels_are_bound_and_rebound():
    d = denoiser(NETS["edm"])
    x = images(2)
    np.testing.assert_array_equal(d.bind(label=1)(x, 0.5), NETS["edm"](x, 0.5, 1))
    np.testing.assert_array_equal(
        d.bind(label=0).bind(label=jnp.array([1, 2]))(x, 0.5), NETS["edm"](x, 0.5, jnp.array([1, 2]))
    )
    noise = (x - d(x, 0.5)) / 0.5
    np.testing.assert_allclose(d(x, 0.5, "noise"), noise, atol=1e-5)
    flow = denoiser(NETS["flow"])
    np.testing.assert_allclose(
        flow(x, 0.3), x - 0.3 * NETS["flow"](x, 0.3), atol=1e-5
    )  # x0 = x - t (eps - x0)


@each
@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3), (2, 8, 6, 1)])
def test_what_is_no_image_is_refused(net, shape):
    with pytest.raises(ValueError, match="sides that are multiples of 4"):
        net(jnp.zeros(shape), 0.5)


@each
def test_labels_that_do_not_fit_are_refused(net):
    with pytest.raises(ValueError, match="3 images need one time and one label"):
        net(images(3), 0.5, jnp.array([1, 2]))


def test_the_classifier_hears_of_the_noise_and_its_head_is_linear_in_the_features():
    net = shaken(Classifier(1, 3, widths=(8, 12), depth=1, embedding=16, features=5, key=jax.random.key(0)))
    x, s = images(3), jnp.array([0.0, 0.5, 3.0])
    logits = run(net, x, s)
    for i in range(3):
        np.testing.assert_allclose(logits[i : i + 1], run(net, x[i : i + 1], s[i]), atol=2e-5)
    assert np.abs(run(net, x, 0.0) - logits)[1:].max(1).min() > 1e-3
    np.testing.assert_allclose(logits, net.features(x, s) @ net.head.weight + net.head.bias[None], atol=1e-5)
    grad = eqx.filter_jit(jax.grad(lambda x: jax.nn.log_softmax(net(x, 0.5))[:, 0].sum()))(
        x
    )  # what guidance follows
    assert np.abs(grad).max((1, 2, 3)).min() > 1e-4
