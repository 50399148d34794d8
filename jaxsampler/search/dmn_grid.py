r"""Optimised time steps without a network (DM-NonUniform): the grid that amplifies the network's error least.

A table writes the sample as a linear map of the network's outputs. If the data prediction at time t_i is
wrong by a vector of size e_i, the sample is wrong by at most

    sum_i |W_i| e_i,    W_i the weight of output i in the sample,    e(rho) = rho^2/sqrt(1 + rho^2),

where e is a guess at how the error of a network grows with rho = sigma/alpha (on VP: sigma^2/alpha). The
released code lets the weights that different steps give one output cancel, except for the first three steps
and the last, of which it adds the root sums of squares. This objective does the same. With J_ni the part of
W_i that row n adds,

    sum_{n first three, last} (sum_i (J_ni e_i)^2)^(1/2) + sum_i |sum_{n others} J_ni| e_i.

It is minimised over the interior times, for one solver and path. No network is called and nothing is random.
The objective has several local minima, and kinks: the best of BFGS from three starts is taken, in float64
with the exact gradient of the table with respect to its grid.

Unlike the publication: any solver that has a table serves (an output of another kind counts with its effect
on the data), where the publication writes out orders 1 to 3 of an exponential integrator, lowered at the end
(the default here); and there are three starts, where it takes one.

Reference: Xue et al. 2024 (Accelerating diffusion sampling with optimized time steps), sec. 4, and its
released code.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..numerics import Arr, Real, Scalar, namespace, on_host
from ..paths import Path, grids
from ..solvers import mr_ode
from ..solvers.estimate_statistics import finite_ends
from ..tables import Step, Table, tabulate

LAGRANGE = mr_ode(order=3, kind="data", lower_order_final=True)  # the integrator of the publication
APART = 3  # the weights of this many first rows do not cancel with those of others


def dmn(
    path: Path,
    n: int,
    *,
    solver: Step | Sequence[Step] = LAGRANGE,
    t_max: Real | None = None,
    t_min: Real | None = None,
) -> Float[np.ndarray, " points"]:
    """Return a grid of n intervals for `solver` [Xue et al. 2024], in a few seconds, most of them to compile.

    Where the grid ends at sigma = 0, which the objective cannot judge, n - 1 intervals are optimised, down to
    the path's t_min. Where it begins at alpha = 0, the objective sees 0.99 t_max instead.

    Args:
        path: the path of the grid.
        n: number of intervals.
        solver: a step, or a list of steps, one per interval.
        t_max: first time, by default that of the path's default grid.
        t_min: last time, by default that of the path's default grid.

    Example:
        >>> js.search.dmn(js.VP(), 2, solver=js.solvers.ddim).round(2).tolist()
        [1.0, 0.3, 0.0]
    """
    from scipy.optimize import minimize

    ends, last = finite_ends(path, t_max, t_min), grids.default(path, 1)[-1]
    clean = [last] if t_min is None and last < ends[1] else []
    n -= len(clean)
    if n < 2:
        return np.array([path.t_max if t_max is None else t_max, *ends[1 : n + 1], *clean], np.float64)
    with on_host():
        lam = np.asarray(path.lam(np.asarray(ends)), np.float64)

    def grid(logits):
        share = jnp.cumsum(jax.nn.softmax(jnp.append(logits, 0.0)))[:-1]
        times = path.time(lam[0] + (lam[1] - lam[0]) * share)
        return jnp.concatenate([jnp.asarray(ends[:1]), times, jnp.asarray(ends[1:])])

    with jax.enable_x64(True):
        objective = lambda logits: amplification(tabulate(path, grid(logits), solver), path)
        slope = jax.jit(jax.value_and_grad(objective))
        found = []
        for start in (grids.log_snr, grids.uniform, grids.karras):
            gaps = np.diff(path.lam(start(path, n, t_max=ends[0], t_min=ends[1])))
            logits = np.log(gaps[:-1] / gaps[-1])
            both = lambda v: [np.asarray(a) for a in slope(v)]
            found.append(minimize(both, logits, jac=True, method="BFGS"))
        best = min((f for f in found if np.isfinite(f.fun)), key=lambda f: f.fun)
        times = np.array(grid(jnp.asarray(best.x)), np.float64)
    times[[0, -1]] = path.t_max if t_max is None else t_max, ends[1]
    return np.append(times, clean)


def amplification(table: Table, path: Path) -> Scalar:
    """Return the objective of the module for a table."""
    xp, rho = namespace(table.A), path.rho(table.t)
    # A prediction a x0 + b eps at a given state changes by (a - b/rho) times the change of x0.
    effect = xp.abs(table.form[:, 0] - table.form[:, 1] / rho) * rho**2 / xp.sqrt(1 + rho**2)
    parts = contributions(table) * effect[None]
    apart = (np.arange(table.nfe) < APART) | (np.arange(table.nfe) == table.nfe - 1)
    return xp.sqrt(xp.square(parts[apart]).sum(1)).sum() + xp.abs(parts[~apart].sum(0)).sum()


def contributions(table: Table) -> Float[Arr, "rows outputs"]:
    """Return J_ni, what row n adds to the weight of output i in the sample; the sum over n is that weight."""
    xp = namespace(table.A)
    outputs = xp.eye(table.nfe, dtype=table.A.dtype)
    state, added = 0 * outputs[0], []
    registers = [state] * table.regs  # states and outputs as combinations of outputs
    for n, (keep, slot) in enumerate(zip(table.keep.tolist(), table.slot.tolist(), strict=True)):
        registers[keep] = state
        registers[slot] = outputs[n]
        added.append(table.B[n] @ xp.stack(registers))
        state = table.A[n] * state + added[n]
    later = xp.cumprod(xp.append(table.A[1:], xp.ones_like(table.A[:1]))[::-1])[::-1]
    return later[:, None] * xp.stack(added)
