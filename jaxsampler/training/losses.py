r"""Matching losses: regress what a network predicts on what was drawn.

With x_t = mu + alpha (x0 - mu) + sigma eps at random times, the minimiser of E w(t)^2 |m(x_t, t) - x0|^2 is the conditional mean
E[x0 | x_t], whatever the weight [Vincent 2011; Ho et al. 2020; Karras et al. 2022, section 5].
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxsampler.paths import Path


def matching(
    predict: Callable[[Float[Array, "n ..."], Float[Array, " n"]], Float[Array, "n ..."]],
    path: Path,
    x0: Float[Array, "n ..."],
    t: Float[Array, " n"],
    key: PRNGKeyArray,
    *,
    weight: Callable[[Float[Array, " n"]], Float[Array, " n"]] | None = None,
) -> Float[Array, ""]:
    """Mean over the batch of (w(t) (predict(x_t, t) - x0))^2, each sample at its own `t`.

    `predict` gives data; another kind of prediction is a linear form in data and x_t, so its loss is this one with another `weight`.
    """
    eps = jax.random.normal(key, x0.shape, x0.dtype)
    wide = t.reshape(-1, *[1] * (x0.ndim - 1))
    error = predict(path.perturb(x0, wide, eps), t) - x0
    return jnp.square(error if weight is None else error * weight(t).reshape(wide.shape)).mean()


def stratified(key: PRNGKeyArray, n: int, low: float, high: float) -> Float[Array, " n"]:
    """n times, each uniform on [low, high], together evenly spread: a batch always sees the whole range [Kingma et al. 2021, I.1]."""
    u = jax.random.uniform(key)
    return low + (high - low) * jnp.mod(u + jnp.arange(n, dtype=u.dtype) / n, 1.0)
