r"""MR Sampler exactly as its released code runs it, to reproduce published numbers.

The code interpolates its tables of alpha, sigma and lam separately in t. Between training indices the three
then disagree (alpha^2 + (sigma/std)^2 != 1, lam != log(alpha/sigma)): they are not a path, and the update is
not a table of one, because mu enters by a coefficient of its own. `mr_ode` and `mr_sde` are the solvers to
use. Also reproduced: half of the second derivative in third order, the order schedule below ten steps, the
final denoising step, and thresholding written for [-1, 1] images. One step, with weights w on the newest
predictions q:

    x <- Cx x + Cmu mu + sum_j w_j q_j + S z

Reference: Li et al. 2025 (MR Sampler), released code; Luo et al. 2023 (tables).
"""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..numerics import Arr, Grid, Key, Scalar, cast, normal
from ..paths import Denoiser, MeanReverting, Path
from ..paths.mean_reverting import mean_reverting_table
from ..paths.predictions import match
from ..threefry import elementwise
from .exponential import published_mr_rule
from .factories import factory


class Rows(NamedTuple):
    """One row per step; all are [n], except w [n, 3]."""

    t: Any
    alpha: Any
    sigma: Any
    Cx: Any
    Cmu: Any
    w: Any
    S: Any
    index: Any
    end: Any


