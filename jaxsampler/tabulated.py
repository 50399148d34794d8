r"""Paths whose schedule is the table of a discrete-time process, made continuous: `DiscreteVP` and `MeanReverting`.

Both keep bar = -log alpha at the training indices and interpolate it linearly in t. That is the exact continuous process with a rate
that is constant between indices, so alpha, sigma and lam agree everywhere; interpolating each of them by itself, as published
codes do, is no process at all. Rates jump at the indices; there the left derivative is used, the one that a step towards data meets.

References: Ho et al. 2020, Lu et al. 2022 (discrete VP); Luo et al. 2023 (IR-SDE), Li et al. 2025 (MR Sampler).
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .discrete import label
from .numerics import Real, namespace
from .paths import Path, VariancePreserving, divide


def interpolate(t: Any, knots: Any, values: Any) -> Any:
    """Piecewise linear interpolation, constant outside the knots, in the namespace and dtype of t."""
    if namespace(t) is jnp:
        return jnp.interp(t, jnp.asarray(knots, t.dtype), jnp.asarray(values, t.dtype))
    return np.interp(t, knots, values)


def _segment_slope(t: Any, knots: Any, values: Any) -> Any:
    """Slope of the linear segment that ends at or contains t (the left derivative at a knot)."""
    xp = namespace(t)
    slopes = np.diff(values) / np.diff(knots)
    if xp is jnp:
        knots, slopes = jnp.asarray(knots, t.dtype), jnp.asarray(slopes, t.dtype)
    i = xp.clip(xp.searchsorted(knots, t, side="left") - 1, 0, len(slopes) - 1)
    return xp.asarray(slopes)[i]


class DiscreteVP(VariancePreserving):
    r"""A discrete-time schedule of N noise levels made continuous: knots t_n = (n+1)/N, log alpha linear in between, alpha(0) = 1.

    Between knots this is the convention of DPM-Solver [Lu et al. 2022, app. D]. Networks trained with it take the index n, or some other
    label: `js.discrete(net, path, kind)` makes the Denoiser.
    """

    alphas_cumprod: tuple[float, ...] = eqx.field(static=True, converter=lambda a: tuple(float(v) for v in a))

    def __check_init__(self):
        a = np.asarray(self.alphas_cumprod)
        if a.ndim != 1 or len(a) < 2 or not np.all(np.diff(a) < 0) or a[0] >= 1 or a[-1] < 0:
            raise ValueError("alphas_cumprod must fall strictly from below 1 towards 0 (the running product of 1 - beta)")

    @staticmethod
    def from_betas(betas: Sequence[float] | np.ndarray) -> "DiscreteVP":
        """From the betas of the forward steps."""
        return DiscreteVP(np.cumprod(1 - np.asarray(betas, np.float64)))

    @staticmethod
    def linear(T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> "DiscreteVP":
        """beta linear in the index [Ho et al. 2020]."""
        return DiscreteVP.from_betas(np.linspace(beta_start, beta_end, T))

    @staticmethod
    def scaled_linear(T: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> "DiscreteVP":
        """sqrt(beta) linear in the index, as Stable Diffusion uses [Rombach et al. 2022]."""
        return DiscreteVP.from_betas(np.linspace(beta_start**0.5, beta_end**0.5, T) ** 2)

    @staticmethod
    def cosine(T: int = 1000, max_beta: float = 0.999, s: float = 0.008) -> "DiscreteVP":
        """alpha^2 = cos^2(pi/2 (t+s)/(1+s)) at t = n/T, with betas clipped at max_beta [Nichol & Dhariwal 2021, eq. 17]."""
        alpha = np.cos((np.arange(T + 1) / T + s) / (1 + s) * math.pi / 2)
        return DiscreteVP.from_betas(np.minimum(1 - (alpha[1:] / alpha[:-1]) ** 2, max_beta))

    def zero_terminal_snr(self) -> "DiscreteVP":
        """The schedule with alpha shifted and scaled so that the last level is pure noise, the first as it was [Lin et al. 2024, alg. 1].

        Noise predictions say nothing there (the network must predict "v" or "data"), and the grid must start at it (`grids.trailing`).
        """
        alpha = np.sqrt(self.alphas_cumprod)
        return DiscreteVP(((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2)

    def clipped(self, lam_min: Real = -5.1) -> "DiscreteVP":
        """The levels with lam >= lam_min, as DPM-Solver's code keeps of cosine schedules [Lu et al. 2022, released code].

        The N' levels that remain have t = (n+1)/N', so t = 1 is the last of them and `network_time` still their training index. The
        released code keeps 1000 labels per unit of t (`scale=1000`), which tells the network of a wrong index once levels are dropped.
        """
        kept = np.asarray(self.alphas_cumprod)
        return DiscreteVP(kept[kept / (1 - kept) >= math.exp(2 * lam_min)])

    @property
    def t_min(self):
        return 1 / len(self.alphas_cumprod)

    @property
    def knots(self):
        return self._table[0]

    @property
    def _table(self):
        return _discrete_table(self.alphas_cumprod)

    def network_time(self, t: Any, convention: str = "index", scale: Real | None = None) -> Any:
        """The label of time t for a discrete-time network: N t - 1 by default, 0 at the first level and below; see `js.discrete`."""
        return label(t, convention, len(self.alphas_cumprod), scale)

    def log_alpha(self, t):
        return -interpolate(t, *self._table)

    def alpha_dot(self, t):
        return -self.alpha(t) * _segment_slope(t, *self._table)

    def sigma_dot(self, t):  # d sigma^2 = -d alpha^2
        return divide(-self.alpha(t) * self.alpha_dot(t), self.sigma(t))

    def time(self, lam):
        knots, bars = self._table
        return interpolate(namespace(lam).logaddexp(0.0, -2 * lam) / 2, bars, knots)


@functools.lru_cache(maxsize=32)
def _discrete_table(alphas_cumprod):
    """(t, -log alpha) at t = 0 and at the N training indices."""
    n = len(alphas_cumprod)
    with np.errstate(divide="ignore"):  # a zero-terminal-SNR schedule ends at alpha = 0
        bar = -0.5 * np.log(np.asarray(alphas_cumprod))
    if np.isinf(bar[-1]):
        bar[-1] = 800.0  # finite, so that it interpolates, and exp(-800) is 0 in float64
    return np.arange(n + 1) / n, np.concatenate([[0.0], bar])


class MeanReverting(Path):
    r"""dx = f (mu - x) dt + g dw with g^2 = 2 std^2 f: images drift to their degraded version mu [Luo et al. 2023, IR-SDE].

    With bar(t) = int_0^t f:  alpha = exp(-bar), sigma = std sqrt(1 - alpha^2). Hence y = (x - mu)/std is a variance-preserving
    path: MR Sampler is the exponential-integrator family on this one. t is the index of the original tables, real in [0, T];
    bar is interpolated linearly, which is the exact process with piecewise constant f.

    mu: the mean, a pytree like x (the only leaf). std: stationary standard deviation in units of x. schedule: "cosine", "linear"
    or "constant". eps: alpha(T). variant: "mrs" keeps theta_0 (t = 0 is very slightly noisy), "irsde" drops it (alpha(0) = 1).
    """

    mu: PyTree
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
            raise ValueError(f"need std > 0, 0 < eps < 1, T >= 2; got std={self.std}, eps={self.eps}, T={self.T}")

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

    def bar(self, t: Any) -> Any:
        """Accumulated mean reversion int_0^t f."""
        return interpolate(t, *self._table)

    def rate(self, t: Any) -> Any:
        """f(t), constant on (i-1, i]."""
        return _segment_slope(t, *self._table)

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


@functools.lru_cache(maxsize=32)
def mean_reverting_table(schedule: str, T: int, eps: float, variant: str) -> tuple[np.ndarray, np.ndarray]:
    """(index, bar) of the released tables, bar_i = dt * (theta_0 +) theta_1 + .. + theta_i with dt set so that alpha(T) = eps."""
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
