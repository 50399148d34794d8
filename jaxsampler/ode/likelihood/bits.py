"""Bits per dimension of 8-bit images, uniformly dequantised.

Reference: Theis et al. 2016.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...numerics import Arr, Key, Real, cast
from .density import log_prob


def bits_per_dim(
    denoiser: Callable,
    images: Arr,
    key: Key,
    *,
    low: Real = -1.0,
    high: Real = 1.0,
    density: Callable | None = None,
    dtype: str | type | np.dtype = jnp.float32,
    batch_size: int | None = None,
) -> Float[Array, " n"]:
    """Bits per dimension of each of the 8-bit `images` [n, ...], uniformly dequantised [Theis et al. 2016].

    x = low + (high - low)(k + u)/256 with u ~ U[0, 1). The bits are those of -log2 p(x) per number plus
    8 - log2(high - low) for the size of a cell (7 for [-1, 1]); by Jensen's inequality their mean over u
    bounds those of the discrete model.

    Args:
        key: for u and the probes.
        low, high: what pixel values 0 and 256 are to the network.
        density: (denoiser, x, key=) -> log p(x) in nats; by default `log_prob` with one Hutchinson probe.
        batch_size: images at a time; all if None.

    Example:
        >>> denoiser = js.Denoiser(lambda x, t: x, js.VP(), "noise")
        >>> uniform = lambda denoiser, x, key: -x.size * jnp.log(2.0)  # the density 1/2 on [-1, 1]
        >>> images = np.zeros((2, 4), np.uint8)
        >>> js.likelihood.bits_per_dim(denoiser, images, jax.random.key(0), density=uniform).tolist()
        [8.0, 8.0]
    """
    images = jnp.asarray(images)
    if images.dtype != jnp.uint8 or images.ndim < 2 or not high > low:
        raise ValueError(
            f"images must be uint8 [n, ...], and low < high; got {images.dtype}{list(images.shape)}, "
            f"{low}, {high}"
        )
    density = functools.partial(log_prob, trace="hutchinson") if density is None else density
    size = math.prod(images.shape[1:])

    def bits(numbered):
        i, image = numbered
        uniform, probe = jax.random.split(jax.random.fold_in(key, i))
        u = jax.random.uniform(uniform, image.shape, dtype)
        x = cast(low, u) + cast((high - low) / 256, u) * (image.astype(dtype) + u)
        return -density(denoiser, x, key=probe) / (size * math.log(2)) + 8 - math.log2(high - low)

    return jax.lax.map(bits, (jnp.arange(len(images)), images), batch_size=batch_size or len(images))
