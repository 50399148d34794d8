r"""DPM-Solver-v3: exponential integrators with linear and constant parts fitted to the network by dimension.

With y = x/alpha, statistics l, s, b (functions of lam, see `model_statistics`) and f = (1 - l) y - D, the
probability flow is dy/dlam = -(l y + f). From s to t, with L, S the integrals of l, s from lam_s, and

    beta(lam) = int e^{-S} b dlam,        g = e^{-S} f - beta          (g' = 0 where df/dlam = s f + b)

f = e^{S} (g + beta) and variation of constants give

    e^{L_t} y_t = y_s - int_s^t e^{L+S} beta dlam - sum_k E_k g^(k)_s,
    E_k = int_s^t e^{L+S} (lam - lam_s)^k/k! dlam

where g is the polynomial in lam through its values at s and other grid points. The predictor takes older
points; the corrector takes t, once f is known there, and older ones. Full order takes every g^(k) from that
polynomial, pseudo-order from the first k+1 nodes. The corrector moves the state by sum_j c_j f_j + c and
keeps f at t as it was at the predicted state, so it folds into the next row. A row is

    x <- A x + sum_j W_j f_j + O,        f_0 = keep x - D the newest,        per dimension

(l, s, b) = (1, 0, 0) is DPM-Solver++ and (0, -1, 0) DPM-Solver, both in Taylor form.

Reference: Zheng et al. 2023 (DPM-Solver-v3), sec. 3.2 and alg. 1.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from ..numerics import Arr, Grid, Key, Real, Scalar, is_traced, on_host, wide
from ..paths import Path
from .factories import factory
from .model_statistics import Statistics


class Rows(NamedTuple):
    """One row per grid interval: t, end [n]; keep, A, O [n, *shape]; W [n, registers, *shape]."""

    t: Arr
    keep: Arr
    A: Arr
    W: Arr
    O: Arr
    end: Arr


class _Grid(NamedTuple):
    """The grid; lam is finite from index `first` to `last`."""

    t: np.ndarray
    lam: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray
    first: int
    last: int


class _Integrals(NamedTuple):
    """From s to t: e^{-L_t}, int e^{L+S} beta, [E_0, ..]; at every grid point lam - lam_s, e^{-S}, beta."""

    decay: np.ndarray
    drift: np.ndarray
    E: list
    d: dict
    shrink: dict
    beta: dict


class _Linear(NamedTuple):
    """sum_j weights[j] f_j + offset, with j an index of the grid."""

    weights: dict
    offset: Scalar = 0.0

    def plus(self, scale: Scalar, other: "_Linear") -> "_Linear":
        points = {**self.weights, **other.weights}
        weights = {j: self.weights.get(j, 0.0) + scale * other.weights.get(j, 0.0) for j in points}
        return _Linear(weights, self.offset + scale * other.offset)


def _column(a: np.ndarray, like: np.ndarray) -> np.ndarray:
    """The vector a, to multiply along the first axis of `like`."""
    return a.reshape(-1, *[1] * (like.ndim - 1))


def _trapezoid(lam: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Integrals of y from lam[0] to every point."""
    panels = _column(np.diff(lam), y) * (y[:-1] + y[1:]) / 2
    return np.concatenate([np.zeros_like(y[:1]), np.cumsum(panels, 0)])


