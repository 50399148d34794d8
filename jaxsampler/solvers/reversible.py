r"""Solvers with an exact inverse: gradients need no tape (`js.Reversible()`) and images invert exactly.

Each carries two states. With a = alpha_s/alpha_t, b = sigma_s - a sigma_t the DDIM step from t to s is a x +
b eps(x, t); rho = sigma/alpha.

    edict    u = a x + b eps(y), w = a y + b eps(u); x' = p u + (1-p) w, y' = p w + (1-p) x'
    bdia     x' = g x_prev + (..) x + (..) eps(x): DDIM forth, minus g times DDIM back
    obelm    x' = (..) x_prev + (..) x + (..) eps(x), second order, no parameter

The solvers of dy/drho = eps, y = x/alpha, are in `reversible_rho.py`.

The inverse amplifies rounding: by 1/g per step or more for bdia, by 1/p^2 for edict, and for obelm by the
square of the ratio of two steps in rho, all in all (d_first/d_last)^2 in y = x/alpha, and 7e5 in x for 24
steps in lam on VP. A network that contracts (clusters of data, where x says what the noise is) damps this;
one that does not shows it in float32. `js.Reversible()` keeps states against it; `js.inversion.invert`
cannot, and wants float64 or equal steps in rho. bdia with g < 0.9 loses all digits on long grids, and warns
of it. A last interval into sigma = 0 is a DDIM step.
"""

import math
import warnings
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..numerics import Grid, Key, Scalar, State, axpy, cast, is_traced, on_host, wide
from ..paths import Denoiser, Path
from ..paths.grids import checked
from .factories import factory


class Rows(eqx.Module):
    """Times of the calls, grid times arrived at (NaN in a row that only evaluates), coefficients by name."""

    t: np.ndarray
    end: np.ndarray
    c: dict[str, np.ndarray]


