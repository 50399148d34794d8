"""Convolutions in loops: the values and derivatives of plain ones, in the layout that CPUs run fast."""

import re

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import jaxsampler as js
from jaxsampler.convolutions import VARIABLE, fast

NCHW, NHWC = ("NCHW", "OIHW", "NCHW"), ("NHWC", "HWIO", "NHWC")
MIXED = ("CHWN", "IHWO", "NHWC")


def conv(lhs, rhs, **options):
    options = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": NCHW} | options
    return jax.lax.conv_general_dilated(lhs, rhs, **options)


def arrays(*shapes):
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [jax.random.normal(k, shape) for k, shape in zip(keys, shapes, strict=True)]


CASES = {
    "nchw": (conv, (2, 3, 8, 7), (4, 3, 3, 2)),
    "nhwc": (lambda l, r: conv(l, r, dimension_numbers=NHWC), (2, 8, 7, 3), (3, 2, 3, 4)),
    "mixed": (
        lambda l, r: conv(l, r, dimension_numbers=("CHWN", "IHWO", "NHWC")),
        (3, 8, 7, 2),
        (3, 3, 2, 4),
    ),
    "strides": (lambda l, r: conv(l, r, window_strides=(2, 3)), (2, 3, 8, 7), (4, 3, 3, 2)),
    "dilated kernel": (lambda l, r: conv(l, r, rhs_dilation=(2, 1)), (2, 3, 8, 7), (4, 3, 3, 2)),
    "transposed": (
        lambda l, r: conv(l, r, lhs_dilation=(2, 2), padding=((1, 2), (2, 2))),
        (2, 3, 5, 4),
        (4, 3, 3, 3),
    ),
    "groups": (lambda l, r: conv(l, r, feature_group_count=2), (2, 4, 6, 5), (6, 2, 3, 3)),
    "depthwise": (lambda l, r: conv(l, r, feature_group_count=4), (2, 4, 6, 5), (8, 1, 3, 3)),
    "batch groups": (lambda l, r: conv(l, r, batch_group_count=2), (4, 3, 6, 5), (4, 3, 3, 3)),
    "padding": (lambda l, r: conv(l, r, padding=((3, 0), (-1, 2))), (2, 3, 8, 7), (4, 3, 3, 2)),
    "one axis": (
        lambda l, r: conv(l, r, window_strides=(1,), dimension_numbers=("NCH", "OIH", "NCH")),
        (2, 3, 9),
        (4, 3, 3),
    ),
    "three axes": (
        lambda l, r: conv(l, r, window_strides=(1, 1, 2), dimension_numbers=None),
        (1, 2, 4, 5, 6),
        (3, 2, 2, 3, 2),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_same_convolution(name):
    """Values, gradients, derivatives along a tangent, second derivatives, and batches of either argument."""
    f, *shapes = CASES[name]
    lhs, rhs, dl, dr = arrays(*shapes, *shapes)

    def everything(f):
        loss = lambda l, r: jnp.sin(f(l, r)).sum()
        slope = jax.grad(loss, argnums=(0, 1))
        return (
            f(lhs, rhs),
            slope(lhs, rhs),
            jax.jvp(f, (lhs, rhs), (dl, dr)),
            jax.jvp(slope, (lhs, rhs), (dl, dr)),
            [
                jax.grad(lambda l, r, axes=axes: jnp.sin(jax.vmap(f, axes)(l, r)).sum(), (0, 1))(l, r)
                for axes, l, r in (
                    ((0, None), jnp.stack([lhs, dl]), rhs),
                    ((None, 0), lhs, jnp.stack([rhs, dr])),
                    ((1, 1), jnp.stack([lhs, dl], 1), jnp.stack([rhs, dr], 1)),
                )
            ],
        )

    plain, ours = jax.jit(lambda: everything(f))(), jax.jit(lambda: everything(fast(f)))()
    scale = max(float(jnp.abs(a).max()) for a in jax.tree.leaves(plain))
    chex.assert_trees_all_close(ours, plain, atol=2e-6 * scale, rtol=2e-5)


TRACED = []


class Net(eqx.Module):
    """As equinox users write it: channels first, one image, vmap. With what networks are made of."""

    first: eqx.nn.Conv2d
    last: eqx.nn.ConvTranspose2d

    def __init__(self, key):
        k = jax.random.split(key)
        self.first = eqx.nn.Conv2d(3, 8, 3, padding=1, key=k[0])
        self.last = eqx.nn.ConvTranspose2d(8, 3, 3, padding=1, key=k[1])

    def __call__(self, x, t):
        TRACED.append(self)
        inner = jax.checkpoint(jax.jit(lambda x: jax.nn.relu(jax.nn.silu(self.first(x)))))
        h = jax.vmap(inner)(x)
        h = jax.lax.cond(t > 0.5, lambda h: h, lambda h: 0.5 * h, h)
        return jax.vmap(self.last)(jax.lax.scan(lambda h, _: (h + 0.1 * h, None), h, None, length=2)[0])


def gradient(net, x, adjoint):
    def loss(net, x):
        denoiser = js.Denoiser(net, js.VP(), "noise")
        return (js.sample(denoiser, x, x=x, key=None, steps=4, adjoint=adjoint) ** 2).sum()

    return eqx.filter_jit(lambda net, x: eqx.filter_value_and_grad(loss)(net, x))


ADJOINTS = [js.Direct(), js.RecursiveCheckpoint(), js.LastK(2), js.AdjointDPM()]


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=lambda a: type(a).__name__)
def test_a_network_is_traced_once_and_its_gradient_is_the_same(adjoint, monkeypatch):
    net, (x,) = Net(jax.random.key(1)), arrays((2, 3, 8, 8))
    ours = gradient(net, x, adjoint)(net, x)
    monkeypatch.setenv(VARIABLE, "plain")
    plain = gradient(net, x, adjoint)(net, x)
    chex.assert_trees_all_close(ours, plain, rtol=1e-4, atol=1e-4)

    for how in ("plain", "fast"):
        monkeypatch.setenv(VARIABLE, how)
        TRACED.clear()
        eqx.filter_eval_shape(gradient(net, x, adjoint), net, x)
        assert len(TRACED) == (2 if isinstance(adjoint, js.AdjointDPM) else 1), how


def layouts(function, *args):
    text = jax.jit(function).lower(*args).compile().as_text()
    return re.findall(r"dim_labels=(\S+?)[,\s]", text)


def test_every_convolution_of_a_loop_has_the_fast_layout(monkeypatch):
    """Forward and backward, in the optimised program: otherwise they run naively."""
    net, (x,) = Net(jax.random.key(1)), arrays((2, 3, 8, 8))
    sample = lambda x: js.sample(js.Denoiser(net, js.VP(), "noise"), x, x=x, key=None, steps=4)
    slope = jax.grad(lambda x: sample(x).sum())
    for f in (sample, slope):
        found = layouts(f, x)
        assert found
        assert set(found) == {"b01f_01io->b01f"}
    monkeypatch.setenv(VARIABLE, "plain")
    assert set(layouts(lambda x: sample(x), x)) != {"b01f_01io->b01f"}


def test_nothing_else_changes(monkeypatch):
    """Programs for accelerators, and convolutions outside our loops, are those of JAX."""
    net, (x,) = Net(jax.random.key(1)), arrays((2, 3, 8, 8))
    sample = lambda x: js.sample(js.Denoiser(net, js.VP(), "noise"), x, x=x, key=None, steps=4)

    def labels(f, platform):
        text = jax.jit(lambda x: f(x)).trace(x).lower(lowering_platforms=(platform,)).as_text()
        return re.findall(r"stablehlo.convolution.* dim_numbers = (.*?->.*?\])", text)

    ours = labels(sample, "cuda"), labels(lambda x: net(x, 0.3), "cpu")
    monkeypatch.setenv(VARIABLE, "plain")
    jax.clear_caches()
    assert ours == (labels(sample, "cuda"), labels(lambda x: net(x, 0.3), "cpu"))
    assert all(ours)
    monkeypatch.setenv(VARIABLE, "fats")
    with pytest.raises(ValueError, match="valid: fast"):
        sample(x)


def test_under_shard_map():
    """The mapped axes of a sharded state are kept."""
    mesh = jax.make_mesh((1,), ("b",), axis_types=(jax.sharding.AxisType.Auto,))
    net, (x,) = Net(jax.random.key(1)), arrays((2, 3, 8, 8))
    sample = lambda x: js.sample(js.Denoiser(net, js.VP(), "noise"), x, x=x, key=None, steps=3)
    slope = jax.grad(lambda x: sample(x).sum())
    spec = PartitionSpec("b")
    for f in (sample, slope):
        mapped = jax.jit(jax.shard_map(f, mesh=mesh, in_specs=spec, out_specs=spec))
        np.testing.assert_allclose(mapped(x), f(x), rtol=1e-4, atol=1e-4)


def test_it_also_works_outside_jit():
    f, *shapes = CASES["nchw"]
    lhs, rhs = arrays(*shapes)
    np.testing.assert_allclose(fast(f)(lhs, rhs), f(lhs, rhs), rtol=1e-5, atol=1e-5)
    with jax.disable_jit():
        np.testing.assert_allclose(fast(f)(lhs, rhs), f(lhs, rhs), rtol=1e-5, atol=1e-5)