def _extrapolated(t: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Linear interpolation at real indices, continued beyond the ends along the end segments."""
    i = np.clip(np.floor(t).astype(int), 0, len(values) - 2)
    return values[i] + (t - i) * (values[i + 1] - values[i])


class MRPublished(eqx.Module):
    """MR Sampler as its released code runs it [Li et al. 2025, released code].

        x <- Cx x + Cmu mu + sum_j w_j q_j + S z

    A `js.Solver` on a `MeanReverting` path. x must be one array with a leading batch axis, because
    thresholding acts on each sample.

    Options:
        sde: the reverse SDE, else the flow (`algorithm` in the code).
        order: 1 to 3; 1 or 2 for the SDE.
        kind: "data" or "noise" (`parameterization` in the code).
        denoise_last: return the last prediction of the data.
        threshold: (ratio, max) of dynamic thresholding, or None.
        noise: draws [n, *x.shape] in order of use, instead of the key.

    Example:
        >>> rows = js.solvers.mr_published(order=1).rows(js.MeanReverting(mu=0.5), [80.0, 40.0, 10.0])
        >>> rows.Cx.round(4), rows.S.round(4)
        (array([0.0446, 0.0249]), array([0.161 , 0.0333]))
    """

    sde: bool = eqx.field(static=True, default=True)
    order: int = eqx.field(static=True, default=2)
    kind: str = eqx.field(static=True, default="data")
    denoise_last: bool = eqx.field(static=True, default=False)
    threshold: tuple[float, float] | None = eqx.field(static=True, default=None)
    noise: Float[Array, "n ..."] | None = None

    calls: ClassVar[int] = 1
    needs: ClassVar[str] = "`MeanReverting`"

    @property
    def stochastic(self) -> bool:
        """Whether it draws noise."""
        return self.sde

    def __check_init__(self):
        if self.kind not in ("data", "noise") or self.order not in ((1, 2) if self.sde else (1, 2, 3)):
            raise ValueError(
                f"no published solver has sde={self.sde}, order={self.order}, kind={self.kind!r}; valid: "
                "order 1 to 3 "
                "(1 or 2 for the SDE), kind 'data' or 'noise'"
            )

    def rows(self, path: Path, grid: Grid) -> Rows:
        """Coefficients from the separately interpolated tables."""
        if not isinstance(path, MeanReverting):
            raise TypeError(f"mr_published runs on a MeanReverting path, not {type(path).__name__}")
        grid = np.asarray(grid, np.float64)
        _, bar = mean_reverting_table(path.schedule, path.T, path.eps, path.variant)
        table_alpha, table_sigma = np.exp(-bar), path.std * np.sqrt(-np.expm1(-2 * bar))
        with np.errstate(divide="ignore"):
            table_lam = np.log(table_alpha) - np.log(table_sigma)
        alpha, sigma, lam = (_extrapolated(grid, v) for v in (table_alpha, table_sigma, table_lam))
        n = len(grid) - 1
        rows = [
            self._row(alpha, sigma, lam, i, order)
            for i, order in enumerate(published_mr_rule(self.order)(n), 1)
        ]
        if self.denoise_last:
            rows[-1] = (0.0, 0.0, np.array([1.0, 0.0, 0.0]), 0.0)
        Cx, Cmu, w, S = (np.array(column) for column in zip(*rows, strict=True))
        return Rows(grid[:-1], alpha[:-1], sigma[:-1], Cx, Cmu, w, S, np.arange(n), grid[1:])

    def _row(self, alpha: np.ndarray, sigma: np.ndarray, lam: np.ndarray, i: int, order: int) -> tuple:
        q0, q1, q2 = np.eye(3)
        h = lam[i] - lam[i - 1]
        D1 = D2 = np.zeros(3)
        if order >= 2:
            r0 = (lam[i - 1] - lam[i - 2]) / h
            D1 = a = (q0 - q1) / r0
            if order == 3:
                r1 = (lam[i - 2] - lam[i - 3]) / h
                b = (q1 - q2) / r1
                D1, D2 = a + (a - b) * r0 / (r0 + r1), (a - b) / (r0 + r1)
        if self.kind == "noise":
            e, Cx, factor = np.expm1(h), alpha[i] / alpha[i - 1], 2 if self.sde else 1
            w = -factor * sigma[i] * (e * q0 + (e / h - 1) * D1 + ((e / h - 1) / h - 0.5) * D2)
            return Cx, 1 - Cx, w, sigma[i] * np.sqrt(np.expm1(2 * h)) if self.sde else 0.0
        if self.sde:
            c, Cx = -np.expm1(-2 * h), sigma[i] / sigma[i - 1] * np.exp(-h)
            Cmu = 1 - alpha[i] / alpha[i - 1] * np.exp(-2 * h) - alpha[i] * c
            return Cx, Cmu, alpha[i] * (c * q0 + (1 - c / (2 * h)) * D1), sigma[i] * np.sqrt(c)
        e, Cx = np.expm1(-h), sigma[i] / sigma[i - 1]
        w = alpha[i] * (-e * q0 + (e / h + 1) * D1 - ((e / h + 1) / h - 0.5) * D2)
        return Cx, 1 - Cx + Cx * alpha[i - 1] - alpha[i], w, 0.0

    def init(self, x: Arr, rows: Rows) -> tuple:
        """(x, the two predictions before this one)."""
        return x, jnp.zeros_like(x), jnp.zeros_like(x)

    def step(self, model: Denoiser, state: tuple, row: Rows, key: Key | None) -> tuple:
        """One step of the released code."""
        x, q1, q2 = state
        row = Rows(*(jnp.asarray(v).astype(x.dtype) if v is not row.index else v for v in row))
        path: Any = model.path
        mu = jnp.asarray(path.centre, x.dtype)
        q0 = self._predict(match(model.net(x, row.t), x), x, mu, row, model.kind, cast(path.prior_std, x))
        if self.threshold is not None:
            ratio, largest = self.threshold
            flat = jnp.abs(q0).reshape(x.shape[0], -1)
            s = jnp.clip(jnp.quantile(flat, ratio, axis=1), 1.0, largest).reshape(-1, *[1] * (x.ndim - 1))
            q0 = jnp.clip(q0, -s, s) / s
        new = row.Cx * x + row.Cmu * mu + row.w[0] * q0 + row.w[1] * q1 + row.w[2] * q2
        if self.sde:
            if self.noise is None and key is None:
                raise ValueError("this solver draws noise: pass key=jax.random.key(seed)")
            new = new + row.S * (
                normal(elementwise(key), x)
                if self.noise is None
                else jnp.asarray(self.noise[row.index], x.dtype)
            )
        return new, q0, q1

    def _predict(self, m: Array, x: Array, mu: Array, row: Rows, source: str, std: Scalar) -> Array:
        """The output as this solver's kind, as in the code, which assumes alpha^2 + (sigma/std)^2 = 1."""
        alpha, sigma = row.alpha, row.sigma
        to_data = {
            "data": lambda: m,
            "noise": lambda: (x - sigma * m) / alpha - (1 - alpha) / alpha * mu,
            "v": lambda: alpha * x - sigma / std * m + (1 - alpha) * mu,
        }
        to_noise = {
            "noise": lambda: m,
            "data": lambda: (x - mu - alpha * (m - mu)) / sigma,
            "v": lambda: (alpha * m + sigma / std * (x - mu)) / std,
        }
        convert = to_data if self.kind == "data" else to_noise
        if source not in convert:
            raise ValueError(
                f"the released code knows data, noise and v networks, not {source!r}: use mr_ode or mr_sde"
            )
        return convert[source]()

    def final(self, state: tuple) -> Arr:
        """The sample, before the code's final clip to [0, 1]."""
        return state[0]


mr_published = factory("mr_published", MRPublished)
