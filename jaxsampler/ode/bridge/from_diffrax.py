r"""diffrax's one-step solvers in our driver: `js.sample(.., solver=js.bridge.FromDiffrax(diffrax.Heun()))`.

A row is one interval of the grid, a step is one step of the solver on the flow in (s, y), see
`probability_flow.py`. Between steps the state is x, so saved states, hooks, entries per step and adjoints
work as for tables.

Reference: Kidger 2021 (diffrax).
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ...numerics import Arr, Grid, Key, State, is_traced, namespace, on_host, wide
from ...paths import Denoiser, Path
from ..probability_flow import VARIABLES, Flow, brownian_tree, determined, lenient, level


class Rows(eqx.Module):
    """One row per grid interval.

    Args:
        s, next: solver times of t and end.
        zero: the grid's last time, if sigma = 0 there.
    """

    t: Any
    end: Any
    s: Arr
    next: Arr
    last: Arr
    first: Arr
    zero: float | None = eqx.field(static=True)


class FromDiffrax(eqx.Module):
    """Any one-step solver of diffrax (explicit, implicit, stochastic) as a `js.Solver` [Kidger 2021].

    A Runge-Kutta step evaluates its first slope even where it could reuse the last one (FSAL), because a hook
    or `per_step` may have changed the state or the network. Where the network does not determine the slope at
    sigma = 0, the last interval is one data prediction.

    Args:
        solver: such as `diffrax.Heun()`.
        variable: "t", "rho" or "lam".
        eta: 0 for the probability flow, else the SDE of this eta, on a Brownian tree for each interval from
            the sampler's key.
        tol: of Newton's method in an implicit solver that leaves it open.

    Example:
        >>> import diffrax
        >>> denoiser = js.Denoiser(lambda x, t: 0 * x, js.EDM(), "data")  # dx/dt = x/t
        >>> solver = js.bridge.FromDiffrax(diffrax.Euler())
        >>> x = js.sample(denoiser, jnp.ones(1), x=jnp.ones(1), key=None, solver=solver, grid=[80.0, 20.0])
        >>> print(f"{x[0]:.4f}")
        0.2500
    """

    solver: Any  # a diffrax.AbstractSolver: __post_init__ says so
    variable: str = eqx.field(static=True, default="rho")
    eta: float = eqx.field(static=True, converter=float, default=0.0)
    tol: float = eqx.field(static=True, converter=float, default=1e-6)

    def __post_init__(self):
        import diffrax
        import optimistix

        name = type(self.solver).__name__
        if not isinstance(self.solver, diffrax.AbstractSolver):
            raise TypeError(
                f"FromDiffrax takes a diffrax solver, such as diffrax.Heun(), not {self.solver!r}"
            )
        if self.eta == 0 and self.solver.term_structure is not diffrax.AbstractTerm:
            raise ValueError(
                f"{name} takes several terms: give eta=1 if it is for SDEs; "
                "solvers of split fields are not for flows"
            )
        if self.variable not in VARIABLES:
            raise ValueError(f"unknown variable {self.variable!r}; valid: {', '.join(VARIABLES)}")
        finder = getattr(self.solver, "root_finder", None)
        if finder is not None and not isinstance(finder.rtol, float | jax.Array):
            newton = optimistix.Newton(
                self.tol, self.tol
            )  # diffrax's chord method counts on retrying with a shorter step
            self.solver = eqx.tree_at(lambda s: s.root_finder, self.solver, newton)
        if getattr(self.solver, "scan_kind", "") is None:  # its default cannot be differentiated forwards
            self.solver = eqx.tree_at(
                lambda s: s.scan_kind, self.solver, "bounded", is_leaf=lambda a: a is None
            )

    def rows(self, path: Path, grid: Grid) -> Rows:
        """Return the times and solver times of the intervals."""
        flow_s = lambda t: -level(path, t, self.variable)
        zero = None
        if not is_traced(grid):
            with on_host():
                if self.variable != "t" and path.alpha(grid[0]) == 0:
                    raise ValueError(
                        f"alpha = 0 at t={grid[0]:g}, so x/alpha is infinite there: "
                        "use variable='t', or start the grid below"
                    )
                s = np.asarray(flow_s(grid), np.float64)
                zero = float(grid[-1]) if path.sigma(grid[-1]) == 0 else None
                s[-1] = s[-1] if np.isfinite(s[-1]) else s[-2]  # lam: no solver goes there
        else:
            s = flow_s(grid)
        index = namespace(grid).arange(len(grid) - 1)
        return Rows(grid[:-1], grid[1:], s[:-1], s[1:], index == len(grid) - 2, index == 0, zero)

    def init(self, x: State, rows: Rows) -> tuple:
        """Return x and a blank of the solver's own state, whose shape does not depend on the network."""
        import lineax

        dtype = wide(x)
        s0, s1 = jnp.asarray(rows.s[0], dtype), jnp.asarray(rows.next[0], dtype)
        y = jax.tree.map(lambda a: a.astype(dtype), x)

        def shape():
            drift, noise = (
                lambda s, y, args: y,
                lambda s, y, args: lineax.DiagonalLinearOperator(jax.tree.map(jnp.ones_like, y)),
            )
            return self.solver.init(self._terms(drift, noise, jax.random.key(0), y, s0, s1), s0, s1, y, None)

        with lenient():
            return x, jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(shape))

    def _terms(
        self, drift: Callable, noise: Callable, key: Key | None, y: State, s0: jax.Array, s1: jax.Array
    ) -> Any:
        import diffrax

        if self.eta == 0:
            return diffrax.ODETerm(drift)
        if key is None:
            raise ValueError("the reverse SDE draws noise: pass key=jax.random.key(seed)")
        tree = brownian_tree(self.solver, key, y, s0, s1, (s1 - s0) / 4)
        return diffrax.MultiTerm(diffrax.ODETerm(drift), diffrax.ControlTerm(noise, tree))

    def step(self, model: Callable, state: tuple, row: Rows, key: Key | None) -> tuple:
        """Step over the row's interval; the result is NaN where an implicit solver's root finder failed."""
        import diffrax

        if not isinstance(model, Denoiser):
            raise TypeError(
                f"FromDiffrax needs a js.Denoiser: it solves the flow of its path; got {type(model).__name__}"
            )
        flow, dtype = Flow(model, self.variable, self.eta), wide(state[0])
        t0, t1, s0, s1 = (jnp.asarray(v, dtype) for v in (row.t, row.end, row.s, row.next))
        narrow = lambda a, like: a.astype(like.dtype)

        def move(x, inner):
            with lenient():
                y = flow.enter(jax.tree.map(lambda a: a.astype(dtype), x), t0)
                terms = self._terms(flow, flow.diffusion, key, y, s0, s1)
                if jax.tree.leaves(inner):
                    inner = jax.lax.cond(
                        row.first, lambda: self.solver.init(terms, s0, s1, y, None), lambda: inner
                    )
                fresh = isinstance(self.solver, diffrax.AbstractRungeKutta)
                y, _, _, inner, result = self.solver.step(terms, s0, s1, y, None, inner, fresh)
                ok = result == diffrax.RESULTS.successful
                return jax.tree.map(
                    lambda a, like: narrow(jnp.where(ok, a, jnp.nan), like), flow.leave(y, t1), x
                ), inner

        if row.zero is None or determined(flow.denoiser.path, row.zero, model.kind, self.variable, self.eta):
            return move(*state)
        # a branch around the network: a row is a whole step of the solver, and at rho = 0 there is none
        jump = lambda x, inner: (jax.tree.map(narrow, flow.denoised(x, t0, t1), x), inner)
        return jax.lax.cond(row.last, jump, move, *state)

    def final(self, state: tuple) -> State:
        return state[0]
