r"""Predictor-corrector sampling of Score-SDE: Langevin steps at fixed time, then one step of the reverse SDE.

The forward process over an interval of any length is x_t = F x_s + sqrt(v) z with F = alpha_t/alpha_s and v =
sigma_t^2 - F^2 sigma_s^2. With c = 1 for the SDE, and c = 1/2 without noise for the flow, the predictors x_t
-> x_s on any grid are

    reverse_diffusion   (2 - F) x + c v score              + sqrt(v) z
    ancestral           (x + v score)/F                    + sqrt(v) sigma_s/sigma_t z     q(x_s | x_t, x_0)
    euler_maruyama      x - (f x - c g^2 score) (t - s)    + g sqrt(t - s) z               f, g at t

and the correctors, which keep the law of x_t up to their step size, are

    x + step score + sqrt(2 step) z,
    step = 2 F^2 (snr |z|/|score|)^2  ("langevin")   or   2 F^2 (snr sigma_t)^2  ("ald").

The released code runs them after the predictor.

The norms matter: a step size that depends on x samples p/step, which is p |score|^2, instead of p (up to the
noise of the step size). Averaged over a batch the norms are constants and the tilt is gone; over one sample
of many dimensions they nearly are.

References: Song et al. 2021b (alg. 2-5, app. F, G); Song & Ermon 2019 (annealed Langevin dynamics).
"""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..numerics import Grid, Key, Scalar, State, cast, is_traced, namespace, normal, on_host
from ..paths import VE, VP, Denoiser, Path, SubVP
from ..spelling import nearest
from ..threefry import elementwise
from .ancestral import variance
from .factories import factory

PREDICTORS = ("reverse_diffusion", "ancestral", "euler_maruyama", "none")
CORRECTORS = ("langevin", "ald", "none")


class Rows(NamedTuple):
    """y <- A y + (B + step) score + (C + sqrt(2 step)) z, y = x - mu, sqrt(step/2) = L |z|/|score|."""

    t: Any
    A: Any
    B: Any
    L: Any
    C: Any
    index: Any
    end: Any


class _Kernel(NamedTuple):
    """The forward process over each interval: now, length, F, v, sigma_s/sigma_t; all are [n]."""

    t: Any
    length: Any
    F: Any
    v: Any
    shrink: Any


