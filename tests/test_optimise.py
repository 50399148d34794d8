"""`descend` is the plain loop of an optimiser's updates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsampler.optimise import descend


def test_gradient_descent_on_a_quadratic_is_a_geometric_series():
    """x - 0.1 * 2 (x - 3) shrinks the distance to 3 by 0.8; the values are those before each step."""
    end, values = descend(lambda x: ((x["a"] - 3.0) ** 2).sum(), {"a": jnp.array([4.0, 1.0])}, optax.sgd(0.1), 5)
    np.testing.assert_allclose(end["a"], 3 + np.array([1.0, -2.0]) * 0.8**5, rtol=1e-6)
    np.testing.assert_allclose(values, 5 * 0.64 ** np.arange(5), rtol=1e-5)


def test_stateful_optimisers_keep_their_state():
    x, opt = jnp.array(2.0), optax.adam(0.1)
    state, by_hand = opt.init(x), x
    for _ in range(4):
        with jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
            update, state = opt.update(2 * by_hand, state)
        by_hand = by_hand + update
    end, _ = descend(lambda x: x**2, x, opt, 4)
    np.testing.assert_allclose(end, by_hand, rtol=1e-6)
