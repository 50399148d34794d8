r"""The prediction that DPM-Solver-v3 extrapolates, as a kind for tables: statistics averaged over dimensions.

For functions l, s of lam, with y = x/alpha, the probability flow is dy/dlam = -(l y + f) with f = (1 - l) y -
x0, and g = e^{-S} f changes least along it. With L, S the integrals of l, s from lam_t, variation of
constants gives the step from t to u of a polynomial g

    x_u = (alpha_u/alpha_t) e^{-L_u} x_t - alpha_u sum_k e^{-L_u} E_k g^(k)_t,
    E_k = int_t^u e^{L + S} (lam - lam_t)^k/k! dlam

It is exact for any l and s: they only decide what is extrapolated. (1, 0) is the data kind, (0, -1) the noise
kind. A table is one set of numbers for all dimensions and has no constants, hence the average over
dimensions, and b = 0; `dpm_v3` has all of it. The fitted s belongs with the fitted b, which is 0 for data of
mean 0 (`shift_data`); otherwise l alone is the better choice.

Reference: Zheng et al. 2023 (DPM-Solver-v3), sec. 3.
"""

import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ..numerics import Arr, Scalar, Time, namespace
from ..paths import Path
from .exponential import Value

NODES, WEIGHTS = (v / 2 for v in np.polynomial.legendre.leggauss(5))  # on an interval of length 1 about 0


@runtime_checkable
class Tables(Protocol):
    """Anything with arrays lam [n], l and s [n, ...], such as `ems` makes."""

    lam: Any
    l: Any
    s: Any


class FittedKind:
    """The prediction kind f of DPM-Solver-v3 for `Decision` [Zheng et al. 2023, sec. 3].

    l and s are straight lines between the points of the table and constant beyond. Make it once: steps of one
    kind share their past. It does not step out of alpha = 0 or into sigma = 0.

    Args:
        statistics: lam [n], l and s [n, ...], such as `ems` makes.
        slope: use s, for data of mean 0; else s = 0. On a Gaussian mixture of mean 0.23, s without b made the
            errors of 16 steps 3 times larger at order 1, and over 100 times at orders 2 and 3.

    Example:
        >>> lam = np.linspace(-4, 4, 9)
        >>> statistics = js.solvers.Statistics.of(js.VP(), lam, 0 * lam + 0.5, 0 * lam, 0 * lam)
        >>> kind = js.solvers.FittedKind(statistics)
        >>> steps = js.solvers.usf([js.solvers.Decision(kind=kind)])
        >>> js.tabulate(js.VP(), [0.5, 0.2], steps).A.round(4)
        array([1.3257])
    """

    def __init__(self, statistics: Tables, *, slope: bool = False):
        self.lam = np.asarray(statistics.lam, np.float64)
        if self.lam.ndim != 1 or len(self.lam) < 2 or np.any(np.diff(self.lam) <= 0):
            raise ValueError(f"statistics need at least two rising lam, got shape {self.lam.shape}")
        l, s = (np.asarray(v, np.float64) for v in (statistics.l, statistics.s))
        s = s if slope else 0 * s
        if l.shape[:1] != self.lam.shape or s.shape[:1] != self.lam.shape:
            raise ValueError(
                f"l {l.shape} and s {s.shape} need one entry for each of the {len(self.lam)} lam"
            )
        self.l, self.s = (self._with_integral(v.reshape(len(self.lam), -1).mean(1)) for v in (l, s))

    def _with_integral(self, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The table, and its integral from the first point to every point."""
        return table, np.concatenate([[0.0], np.cumsum(np.diff(self.lam) * (table[1:] + table[:-1]) / 2)])

    def __call__(self, path: Path, t: Time) -> tuple[Scalar, Scalar]:
        """(a, b) with f = a (x0 - mu) + b eps."""
        l = self._at(self.l, path.lam(t))
        return -l, (1 - l) * path.rho(t)

    def factor(self, path: Path, t: Any, q: Any) -> Any:
        """e^{-S} at q, for S the integral from t: turns f at q into g."""
        s = [self._integral(self.s, path.lam(v)) for v in (t, q)]
        return namespace(*s).exp(s[0] - s[1])

    def step(self, path: Path, t: Time, u: Time, x: Value, derivatives: Sequence[Value]) -> Value:
        """Solve exactly from t to u for the polynomial with derivatives [g, g', ..] at t."""
        start, end = path.lam(t), path.lam(u)  # numbers or, for many steps at once, vectors
        xp = namespace(start, end)
        each = (1,) * np.ndim(start)
        knots = xp.clip(self._like(self.lam, start).reshape(-1, *each), start, end)
        # no panel crosses a knot, and those outside are empty
        edges = xp.concatenate([start[None], knots, end[None]])
        width, middle = edges[1:] - edges[:-1], (edges[1:] + edges[:-1]) / 2
        lam = middle[:, None] + width[:, None] * self._like(NODES, start).reshape(1, -1, *each)
        L, S = (self._integral(v, lam) for v in (self.l, self.s))
        decayed = xp.exp(
            L - self._integral(self.l, end) + S - self._integral(self.s, start)
        )  # e^{L + S - L_u}
        panel = decayed * width[:, None] * self._like(WEIGHTS, start).reshape(1, -1, *each)
        E = [xp.sum(panel * (lam - start) ** k / math.factorial(k), (0, 1)) for k in range(len(derivatives))]
        decay = xp.exp(self._integral(self.l, start) - self._integral(self.l, end))
        return path.alpha(u) * (
            decay / path.alpha(t) * x - sum(e * d for e, d in zip(E, derivatives, strict=True))
        )

    def _like(self, table: np.ndarray, lam: Any) -> Arr:
        return namespace(lam).asarray(table, lam.dtype)

    def _at(self, function: tuple, lam: Any) -> Scalar:
        return namespace(lam).interp(lam, self._like(self.lam, lam), self._like(function[0], lam))

    def _integral(self, function: tuple, lam: Scalar) -> Scalar:
        """From the first point of the table to lam."""
        xp = namespace(lam)
        i = xp.clip(xp.searchsorted(self._like(self.lam, lam), lam, side="right") - 1, 0, len(self.lam) - 1)
        point, value, whole = (self._like(v, lam)[i] for v in (self.lam, *function))
        return whole + (lam - point) * (value + self._at(function, lam)) / 2
