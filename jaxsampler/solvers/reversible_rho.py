r"""Reversible solvers of dy/drho = eps, with y = x/alpha and rho = sigma/alpha; see `reversible.py`.

    reversible_heun   h' = 2y - h + f drho, f' = eps(h'), y' = y + (f + f') drho/2
    mccallum_foster   y' = l y + (1-l) z + Psi(z), z' = z - Psi_back(y'), Psi the increment of Heun in rho

The inverse of mccallum_foster amplifies rounding by 1/l per step. A last interval into sigma = 0 is Euler's
step, which is DDIM and leaves the second state as it is.
"""

from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..numerics import Grid, Key, Scalar, State
from ..paths import Denoiser, Path
from .factories import factory
from .reversible import Rows, levels, linear, noise


class _InRho(eqx.Module):
    """Solvers of dy/drho = eps: how a state becomes y = x/alpha and back."""

    order: ClassVar[int] = 2
    kind: ClassVar[str] = "noise"
    stochastic: ClassVar[bool] = False

    def _y(self, model: Denoiser, x: State, alpha: Scalar) -> State:
        return linear((1 / alpha, model.centred(x)))

    def _x(self, model: Denoiser, y: State, alpha: Scalar) -> State:
        return model.uncentred(linear((alpha, y)))

    def final(self, state: tuple) -> State:
        return state[0]


