r"""A discrete-time, variance-preserving schedule of N noise levels, made continuous.

bar = -log alpha is kept at the training indices and interpolated linearly in t. That is the exact continuous
process with a rate that is constant between indices, so alpha, sigma and lam agree everywhere; published
codes interpolate each of them by itself, which no process does. Rates jump at the indices. The left
derivative is used there, because a step towards data meets that one.

References: Ho et al. 2020; Lu et al. 2022.
"""

import functools
import math
from collections.abc import Sequence

import equinox as eqx
import numpy as np

from ..numerics import Arr, Real, Time, interpolate, namespace, segment_slope
from .base import VariancePreserving, divide
from .labels import label


class DiscreteVP(VariancePreserving):
    r"""A discrete-time schedule of N noise levels, made continuous: log alpha linear between t_n = (n+1)/N.

    alpha(0) = 1. Between knots this is the convention of DPM-Solver [Lu et al. 2022, app. D]. Networks
    trained on these levels take the index n, or another label: `js.discrete(net, path, kind)` makes the
    Denoiser.

    Args:
        alphas_cumprod: alpha^2 of the N levels, falling from below 1 (the running product of 1 - beta).

    Example:
        >>> path = js.DiscreteVP([0.9, 0.5, 0.1])
        >>> [round(float(path.alpha(t) ** 2), 3) for t in (0, 1 / 3, 0.5, 1)]
        [1.0, 0.9, 0.671, 0.1]
        >>> js.DiscreteVP.linear()
        DiscreteVP(1000 levels, alpha^2 0.9999 -> 0.077797 -> 4.0358e-05)
    """

    alphas_cumprod: tuple[float, ...] = eqx.field(static=True, converter=lambda a: tuple(float(v) for v in a))

    def __check_init__(self):
        a = np.asarray(self.alphas_cumprod)
        if a.ndim != 1 or len(a) < 2 or not np.all(np.diff(a) < 0) or a[0] >= 1 or a[-1] < 0:
            raise ValueError(
                "alphas_cumprod must fall strictly from below 1 towards 0 (the running product of 1 - beta)"
            )

    def __repr__(self) -> str:
        """Return the number of levels, and alpha^2 at the first, middle and last of them."""
        a = self.alphas_cumprod
        ends = " -> ".join(f"{v:.5g}" for v in (a[0], a[len(a) // 2], a[-1]))
        return f"{type(self).__name__}({len(a)} levels, alpha^2 {ends})"

    @staticmethod
    def from_betas(betas: Sequence[Real] | Arr) -> "DiscreteVP":
        """Make the schedule from the betas of the forward steps."""
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
        """alpha^2 = cos^2(pi/2 (t+s)/(1+s)) at t = n/T, beta <= max_beta [Nichol & Dhariwal 2021, eq. 17]."""
        alpha = np.cos((np.arange(T + 1) / T + s) / (1 + s) * math.pi / 2)
        return DiscreteVP.from_betas(np.minimum(1 - (alpha[1:] / alpha[:-1]) ** 2, max_beta))

    def zero_terminal_snr(self) -> "DiscreteVP":
        """Shift and scale alpha to make the last level pure noise [Lin et al. 2024, alg. 1]; the first stays.

        Noise predictions say nothing there: the network must predict "v" or "data", and the grid must start
        at that level (`grids.trailing`).
        """
        alpha = np.sqrt(self.alphas_cumprod)
        return DiscreteVP(((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2)

    def clipped(self, lam_min: Real = -5.1) -> "DiscreteVP":
        """Keep the levels with lam >= lam_min, as DPM-Solver's code does for cosine [Lu et al. 2022].

        The N' levels that remain have t = (n+1)/N', so t = 1 is the last of them and `network_time` is still
        their training index. The released code keeps 1000 labels per unit of t (`scale=1000`), which gives
        the network a wrong index once levels are dropped.
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

    def network_time(self, t: Time, convention: str = "index", scale: Real | None = None) -> Time:
        """Return the label of time t for a discrete-time network; see `js.discrete`.

        By default it is N t - 1, and 0 at the first level and below.
        """
        return label(t, convention, len(self.alphas_cumprod), scale)

    def log_alpha(self, t):
        return -interpolate(t, *self._table)

    def alpha_dot(self, t):
        return -self.alpha(t) * segment_slope(t, *self._table)

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
