"""A path whose slopes are finite: what a differentiable grid reads at the ends of a schedule.

A grid may begin where alpha = 0 and end where sigma = 0. There lam, rho and often sigma itself (a square root
of t) have no derivative. Infinite, it makes NaN of the derivatives at all other times too, as 0 times
infinity. A derivative that is not finite counts as zero here: all others stay right, and that of an end is
right as far as it exists.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ..numerics import is_traced
from .path_view import PathView


class Tamed(PathView):
    """`path`; its functions of a traced time have derivatives by it that are finite.

    Example:
        >>> from jaxsampler.tables.tamed import Tamed
        >>> slopes = [jax.grad(lambda t, p=p: p.sigma(t))(0.0) for p in (js.VP(), Tamed(js.VP()))]
        >>> [float(slope) for slope in slopes]
        [inf, 0.0]
    """

    def _wrapped(self, name: str, function: Callable) -> Callable:
        def tamed(*args):
            if not is_traced(args) or not isinstance(args[-1], jax.Array):
                return function(*args)
            leaves, rest = eqx.partition(self._path, eqx.is_inexact_array)
            call = lambda leaves, t: getattr(eqx.combine(leaves, rest), name)(*args[:-1], t)
            return _tamed(call, leaves, args[-1])

        return tamed


def _plain(call: Callable, leaves: Any, t: jax.Array) -> Any:
    wide = lambda v: jnp.broadcast_to(
        jnp.asarray(v, t.dtype), t.shape
    )  # a constant, too, is one for each time
    return jax.tree.map(wide, call(leaves, t))


_tamed = jax.custom_jvp(_plain, nondiff_argnums=(0,))


@_tamed.defjvp
def _finite_slope(call: Callable, primals: tuple, tangents: tuple) -> tuple:
    """By t where that is finite, and by the parameters of the path."""
    (leaves, t), (by_leaves, by_t) = primals, tangents
    slope = jax.jvp(lambda t: _plain(call, leaves, t), (t,), (jnp.ones_like(t),))[1]
    finite = lambda d: jnp.where(jnp.isfinite(d), d, jnp.zeros_like(d)) * by_t
    moved = jax.tree.map(finite, slope)
    if jax.tree.leaves(leaves):
        more = jax.jvp(lambda leaves: _plain(call, leaves, t), (leaves,), (by_leaves,))[1]
        moved = jax.tree.map(jnp.add, moved, more)
    return _tamed(call, leaves, t), moved
