r"""A learnable table: a hand-made parent on its grid plus corrections that start at zero.

Every deterministic table with N rows is, unrolled, a choice of A_n, B_nj and network times in

    x_n = A_n x_0 + sum_{j<n} B_nj m_j,      m_j = data prediction at (x_j, tau_j),      n = 1 .. N,

whatever prediction, past states or correctors its steps used: full B is all that a table can do. Free numbers from scratch train badly, so

    lam_n from log-increments     h_n <- h_n exp(nodes_n), rescaled so that finite ends stay     moves the grid, and the parent with it
    tau_n = time(lam_n + shifts_n)                                                               network times of their own
    r_nk  = 1 + relaxation_nk     on the k-th derivative estimate of interval n                  see `solvers.relaxation`
    B_nj <- B_nj + u_n weights_nj,        A_n <- A_n (1 + amplitude_n)                           the whole table; u_n = alpha_n
    A_0  <- sigma(tau_0)/sigma_0, tau_0 <- t_0 (t_1/t_0)^|scale|                                 x_T enters the network as if less noisy
    B    <- B L(compensation)     output j read off its interpolant at t_{j-1} + (1 + c_j) (t_j - t_{j-1})

in x; rho = sigma/alpha. A table is consistent if it is exact for a constant m: A_n = sigma_n/sigma_0, sum_j B_nj = alpha_n - A_n alpha_0.
All hand-made solvers are; `consistent` corrections stay so: they leave A alone, sum to zero in each row, and shrink with the noise,
u_n = alpha_n min(1, rho_n), as the last rows must not add any.

What is free, and what published methods leave free, is spelled out in `vary`.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..numerics import Arr, is_traced, namespace, on_host
from ..paths.base import Path
from ..paths.grids import checked
from ..solvers.relaxation import relax
from ..tables.steps import Step, schedule
from ..tables.table import Table
from ..tables.tabulation import tabulate, tabulate_points
from .unrolled import from_unrolled, interpolation, unrolled
from .vary import leaves_of


class Learnable(eqx.Module):
    """Parent(grid) + corrections; `learnable` makes one. Zero corrections are the parent. `free` holds the corrections by name."""

    free: dict[str, Arr]
    lam: Float[Arr, " nodes"]  # the finite ones of the start grid
    ends: Float[Arr, " 2"]  # first and last time of the grid
    path: Path
    parent: Any = eqx.field(static=True)
    rows: int = eqx.field(static=True)
    infinite: tuple[bool, bool] = eqx.field(static=True)  # alpha = 0 at the first time, sigma = 0 at the last
    consistent: bool = eqx.field(static=True, default=True)
    band: int | None = eqx.field(static=True, default=None)
    fix_first: bool = eqx.field(static=True, default=False)

    def nodes(self) -> Any:
        """lam at the finite grid times: those at infinite ends move freely, finite ends stay."""
        xp, moves = namespace(self.lam, *self.free.values()), self.free.get("nodes")
        if moves is None:
            return self.lam
        start, end = self.infinite
        log_h = xp.log(xp.diff(self.lam))
        shift = moves[-1:] if start and end else 0.0
        h = xp.exp(log_h + moves[: len(log_h)])
        if not start and not end:
            h = h * ((self.lam[-1] - self.lam[0]) / h.sum())
        if start and not end:
            return xp.concatenate([self.lam[-1:] - xp.cumsum(h[::-1])[::-1], self.lam[-1:]])
        return xp.concatenate([self.lam[:1], self.lam[:1] + xp.cumsum(h)]) + shift

    def times(self) -> Any:
        """The grid, from the same first to the same last time."""
        start, end = self.infinite
        lam = self.nodes()
        inner = self.path.time(lam[0 if start else 1 : len(lam) if end else -1])
        return namespace(inner).concatenate([self.ends[:1], inner, self.ends[1:]])

    def base(self) -> Table:
        """The parent's table, relaxed, on the grid as it is now."""
        grid, start, end = self.times(), *self.infinite
        if "relaxation" in self.free:
            steps = relax(self.parent, 1 + self.free["relaxation"], to_zero=end, from_noise=start)
        else:
            steps = schedule(self.parent, len(grid) - 1, to_zero=end, from_noise=start)
        return (
            tabulate_points(self.path, grid, steps) if is_traced(grid) else tabulate(self.path, grid, steps)
        )

    def table(self) -> Table:
        """As a table of N rows and N registers, one for each output; float64 numpy unless something is traced."""
        if is_traced(self):
            return self._table()
        with on_host():
            free = {name: np.asarray(value, np.float64) for name, value in self.free.items()}
            return replaced(self, free)._table()

    def _table(self) -> Table:
        base, path = self.base(), self.path
        if is_traced(self):  # the base may be all numbers
            base = jax.tree.map(lambda a: jnp.asarray(a) if np.issubdtype(a.dtype, np.floating) else a, base)
        free = {name: value.astype(base.t.dtype) for name, value in self.free.items()}
        first, tau = self._calls(free, base.t)
        A, B = self._states(free, base)
        A = namespace(A).concatenate([A[:1] * path.sigma(first) / path.sigma(base.t[:1]), A[1:]])
        return from_unrolled(base, tau, A, B)

    def _calls(self, free: dict[str, Any], tau: Any) -> tuple[Any, Any]:
        """The time [1] that x_T is scaled to, and the network times [N]."""
        xp, path, first = namespace(tau), self.path, tau[:1]
        if "scale" in free:
            c = free["scale"]
            first = first * (tau[1:2] / first) ** xp.where(c < 0, -c, c)  # |c|, with a slope at zero
            tau = xp.concatenate([first, tau[1:]])
        if "shifts" in free:
            shifts = free["shifts"] * np.asarray(
                [0.0 if self.fix_first else 1.0] + [1.0] * (self.rows - 1), tau.dtype
            )
            finite = (path.alpha(tau) > 0) & (path.sigma(tau) > 0)
            lam = path.lam(xp.where(finite, tau, path.time(0.0)))  # infinite ones have infinite slopes
            moved = path.time(
                lam + shifts
            )  # reflected at t_max: a bound would hold the first one there, by rounding or for good
            tau = xp.where(finite, xp.where(moved > path.t_max, 2 * path.t_max - moved, moved), tau)
        return first, tau

    def _states(self, free: dict[str, Any], base: Table) -> tuple[Any, Any]:
        """The unrolled coefficients A [N+1] and B [N+1, N]."""
        xp, n, path = namespace(base.t), self.rows, self.path
        A, B = unrolled(base, path)
        arrive = xp.concatenate([base.t[1:], self.ends[1:].astype(base.t.dtype)])  # the time of x_1 .. x_N
        alpha, sigma = path.alpha(arrive), path.sigma(arrive)
        if "compensation" in free:
            B = B @ interpolation(base.t, 1 + free["compensation"])
        ratio = A[1:] / A[:-1]
        if "amplitude" in free and not self.consistent:
            A = xp.concatenate([A[:1], A[1:] + free["amplitude"] * amplitude_unit(A, xp)])
        if "weights" in free:
            db, reach = free["weights"], np.asarray(self.reach(), base.t.dtype)
            db = db * reach
            if self.consistent:
                db = (db - reach * (db.sum(1) / reach.sum(1))[:, None]) * xp.minimum(alpha, sigma)[:, None]
            else:
                db = db * alpha[:, None]
            if self.band is not None:  # of the update from row to row, which later rows inherit
                rows = [db[0]]
                for k in range(1, n):
                    rows.append(ratio[k] * rows[-1] + db[k])
                db = xp.stack(rows)
            B = B + xp.concatenate([xp.zeros_like(db[:1]), db])
        return A, B

    def reach(self) -> np.ndarray:
        """Which weights are free: all of the past, or a band of it."""
        return np.tril(np.ones((self.rows, self.rows))) - (
            0 if self.band is None else np.tril(np.ones((self.rows,) * 2), -self.band)
        )

    def count(self, leaves: Any = None) -> int:
        """How many numbers are free in `leaves` (default: all).

        Not counted are gauge freedoms (scale of increments, row sums) and numbers that a singular end or a first call has no use for;
        derivatives that a step of low order does not estimate are.
        """
        total, leaves = 0, self.free if leaves is None else leaves
        for name in self.free.keys() & set(leaves):
            size = int(np.size(self.free[name]))
            if name == "nodes":
                size -= not any(self.infinite)
            elif name == "shifts":
                size -= self.fix_first or (self.infinite[0] and "scale" not in self.free)
            elif name == "weights":
                reach = self.reach()[: self.rows - (self.consistent and self.infinite[1])]
                size = int(reach.sum()) - (len(reach) if self.consistent else 0)
            elif name == "compensation":
                size -= 1
            total += size
        return total


