r"""At which times a network is trained: a distribution is its quantile function q, t = q(u) with u uniform.

Evenly spread u (`losses.stratified`) then give evenly spread t, whatever the distribution. Times are those of this package, t = 1 noise;
`q` maps [0, 1] to [0, 1] and is scaled by the path's t_max, except `log_normal`, whose values are noise levels rho = sigma/alpha that the
path turns into times. A distribution is any `f(path, u) -> t`.

References: logit-normal and mode [Esser et al. 2024, SD3, section 3.1]; U-shape [Lee et al. 2024, eq. 13]; shift [SD3, section 5.3.2];
log-normal noise levels [Karras et al. 2022, table 1]. The second and third are symmetric or given with t = 1 noise, as here.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..paths.base import Path

U = Float[Array, " n"]
Times = Callable[[Path, U], U]
TINY = 1e-6  # u = 0 and u = 1 are infinite quantiles


def scaled(q: Callable[[U], U]) -> Times:
    """t = t_max q(u)."""
    return lambda path, u: path.t_max * q(u)


def uniform(low: float = 0.0, high: float = 1.0) -> Times:
    """Uniform on [low, high] t_max."""
    return scaled(lambda u: low + (high - low) * u)


def logit_normal(mean: float = 0.0, std: float = 1.0) -> Times:
    """logit t ~ N(mean, std^2): the middle counts most."""
    return scaled(lambda u: jax.nn.sigmoid(mean + std * gauss(u)))


def u_shaped(a: float = 4.0) -> Times:
    """Density a cosh(a (t - 1/2)) / (2 sinh(a/2)): the ends count most; its distribution function inverts in closed form."""
    return scaled(lambda u: 0.5 + jnp.arcsinh((2 * u - 1) * jnp.sinh(a / 2)) / a)


def mode(s: float = 1.29) -> Times:
    """t = 1 - u - s (cos^2(pi u/2) - 1 + u): s > 0 favours the middle, s < 0 the ends; -1 <= s <= 2/(pi - 2) keeps it monotone."""
    if not -1 <= s <= 1.7519383938841727:
        raise ValueError(
            f"mode's s must be between -1 and 2/(pi - 2) = 1.75, where its map is monotone; got {s}"
        )
    return scaled(lambda u: 1 - u - s * (jnp.cos(jnp.pi * u / 2) ** 2 - 1 + u))


def shifted(times: Times, k: float) -> Times:
    """t -> k t / (1 + (k-1) t) of t/t_max: logit t grows by log k; k > 1 is more noise, for larger images."""

    def shift(path: Path, u: U) -> U:
        t = times(path, u) / path.t_max
        return path.t_max * k * t / (1 + (k - 1) * t)

    return shift


def log_normal(mean: float = -1.2, std: float = 1.2) -> Times:
    """log rho ~ N(mean, std^2), the noise level of EDM, at any path's time of that level."""
    return lambda path, u: path.time(-(mean + std * gauss(u)))


def gauss(u: U) -> U:
    """The quantile function of N(0, 1), 4.75 sigma at most."""
    return jax.scipy.stats.norm.ppf(jnp.clip(u, TINY, 1 - TINY))