class ScoreSDE(eqx.Module):
    """Langevin correctors at each grid time, then a step of the reverse SDE to the next [Song et al. 2021b].

        x <- x + step score + sqrt(2 step) z    (n_corrector times),    x <- A x + B score + C z

    A `js.Solver`. With predictor "none" the correctors run at the time that an interval arrives at, which is
    annealed Langevin dynamics: on VE, `corrector="ald"` with snr = sqrt(eps)/(2 sigma_L) takes the steps eps
    sigma^2/sigma_L^2 of Song & Ermon.

    Options:
        predictor: "reverse_diffusion", "ancestral", "euler_maruyama" or "none".
        corrector: "langevin", "ald" or "none".
        snr: size of the Langevin steps.
        n_corrector: Langevin steps per grid time.
        probability_flow: the predictor steps along the flow, without noise.
        denoise: return the mean of the last predictor step, without its noise.
        batch_axis: None takes the norms of all of x, which is one sample (`jax.vmap` for more) or a batch
            treated as one; an axis averages the norms of its samples, as published.
        published: the released code on its grid np.linspace(1, eps, N): N steps, one at each grid time, of
            nominal length 1/N, with the discrete tables of VP, sub-VP and VE at index int(t (N - 1)). The
            ancestral steps of VP draw noise of the forward variance.
        noise: draws [rows, *x.shape] in order of use, instead of the key.

    Example:
        >>> solver = js.solvers.score_sde(predictor="ancestral", corrector="none")
        >>> rows = solver.rows(js.CondOT(), [0.9, 0.5, 0.1])
        >>> rows.A.round(4), rows.C.round(4)
        (array([5. , 1.8]), array([0.4969, 0.    ]))
    """

    predictor: str = eqx.field(static=True, default="reverse_diffusion")
    corrector: str = eqx.field(static=True, default="langevin")
    snr: Scalar = 0.16
    n_corrector: int = eqx.field(static=True, default=1)
    probability_flow: bool = eqx.field(static=True, default=False)
    denoise: bool = eqx.field(static=True, default=True)
    batch_axis: int | None = eqx.field(static=True, default=None)
    published: bool = eqx.field(static=True, default=False)
    noise: State | None = None

    order: ClassVar[int] = 1
    calls: ClassVar[str] = "1 + n_corrector"
    kind: ClassVar[str] = "score"

    def __check_init__(self):
        for what, value, valid in (
            ("predictor", self.predictor, PREDICTORS),
            ("corrector", self.corrector, CORRECTORS),
        ):
            if value not in valid:
                raise ValueError(f"unknown {what} {value!r}; {nearest(str(value), valid)}")
        if self.predictor == self.corrector == "none":
            raise ValueError("predictor and corrector are both none, which moves nothing: choose one of them")
        if self.probability_flow and self.predictor in ("ancestral", "none"):
            raise ValueError(
                "probability_flow=True needs predictor reverse_diffusion or euler_maruyama, not "
                f"{self.predictor}; see ddim"
            )
        if self.n_corrector < 1:
            raise ValueError(
                f"n_corrector counts Langevin steps per grid time, at least 1; got {self.n_corrector}: use "
                "corrector='none' for none"
            )

    @property
    def stochastic(self) -> bool:
        """Whether it draws noise."""
        return not (self.probability_flow and self.corrector == "none")

    def rows(self, path: Path, grid: Grid) -> Rows:
        """One row per call: the correctors of each interval, then its predictor."""
        if is_traced(grid, self.snr):
            return self._rows(path, grid)
        with on_host():
            rows = self._rows(path, np.asarray(grid, np.float64))
            clean = np.asarray(path.sigma(rows.t)) == 0  # where there is no score
        bad = clean | ~np.all([np.isfinite(c) for c in rows[:5]], axis=0)
        if np.any(bad):
            raise ValueError(
                f"{self.predictor}+{self.corrector} is singular at t={rows.t[np.argmax(bad)]:g}: end or "
                "start the grid before it"
            )
        return rows

    def _rows(self, path: Path, grid: Any) -> Rows:
        t, s = grid[:-1], grid[1:]
        xp = namespace(grid, self.snr)
        if self.published:
            # N steps of 1/N from t = 1
            kernel, arrival = self._published(path, grid), np.append(grid[1:], 0.0)
        else:
            kernel = _Kernel(
                t, t - s, path.alpha(t) / path.alpha(s), variance(path, t, s), path.sigma(s) / path.sigma(t)
            )
            arrival = s
        at = arrival if self.predictor == "none" and not self.published else kernel.t
        zero, one = 0.0 * at, 0.0 * at + 1.0

        columns = []
        if self.corrector != "none":
            size = kernel.F * self.snr * (path.sigma(at) if self.corrector == "ald" else 1.0)  # sqrt(step/2)
            fixed = (one, 2 * size**2, zero, 2 * size) if self.corrector == "ald" else (one, zero, size, zero)
            columns += [(at, *fixed, np.nan * one)] * self.n_corrector
        if self.predictor != "none":
            A, B, C = self._predict(path, kernel)
            if self.denoise:
                C = C * np.append(np.ones(len(C) - 1), 0.0)
            columns.append((at, A, B, zero, C, zero))
        columns[-1] = (*columns[-1][:-1], arrival)
        t, A, B, L, C, end = (
            xp.stack([xp.asarray(column[i]) for column in columns], -1).reshape(-1) for i in range(6)
        )
        return Rows(t, A, B, L, C, np.arange(len(t)), end)

    def _predict(self, path: Path, kernel: _Kernel) -> tuple[Any, Any, Any]:
        """A, B, C of the predictor's rows."""
        t, length, F, v, shrink = kernel
        xp = namespace(t, F)
        c, noisy = (0.5, 0.0) if self.probability_flow else (1.0, 1.0)
        if self.predictor == "ancestral":
            return 1 / F, v / F, shrink * xp.sqrt(v)
        if self.predictor == "reverse_diffusion" and not (self.published and isinstance(path, SubVP)):
            return 2 - F, c * v, noisy * xp.sqrt(v)
        f = path.alpha_dot(t) / path.alpha(t)
        g2 = 2 * path.sigma(t) * (path.sigma_dot(t) - f * path.sigma(t))
        return 1 - length * f, length * c * g2, noisy * xp.sqrt(g2 * length)

    def _published(self, path: Path, grid: Any) -> _Kernel:
        """The kernels of the released code at N = len(grid) times."""
        N = len(grid)
        if not isinstance(path, VP | VE):
            raise TypeError(
                "published=True is the released code on its paths VP, SubVP and VE, not "
                f"{type(path).__name__}"
            )
        if is_traced(grid) or not np.allclose(grid, np.linspace(1.0, grid[-1], N), atol=1e-9):
            raise ValueError(
                "published=True needs the released code's grid, np.linspace(1, eps, N) for N steps"
            )
        k, length = (grid * (N - 1)).astype(int), np.full(N, 1 / N)
        if isinstance(path, VE):
            level = np.exp(np.linspace(np.log(path.sigma_min), np.log(path.sigma_max), N))
            now, below = level[k], np.append(0.0, level)[k]
            return _Kernel(grid, length, np.ones(N), now**2 - below**2, below / now)
        if isinstance(path, SubVP) and self.predictor == "ancestral":
            raise ValueError("the released code has no ancestral sampling on sub-VP; published=False has")
        if N <= path.beta_max and (
            self.corrector != "none" or self.predictor in ("reverse_diffusion", "ancestral")
        ):
            raise ValueError(
                f"published=True needs more than beta_max = {path.beta_max:g} steps, got {N}: beta_max/N is "
                "a variance below 1"
            )
        beta = np.linspace(path.beta_min / N, path.beta_max / N, N)[k]
        return _Kernel(grid, length, np.sqrt(1 - beta), beta, np.ones(N))

    def init(self, x: State, rows: Rows) -> tuple:
        if self.noise is not None:
            for z, a in zip(jax.tree.leaves(self.noise), jax.tree.leaves(x), strict=True):
                if jnp.shape(z)[1:] != jnp.shape(a) or len(z) < len(rows.t):
                    raise ValueError(
                        f"noise must have shape {[len(rows.t), *jnp.shape(a)]}, one draw per call; got "
                        f"{list(jnp.shape(z))}"
                    )
        return (x,)

    def step(self, model: Denoiser, state: tuple, row: Rows, key: Key | None) -> tuple:
        """One Langevin or predictor step."""
        (x,) = state
        score, y = model(x, row.t, kind="score"), model.each(lambda path, x: path.centred(x), x)
        B, C = row.B, row.C
        if not self.stochastic:
            z = jax.tree.map(jnp.zeros_like, y)
        elif self.noise is not None:
            z = jax.tree.map(lambda draws, a: jnp.asarray(draws)[row.index].astype(a.dtype), self.noise, y)
        elif key is None:
            raise ValueError("this solver draws noise: pass key=jax.random.key(seed)")
        else:
            z = normal(elementwise(key), y)
        if self.corrector == "langevin":
            pull = _norm(score, self.batch_axis)
            ratio = jnp.where(pull > 0, _norm(z, self.batch_axis) / jnp.where(pull > 0, pull, 1), 0)
            size = cast(row.L, ratio) * ratio
            B, C = cast(B, ratio) + 2 * size**2, cast(C, ratio) + 2 * size
        new = jax.tree.map(lambda a, g, e: cast(row.A, a) * a + cast(B, a) * g + cast(C, a) * e, y, score, z)
        return (model.each(lambda path, y: path.uncentred(y), new),)

    def final(self, state: tuple) -> State:
        return state[0]


score_sde = factory("score_sde", ScoreSDE)


def _norm(x: State, axis: int | None) -> Array:
    """Euclidean norm over all leaves; with an axis, the mean of the norms of its entries."""

    def square(a):
        others = None if axis is None else tuple(i for i in range(a.ndim) if i != axis % a.ndim)
        return jnp.sum(a.astype(np.promote_types(a.dtype, np.float32)) ** 2, axis=others)

    return jnp.mean(jnp.sqrt(sum(square(a) for a in jax.tree.leaves(x))))