def learnable(
    path: Path,
    parent: Any,
    grid: Any,
    *,
    vary: str = "table",
    derivatives: int = 2,
    consistent: bool = True,
    band: int | None = None,
    fix_first: bool = False,
) -> Learnable:
    """The corrections that `vary` leaves free, all zero, around `parent` (a deterministic step) on `grid`, n+1 decreasing times.

    derivatives: how many estimates of each interval get a relaxation factor. consistent: see the module. band: only the last so many
    weights of each row's update are free. fix_first: the first network time has no shift. ValueError if the parent is stochastic, or
    cannot do what `vary` asks for.
    """
    if not isinstance(parent, Step):
        raise TypeError(f"the parent of a learned table is a step of js.solvers, got {type(parent).__name__}")
    if derivatives < 1 or (band is not None and band < 1):
        raise ValueError(f"derivatives and band count from 1; got {derivatives} and {band}")
    grid = checked(path, grid)
    if is_traced(grid):
        raise ValueError("the start grid is data, not traced: learn tables outside jit")
    with on_host():
        lam = np.asarray(path.lam(grid), np.float64)
    infinite = bool(lam[0] == -np.inf), bool(lam[-1] == np.inf)
    base = tabulate(path, grid, parent)
    if base.draws:
        raise ValueError(
            f"{parent.name} draws noise; a learned table is deterministic: take a parent like js.solvers.unipc"
        )
    lam, n = lam[np.isfinite(lam)], base.nfe
    if not len(lam):
        raise ValueError(
            "the grid is one step from pure noise to clean data: it has nothing to learn; give it at least 2 intervals"
        )
    shapes = {
        "nodes": (len(lam) - 1 + all(infinite),),
        "shifts": (n,),
        "relaxation": (len(grid) - 1, derivatives),
        "amplitude": (n,),
        "weights": (n, n),
        "scale": (1,),
        "compensation": (n,),
    }
    free: dict[str, Any] = {name: np.zeros(shapes[name]) for name in leaves_of(vary)}
    if consistent:
        free.pop("amplitude", None)
    if n == 1 or base.t[1] == 0:  # the scale is that of a time between the first two
        free.pop("scale", None)
    if not free:
        raise ValueError(
            f"vary={vary!r} leaves nothing free: amplitudes are for consistent=False, the scale for two calls or more"
        )
    if band is not None and "amplitude" in free:
        raise ValueError(
            "a band is of the update from row to row, which free amplitudes mix with all the past: leave one of them out"
        )
    if "compensation" in free and np.any(np.diff(base.t) >= 0):
        raise ValueError(
            f"compensation interpolates outputs in time, but {parent.name} calls the network twice at a time"
        )
    made = Learnable(
        free,
        lam,
        np.asarray(grid[[0, -1]], np.float64),
        path,
        parent,
        n,
        infinite,
        consistent,
        band,
        fix_first,
    )
    made.base()  # a parent that cannot be relaxed says so here
    return made


def replaced(model: Learnable, free: dict[str, Any]) -> Learnable:
    """The same parent with other corrections."""
    return dataclasses.replace(model, free=dict(free))


def amplitude_unit(A: Any, xp: Any) -> Any:
    """What an amplitude of 1 adds to A_1 .. A_N: themselves; at sigma = 0, where A_N = 0, what x_0 is worth a row before."""
    return xp.where(A[1:] == 0, A[:-1], A[1:])
