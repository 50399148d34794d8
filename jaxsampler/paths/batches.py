"""Networks of batches as networks of one sample."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ..numerics import State, Time
from .predictions import Denoiser


class PerSample(eqx.Module):
    """`net` called with one sample as a batch; see `per_sample`."""

    net: Callable

    def __call__(self, x: State, t: Time, *extra: PyTree) -> State:
        batch = jax.tree.map(lambda a: jnp.asarray(a)[None], x)
        return jax.tree.map(lambda a: a[0], self.net(batch, t, *extra))


def per_sample(net: Callable) -> Any:
    """Return a callable of one sample x, from a network of batches [n, *x.shape]; of a Denoiser, a Denoiser.

    `js.likelihood.log_prob`, `jax.vmap` over samples and divergences want one sample at a time. Under vmap
    the network sees batches of one. Its arrays remain leaves, so gradients reach them.

    Example:
        >>> net = lambda x, t: x / jnp.linalg.norm(x, axis=1, keepdims=True)  # x is [n, d]
        >>> js.per_sample(net)(jnp.array([3.0, 4.0]), 0.5).round(6).tolist()
        [0.6000000238418579, 0.800000011920929]
    """
    if isinstance(net, Denoiser):
        return Denoiser(PerSample(net.net), net.path, net.kind)
    return PerSample(net)