def _rho_rows(path: Path, grid: Grid) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The grid, and for each interval alpha at both ends, the step in rho, the end, whether it is clean."""
    grid, alpha, sigma = levels(path, grid)
    rho = sigma / alpha
    c = {
        "alpha": alpha[:-1],
        "alpha_next": alpha[1:],
        "drho": np.diff(rho),
        "t_next": grid[1:],
        "clean": sigma[1:] == 0,
    }
    return grid, c


class ReversibleHeun(_InRho):
    """The reversible Heun method on dy/drho = eps [Kidger et al. 2021, alg. 1].

        h' = 2y - h + f drho,    f' = eps(h'),    y' = y + (f + f') drho/2

    A `js.Solver` with an exact inverse, of second order, with one call per step and one more at the start.

    Example:
        >>> rows = js.solvers.reversible_heun().rows(js.CondOT(), [0.8, 0.5, 0.2])
        >>> rows.t, rows.c["drho"].round(4)
        (array([0.8, 0.5, 0.2]), array([ 0.  , -3.  , -0.75]))
    """

    calls: ClassVar[int] = 1
    starting_rows: ClassVar[int] = 1
    carries_slope: ClassVar[bool] = True

    def rows(self, path: Path, grid: Grid) -> Rows:
        """A row that evaluates the slope at the start, then one per interval, which calls at its end."""
        grid, c = _rho_rows(path, grid)
        idle = {
            "alpha": c["alpha"][0],
            "alpha_next": c["alpha"][0],
            "drho": 0.0,
            "t_next": grid[0],
            "clean": False,
        }
        c = {name: np.concatenate([[idle[name]], c[name]]) for name in c}
        # into sigma = 0 the call is not used: make it where it is regular
        t = np.where(c["clean"], np.roll(c["t_next"], 1), c["t_next"])
        c |= {"first": np.arange(len(t)) == 0, "t_before": np.append(t[0], t[:-1])}
        return Rows(t, np.append(np.nan, grid[1:]), c)

    def init(self, x: State, rows: Rows) -> tuple:
        """(x, the shifted state h, the slope there); the first row sets the last two."""
        return x, jax.tree.map(jnp.zeros_like, x), jax.tree.map(jnp.zeros_like, x)

    def step(self, model: Denoiser, state: tuple, row: Rows, key: Key | None = None) -> tuple:
        """One step; into sigma = 0 Euler's, which leaves h and the slope."""
        c, (x, h, f) = row.c, state
        y = self._y(model, x, c["alpha"])
        h = jax.tree.map(lambda h, y: jnp.where(c["first"], y, h), h, y)
        shifted = linear((2.0, y), (-1.0, h), (c["drho"], f))
        keep = lambda old, new: jax.tree.map(lambda o, n: jnp.where(c["clean"], o, n), old, new)
        h = keep(h, shifted)
        slope = keep(f, noise(model)(linear((c["alpha_next"], h)), row.t))
        half = jnp.where(c["clean"] | c["first"], c["drho"], c["drho"] / 2)
        y = linear((1.0, y), (half, f), (jnp.where(c["clean"], 0, c["drho"] / 2), slope))
        return self._x(model, y, c["alpha_next"]), h, slope

    def reverse(self, model: Denoiser, state: tuple, row: Rows, key: Key | None = None) -> tuple:
        """The state before the step."""
        c, (x, h, f) = row.c, state
        y = self._y(model, x, c["alpha_next"])
        shifted = linear((2.0, y), (-1.0, h), (-c["drho"], f))
        keep = lambda old, new: jax.tree.map(lambda o, n: jnp.where(c["clean"] | c["first"], o, n), old, new)
        before = keep(h, shifted)
        slope = keep(f, noise(model)(linear((c["alpha"], before)), c["t_before"]))
        y = linear(
            (1.0, y),
            (-jnp.where(c["clean"], 0, c["drho"] / 2), f),
            (-jnp.where(c["clean"], c["drho"], c["drho"] / 2), slope),
        )
        slope = jax.tree.map(lambda s: jnp.where(c["first"], 0, s), slope)
        return self._x(model, y, c["alpha"]), before, slope

    def arrive(self, model: Denoiser, x: State, rows: Rows) -> tuple:
        """The state to invert from: x, h, the slope (at sigma = 0 that where the last interval began)."""
        y = self._y(model, x, rows.c["alpha_next"][-1])
        alpha = np.where(rows.c["clean"][-1], rows.c["alpha"][-1], rows.c["alpha_next"][-1])
        return x, y, noise(model)(linear((alpha, y)), rows.t[-1])


reversible_heun = factory("reversible_heun", ReversibleHeun)


class McCallumFoster(_InRho):
    """The reversible form of Heun in rho [McCallum & Foster 2024, eq. 3].

        y' = l y + (1-l) z + Psi(z),    z' = z - Psi_back(y'),        Psi the increment of Heun in rho

    A `js.Solver` with an exact inverse, of second order, stable, with four calls per step.

    Options:
        coupling: l in (0, 1), usually 0.99 to 0.999; the inverse amplifies rounding by 1/l per step.

    Example:
        >>> rows = js.solvers.mccallum_foster(coupling=0.999).rows(js.CondOT(), [0.8, 0.5, 0.2])
        >>> rows.t, rows.c["drho"].round(4)
        (array([0.8, 0.5]), array([-3.  , -0.75]))
    """

    coupling: float = eqx.field(static=True, default=0.99)
    calls: ClassVar[int] = 4
    starting_rows: ClassVar[int] = 0

    def __check_init__(self):
        if not 0 < self.coupling < 1:
            raise ValueError(f"coupling lies in (0, 1), 0.99 to 0.999 are usual; got {self.coupling}")

    def rows(self, path: Path, grid: Grid) -> Rows:
        """One row per interval."""
        grid, c = _rho_rows(path, grid)
        return Rows(grid[:-1], grid[1:], c)

    def growth(self, rows: Rows) -> np.ndarray:
        """By how much the inverse of each row amplifies rounding."""
        return np.full(len(rows.t), 1 / self.coupling)

    def init(self, x: State, rows: Rows) -> tuple:
        """Both states start at x."""
        return x, x

    def _increments(self, model: Denoiser, row: Rows) -> tuple[Callable, Callable]:
        """Psi from z at t, and Psi back from y at the end; into sigma = 0 Euler forward, nothing back."""
        c, eps = row.c, noise(model)
        far = jnp.where(c["clean"], row.t, c["t_next"])

        def increment(y, t, alpha, t_far, alpha_far, drho):
            slope = eps(linear((alpha, y)), t)
            other = eps(linear((alpha_far, linear((1.0, y), (drho, slope)))), t_far)
            return linear(
                (jnp.where(c["clean"], drho, drho / 2), slope), (jnp.where(c["clean"], 0, drho / 2), other)
            )

        def forward(z):
            return increment(z, row.t, c["alpha"], far, c["alpha_next"], c["drho"])

        def back(y):
            delta = increment(y, far, c["alpha_next"], row.t, c["alpha"], -c["drho"])
            return jax.tree.map(lambda d: jnp.where(c["clean"], 0, d), delta)

        return forward, back

    def step(self, model: Denoiser, state: tuple, row: Rows, key: Key | None = None) -> tuple:
        """One step of both."""
        c, k = row.c, self.coupling
        y, z = (self._y(model, a, c["alpha"]) for a in state)
        forward, back = self._increments(model, row)
        y = linear((k, y), (1 - k, z), (1.0, forward(z)))
        z = linear((1.0, z), (-1.0, back(y)))
        return self._x(model, y, c["alpha_next"]), self._x(model, z, c["alpha_next"])

    def reverse(self, model: Denoiser, state: tuple, row: Rows, key: Key | None = None) -> tuple:
        """Both before the step."""
        c, k = row.c, self.coupling
        y, z = (self._y(model, a, c["alpha_next"]) for a in state)
        forward, back = self._increments(model, row)
        z = linear((1.0, z), (1.0, back(y)))
        y = linear((1 / k, y), (1 - 1 / k, z), (-1 / k, forward(z)))
        return self._x(model, y, c["alpha"]), self._x(model, z, c["alpha"])

    def arrive(self, model: Denoiser, x: State, rows: Rows) -> tuple:
        """The state to invert from: both at x."""
        return x, x


mccallum_foster = factory("mccallum_foster", McCallumFoster)
