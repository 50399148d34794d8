"""Closed-form denoisers: exact predictions of known data distributions, for tests, demonstrations and solver studies."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .numerics import cast
from .paths import Path
from .predictions import Denoiser


class _Mixture(eqx.Module):
    """E[x_0 | x_t] of sum_k w_k N(means_k, stds_k^2 I) on a path."""

    means: Float[Array, "k d"]
    stds: Float[Array, " k"]
    weights: Float[Array, " k"]
    path: Path

    def __call__(self, x: Float[Array, "*batch d"], t: Any) -> Float[Array, "*batch d"]:
        if x.ndim > 1:
            return jax.vmap(lambda y: self(y, t))(x)
        y = self.path.centred(x)
        means = jax.vmap(self.path.centred)(self.means.astype(x.dtype))
        stds, weights = self.stds.astype(x.dtype), self.weights.astype(x.dtype)
        alpha, sigma = cast(self.path.alpha(t), x), cast(self.path.sigma(t), x)
        var = alpha**2 * stds**2 + sigma**2
        away = y[None, :] - alpha * means
        logits = jnp.log(weights) - (away**2).sum(1) / (2 * var) - x.shape[-1] / 2 * jnp.log(var)
        data = means + (alpha * stds**2 / var)[:, None] * away
        return self.path.uncentred(jax.nn.softmax(logits) @ data)


def gaussian_mixture(means: Any, stds: Any, path: Path, weights: Any = None) -> Denoiser:
    """The exact denoiser of a mixture of isotropic Gaussians: means [k, d], stds a number or [k], weights [k] (equal by default).

    States are vectors [d] or batches [..., d].
    """
    means = jnp.atleast_2d(jnp.asarray(means, float))
    k = means.shape[0]
    for name, value in (("stds", stds), ("weights", weights)):
        if value is not None and jnp.shape(value) not in ((k,), () if name == "stds" else (k,)):
            raise ValueError(f"{name} must have one entry for each of the {k} means; got shape {jnp.shape(value)}")
    stds = jnp.broadcast_to(jnp.asarray(stds, means.dtype), (k,))
    weights = jnp.full((k,), 1 / k, means.dtype) if weights is None else jnp.asarray(weights, means.dtype)
    return Denoiser(_Mixture(means, stds, weights / weights.sum(), path), path, "data")