def _simpson(lam: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The same, every other point a midpoint: integrals of the parabola through each panel's three values."""
    h, a, m, b = _column(np.diff(lam[::2]), y), y[:-1:2], y[1::2], y[2::2]
    out = np.zeros_like(y)
    out[2::2] = np.cumsum(h * (a + 4 * m + b) / 6, 0)
    out[1::2] = out[:-1:2] + h * (5 * a + 8 * m - b) / 24
    return out


def _derivatives(d: Sequence[float], pseudo: bool) -> np.ndarray:
    """D [p, p] with g^(k) at d = 0 equal to sum_j D[k, j] g_j, from the values g_j at d_j, d_0 = 0."""
    p = len(d)
    taylor = np.array([[dj**k / math.factorial(k) for k in range(p)] for dj in d])
    if not pseudo:
        return np.linalg.inv(taylor)
    D = np.zeros((p, p))
    for k in range(p):  # from the first k+1 nodes only
        D[k, : k + 1] = np.linalg.inv(taylor[: k + 1, : k + 1])[k]
    return D


def _update(at: _Integrals, nodes: Sequence[int], pseudo: bool) -> _Linear:
    """y_t - e^{-L_t} y_s, with g the polynomial through `nodes`, the first of which is s."""
    D = _derivatives([at.d[j] for j in nodes], pseudo)
    of_g = {j: sum(at.E[k] * D[k, i] for k in range(len(nodes))) for i, j in enumerate(nodes)}
    of_f = {j: -at.decay * w * at.shrink[j] for j, w in of_g.items()}
    return _Linear(of_f, at.decay * (sum(w * at.beta[j] for j, w in of_g.items()) - at.drift))


class DPMv3(eqx.Module):
    """DPM-Solver-v3, multistep, one call per step [Zheng et al. 2023, alg. 1].

        x <- A x + sum_j W_j f_j + O,        f_0 = keep x - D the newest, with coefficients for each dimension

    A `js.Solver` for states [..., *statistics.shape]. Steps into sigma = 0 and out of alpha = 0 are of first
    order. Saved states and hooks see x as predicted; the correction enters with the next row.

    Options:
        statistics: of the network, from `ems` or `Statistics.load`.
        order: 1, 2 or 3, reached step by step.
        corrector: True, False or "half" (only at t <= t_max/2); never at the last point.
        pseudo_predictor: take each derivative from as few nodes as it needs, for few steps.
        pseudo_corrector: the same for the corrector, one order higher than the predictor.
        lower_order_final: end the grid with orders .., 2, 1.
        published: as the released code, move the grid to the nearest points of the table and integrate by the
            trapezoid rule on it. That is an error of second order in its spacing, however many steps; the
            default keeps the grid and integrates to fourth order.

    Example:
        >>> lam = np.linspace(js.VP().lam(1.0), js.VP().lam(1e-3), 50)
        >>> statistics = js.solvers.Statistics.of(js.VP(), lam, 0 * lam + 1, 0 * lam, 0 * lam)  # DPM-Solver++
        >>> solver = js.solvers.dpm_v3(statistics, order=1)
        >>> solver.rows(js.VP(), [0.9, 0.5, 0.2]).A.round(4)
        array([0.9598, 0.6091])
        >>> js.tabulate(js.VP(), [0.9, 0.5, 0.2], js.solvers.dpmpp_1).A.round(4)
        array([0.9598, 0.6091])
    """

    statistics: Statistics
    order: int = eqx.field(static=True, default=3)
    corrector: bool | str = eqx.field(static=True, default=True)
    pseudo_predictor: bool = eqx.field(static=True, default=False)
    pseudo_corrector: bool = eqx.field(static=True, default=False)
    lower_order_final: bool = eqx.field(static=True, default=True)
    published: bool = eqx.field(static=True, default=False)

    kind: ClassVar[str] = "data"
    calls: ClassVar[int] = 1
    stochastic: ClassVar[bool] = False
    needs: ClassVar[str] = "statistics (`ems`)"

    def __check_init__(self):
        if not isinstance(self.statistics, Statistics):
            raise TypeError(
                "dpm_v3 needs statistics: js.solvers.ems estimates them, Statistics.load reads them; got "
                f"{self.statistics!r}"
            )
        if self.order not in (1, 2, 3):
            raise ValueError(f"dpm_v3 has orders 1, 2 and 3; got order={self.order!r}")
        if self.corrector not in (True, False, "half"):
            raise ValueError(f"corrector must be True, False or 'half'; got {self.corrector!r}")

    def rows(self, path: Path, grid: Grid) -> Rows:
        """Coefficients in float64; ValueError if the statistics do not fit the path or the grid."""
        if is_traced(grid, self.statistics):
            raise TypeError(
                "dpm_v3 needs a concrete grid and statistics: make both outside jit, and close over them"
            )
        if len(grid) - 1 < self.order:
            raise ValueError(
                f"dpm_v3 of order {self.order} needs at least {self.order} steps, got {len(grid) - 1}: take "
                "more or lower the order"
            )
        self.statistics.check(path)
        g, shape = self._grid(path, np.asarray(grid, np.float64)), self.statistics.shape
        n = len(g.t) - 1
        corrects = bool(self.corrector) and (self.order > 1 or self.pseudo_corrector)
        # a correction takes back the weights of the predictor, one interval older by then
        registers = self.order + corrects
        l = np.zeros((n + 1, *shape))
        l[g.first : g.last + 1] = self.statistics.at(g.lam[g.first : g.last + 1])[0]

        made: list[tuple] = []
        correction = _Linear({})
        for i in range(n):
            keep = (1 - l[i]) / g.alpha[i] if i >= g.first else np.zeros(shape)
            A, update, correct = self._interval(g, i, keep, path.t_max)
            update, correction = update.plus(A, correction), correct
            W = [np.broadcast_to(update.weights.get(i - j, 0.0), shape) for j in range(registers)]
            made.append((keep, np.broadcast_to(A, shape), np.stack(W), np.broadcast_to(update.offset, shape)))
        keep, A, W, O = (np.stack(column) for column in zip(*made, strict=True))
        return Rows(g.t[:-1], keep, A, W, O, g.t[1:])

    def _grid(self, path: Path, t: np.ndarray) -> _Grid:
        """The grid, checked against the table (and moved to it if `published`)."""
        lams = self.statistics.lam
        with on_host():
            lam = np.array(path.lam(t), np.float64)
        first, last = int(lam[0] == -np.inf), len(t) - 1 - int(lam[-1] == np.inf)
        finite, slack = lam[first : last + 1], 1e-5 * np.ptp(lams)  # float32 grids round past the ends
        if finite[0] < lams[0] - slack or finite[-1] > lams[-1] + slack:
            with on_host():
                t_max, t_min = path.time(lams[[0, -1]])
            raise ValueError(
                f"the statistics cover t = {t_max:g} to {t_min:g}, the grid runs from {t[first]:g} to "
                f"{t[last]:g}: choose a grid "
                "within, or estimate them with t_max=, t_min="
            )
        finite = np.clip(finite, lams[0], lams[-1])
        if self.published:
            nearest = np.rint((finite - lams[0]) / (lams[-1] - lams[0]) * (len(lams) - 1)).astype(int)
            if np.any(np.diff(nearest) == 0):
                raise ValueError(
                    f"two grid points are nearest to the same of the {len(lams)} points of the table: use "
                    "fewer steps or "
                    "published=False"
                )
            finite = lams[nearest]
            with on_host():
                t = np.concatenate([t[:first], path.time(finite), t[last + 1 :]])
        lam[first : last + 1] = finite
        with on_host():
            alpha, sigma = (
                np.broadcast_to(np.asarray(v, np.float64), t.shape) for v in (path.alpha(t), path.sigma(t))
            )
        return _Grid(t, lam, alpha, sigma, first, last)

    def _interval(self, g: _Grid, i: int, keep: Scalar, t_max: Real) -> tuple[Scalar, _Linear, _Linear]:
        """A and the update of x <- A x + update over interval i, and the correction that follows."""
        n = len(g.t) - 1
        if i == g.last:  # sigma = 0: x = alpha D
            return g.alpha[n] * keep, _Linear({i: -g.alpha[n]}), _Linear({})
        if i < g.first:  # alpha = 0, where f = -D: DDIM
            return g.sigma[1] / g.sigma[0], _Linear({0: -g.alpha[1]}), _Linear({})
        order = min(self.order, i - g.first + 1, n - i if self.lower_order_final else n)
        order_corrector = order + 1 if self.pseudo_corrector else order
        older = range(i - 1, i - order, -1)
        at = self._integrals(g.lam, i, i - order + 1, order_corrector)
        predicted = _update(at, [i, *older], self.pseudo_predictor)
        A, nothing = g.alpha[i + 1] / g.alpha[i] * at.decay, _Linear({})
        update = nothing.plus(g.alpha[i + 1], predicted)
        wanted = self.corrector is True or (self.corrector == "half" and g.t[i + 1] <= 0.5 * t_max)
        if not wanted or order_corrector == 1 or i == n - 1:
            return A, update, nothing
        corrected = _update(at, [i, i + 1, *older][:order_corrector], self.pseudo_corrector)
        return A, update, nothing.plus(g.alpha[i + 1], corrected.plus(-1.0, predicted))

    def _integrals(self, lam: np.ndarray, i: int, oldest: int, terms: int) -> _Integrals:
        """Over interval i; functions of lam from grid point `oldest` to i + 1."""
        span = range(oldest, i + 2)
        if self.published:
            points, integral = self.statistics.lam, _trapezoid
            points = points[(points >= lam[oldest]) & (points <= lam[i + 1])]
            at_grid = np.searchsorted(points, lam[span])
        else:  # panels end at grid points and at table points
            points, integral = self.statistics.lam, _simpson
            knots = np.union1d(points[(points > lam[oldest]) & (points < lam[i + 1])], lam[span])
            points = np.insert(knots, range(1, len(knots)), (knots[:-1] + knots[1:]) / 2)
            at_grid = 2 * np.searchsorted(knots, lam[span])
        where = dict(zip(span, at_grid.tolist(), strict=True))
        s, t = where[i], where[i + 1]
        l, slope, b = self.statistics.at(points)

        def from_s(y):
            whole = integral(points, y)
            return whole - whole[s]

        def to_t(y):
            return integral(points[s : t + 1], y[s : t + 1])[-1]

        L, S = from_s(l), from_s(slope)
        beta, growth, u = from_s(np.exp(-S) * b), np.exp(L + S), _column(points - lam[i], l)
        E = [to_t(growth * u**k / math.factorial(k)) for k in range(terms)]
        d, shrink, beta_at = (
            {j: v[p] for j, p in where.items()} for v in (points - lam[i], np.exp(-S), beta)
        )
        return _Integrals(np.exp(-L[t]), to_t(growth * beta), E, d, shrink, beta_at)

    def init(self, x: Any, rows: Rows) -> tuple:
        """(x, the last f, newest first: zeros so far)."""
        shape = rows.A.shape[1:]
        if not hasattr(x, "shape"):
            raise TypeError(f"dpm_v3 runs on one array, as its statistics are; got a {type(x).__name__}")
        if len(shape) > len(x.shape) or any(
            b not in (1, a) for a, b in zip(x.shape[::-1], shape[::-1], strict=False)
        ):
            raise ValueError(
                f"the statistics have shape {shape}, the state {x.shape}: the state's must end in that"
            )
        x = jnp.asarray(x)
        return x, jnp.zeros((rows.W.shape[1], *x.shape), x.dtype)

    def step(self, model: Callable, state: tuple, row: Rows, key: Key | None = None) -> tuple:
        """One call, one linear update per dimension."""
        x, past = state
        path, t = model.path, jnp.asarray(row.t).astype(wide(x))

        def fit(a):
            return jnp.broadcast_to(jnp.asarray(a).astype(x.dtype), x.shape)

        y, D = path.centred(x), path.centred(model(x, t, kind="data"))
        past = jnp.concatenate([(fit(row.keep) * y - D)[None], past[:-1]])
        y = fit(row.A) * y + fit(row.O) + sum(fit(row.W[j]) * past[j] for j in range(len(past)))
        return path.uncentred(y), past

    def final(self, state: tuple) -> Arr:
        return state[0]


dpm_v3 = factory("dpm_v3", DPMv3)
