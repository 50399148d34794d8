"""Draws written out element by element are JAX's, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsampler.threefry import elementwise


def every_draw(key):
    """Draws of every width and rank, of a key folded in."""
    key = jax.random.fold_in(key, 2**31)
    shapes = {(): jnp.float32, (3,): jnp.float64, (3, 2): jnp.bfloat16, (5, 7, 11): jnp.float32}
    normal = [jax.random.normal(key, shape, dtype) for shape, dtype in shapes.items()]
    return normal, jax.random.bits(key, (5, 7), jnp.uint8)


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey])
def test_draws_are_those_of_jax(make, x64):
    """Typed and legacy keys."""
    ours, theirs = jax.jit(lambda key: (every_draw(elementwise(key)), every_draw(key)))(make(7))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(np.asarray(a, np.float64), np.asarray(b, np.float64))


def test_keys_under_vmap_and_scan():
    """Folded in along an axis, and in a loop."""
    key = jax.random.key(1)
    draw = lambda key: jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), (4,)))(jnp.arange(3))
    np.testing.assert_array_equal(draw(elementwise(key)), draw(key))
    step = lambda key: lambda x, i: (x, jax.random.uniform(jax.random.fold_in(key, i), (4,)))
    loop = lambda key: jax.lax.scan(step(key), 0.0, jnp.arange(3))[1]
    np.testing.assert_array_equal(jax.jit(lambda key: loop(elementwise(key)))(key), loop(key))


def test_what_is_left_to_jax():
    """Other generators, and the layout of draws before jax_threefry_partitionable; twice is once."""
    assert elementwise(jax.random.key(0, impl="rbg")).dtype == jax.random.key(0, impl="rbg").dtype
    ours = elementwise(jax.random.key(0))
    assert ours.dtype != jax.random.key(0).dtype and elementwise(ours).dtype == ours.dtype
    with jax.threefry_partitionable(False):
        key = jax.random.key(0)
        assert elementwise(key) is key
