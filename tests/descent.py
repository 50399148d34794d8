"""Descend a loss by its gradients: the loop around a gradient through sampling, as one compiled scan."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree


def descend(
    loss: Callable[[PyTree], Any], start: PyTree, optimiser: Any, iterations: int
) -> tuple[PyTree, Float[Array, " iterations"]]:
    """(where `iterations` steps from `start` lead, the loss before each of them).

    loss: of one pytree of float arrays, such as x_T, a conditioning vector or weights; it chooses how
        gradients flow (`adjoint=`).
    optimiser: of optax, or anything with its `init` and `update`.
    """

    def step(carry, _):
        at, state = carry
        value, slope = jax.value_and_grad(loss)(at)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
            update, state = optimiser.update(slope, state, at)
        return (jax.tree.map(lambda a, u: a + u.astype(a.dtype), at, update), state), value

    (end, _), values = jax.lax.scan(
        step, (jax.tree.map(jnp.asarray, start), optimiser.init(start)), length=iterations
    )
    return end, values
