r"""Grid-independent noise: every draw is an increment of one Brownian path, so 10 and 1000 steps see the same
noise.

A draw that takes the state from time t to s becomes z = (W(theta_s) - W(theta_t))/sqrt(theta_s - theta_t)
with W a Brownian motion in the angle theta = arctan(alpha/sigma), which rises from noise to data and is
bounded at both ends of every path. Refining the grid refines the same W, hence the sampler converges
strongly, with order 1 for SDE solvers on smooth schedules [Kloeden & Platen 1992,
ch. 10: additive noise]. Times at which W is asked for need no order: W is diffrax's virtual Brownian tree [Li
    et al. 2020], so nothing is
stored and one call costs some twenty normal draws per end of the interval.

Gradients with respect to a grid hold the draws fixed: a path has no derivative in time, and for expectations
that gradient is unbiased, since the draws are N(0, I) on every grid.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ..numerics import Arr, is_traced, namespace, on_host
from ..paths import Path
from ..tables import Table

RESOLUTION = 2.0**-22  # of the angle: a fortieth of the last step of 10,000 steps uniform in lam on VP


def spans(table: Table, path: Path) -> Arr:
    """[nfe, 2]: the angles between which the draw of each row is an increment.

    A row that continues from its own state adds noise from the time of its call on, one that starts again
    from an earlier state (A = 0, a later stage of its step) from the start of its interval.
    """
    xp = namespace(table.t, table.A)
    ended = ~xp.isnan(table.end)
    following = xp.concatenate([table.t[1:], table.t[-1:]])
    if not is_traced(table):
        back = ended[:-1] & (table.t[1:] > table.end[:-1] * (1 + 1e-9))
        if np.any(back) or table.start[1] != 0:
            raise ValueError(
                "churn adds noise backwards in time, so it is no increment of a path: noise='brownian' needs "
                "s_churn=0"
            )
    index = xp.arange(table.nfe)
    first = xp.concatenate([xp.ones(1, bool), ended[:-1]])  # rows that begin an interval
    begins = (
        np.maximum.accumulate(xp.where(first, index, 0))
        if xp is np
        else jax.lax.cummax(jnp.where(first, index, 0))
    )
    since = table.t[xp.where(table.A == 0, begins, index)]
    until = xp.where(ended, xp.nan_to_num(table.end), following)
    if is_traced(table):
        angles = xp.stack([jnp.arctan2(path.alpha(t), path.sigma(t)) for t in (since, until)], -1)
    else:
        with on_host():
            angles = np.stack([np.arctan2(path.alpha(t), path.sigma(t)) for t in (since, until)], -1).astype(
                np.float64
            )
        idle = (angles[:, 1] - angles[:, 0] <= 2 * RESOLUTION) & (table.C != 0)
        if np.any(idle):
            raise ValueError(
                f"row {int(np.argmax(idle))} draws noise over no time (a corrector, or a very short step): "
                "noise='brownian' cannot serve "
                "it; leave noise= out"
            )
    return angles


class Brownian(eqx.Module):
    """One path W on [0, pi/2] for each element of the state."""

    key: Any

    def draw(self, span: Any, like: PyTree) -> PyTree:
        """The standardised increment over the angles span [2], shaped like `like`."""
        from diffrax import VirtualBrownianTree

        low, high = jax.lax.stop_gradient(jnp.asarray(span, jnp.result_type(float)))
        shape = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, low.dtype), like)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            path = VirtualBrownianTree(0.0, math.pi / 2, tol=RESOLUTION, shape=shape, key=self.key)
            step = path.evaluate(low, jnp.maximum(high, low + RESOLUTION))
        scale = jax.lax.rsqrt(jnp.maximum(high - low, RESOLUTION))
        return jax.tree.map(lambda w, a: (scale * w).astype(a.dtype), step, like)
