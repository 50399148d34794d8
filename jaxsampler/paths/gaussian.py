r"""The Gaussian paths of continuous time, each with the exact inverse of its log-SNR.

References: Song et al. 2021 (VP, VE, sub-VP); Nichol & Dhariwal 2021 (cosine); Karras et al. 2022 (EDM);
Lipman et al. 2023 (CondOT).
"""

import math
from typing import ClassVar

import equinox as eqx

from ..numerics import namespace
from .base import Path, VariancePreserving


class VP(VariancePreserving):
    r"""Variance preserving, beta linear in t [Song et al. 2021].

    log alpha = -t^2 (beta_max - beta_min)/4 - t beta_min/2,  sigma^2 = 1 - alpha^2.

    Example:
        >>> path = js.VP(beta_min=0.1, beta_max=20.0)
        >>> round(float(path.alpha(0.5)), 4), round(float(path.time(path.lam(0.5))), 12)
        (0.2812, 0.5)
    """

    beta_min: float = eqx.field(static=True, converter=float, default=0.1)
    beta_max: float = eqx.field(static=True, converter=float, default=20.0)

    def log_alpha(self, t):
        return -(t**2) * (self.beta_max - self.beta_min) / 4 - t * self.beta_min / 2

    def _time(self, log_alpha):
        root = namespace(log_alpha).sqrt(self.beta_min**2 - 4 * (self.beta_max - self.beta_min) * log_alpha)
        return -4 * log_alpha / (root + self.beta_min)

    def time(self, lam):
        return self._time(-namespace(lam).logaddexp(0.0, -2 * lam) / 2)


class SubVP(VP):
    r"""alpha of `VP`, sigma = 1 - alpha^2 [Song et al. 2021, eq. 13]; alpha^2 + sigma^2 is not 1.

    Example:
        >>> path = js.SubVP()
        >>> round(float(path.alpha(0.5) ** 2), 4), round(float(path.sigma(0.5)), 4)
        (0.0791, 0.9209)
    """

    def sigma(self, t):
        return -namespace(t).expm1(2 * self.log_alpha(t))

    def time(self, lam):  # e^lam = alpha/(1 - alpha^2)  <=>  -log alpha = asinh(e^{-lam}/2)
        xp = namespace(lam)
        return self._time(-xp.arcsinh(xp.exp(-lam) / 2))


class CosineVP(VariancePreserving):
    r"""alpha = cos(pi/2 (t+s)/(1+s)) / cos(pi/2 s/(1+s)) [Nichol & Dhariwal 2021].

    t_max = 0.9946, before the singular end.

    Example:
        >>> path = js.CosineVP()
        >>> [round(float(path.alpha(t)), 4) for t in (0.0, 0.5, path.t_max)]
        [1.0, 0.7027, 0.0084]
    """

    t_max: ClassVar[float] = 0.9946
    s: float = eqx.field(static=True, converter=float, default=0.008)

    @property
    def _phase(self):
        return math.pi / 2 * self.s / (1 + self.s)

    def log_alpha(self, t):
        # log(cos(c+d)/cos c) = log1p(-2 sin(c + d/2) sin(d/2)/cos c): no cancellation as t -> 0
        xp, d = namespace(t), math.pi / 2 / (1 + self.s) * t
        return xp.log1p(-2 * xp.sin(self._phase + d / 2) * xp.sin(d / 2) / math.cos(self._phase))

    def time(self, lam):
        # cos(p + d) = alpha cos p, so sin d = sigma^2 cos p/(sin(p + d) + alpha sin p): no cancellation at 0
        xp, c, s = namespace(lam), math.cos(self._phase), math.sin(self._phase)
        alpha, sigma2 = xp.exp(-xp.logaddexp(0.0, -2 * lam) / 2), xp.exp(-xp.logaddexp(0.0, 2 * lam))
        sin = xp.sqrt(s**2 + c**2 * sigma2)  # sin(p + d)
        return xp.arctan2(c * sigma2 / (sin + s * alpha), c**2 * alpha + s * sin) * 2 * (1 + self.s) / math.pi


class VE(Path):
    r"""Variance exploding: alpha = 1, sigma = sigma_min (sigma_max/sigma_min)^t [Song et al. 2021].

    Example:
        >>> path = js.VE(sigma_min=0.01, sigma_max=100.0)
        >>> round(float(path.sigma(0.5)), 6), round(path.prior_std, 6)
        (1.0, 100.0)
    """

    t_min: ClassVar[float] = 1e-5
    sigma_min: float = eqx.field(static=True, converter=float, default=0.01)
    sigma_max: float = eqx.field(static=True, converter=float, default=50.0)

    def alpha(self, t):
        return 1.0 + 0.0 * t

    def sigma(self, t):
        return self.sigma_min * namespace(t).exp(t * math.log(self.sigma_max / self.sigma_min))

    def time(self, lam):
        return (-lam - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)


class EDM(Path):
    r"""alpha = 1, sigma = t: time is the noise level [Karras et al. 2022].

    Data are assumed to have standard deviation 0.5.

    Example:
        >>> path = js.EDM(sigma_max=80.0)
        >>> float(path.sigma(3.0)), path.t_max, path.prior_std
        (3.0, 80.0, 80.0)
    """

    sigma_min: float = eqx.field(static=True, converter=float, default=0.002)
    sigma_max: float = eqx.field(static=True, converter=float, default=80.0)

    @property
    def t_min(self):
        return self.sigma_min

    @property
    def t_max(self):
        return self.sigma_max

    def alpha(self, t):
        return 1.0 + 0.0 * t

    def sigma(self, t):
        return 1.0 * t

    def time(self, lam):
        return namespace(lam).exp(-lam)


class CondOT(Path):
    r"""x_t = (1-t) x_0 + t eps: rectified flow [Lipman et al. 2023, eq. 22, sigma_min = 0, time reversed].

    Example:
        >>> path = js.CondOT()
        >>> x = path.perturb(jnp.ones(2), 0.25, jnp.array([0.0, 4.0]))
        >>> x.tolist(), float(path.alpha_dot(0.25)), float(path.sigma_dot(0.25))
        ([0.75, 1.75], -1.0, 1.0)
    """

    def alpha(self, t):
        return 1 - t

    def sigma(self, t):
        return 1.0 * t

    def time(self, lam):
        xp = namespace(lam)
        return xp.exp(-xp.logaddexp(0.0, lam))
