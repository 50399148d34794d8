r"""The divergence of a probability flow, exactly or by probes.

The divergence is the trace of the Jacobian J: exactly, in D products with J; by Hutchinson, the mean of z'J z
over probes z with E zz' = I that stay fixed along the flow; or by Hutch++, where the trace is exact on the
range Q of J S, and Hutchinson serves only the rest,

    tr J = tr Q'J Q + E g'J g,    g = (I - QQ')z.

References: Grathwohl et al. 2019 (FFJORD); Hutchinson 1990; Meyer et al. 2021 (Hutch++).
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from ...numerics import Key, Scalar, State
from ..probability_flow import Flow

TRACES = ("exact", "hutchinson", "hutch++")


class Volume(eqx.Module):
    """d(y, L)/dl: the flow towards noise, and its divergence. Probes are [k, D], for Hutch++ S, then z."""

    flow: Flow
    trace: str = eqx.field(static=True)
    probes: Any

    def __call__(self, state: tuple, l: Scalar) -> tuple:
        return self.slope(l, state)

    def slope(self, l: Scalar, state: tuple, args: Any = None) -> tuple:
        """As diffrax calls it."""
        y, _ = state
        flat, unravel = ravel_pytree(y)
        slope, product = jax.linearize(lambda v: -ravel_pytree(self.flow(-l, unravel(v)))[0], flat)
        return unravel(slope), self._divergence(product, flat)

    def _divergence(self, product: Callable, like: Array) -> Array:
        quadratic = jax.vmap(lambda v: v @ product(v))
        if self.trace == "exact":
            index = jnp.arange(like.size)
            return jax.lax.map(
                lambda i: product(jnp.zeros_like(like).at[i].set(1))[i], index, batch_size=min(like.size, 64)
            ).sum()
        if self.trace == "hutchinson":
            return quadratic(self.probes).mean()
        S, z = jnp.split(self.probes, 2)
        # Any fixed Q gives an unbiased estimate, with an unbiased gradient: none flows through the QR, which
        # has none where J S is rank deficient.
        Q = jax.lax.stop_gradient(jnp.linalg.qr(jax.vmap(product)(S).T)[0])
        return quadratic(Q.T).sum() + quadratic(z - (z @ Q) @ Q.T).mean()


def draw_probes(
    trace: str, noise: State | str, probes: int | None, key: Key | None, y: State
) -> Array | None:
    """Probe vectors [k, D]."""
    if trace not in TRACES:
        raise ValueError(f"unknown trace {trace!r}; valid: {', '.join(TRACES)}")
    if trace == "exact":
        return None
    flat, count = ravel_pytree(y)[0], (3 if trace == "hutch++" else 1) if probes is None else probes
    if not isinstance(noise, str):
        if jax.tree.map(lambda z: jnp.shape(z)[1:], noise) != jax.tree.map(jnp.shape, y):
            raise ValueError(
                "probes must be arrays like x with one more leading axis, got shapes "
                f"{jax.tree.map(jnp.shape, noise)}"
            )
        drawn = jax.vmap(lambda z: ravel_pytree(z)[0])(noise).astype(flat.dtype)
        if trace == "hutch++" and len(drawn) % 2:
            raise ValueError(
                f"probes of hutch++ are S, then as many z: give an even number of them, got {len(drawn)}"
            )
        count = len(drawn) if trace == "hutchinson" else len(drawn) // 2 * 3
    if count < 1 or (trace == "hutch++" and (count % 3 or count > 3 * flat.size)):
        raise ValueError(
            "hutch++ splits its products with J in three: probes must be 3, 6, .. "
            f"up to 3 D = {3 * flat.size}, got {count}"
        )
    if not isinstance(noise, str):
        return drawn
    if key is None:
        raise ValueError(f"trace={trace!r} draws probes: pass key=jax.random.key(seed), or trace='exact'")
    shape = (count if trace == "hutchinson" else count // 3 * 2, flat.size)
    if noise == "rademacher":
        return jax.random.rademacher(key, shape, flat.dtype)
    if noise == "gaussian":
        return jax.random.normal(key, shape, flat.dtype)
    raise ValueError(f"unknown noise {noise!r}; valid: rademacher, gaussian, or an array of probes")
