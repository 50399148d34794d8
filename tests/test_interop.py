"""Any model: one network, written for seven frameworks, gives one sample, one gradient with respect to its
weights, and is traced once.

The recipes are those of notebooks/guides/networks.md.
"""

import functools

import chex
import equinox as eqx
import flax.linen
import haiku
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxsampler as js

VP = js.VP()
X = jax.random.normal(jax.random.key(1), (4, 2), jnp.float32)
STEPS = 4
SIZES = {"hidden": (3, 8), "out": (8, 2)}


def weights():
    """{layer: (matrix [in, out], bias [out])} of an MLP on (x, t)."""
    keys = jax.random.split(jax.random.key(0), 4)
    return {
        name: (
            jax.random.normal(keys[2 * i], size, jnp.float32) / 2,
            jax.random.normal(keys[2 * i + 1], size[1:], jnp.float32),
        )
        for i, (name, size) in enumerate(SIZES.items())
    }


def features(x, t):
    return jnp.concatenate([x, jnp.broadcast_to(t, (len(x), 1))], 1)


def apply(params, x, t):
    """The network as a plain function of its weights."""
    Trace.count += 1
    (w1, b1), (w2, b2) = params["hidden"], params["out"]
    return jnp.tanh(features(x, t) @ w1 + jnp.broadcast_to(b1, (len(x), 8))) @ w2 + jnp.broadcast_to(
        b2, (len(x), 2)
    )


class Trace:
    """How often any of the networks was traced."""

    count = 0


def loss(denoiser, solver=js.solvers.dpmpp_2m, x=X, steps=STEPS):
    """A loss on samples."""
    out = js.sample(denoiser, x, key=jax.random.key(2), x=x, solver=solver, steps=steps, adjoint=js.Direct())
    return jnp.mean((out - 0.3) ** 2) + jnp.mean(out**3)


def denoiser(net):
    return js.Denoiser(net, VP, "noise")


class Equinox(eqx.Module):
    """eqx.nn.Linear keeps its matrices as [out, in] and takes one sample."""

    hidden: eqx.nn.Linear
    out: eqx.nn.Linear

    def __init__(self):
        self.hidden, self.out = (
            eqx.nn.Linear(*SIZES[name], key=jax.random.key(0)) for name in ("hidden", "out")
        )

    def __call__(self, x, t):
        Trace.count += 1
        return jax.vmap(lambda z: self.out(jnp.tanh(self.hidden(z))))(features(x, t))


class NNX(nnx.Module):
    def __init__(self, rngs):
        self.hidden, self.out = (nnx.Linear(*SIZES[name], rngs=rngs) for name in ("hidden", "out"))

    def __call__(self, x, t):
        Trace.count += 1
        return self.out(jnp.tanh(self.hidden(features(x, t))))


class Linen(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, x, t):
        Trace.count += 1
        z = jnp.tanh(flax.linen.Dense(8, name="hidden")(features(x, t)))
        return flax.linen.Dense(2, name="out")(z)


@haiku.without_apply_rng
@haiku.transform
def haiku_net(x, t):
    Trace.count += 1
    z = jnp.tanh(haiku.Linear(8, name="hidden")(features(x, t)))
    return haiku.Linear(2, name="out")(z)


def linen_params(w):
    return {"params": {name: {"kernel": m, "bias": b} for name, (m, b) in w.items()}}


def linen_weights(p):
    return {name: (p["params"][name]["kernel"], p["params"][name]["bias"]) for name in SIZES}


def by_argument(recipe, params):
    """Gradient with respect to `params`: the denoiser is made inside the loss."""
    return jax.value_and_grad(lambda p: loss(denoiser(recipe(p))))(params)


def by_denoiser(net, grad=eqx.filter_value_and_grad):
    """Gradient with respect to the denoiser itself: a denoiser of gradients."""
    value, slope = grad(loss)(denoiser(net))
    return value, slope.net


def plain_function(w):
    return by_argument(lambda p: lambda x, t: apply(p, x, t), w)


def params_and_apply(w):
    value, slope = by_denoiser(functools.partial(apply, w))
    return value, slope.args[0]


def params_and_apply_in_jax(w):
    """`jax.tree_util.Partial` has arrays as its only leaves: plain jax.grad and jax.jit take the denoiser, no
    equinox needed.
    """
    value, slope = by_denoiser(jax.tree_util.Partial(apply, w), jax.value_and_grad)
    return value, slope.args[0]


def equinox_module(w):
    layers = lambda net: [a for name in SIZES for a in (getattr(net, name).weight, getattr(net, name).bias)]
    net = eqx.tree_at(layers, Equinox(), [a for name in SIZES for a in (w[name][0].T, w[name][1])])
    value, slope = by_denoiser(net)
    return value, {name: (getattr(slope, name).weight.T, getattr(slope, name).bias) for name in SIZES}


def nnx_net(w):
    net = NNX(nnx.Rngs(0))
    for name, (matrix, bias) in w.items():
        getattr(net, name).kernel[...] = matrix
        getattr(net, name).bias[...] = bias
    return net


def nnx_weights(slope):
    return {name: (slope[name]["kernel"][...], slope[name]["bias"][...]) for name in SIZES}


def nnx_module(w):
    """Flax's own transform, of a function of the module."""
    value, slope = nnx.value_and_grad(lambda net: loss(denoiser(net)))(nnx_net(w))
    return value, nnx_weights(slope)


def nnx_module_as_a_pytree(w):
    """An NNX module is a pytree, so the denoiser may be differentiated as well."""
    value, slope = by_denoiser(nnx_net(w), jax.value_and_grad)
    return value, nnx_weights(nnx.state(slope))