def levels(path: Path, grid: Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (grid, alpha, sigma) in float64; ValueError where alpha = 0, or if the grid is traced."""
    if is_traced(grid):
        raise ValueError(
            "reversible solvers need a concrete grid: close over it; to learn a grid, use a step or a table"
        )
    grid = np.asarray(checked(path, grid))
    with on_host():
        alpha, sigma = (np.asarray([float(f(t)) for t in grid]) for f in (path.alpha, path.sigma))
    if alpha[0] == 0:
        raise ValueError("reversible solvers divide by alpha: start the grid below the time where alpha = 0")
    return grid, alpha, sigma


def _ddim(
    alpha: np.ndarray, sigma: np.ndarray, t: np.ndarray, s: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(a, b) of the DDIM step between the grid points t and s."""
    a = alpha[s] / alpha[t]
    return a, sigma[s] - a * sigma[t]


def ddim_rows(path: Path, grid: Grid) -> Rows:
    """Return rows with (a, b) of every interval's DDIM step."""
    grid, alpha, sigma = levels(path, grid)
    n = np.arange(len(grid) - 1)
    a, b = _ddim(alpha, sigma, n, n + 1)
    return Rows(grid[:-1], grid[1:], {"a": a, "b": b})


def noise(model: Denoiser) -> Callable:
    """Return eps(y, t) at the centred state y, traced once however often a step calls it."""

    @jax.jit
    def eps(y, t):
        return model(model.uncentred(y), t.astype(wide(y)), "noise")

    return lambda y, t: eps(y, jnp.asarray(t))


def linear(*terms: tuple[Scalar, State]) -> State:
    """Sum c x over the given (c, x), leaf by leaf, in the dtype of the first x."""
    (c, x), *rest = terms
    total = jax.tree.map(lambda u: cast(c, u) * u, x)
    for c, x in rest:
        total = axpy(1.0, total, c, x)
    return total


class EDICT(eqx.Module):
    """EDICT: two coupled copies, mixed with weight p [Wallace et al. 2023, eq. 14].

        u = a x + b eps(y), w = a y + b eps(u);        x' = p u + (1-p) w, y' = p w + (1-p) x'

    A `js.Solver` with an exact inverse, of first order, with two calls per step. The inverse amplifies
    rounding by 1/p^2 per step.

    Options:
        p: weight of the mixing, 0 < p <= 1.

    Example:
        >>> denoiser = js.Denoiser(lambda x, t: 0.5 * x, js.VP(), "noise")
        >>> solver = js.solvers.edict(p=0.9)
        >>> row = jax.tree.map(lambda a: a[0], solver.rows(js.VP(), [0.9, 0.5]))
        >>> there = solver.step(denoiser, (jnp.ones(1), jnp.ones(1)), row)
        >>> back = solver.reverse(denoiser, there, row)
        >>> there[0].round(3), back[0].round(3)
        (Array([2.713], dtype=float32), Array([1.], dtype=float32))
    """

    p: float = eqx.field(static=True, default=0.93)
    order: ClassVar[int] = 1
    calls: ClassVar[int] = 2
    starting_rows: ClassVar[int] = 0
    kind: ClassVar[str] = "noise"
    stochastic: ClassVar[bool] = False

    def __check_init__(self):
        if not 0 < self.p <= 1:
            raise ValueError(f"p mixes the two copies, 0 < p <= 1; got {self.p}")

    def rows(self, path: Path, grid: Grid) -> Rows:
        """One row per interval."""
        return ddim_rows(path, grid)

    def init(self, x: State, rows: Rows) -> tuple:
        """Both copies start at x."""
        return x, x

    def step(self, model: Denoiser, state: tuple, row: Rows, key: Key | None = None) -> tuple:
        """One step of both copies."""
        eps, (x, y), (a, b) = noise(model), map(model.centred, state), (row.c["a"], row.c["b"])
        u = linear((a, x), (b, eps(y, row.t)))
        w = linear((a, y), (b, eps(u, row.t)))
        x = linear((self.p, u), (1 - self.p, w))
        y = linear((self.p, w), (1 - self.p, x))
        return model.uncentred(x), model.uncentred(y)

    def reverse(self, model: Denoiser, state: tuple, row: Rows, key: Key | None = None) -> tuple:
        """The copies before the step."""
        eps, (x, y), (a, b) = noise(model), map(model.centred, state), (row.c["a"], row.c["b"])
        w = linear((1 / self.p, y), (1 - 1 / self.p, x))
        u = linear((1 / self.p, x), (1 - 1 / self.p, w))
        y = linear((1 / a, w), (-b / a, eps(u, row.t)))
        x = linear((1 / a, u), (-b / a, eps(y, row.t)))
        return model.uncentred(x), model.uncentred(y)

    def final(self, state: tuple) -> State:
        """The first copy."""
        return state[0]

    def growth(self, rows: Rows) -> np.ndarray:
        """By how much the inverse of each row amplifies rounding."""
        return np.full(len(rows.t), self.p**-2)

    def arrive(self, model: Denoiser, x: State, rows: Rows) -> tuple:
        """The state to invert from: both copies at x."""
        return x, x


edict = factory("edict", EDICT)


class _TwoStep(eqx.Module):
    """x' = before x_prev + now x + eps eps(x), started by a DDIM step; the state is (x, x_prev)."""

    calls: ClassVar[int] = 1
    starting_rows: ClassVar[int] = 1
    kind: ClassVar[str] = "noise"
    stochastic: ClassVar[bool] = False

    def init(self, x: State, rows: Rows) -> tuple:
        """The state before x is x, until there is one."""
        return x, x

    def step(self, model: Denoiser, state: tuple, row: Rows, key: Key | None = None) -> tuple:
        """One step."""
        (x, previous), c = map(model.centred, state), row.c
        new = linear((c["now"], x), (c["before"], previous), (c["eps"], noise(model)(x, row.t)))
        return model.uncentred(new), state[0]

    def reverse(self, model: Denoiser, state: tuple, row: Rows, key: Key | None = None) -> tuple:
        """The states before the step; a DDIM step (before = 0) had x itself as its previous state."""
        (new, x), c = map(model.centred, state), row.c
        forgets = c["before"] == 0
        scale = 1 / jnp.where(forgets, 1, c["before"])
        previous = linear((scale, new), (-scale * c["now"], x), (-scale * c["eps"], noise(model)(x, row.t)))
        previous = jax.tree.map(lambda p, a: jnp.where(forgets, a, p), previous, x)
        return state[1], model.uncentred(previous)

    def final(self, state: tuple) -> State:
        return state[0]

    def growth(self, rows: Rows) -> np.ndarray:
        """By how much the inverse of each row amplifies rounding, where the network does not damp it.

        It is the larger root of x_prev = (x' - now x)/before, the parasitic one.
        """
        b, n = rows.c["before"], np.abs(rows.c["now"])
        return np.where(b == 0, 1.0, (n + np.sqrt(n**2 + 4 * b)) / (2 * np.where(b == 0, 1.0, b)))

    def arrive(self, model: Denoiser, x: State, rows: Rows) -> tuple:
        """The state to invert from: x, and the one before it by a DDIM step upwards with the noise of x."""
        t, a, b = rows.t[-1], rows.c["up_a"][-1], rows.c["up_b"][-1]
        y = linear((a, model.centred(x)))
        return x, model.uncentred(linear((1.0, y), (b, noise(model)(y, t))))


def _upwards(alpha: np.ndarray, sigma: np.ndarray) -> dict[str, np.ndarray]:
    """(a, b) of each interval's DDIM step from data towards noise."""
    n = np.arange(len(alpha) - 1)
    a, b = _ddim(alpha, sigma, n + 1, n)
    return {"up_a": a, "up_b": b}


class BDIA(_TwoStep):
    """BDIA-DDIM [Zhang et al. 2024, eq. 16].

        x' = g x_prev + (a - g/a_prev) x + (b - g b_back) eps(x): DDIM forth, minus g times DDIM back

    A `js.Solver` with an exact inverse and one call per step. The inverse amplifies rounding by 1/gamma per
    step.

    Options:
        gamma: g in (0, 1]; towards 0 it is DDIM, 1 has second order. Take 0.5 for about 10 steps, 0.96 for
            editing, 1 from 40 steps on.

    Example:
        >>> rows = js.solvers.bdia(gamma=0.5).rows(js.CondOT(), [0.9, 0.5, 0.1])
        >>> rows.c["before"], rows.c["now"].round(4)
        (array([0. , 0.5]), array([5. , 1.7]))
    """

    gamma: float = eqx.field(static=True, default=1.0)

    def __check_init__(self):
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma lies in (0, 1]: 0 would be DDIM, which has no inverse; got {self.gamma}")

    @property
    def order(self) -> int:
        """Of accuracy."""
        return 2 if self.gamma == 1 else 1

    def rows(self, path: Path, grid: Grid) -> Rows:
        """One row per interval; the first is a DDIM step."""
        grid, alpha, sigma = levels(path, grid)
        n, g = np.arange(len(grid) - 1), np.full(len(grid) - 1, self.gamma)
        g[0] = 0.0
        if (lost := -(len(n) - 1) * math.log10(self.gamma)) > 5:
            warnings.warn(
                f"bdia with gamma={self.gamma} on {len(n)} steps loses {lost:.0f} digits when it is inverted "
                "(1/gamma each step): "
                "take gamma nearer to 1, fewer steps, or obelm",
                stacklevel=2,
            )
        (a, b), (up, b_up) = _ddim(alpha, sigma, n, n + 1), _ddim(alpha, sigma, n, np.maximum(n - 1, 0))
        return Rows(
            grid[:-1],
            grid[1:],
            {"before": g, "now": a - g * up, "eps": b - g * b_up} | _upwards(alpha, sigma),
        )


bdia = factory("bdia", BDIA)


class OBELM(_TwoStep):
    """O-BELM: the two-step method of least local error [Wang et al. 2024b, eq. 18].

        y' = (d2/d1)^2 y_prev + (d1 - d2)(d1 + d2)/d1^2 y + d2 (d1 + d2)/d1 eps(x)

    with d1 the last and d2 this step in rho, and y = x/alpha.
    A `js.Solver` with an exact inverse, of second order, with one call per step. Forwards it is stable; the
    inverse amplifies rounding by (d1/d2)^2 per step.

    Example:
        >>> rows = js.solvers.obelm().rows(js.CondOT(), [0.9, 0.5, 0.1])
        >>> rows.c["before"].round(4), rows.c["now"].round(4)
        (array([0.    , 0.1111]), array([5.    , 1.7778]))
    """

    order: ClassVar[int] = 2

    def rows(self, path: Path, grid: Grid) -> Rows:
        """One row per interval; the first is a DDIM step."""
        grid, alpha, sigma = levels(path, grid)
        n = np.arange(len(grid) - 1)
        a, b = _ddim(alpha, sigma, n, n + 1)
        rho, p, t, s = sigma / alpha, n[:-1], n[1:], n[1:] + 1
        d1, d2, d3 = rho[t] - rho[p], rho[s] - rho[t], rho[s] - rho[p]
        before = np.append(0.0, (d2 / d1) ** 2 * alpha[s] / alpha[p])
        now = np.append(a[0], (d1 - d2) * d3 / d1**2 * alpha[s] / alpha[t])
        return Rows(
            grid[:-1],
            grid[1:],
            {"before": before, "now": now, "eps": np.append(b[0], d2 * d3 * alpha[s] / d1)}
            | _upwards(alpha, sigma),
        )


obelm = factory("obelm", OBELM)
