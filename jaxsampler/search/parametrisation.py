r"""A learnable table: a hand-made parent on its grid plus corrections that start at zero.

Every deterministic table with N rows is, unrolled, a choice of A_n, B_nj and network times in

    x_n = A_n x_0 + sum_{j<n} B_nj m_j,      m_j = data prediction at (x_j, tau_j),      n = 1 .. N,

whatever prediction, past states or correctors its steps used: full B is all that a table can do. Free numbers
from scratch train badly, so these corrections are free instead:

    nodes         h_n <- h_n exp(nodes_n), rescaled so that finite ends stay; h_n = lam_{n+1} - lam_n
                  moves the grid, and the parent with it
    shifts        tau_n = time(lam_n + shifts_n)
                  network times of their own
    relaxation    r_nk = 1 + relaxation_nk on the k-th derivative estimate of interval n
                  see `solvers.relaxation`
    weights       B_nj <- B_nj + u_n weights_nj, u_n = alpha_n
    amplitude     A_n <- A_n (1 + amplitude_n)
                  the whole table, with the weights
    scale         A_0 <- sigma(tau_0)/sigma_0, tau_0 <- t_0 (t_1/t_0)^|scale|
                  x_T enters the network as if less noisy
    compensation  B <- B L(compensation)
                  output j read off its interpolant at t_{j-1} + (1 + c_j) (t_j - t_{j-1})

in x; rho = sigma/alpha. A table is consistent if it is exact for a constant m: A_n = sigma_n/sigma_0 and
sum_j B_nj = alpha_n - A_n alpha_0. All hand-made solvers are consistent, and `consistent` corrections stay
so: they leave A alone, sum to zero in each row, and shrink with the noise, u_n = alpha_n min(1, rho_n),
because the last rows must not add any.

`vary` lists what may be free, and what published methods leave free.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..numerics import Arr, Grid, is_traced, namespace, on_host
from ..paths import Path
from ..paths.grids import checked
from ..solvers import relax
from ..tables import Step, Table, tabulate
from ..tables.scheduling import schedule
from ..tables.tabulation import tabulate_points
from .unrolled import from_unrolled, interpolation, unrolled
from .vary import leaves_of


class Learnable(eqx.Module):
    """A parent on a grid plus corrections, made by `learnable`. Zero corrections give the parent."""

    free: dict[str, Arr]  # the corrections by name
    lam: Float[Arr, " nodes"]  # of the start grid, finite ones only
    ends: Float[Arr, " 2"]  # first and last time of the grid
    path: Path
    parent: Step = eqx.field(static=True)
    rows: int = eqx.field(static=True)
    infinite: tuple[bool, bool] = eqx.field(static=True)  # alpha = 0 at the first time, sigma = 0 at the last
    consistent: bool = eqx.field(static=True, default=True)
    band: int | None = eqx.field(static=True, default=None)
    fix_first: bool = eqx.field(static=True, default=False)

    def nodes(self) -> Float[Arr, " nodes"]:
        """Return lam at the finite grid times; times next to infinite ends move freely, finite ends stay."""
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

    def times(self) -> Float[Arr, " points"]:
        """Return the grid, whose ends stay."""
        start, end = self.infinite
        lam = self.nodes()
        inner = self.path.time(lam[0 if start else 1 : len(lam) if end else -1])
        return namespace(inner).concatenate([self.ends[:1], inner, self.ends[1:]])

    def base(self) -> Table:
        """Return the table of the relaxed parent on the grid as it is now."""
        grid, start, end = self.times(), *self.infinite
        if "relaxation" in self.free:
            steps = relax(self.parent, 1 + self.free["relaxation"], to_zero=end, from_noise=start)
        else:
            steps = schedule(self.parent, len(grid) - 1, to_zero=end, from_noise=start)
        return (tabulate_points if is_traced(grid) else tabulate)(self.path, grid, steps)

    def table(self) -> Table:
        """Return the table of N rows and N registers, one per output; in float64 numpy unless traced."""
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

    def _calls(
        self, free: dict[str, Arr], tau: Float[Arr, " n"]
    ) -> tuple[Float[Arr, " 1"], Float[Arr, " n"]]:
        """Return the time that x_T is scaled to, and the network times."""
        xp, path, first = namespace(tau), self.path, tau[:1]
        if "scale" in free:
            c = free["scale"]
            first = first * (tau[1:2] / first) ** xp.where(c < 0, -c, c)  # |c|, with a slope at zero
            tau = xp.concatenate([first, tau[1:]])
        if "shifts" in free:
            moves = [0.0 if self.fix_first else 1.0] + [1.0] * (self.rows - 1)
            shifts = free["shifts"] * np.asarray(moves, tau.dtype)
            finite = (path.alpha(tau) > 0) & (path.sigma(tau) > 0)
            lam = path.lam(xp.where(finite, tau, path.time(0.0)))  # an infinite lam has an infinite slope
            # reflected at t_max: a bound would hold the first time there, by rounding or for good
            moved = path.time(lam + shifts)
            tau = xp.where(finite, xp.where(moved > path.t_max, 2 * path.t_max - moved, moved), tau)
        return first, tau

    def _states(
        self, free: dict[str, Arr], base: Table
    ) -> tuple[Float[Arr, " states"], Float[Arr, "states n"]]:
        """Return the unrolled coefficients A [N+1] and B [N+1, N]."""
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
            if self.band is not None:  # of the update from row to row, which is inherited by later rows
                rows = [db[0]]
                for k in range(1, n):
                    rows.append(ratio[k] * rows[-1] + db[k])
                db = xp.stack(rows)
            B = B + xp.concatenate([xp.zeros_like(db[:1]), db])
        return A, B

    def reach(self) -> np.ndarray:
        """Return 1 for free weights, else 0: all of the past, or a band of it."""
        past = np.tril(np.ones((self.rows, self.rows)))
        return past if self.band is None else past - np.tril(past, -self.band)

    def count(self, leaves: Iterable[str] | None = None) -> int:
        """Return how many numbers are free in `leaves` (default: all).

        Gauge freedoms (the scale of increments, row sums) do not count, nor do numbers that a singular end or
        a first call does not use. Derivatives that a step of low order does not estimate do count.
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
    grid: Grid,
    *,
    vary: str = "table",
    derivatives: int = 2,
    consistent: bool = True,
    band: int | None = None,
    fix_first: bool = False,
) -> Learnable:
    """Return the corrections that `vary` leaves free, all zero, around `parent` on `grid`.

    Args:
        path: the path of the table.
        parent: a deterministic step.
        grid: its times.
        vary: "grid", "relaxation", "table" and single leaves, joined by "+" (see the module and
            `js.search.METHODS`).
        derivatives: number of derivative estimates of each interval that get a relaxation factor.
        consistent: whether the table stays exact for a constant data prediction.
        band: only the last `band` weights of each row's update are free; None: all.
        fix_first: whether the first network time stays where it is.

    Raises:
        ValueError: if the parent draws noise, or does not have what `vary` frees.

    Example:
        >>> model = js.search.learnable(js.VP(), js.solvers.dpmpp_2m, [1.0, 0.5, 0.1], vary="relaxation")
        >>> {name: values.shape for name, values in model.free.items()}
        {'nodes': (2,), 'shifts': (2,), 'relaxation': (2, 2)}
        >>> x, exact = jnp.ones(2), js.models.gaussian_mixture(np.zeros((1, 2)), 1.0, js.VP())
        >>> parent = js.tabulate(js.VP(), [1.0, 0.5, 0.1], js.solvers.dpmpp_2m)
        >>> bool(jnp.allclose(js.run(exact, model.table(), x), js.run(exact, parent, x), atol=1e-5))
        True
    """
    if not isinstance(parent, Step):
        raise TypeError(
            f"the parent of a learned table is a step, got {type(parent).__name__}: take one of js.solvers"
        )
    if derivatives < 1 or (band is not None and band < 1):
        raise ValueError(f"derivatives and band count from 1; got {derivatives} and {band}")
    times = checked(path, grid)
    if is_traced(times):
        raise ValueError("the start grid must not be traced: learn tables outside jit")
    with on_host():
        lam = np.asarray(path.lam(times), np.float64)
    infinite = bool(lam[0] == -np.inf), bool(lam[-1] == np.inf)
    base = tabulate(path, times, parent)
    if base.draws:
        raise ValueError(
            f"{parent.name} draws noise, but a learned table is deterministic: "
            "take a parent like js.solvers.unipc"
        )
    lam, n = lam[np.isfinite(lam)], base.nfe
    if not len(lam):
        raise ValueError(
            "the grid is one step from pure noise to clean data: it has nothing to learn; "
            "give it at least 2 intervals"
        )
    shapes = {
        "nodes": (len(lam) - 1 + all(infinite),),
        "shifts": (n,),
        "relaxation": (len(times) - 1, derivatives),
        "amplitude": (n,),
        "weights": (n, n),
        "scale": (1,),
        "compensation": (n,),
    }
    free: dict[str, Any] = {name: np.zeros(shapes[name]) for name in leaves_of(vary)}
    if consistent:
        free.pop("amplitude", None)
    if n == 1 or base.t[1] == 0:  # the scale belongs to a time between the first two
        free.pop("scale", None)
    if not free:
        raise ValueError(
            f"vary={vary!r} leaves nothing free: amplitudes are for consistent=False, "
            "the scale for two calls or more"
        )
    if band is not None and "amplitude" in free:
        raise ValueError(
            "a band limits the update from row to row, which free amplitudes mix with all the past: "
            "leave one of them out"
        )
    if "compensation" in free and np.any(np.diff(base.t) >= 0):
        raise ValueError(
            f"compensation interpolates outputs in time, but {parent.name} calls the network twice at a time"
        )
    ends = np.asarray(times[[0, -1]], np.float64)
    made = Learnable(free, lam, ends, path, parent, n, infinite, consistent, band, fix_first)
    made.base()  # a parent that cannot be relaxed says so here
    return made


def replaced(model: Learnable, free: Mapping[str, Arr]) -> Learnable:
    """Return the same parent with other corrections."""
    return dataclasses.replace(model, free=dict(free))


def amplitude_unit(A: Float[Arr, " states"], xp: ModuleType) -> Float[Arr, " n"]:
    """Return what an amplitude of 1 adds to A_1 .. A_N: themselves, or where that is 0 the A a row before."""
    return xp.where(A[1:] == 0, A[:-1], A[1:])