def nnx_split_and_merged(w):
    graph, state = nnx.split(nnx_net(w))
    value, slope = by_argument(lambda state: nnx.merge(graph, state), state)
    return value, nnx_weights(slope)


def linen_module(w):
    value, slope = by_denoiser(functools.partial(Linen().apply, linen_params(w)))
    return value, linen_weights(slope.args[0])


def linen_by_argument(w):
    value, slope = by_argument(lambda p: functools.partial(Linen().apply, p), linen_params(w))
    return value, linen_weights(slope)


def haiku_transformed(w):
    params = {name: {"w": m, "b": b} for name, (m, b) in w.items()}
    value, slope = by_denoiser(functools.partial(haiku_net.apply, params))
    return value, {name: (slope.args[0][name]["w"], slope.args[0][name]["b"]) for name in SIZES}


RECIPES = [
    plain_function,
    params_and_apply,
    params_and_apply_in_jax,
    equinox_module,
    nnx_module,
    nnx_module_as_a_pytree,
    nnx_split_and_merged,
    linen_module,
    linen_by_argument,
    haiku_transformed,
]


@functools.cache
def reference():
    """Loss and directional derivatives in float64: central differences of the plain network, sampled by the
    textbook loop, not the scan.
    """
    with jax.enable_x64(True):
        w = jax.tree.map(lambda a: np.asarray(a, np.float64), weights())
        flat, structure = jax.tree.flatten(w)

        def value(flat):
            net = denoiser(functools.partial(apply, jax.tree.unflatten(structure, flat)))
            out = js.loop(
                net, VP, js.grids.default(VP, STEPS), js.solvers.dpmpp_2m, jnp.asarray(X, jnp.float64)
            )
            return float(jnp.mean((out - 0.3) ** 2) + jnp.mean(out**3))

        random = np.random.default_rng(0)
        directions = [[random.standard_normal(a.shape) for a in flat] for _ in range(3)]
        bumped = lambda d, h: value([a + h * b for a, b in zip(flat, d, strict=True)])
        return value(flat), [(d, (bumped(d, 1e-5) - bumped(d, -1e-5)) / 2e-5) for d in directions]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda f: f.__name__)
def test_the_gradient_of_a_loss_on_samples_reaches_the_weights(recipe):
    """It equals finite differences of an independent sampler along three directions that touch every
    weight.
    """
    want, slopes = reference()
    jax.clear_caches()  # a recipe may make the network of the one before
    Trace.count = 0
    value, gradient = recipe(weights())
    assert Trace.count == 1
    np.testing.assert_allclose(value, want, rtol=1e-5)
    for direction, slope in slopes:
        along = sum(
            (np.asarray(g) * d).sum() for g, d in zip(jax.tree.leaves(gradient), direction, strict=True)
        )
        np.testing.assert_allclose(along, slope, rtol=2e-4)


@pytest.mark.parametrize(
    "net",
    [
        lambda scale: jax.tree_util.Partial(apply, jax.tree.map(lambda a: scale * a, weights())),
        lambda scale: nnx_net(jax.tree.map(lambda a: scale * a, weights())),
    ],
    ids=["params", "nnx"],
)
def test_new_weights_do_not_recompile(net):
    """A denoiser whose leaves are arrays is an argument of plain jax.jit; NNX modules and
    jax.tree_util.Partial make one.
    """
    run = jax.jit(loss)
    Trace.count = 0
    values = [float(run(denoiser(net(scale)))) for scale in (1.0, 0.5)]
    assert Trace.count == 1
    np.testing.assert_allclose(values[0], reference()[0], rtol=1e-5)
    assert abs(values[0] - values[1]) > 1e-3


def test_conditioning_bound_by_partial_is_differentiable():
    """Nested partials and keywords too; a partial that is not a pytree would hide them and give no gradient,
    silently.
    """

    def net(params, x, t, shift, *, scale):
        return scale * apply(params, x, t) + shift

    def bound(shift, scale):
        return functools.partial(
            functools.partial(lambda p, s, x, t, scale: net(p, x, t, s, scale=scale), weights()),
            shift,
            scale=scale,
        )

    shift, scale = jnp.full((4, 2), 0.1, jnp.float32), jnp.float32(0.8)
    slope = eqx.filter_grad(loss)(denoiser(bound(shift, scale))).net
    want = jax.grad(lambda c: loss(denoiser(lambda x, t: net(weights(), x, t, c[0], scale=c[1]))))(
        (shift, scale)
    )
    np.testing.assert_allclose(slope.args[1], want[0], rtol=1e-5)  # nested partials are one
    np.testing.assert_allclose(slope.keywords["scale"], want[1], rtol=1e-5)
    assert float(jnp.abs(want[0]).min()) > 1e-4


def test_gradients_reach_the_weights_of_a_stochastic_sample_too():
    """The same noise in both: the key is an argument, not a state."""
    solver = js.solvers.dpmpp_2m_sde
    want = jax.grad(lambda p: loss(denoiser(lambda x, t: apply(p, x, t)), solver, steps=7))(weights())
    got = nnx.grad(lambda net: loss(denoiser(net), solver, steps=7))(nnx_net(weights()))
    chex.assert_trees_all_close(nnx_weights(got), want, rtol=1e-4, atol=1e-6)
    ode = jax.grad(lambda p: loss(denoiser(lambda x, t: apply(p, x, t)), steps=7))(weights())
    assert float(jnp.abs(want["out"][0] - ode["out"][0]).max()) > 1e-2
