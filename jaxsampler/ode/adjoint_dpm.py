r"""AdjointDPM: gradients through sampling by a second ODE, in memory that does not grow with the number of
steps [Pan et al. 2024].

In y = x/alpha and rho = sigma/alpha the probability flow is dy/drho = eps, without a stiff linear term, and
so is its adjoint. With a = dL/dy the augmented system, integrated from data back to noise,

    dy/drho = eps(y),      da/drho = -a^T d eps/dy,      da_w/drho = -a^T d eps/dw        (a_w = 0 at the data
                                                                                          end)

ends in the gradients with respect to x_T (a/alpha_T) and all w that the network depends on: weights,
conditioning, entries per interval. It has the form of the flow itself, so a noise-kind table of ours
integrates it: the state is (y, a) times alpha. Nothing depends on a_w: it is a sum over the calls, whose
weights follow from the table (`shares`), so it needs no registers. The way forward stores nothing but the
sample.
The gradient is that of the continuous flow: it differs from the gradient of the discrete sampler by the
errors of both solvers, and converges at the lower of their two orders.

At sigma = 0 a network that predicts data does not determine the noise. The backward solver's first step is
then Euler's, with the slope at its noisy end; its error is of second order in the rho of the last positive
time.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ..numerics import Arr, State, cast, is_traced, on_host, summed_like, wide
from ..paths import Denoiser, Path
from ..paths.predictions import weights
from ..scan import Direct
from ..scan.adjoints import as_arrays, explicit, floats
from ..scan.driver import drive
from ..scan.protocol import Body, Carry, Scanned, Watch
from ..scan.table_solver import Columns, TableSolver, rows_of
from ..solvers import dpm_1, dpmpp_1, rk_rho
from ..tables import Step, Table, step
from ..tables.scheduling import schedule
from ..tables.tabulation import assemble


@step(kind="noise", order=1)
def _out_of_clean_data(path, ts, x, past, model, z):
    """Euler in rho from sigma = 0, with the slope at the end."""
    t, s = ts[-2:]
    x = path.alpha(s) / path.alpha(t) * x
    return x + path.sigma(s) * model(x, s)


class AdjointDPM(eqx.Module):
    """The continuous adjoint of the probability flow [Pan et al. 2024, eq. 9-11], for any deterministic table
    on one path.

    The table must be concrete (closed over, not an argument of `jit`) and gets no gradient itself. Hooks get
    none either, so they are refused.

    Args:
        solver: a noise-kind step for the backward system, on the times of the forward grid; Heun in rho by
            default, with two calls for each interval. A multistep one (`dpm_2m`) takes half the time, but it
            reads past slopes: near sigma = 0, and where entries of `per_step` or saved states make the slope
            jump, its gradient can be wrong by half.

    Example:
        >>> denoiser = js.models.gaussian_mixture(jnp.array([[1.0]]), 0.5, js.VP())
        >>> draw = lambda x, how: js.sample(denoiser, x, x=x, key=None, steps=40, adjoint=how).sum()
        >>> exact = jax.grad(draw)(jnp.ones((1, 1)), js.Direct())
        >>> bool(jnp.allclose(jax.grad(draw)(jnp.ones((1, 1)), js.AdjointDPM()), exact, rtol=1e-2))
        True
    """

    solver: Step | None = eqx.field(static=True, default=None)
    plan: "_Plan | None" = eqx.field(default=None, repr=False)

    def __check_init__(self):
        if self.solver is not None and (
            not isinstance(self.solver, Step) or self.solver.kind != "noise" or self.solver.stochastic
        ):
            raise ValueError(
                "the backward solver must be a deterministic noise-kind step, such as js.solvers.rk_rho(); "
                f"got {self.solver!r}"
            )

    def planned(self, body: Body, scanned: Scanned) -> "AdjointDPM":
        """With the backward table, and what the backward pass reads of the forward one."""
        denoiser, path, table = _checked(body, scanned)
        ends = np.asarray(table.end, np.float64)[scanned.is_end]
        grid = np.concatenate([np.asarray(table.t, np.float64)[:1], ends])
        starts = np.concatenate([[0], np.flatnonzero(scanned.is_end)[:-1] + 1])
        rising = rising_table(self.solver or rk_rho(), path, grid, denoiser.kind)
        plan = _Plan(
            table=rising,
            shares=shares(rising),
            grid=grid,
            scales=np.asarray([path.alpha(t) for t in (grid[0], grid[-1])], np.float64),
            starts=starts,
            slots=np.asarray(scanned.slot)[scanned.is_end],
        )
        return AdjointDPM(self.solver, plan)

    def loop(self, body: Body, carry: Carry, scanned: Scanned) -> Carry:
        """One scan; backwards, the augmented system on the reversed grid."""
        plan: Any = self.planned(body, scanned).plan if self.plan is None else self.plan
        denoiser: Any = body.denoiser
        path, kind = denoiser.path, denoiser.kind
        scanned = as_arrays(scanned)
        entries = jax.tree.map(lambda a: a[plan.starts], scanned.entry)

        leaves, static = eqx.partition(body, eqx.is_array)
        first = jax.tree.map(lambda a: a[0], scanned)
        hoisted, forward = explicit(lambda v, c, row: eqx.combine(v, static)(c, row), leaves, carry, first)

        def noise(leaves, x, t, entry):
            extra = () if entry is None else (entry,)
            pair = jnp.stack(weights(path, t, kind, "noise")).astype(t.dtype)
            return eqx.combine(leaves, static).model(x, t, pair, *extra)

        more, noise = explicit(noise, leaves, carry.state[0], first.row.t, first.entry)

        @jax.custom_vjp
        def fold(values, plan, carry, entries, rows):
            leaves, hoisted, _ = values
            return jax.lax.scan(lambda c, row: (forward(leaves, c, row, *hoisted), None), carry, rows)[0]

        def save(values, plan, carry, entries, rows):
            out = fold(values, plan, carry, entries, rows)
            return out, (values, plan, out.state[0], entries)

        def pull(residual, cotangent):
            values, plan, x, entries = residual
            grid, starts, slots, (top, bottom) = plan.grid, plan.starts, plan.slots, plan.scales
            (ct_state, ct_saved, _), ct_x = cotangent, cotangent.state[0]
            moving, fixed = floats(values)
            high, low = (jax.tree.map(lambda a, s=s: cast(s, a), x) for s in (top, bottom))

            def field(state, t, form, entry):
                entry, i = entry
                scale = jax.tree.map(lambda a: cast(path.alpha(t), a), x)
                a = jax.tree.map(jnp.divide, state["a"], scale)

                def eps(moving, y, entry):
                    leaves, _, more = eqx.combine(moving, fixed)
                    return noise(leaves, y, t, entry, *more)

                m, pull_back = jax.vjp(eps, moving, state["x"], entry)
                by_values, by_x, by_entry = pull_back(a)
                slopes = {"x": m, "a": jax.tree.map(lambda g, s: -s * g, by_x, scale)}
                return slopes, (by_values, by_entry, i)

            def inject(end):  # cotangents of saved states enter where these were
                scale = jax.tree.map(lambda a: cast(path.alpha(end.t), a), x)
                rising = jnp.asarray(grid)[1:][::-1].astype(end.t.dtype)
                nearest = jnp.searchsorted(rising, end.t)
                slot = jnp.asarray(slots)[::-1][nearest]
                inside = end.t < cast(grid[0], end.t) * (
                    1 - 1e-6
                )  # the start of the grid is not the end of an interval
                add = lambda a, s, ct: a + jnp.where(inside, s**2 * ct[slot], 0)
                return end.x | {"a": jax.tree.map(add, end.x["a"], scale, ct_saved)}

            total = jax.tree.map(lambda a: jnp.zeros(a.shape, wide(a)), (moving, entries))
            begin = jax.tree.map(lambda s, c: s**2 * c, low, ct_x)
            if ct_saved is not None:
                begin = jax.tree.map(lambda b, s, c: b + s**2 * c[slots[-1]], begin, low, ct_saved)
            numbers = np.arange(len(starts), dtype=np.int32)[::-1]
            per_step = (jax.tree.map(lambda a: a[::-1], entries), numbers)
            hook = None if ct_saved is None else inject
            out, sums = _integrate(plan, field, {"x": x, "a": begin}, total, per_step, hook)
            unit = lambda g, v: (g / cast(top, g)).astype(v.dtype)
            by_values, by_entries = jax.tree.map(unit, sums, (moving, entries))
            by_x = jax.tree.map(lambda g, s: g / s**2, out["a"], high)
            # states that were written over get nothing; a saved start passes through
            by_saved = jax.tree.map(lambda c: c.at[slots].set(0), ct_saved)
            by_state = (by_x, jax.tree.map(jnp.zeros_like, ct_state[1]))
            by_carry = cotangent._replace(state=by_state, saved=by_saved, fault=None)
            return summed_like(by_values, moving), None, by_carry, summed_like(by_entries, entries), None

        fold.defvjp(save, pull)
        return fold((leaves, hoisted, more), jax.tree.map(jnp.asarray, plan), carry, entries, scanned)


class _Plan(eqx.Module):
    """What is known of the grid before the loop is compiled."""

    table: Table  # backwards
    shares: Arr  # what each of its rows adds to the state at its end
    grid: Arr  # its times, falling
    scales: Arr  # alpha at its ends
    starts: Arr  # first row of each interval
    slots: Arr  # where the last row of each interval saves


def _checked(body: Body, scanned: Scanned) -> tuple[Denoiser, Path, Columns]:
    """The denoiser, its path and the table; ValueError where the adjoint ODE does not apply."""
    other = "; use RecursiveCheckpoint()"
    if not isinstance(body.solver, TableSolver):
        raise ValueError(f"AdjointDPM needs a table, not {type(body.solver).__name__}{other}")
    if body.denoiser is None:
        raise ValueError(
            "AdjointDPM integrates in (x/alpha, sigma/alpha): a plain callable has no path; "
            "give js.Denoiser(net, path, kind)"
        )
    path = body.denoiser.path
    if not isinstance(path, Path):
        raise ValueError(f"AdjointDPM works on one path, not on a system{other}")
    if body.hook is not None:
        raise ValueError(f"AdjointDPM would lose the gradient through a hook{other}")
    (table,) = scanned.row.tables
    if is_traced(table):
        raise ValueError(
            "AdjointDPM builds its backward table from the grid: the table must be concrete (close over it), "
            "not traced"
        )
    start = body.solver.starts[0]
    if np.any(np.asarray(table.C) != 0) or is_traced(start) or (start is not None and start[1] != 0):
        raise ValueError(f"AdjointDPM follows the probability flow: the solver must be deterministic{other}")
    if start is not None and start[0] != 1:
        raise ValueError(
            f"AdjointDPM follows x_T from the first time of the grid, and this table scales it{other}"
        )
    if float(path.alpha(float(table.t[0]))) == 0:
        raise ValueError(
            "AdjointDPM integrates to rho = sigma/alpha of the first time, which is infinite where alpha = "
            "0: "
            "start the grid below it"
        )
    return body.denoiser, path, table


def rising_table(solver: Step, path: Path, grid: np.ndarray, kind: str) -> Table:
    """The table of `solver` from the last time of the grid to the first, for a network of this kind."""
    rising = grid[::-1]
    steps = schedule(solver, len(grid) - 1, to_zero=False, from_noise=False)
    with on_host():
        clean = bool(np.asarray(path.sigma(rising[0])) == 0)
        pure = bool(np.asarray(path.alpha(rising[-1])) == 0)
    if clean and not _noise_is_known(path, rising[0], kind):
        steps[0] = _out_of_clean_data
    elif clean and solver.kind == "data":  # the data there say nothing of the noise, but the network does
        steps[0] = dpm_1
    if (
        pure and solver.kind in ("data", "noise") and len(steps) > 1
    ):  # an infinite step in lam has a first-order part only
        steps[-1] = dpmpp_1 if solver.kind == "data" else dpm_1
    return assemble(path, rising, steps)


def _noise_is_known(path: Path, t: float, kind: str) -> bool:
    """Whether a network of this kind tells the noise at t, where sigma = 0: data do not, nor a score."""
    if kind in ("data", "score"):
        return False
    with on_host():
        try:
            weights(path, t, kind, "noise")
        except ValueError:  # a velocity where sigma' is infinite
            return False
    return True


def shares(table: Table) -> np.ndarray:
    """The weight of each row's output in the state after the last row.

    Example:
        >>> table = js.tabulate(js.CondOT(), [1.0, 0.5, 0.0], js.solvers.euler)
        >>> js.ode.adjoint_dpm.shares(table).tolist()  # dx/dt times the steps
        [-0.5, -0.5]
    """
    of_x, of_register, found = 1.0, np.zeros(table.regs), np.zeros(table.nfe)
    for n in range(table.nfe)[::-1]:  # the transpose of the recurrence
        of_register, of_x = of_register + of_x * table.B[n], of_x * table.A[n]
        found[n], of_register[table.slot[n]] = of_register[table.slot[n]], 0.0
        of_x, of_register[table.keep[n]] = of_x + of_register[table.keep[n]], 0.0
    return found


class _Row(NamedTuple):
    """A row of the table and its share."""

    row: Any
    share: Arr
    t: Arr
    end: Arr
    when: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Backward:
    """The four functions of the augmented system: a table for the state, and a sum over its calls for a_w."""

    table: Any  # a `TableSolver`; JAX puts other things in the places of leaves, too
    total: PyTree

    def init(self, x: State, rows: _Row) -> tuple:
        """Nothing summed."""
        return (*self.table.init(x, rows.row), self.total)

    def step(self, model: Callable, state: tuple, row: _Row, key: Any = None) -> tuple:
        """A row of the table, and what its call adds to the sums."""
        *inner, (by_values, by_entries) = state
        slopes, (new, new_entry, i) = model(state[0], row.t, None)
        inner = self.table.step(lambda *_: slopes, tuple(inner), row.row)
        less = lambda total, g: total - cast(row.share, total) * g.astype(total.dtype)
        at = lambda total, g: total.at[i].add(-cast(row.share, total) * g.astype(total.dtype))
        return (*inner, (jax.tree.map(less, by_values, new), jax.tree.map(at, by_entries, new_entry)))

    def final(self, state: tuple) -> tuple[State, PyTree]:
        """The state at the noise, and the sums."""
        return state[0], state[-1]


def _integrate(
    plan: Any, field: Callable, state: State, total: PyTree, per_step: PyTree, hook: Callable | None
) -> tuple[State, PyTree]:
    """Run the backward table; the state is a pytree on one path."""
    dtype = wide(state["x"])
    narrow = lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a
    table, share = jax.tree.map(narrow, (plan.table, plan.shares))
    rows = rows_of(table, None)
    solver = _Backward(TableSolver([table.start], None, None, jax.tree.structure(0)), total)
    watch = Watch(adjoint=Direct(), hook=hook, per_step=per_step, jit=False)
    return drive(solver, _Row(rows, share, rows.t, rows.end, rows.when), field, state, watch=watch)
