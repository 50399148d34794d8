r"""Matching losses: regress what a network predicts on what was drawn.

With t ~ times and x_t = alpha x0 + sigma eps (plus what the path is centred on), the minimiser of E w |m(x_t, t) - target|^2 is the
conditional mean of the target, whatever the positive weight w(t) [Vincent 2011; Ho et al. 2020; Karras et al. 2022, section 5].
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxsampler.paths import Path


def matching(
    predict: Callable[[Float[Array, "n *dims"], Float[Array, " n"]], Float[Array, "n *dims"]],
    path: Path,
    x0: Float[Array, "n *dims"],
    t: Float[Array, " n"],
    key: PRNGKeyArray,
    *,
    weight: Callable[[Float[Array, " n"]], Float[Array, " n"]] | None = None,
    penalty: Callable[[Float[Array, "n *dims"]], Float[Array, "n *dims"]] = jnp.square,
) -> Float[Array, ""]:
    """Mean over the batch of penalty(w(t) (predict(x_t, t) - x0)), each sample at its own `t`.

    Data prediction: for a network of another kind pass its Denoiser asked for "data" and fold the conversion's factor into `weight`.
    `penalty` other than the square changes the minimiser away from the conditional mean.
    """
    eps = jax.random.normal(key, x0.shape, x0.dtype)
    wide = t.reshape(-1, *[1] * (x0.ndim - 1))
    error = predict(path.perturb(x0, wide, eps), t) - x0
    return penalty(error if weight is None else error * weight(t).reshape(wide.shape)).mean()


def charbonnier(width: float) -> Callable[[Float[Array, "*dims"]], Float[Array, "*dims"]]:
    """sqrt(e^2 + width^2) - width: a square for errors well below `width`, an absolute value well above [Charbonnier et al. 1994]."""
    return lambda e: jnp.sqrt(e * e + width**2) - width


def stratified(key: PRNGKeyArray, n: int, low: float, high: float) -> Float[Array, " n"]:
    """n times, each uniform on [low, high], together evenly spread: a batch always sees the whole range [Kingma et al. 2021, I.1]."""
    u = jax.random.uniform(key)
    return low + (high - low) * jnp.mod(u + jnp.arange(n, dtype=u.dtype) / n, 1.0)
