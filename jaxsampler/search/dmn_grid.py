r"""Optimised time steps without a network (DM-NonUniform): the grid that amplifies the network's error least.

A table writes the sample as a linear map of the network's outputs. If the data prediction at time t_i is wrong by a vector of size e_i,
the sample is wrong by at most

    sum_i |W_i| e_i,    W_i the weight of output i in the sample,    e(rho) = rho^2/sqrt(1 + rho^2),

a guess at how the error of a network grows with rho = sigma/alpha (on VP: sigma^2/alpha). The released code lets the weights that
different steps give one output cancel, but for the first three steps and the last, of which it adds the root sums of squares; so does
this objective. With J_ni the part of W_i that row n adds,

    sum_{n first three, last} (sum_i (J_ni e_i)^2)^(1/2) + sum_i |sum_{n others} J_ni| e_i.

It is minimised over the interior times, for one solver and path; no network is called and nothing is random. There are several local
minima, and kinks: the best of BFGS from three starts is taken, in float64 with the exact gradient of the table with respect to its grid.

Unlike the publication: any solver that has a table serves (an output of another kind counts with its effect on the data), where it
writes out orders 1 to 3 of an exponential integrator, lowered at the end (here the default); and three starts, where it takes one.

Reference: Xue et al. 2024 (Accelerating diffusion sampling with optimized time steps), sec. 4, and its released code.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..numerics import Arr, Real, namespace, on_host
from ..paths import grids
from ..paths.base import Path
from ..solvers.exponential import mr_ode
from ..solvers.model_statistics import finite_ends
from ..tables.table import Table
from ..tables.tabulation import tabulate

LAGRANGE = mr_ode(order=3, kind="data", lower_order_final=True)  # the integrator of the publication
APART = 3  # first rows whose weights do not cancel with those of others


def dmn(
    path: Path, n: int, *, solver: Any = LAGRANGE, t_max: Real | None = None, t_min: Real | None = None
) -> Float[np.ndarray, " points"]:
    """A grid of n intervals for `solver` (a step with a table) [Xue et al. 2024]; takes a few seconds, most of them to compile.

    t_max, t_min: its ends, by default those of the path's default grid. Where that ends at sigma = 0, which the objective cannot judge,
    n - 1 intervals are optimised, down to the path's t_min; where it begins at alpha = 0, the objective sees 0.99 t_max instead.
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
        slope = jax.jit(
            jax.value_and_grad(lambda logits: amplification(tabulate(path, grid(logits), solver), path))
        )
        found = []
        for start in (grids.log_snr, grids.uniform, grids.karras):
            gaps = np.diff(path.lam(start(path, n, t_max=ends[0], t_min=ends[1])))
            logits = np.log(gaps[:-1] / gaps[-1])
            found.append(
                minimize(lambda v: [np.asarray(a) for a in slope(v)], logits, jac=True, method="BFGS")
            )
        best = min((f for f in found if np.isfinite(f.fun)), key=lambda f: f.fun)
        times = np.array(grid(jnp.asarray(best.x)), np.float64)
    times[[0, -1]] = path.t_max if t_max is None else t_max, ends[1]
    return np.append(times, clean)


def amplification(table: Table, path: Path) -> Any:
    """The objective of the module for a table."""
    xp, rho = namespace(table.A), path.rho(table.t)
    # a prediction a x0 + b eps at a given state changes by (a - b/rho) times the change of x0
    effect = xp.abs(table.form[:, 0] - table.form[:, 1] / rho) * rho**2 / xp.sqrt(1 + rho**2)
    parts = contributions(table) * effect[None]
    apart = (np.arange(table.nfe) < APART) | (np.arange(table.nfe) == table.nfe - 1)
    return xp.sqrt(xp.square(parts[apart]).sum(1)).sum() + xp.abs(parts[~apart].sum(0)).sum()


def contributions(table: Table) -> Float[Arr, "rows outputs"]:
    """J_ni: what row n adds to the weight of output i in the sample; their sum over n is the whole weight."""
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
