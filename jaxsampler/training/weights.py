r"""Which noise levels a loss cares for: w(lam), the weight of the squared *data* error |x0_hat - x0|^2.

lam = log(alpha/sigma), SNR = e^{2 lam}. What a network predicts is then a matter of parametrisation only: the
losses convert the error of any kind to that of data before they weigh it, so (distribution of times, w)
determines a loss [Kingma & Gao 2023]. The squared error of eps is SNR times that of data; that of v is SNR +
1 times, on a variance-preserving path.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Weight = Callable[[Float[Array, "..."]], Float[Array, "..."]]


def uniform(lam: Float[Array, "..."]) -> Float[Array, "..."]:
    """w = 1: the plain error of data.

    Example:
        >>> js.training.weights.uniform(jnp.array([-1.0, 2.0])).tolist()
        [1.0, 1.0]
    """
    return jnp.ones_like(lam)


def snr(lam: Float[Array, "..."]) -> Float[Array, "..."]:
    """w = SNR: the plain error of eps [Ho et al. 2020, L_simple].

    Example:
        >>> print(np.asarray(js.training.weights.snr(jnp.array([-1.0, 1.0]))).round(3))
        [0.135 7.389]
    """
    return jnp.exp(2 * lam)


def min_snr(gamma: float = 5.0) -> Weight:
    """w = min(SNR, gamma): at most gamma for what is almost clean [Hang et al. 2023, section 3.4].

    Example:
        >>> print(np.asarray(js.training.weights.min_snr()(jnp.array([-1.0, 1.0]))).round(3))
        [0.135 5.   ]
    """
    return lambda lam: jnp.minimum(jnp.exp(2 * lam), gamma)


def edm(sigma_data: float = 0.5) -> Weight:
    """w = (s^2 + d^2)/(s d)^2, s = e^{-lam}: the preconditioned network's error [Karras 2022, table 1].

    Args:
        sigma_data: d, the standard deviation of the data.

    Example:
        >>> print(np.asarray(js.training.weights.edm()(jnp.array([-10.0, 0.0]))).round(3))
        [4. 5.]
    """
    return lambda lam: sigma_data**-2 + jnp.exp(2 * lam)


def sigmoid(bias: float = 2.0) -> Weight:
    """w = SNR sigmoid(bias - log SNR): fades out above log SNR = bias [Kingma & Gao 2023, section 5].

    Example:
        >>> print(np.asarray(js.training.weights.sigmoid()(jnp.array([0.0, 10.0]))).round(3))
        [0.881 7.389]
    """
    return lambda lam: jnp.exp(2 * lam) * jax.nn.sigmoid(bias - 2 * lam)
