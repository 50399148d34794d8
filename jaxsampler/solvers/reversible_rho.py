r"""Reversible solvers of dy/drho = eps, with y = x/alpha and rho = sigma/alpha; see `reversible.py` for what they are good for.

    reversible_heun   h' = 2y - h + f drho, f' = eps(h'), y' = y + (f + f') drho/2                           [Kidger et al. 2021, alg. 1]
    mccallum_foster   y' = l y + (1-l) z + Psi(z), z' = z - Psi_back(y'), Psi the increment of Heun in rho   [McCallum & Foster 2024]

The inverse of mccallum_foster amplifies rounding by 1/l per step. A last interval into sigma = 0 is Euler's
step, that of DDIM, which leaves the second state as it is.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ..paths.base import Path
from .reversible import Rows, levels, linear, noise


class _InRho(eqx.Module):
    """Solvers of dy/drho = eps, y = x/alpha: how a state becomes y and back."""

    order: ClassVar[int] = 2
    kind: ClassVar[str] = "noise"
    stochastic: ClassVar[bool] = False

    def _y(self, model: Any, x: PyTree, alpha: Any) -> PyTree:
        return linear((1 / alpha, model.centred(x)))

    def _x(self, model: Any, y: PyTree, alpha: Any) -> PyTree:
        return model.uncentred(linear((alpha, y)))

    def final(self, state: tuple) -> PyTree:
        """The sample."""
        return state[0]


def _rho_rows(path: Path, grid: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Times and coefficients of the intervals: alpha and rho at both ends, and whether the last one ends at sigma = 0."""
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


class reversible_heun(_InRho):
    """The reversible Heun method on dy/drho = eps [Kidger et al. 2021, alg. 1]; second order, one call per step and one more."""

    calls: ClassVar[int] = 1
    starting_rows: ClassVar[int] = 1
    carries_slope: ClassVar[bool] = True

    def rows(self, path: Path, grid: Any) -> Rows:
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
        t = np.where(
            c["clean"], np.roll(c["t_next"], 1), c["t_next"]
        )  # into sigma = 0 the call is not used: make it where it is regular
        c |= {"first": np.arange(len(t)) == 0, "t_before": np.append(t[0], t[:-1])}
        return Rows(t, np.append(np.nan, grid[1:]), c)

    def init(self, x: PyTree, rows: Rows) -> tuple:
        """(x, the shifted state h, the slope there); the first row sets the last two."""
        return x, jax.tree.map(jnp.zeros_like, x), jax.tree.map(jnp.zeros_like, x)

    def step(self, model: Any, state: tuple, row: Rows, key: Any = None) -> tuple:
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

    def reverse(self, model: Any, state: tuple, row: Rows, key: Any = None) -> tuple:
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

    def arrive(self, model: Any, x: PyTree, rows: Rows) -> tuple:
        """A state that ends at x: h there, and the slope; at sigma = 0 the slope where the last interval began."""
        y = self._y(model, x, rows.c["alpha_next"][-1])
        alpha = np.where(rows.c["clean"][-1], rows.c["alpha"][-1], rows.c["alpha_next"][-1])
        return x, y, noise(model)(linear((alpha, y)), rows.t[-1])


class mccallum_foster(_InRho):
    """The reversible form of Heun in rho [McCallum & Foster 2024, eq. 3]; second order, stable, four calls per step."""

    coupling: float = eqx.field(static=True, default=0.99)
    calls: ClassVar[int] = 4
    starting_rows: ClassVar[int] = 0

    def __check_init__(self):
        if not 0 < self.coupling < 1:
            raise ValueError(f"coupling lies in (0, 1), 0.99 to 0.999 are usual; got {self.coupling}")

    def rows(self, path: Path, grid: Any) -> Rows:
        """One row per interval."""
        grid, c = _rho_rows(path, grid)
        return Rows(grid[:-1], grid[1:], c)

    def init(self, x: PyTree, rows: Rows) -> tuple:
        """(x, z): z is y = x/alpha."""
        return x, x

    def _increments(self, model: Any, row: Rows) -> tuple[Any, Any]:
        """(Psi forward from z at t, Psi backward from y at the next time); into sigma = 0 Euler forward, nothing back."""
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

    def step(self, model: Any, state: tuple, row: Rows, key: Any = None) -> tuple:
        """One step of both."""
        c, k = row.c, self.coupling
        y, z = (self._y(model, a, c["alpha"]) for a in state)
        forward, back = self._increments(model, row)
        y = linear((k, y), (1 - k, z), (1.0, forward(z)))
        z = linear((1.0, z), (-1.0, back(y)))
        return self._x(model, y, c["alpha_next"]), self._x(model, z, c["alpha_next"])

    def reverse(self, model: Any, state: tuple, row: Rows, key: Any = None) -> tuple:
        """Both before the step."""
        c, k = row.c, self.coupling
        y, z = (self._y(model, a, c["alpha_next"]) for a in state)
        forward, back = self._increments(model, row)
        z = linear((1.0, z), (1.0, back(y)))
        y = linear((1 / k, y), (1 - 1 / k, z), (-1 / k, forward(z)))
        return self._x(model, y, c["alpha"]), self._x(model, z, c["alpha"])

    def arrive(self, model: Any, x: PyTree, rows: Rows) -> tuple:
        """A state that ends at x: both there."""
        return x, x
