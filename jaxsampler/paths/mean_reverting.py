r"""The mean-reverting path: images drift to their degraded version mu; y = (x - mu)/std preserves variance.

bar = -log alpha is kept at the training indices and interpolated linearly in t, as in `discrete_vp`: the
exact process with a rate that is constant between indices.

References: Luo et al. 2023 (IR-SDE); Li et al. 2025 (MR Sampler).
"""

import functools
import math
from typing import ClassVar

import equinox as eqx
import numpy as np

from ..numerics import State, Time, interpolate, namespace, segment_slope
from .base import Path, divide


class MeanReverting(Path):
    r"""dx = f (mu - x) dt + g dw with g^2 = 2 std^2 f: x drifts to mu [Luo et al. 2023, IR-SDE].

    With bar(t) = int_0^t f:  alpha = exp(-bar), sigma = std sqrt(1 - alpha^2). Hence y = (x - mu)/std is a
    variance-preserving path: MR Sampler is the exponential-integrator family on this one. t is the index of
    the original tables, real in [0, T]; bar is interpolated linearly, which is the exact process with
    piecewise constant f.

    Args:
        mu: the mean, a pytree like x (the only leaf).
        std: stationary standard deviation in units of x.
        schedule: "cosine", "linear" or "constant".
        T: last index.
        eps: alpha(T).
        variant: "mrs" keeps theta_0, so t = 0 is very slightly noisy; "irsde" drops it, so alpha(0) = 1.

    Example:
        >>> path = js.MeanReverting(jnp.array([3.0]), std=0.5, T=10)
        >>> print(path.perturb(jnp.array([1.0]), 10.0, jnp.array([0.0])))  # mu + alpha(T) (x_0 - mu)
        [2.99]
        >>> path
        MeanReverting(mu=f32[1], std=0.5, T=10)
    """

    mu: State
    std: float = eqx.field(static=True, converter=float, default=50 / 255)
    schedule: str = eqx.field(static=True, default="cosine")
    T: int = eqx.field(static=True, default=100)
    eps: float = eqx.field(static=True, converter=float, default=0.005)
    variant: str = eqx.field(static=True, default="mrs")

    def __check_init__(self):
        if self.schedule not in ("cosine", "linear", "constant"):
            raise ValueError(f"unknown schedule {self.schedule!r}; valid: cosine, linear, constant")
        if self.variant not in ("mrs", "irsde"):
            raise ValueError(f"unknown variant {self.variant!r}; valid: mrs, irsde")
        if not (self.std > 0 and 0 < self.eps < 1 and self.T >= 2):
            raise ValueError(
                f"need std > 0, 0 < eps < 1, T >= 2; got std={self.std}, eps={self.eps}, T={self.T}"
            )

    t_min: ClassVar[float] = 0.0

    @property
    def t_max(self):
        return float(self.T)

    @property
    def knots(self):
        return self._table[0]

    @property
    def _table(self):
        return mean_reverting_table(self.schedule, self.T, self.eps, self.variant)

    def bar(self, t: Time) -> Time:
        """Accumulated mean reversion int_0^t f."""
        return interpolate(t, *self._table)

    def rate(self, t: Time) -> Time:
        """f(t), constant on (i-1, i]."""
        return segment_slope(t, *self._table)

    def alpha(self, t):
        return namespace(t).exp(-self.bar(t))

    def sigma(self, t):
        xp = namespace(t)
        return self.std * xp.sqrt(-xp.expm1(-2 * self.bar(t)))

    def alpha_dot(self, t):
        return -self.rate(t) * self.alpha(t)

    def sigma_dot(self, t):  # sigma^2 = std^2 (1 - alpha^2)
        return divide(self.std**2 * self.rate(t) * self.alpha(t) ** 2, self.sigma(t))

    def time(self, lam):
        bar = 0.5 * namespace(lam).logaddexp(0.0, -2 * lam - 2 * math.log(self.std))
        knots, bars = self._table
        return interpolate(bar, bars, knots)

    @property
    def centre(self):
        return self.mu

    def form(self, kind, t):
        if kind == "v":  # in the units of x: v = alpha std eps - (sigma/std)(x_0 - mu)
            return -self.sigma(t) / self.std, self.alpha(t) * self.std
        return super().form(kind, t)

    @property
    def prior_std(self):
        return self.std

    def prior_std_at(self, t):  # the stationary one
        return self.std


@functools.lru_cache(maxsize=32)
def mean_reverting_table(schedule: str, T: int, eps: float, variant: str) -> tuple[np.ndarray, np.ndarray]:
    """(index, bar) of the released tables: bar_i = dt ((theta_0 +) theta_1 + ..+ theta_i), alpha(T) = eps."""
    if schedule == "cosine":
        n = T + 2
        a = np.cos((np.arange(n + 1) / n + 0.008) / 1.008 * math.pi / 2) ** 2
        theta = 1 - a[1 : T + 2] / a[0]
    elif schedule == "linear":
        scale = 1000 / (T + 1)
        theta = np.linspace(1e-4 * scale, 2e-2 * scale, T + 1)
    else:
        theta = np.ones(T + 1)
    total = np.cumsum(theta) if variant == "mrs" else np.cumsum(theta) - theta[0]
    return np.arange(T + 1.0), total * (-math.log(eps) / total[-1])
