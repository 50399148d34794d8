r"""At which times a network is trained: a distribution is its quantile function q, t = q(u) with u uniform.

Evenly spread u (`losses.stratified`) then give evenly spread t, whatever the distribution. Times are those of
this package, t = 1 is noise; `q` maps [0, 1] to [0, 1] and is scaled by the path's t_max. The exception is
`log_normal`, whose values are noise levels rho = sigma/alpha that the path turns into times. A distribution
is any `f(path, u) -> t`.

References: logit-normal and mode [Esser et al. 2024, SD3, section 3.1]; U-shape [Lee et al. 2024, eq. 13];
shift [SD3, section 5.3.2]; log-normal noise levels [Karras et al. 2022, table 1]. The second and third are
symmetric or given with t = 1 for noise, as here.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..paths import Path

U = Float[Array, " n"]
Times = Callable[[Path, U], U]
TINY = 1e-6  # u = 0 and u = 1 are infinite quantiles


def scaled(q: Callable[[U], U]) -> Times:
    """Scale a quantile function to the path: t = t_max q(u).

    Example:
        >>> times = js.training.times.scaled(lambda u: u**2)
        >>> times(js.EDM(), jnp.array([0.5, 1.0])).tolist()
        [20.0, 80.0]
    """
    return lambda path, u: path.t_max * q(u)


def uniform(low: float = 0.0, high: float = 1.0) -> Times:
    """Uniform on [low, high] t_max.

    Example:
        >>> times = js.training.times.uniform(0.2, 0.6)
        >>> print(times(js.CondOT(), jnp.array([0.0, 0.5, 1.0])))
        [0.2 0.4 0.6]
    """
    return scaled(lambda u: low + (high - low) * u)


def logit_normal(mean: float = 0.0, std: float = 1.0) -> Times:
    """logit t ~ N(mean, std^2): the middle counts most.

    Example:
        >>> times = js.training.times.logit_normal()
        >>> print(np.asarray(times(js.CondOT(), jnp.array([0.1, 0.5, 0.9]))).round(3))
        [0.217 0.5   0.783]
    """
    return scaled(lambda u: jax.nn.sigmoid(mean + std * gauss(u)))


def u_shaped(a: float = 4.0) -> Times:
    """Density a cosh(a (t - 1/2)) / (2 sinh(a/2)): the ends count most.

    Example:
        >>> times = js.training.times.u_shaped()
        >>> print(np.asarray(times(js.CondOT(), jnp.array([0.1, 0.5, 0.9]))).round(3))
        [0.053 0.5   0.947]
    """
    return scaled(lambda u: 0.5 + jnp.arcsinh((2 * u - 1) * jnp.sinh(a / 2)) / a)


def mode(s: float = 1.29) -> Times:
    """t = 1 - u - s (cos^2(pi u/2) - 1 + u): s > 0 favours the middle, s < 0 the ends.

    Raises:
        ValueError: s is not in [-1, 2/(pi - 2)], where the map is monotone.

    Example:
        >>> times = js.training.times.mode(1.0)
        >>> print(np.asarray(times(js.CondOT(), jnp.array([0.1, 0.5, 0.9]))).round(3))
        [0.824 0.5   0.176]
    """
    if not -1 <= s <= 1.7519383938841727:
        raise ValueError(f"mode is not monotone for s = {s}: choose s between -1 and 2/(pi - 2) = 1.75")
    return scaled(lambda u: 1 - u - s * (jnp.cos(jnp.pi * u / 2) ** 2 - 1 + u))


def shifted(times: Times, k: float) -> Times:
    """Shift t/t_max to k t / (1 + (k-1) t): logit t grows by log k; k > 1 is more noise, for larger images.

    Example:
        >>> times = js.training.times
        >>> print(times.shifted(times.uniform(), 3.0)(js.CondOT(), jnp.array([0.0, 0.5, 1.0])))
        [0.   0.75 1.  ]
    """

    def shift(path: Path, u: U) -> U:
        t = times(path, u) / path.t_max
        return path.t_max * k * t / (1 + (k - 1) * t)

    return shift


def log_normal(mean: float = -1.2, std: float = 1.2) -> Times:
    """log rho ~ N(mean, std^2), EDM's noise levels: the times at which a path has them.

    Example:
        >>> times = js.training.times.log_normal(mean=0.0)
        >>> print(np.asarray(times(js.CondOT(), jnp.array([0.5]))).round(3))  # rho = t/(1-t) = 1
        [0.5]
    """
    return lambda path, u: path.time(-(mean + std * gauss(u)))


def gauss(u: U) -> U:
    """The quantile function of N(0, 1), at most 4.75 in size.

    Example:
        >>> print(np.asarray(js.training.times.gauss(jnp.array([0.0, 0.5, 0.975]))).round(2))
        [-4.75  0.    1.96]
    """
    return jax.scipy.stats.norm.ppf(jnp.clip(u, TINY, 1 - TINY))
