r"""Which noise levels a loss cares for: w(lam), the weight of the squared *data* error |x0_hat - x0|^2 at lam = log(alpha/sigma).

What a network predicts is then a matter of parametrisation only: the losses convert the error of any kind to that of data before they
weigh it, so that a loss is fixed by (distribution of times, w) [Kingma & Gao 2023]. SNR = e^{2 lam}; the error of eps is SNR that of data,
that of v is SNR + 1 on a variance-preserving path.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Weight = Callable[[Float[Array, "..."]], Float[Array, "..."]]


def uniform(lam: Float[Array, "..."]) -> Float[Array, "..."]:
    """1: the plain error of data."""
    return jnp.ones_like(lam)


def snr(lam: Float[Array, "..."]) -> Float[Array, "..."]:
    """SNR: the plain error of eps [Ho et al. 2020, L_simple]."""
    return jnp.exp(2 * lam)


def min_snr(gamma: float = 5.0) -> Weight:
    """min(SNR, gamma): no more than gamma for what is almost clean [Hang et al. 2023, section 3.4]."""
    return lambda lam: jnp.minimum(jnp.exp(2 * lam), gamma)


def edm(sigma_data: float = 0.5) -> Weight:
    """(s^2 + d^2)/(s d)^2 with s = e^{-lam}: the error of the preconditioned network [Karras et al. 2022, table 1]."""
    return lambda lam: sigma_data**-2 + jnp.exp(2 * lam)


def sigmoid(bias: float = 2.0) -> Weight:
    """SNR sigmoid(bias - log SNR): the error of eps, faded out above log SNR = bias [Kingma & Gao 2023, section 5]."""
    return lambda lam: jnp.exp(2 * lam) * jax.nn.sigmoid(bias - 2 * lam)
