r"""The numbers of JAX's default generator on CPUs, element by element.

Threefry 2x32 [Salmon et al. 2011] hashes the index of an element under the key: twenty times

    a <- a + b;   b <- rotate(b) xor a

and five times adds the key. For CPUs JAX writes these rounds as a loop over whole arrays, six arrays of the
state's size. Written out they are one elementwise formula: XLA joins it with what adds the noise, so a draw
takes no memory, and less time. The numbers are the same, bit for bit.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import define_prng_impl, threefry_prng_impl

ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)


def elementwise(key: Any) -> Any:
    """The same key, with draws written out, where programs run on CPUs and the key is of JAX's default kind.

    It is for drawing and `fold_in` inside one function; callers get keys of their own kind only.

    Example:
        >>> from jaxsampler.threefry import elementwise
        >>> key = jax.random.key(0)
        >>> bool((jax.random.normal(elementwise(key), (5,)) == jax.random.normal(key, (5,))).all())
        True
    """
    config: Any = jax.config
    default = jax.random.key_impl(key) == "threefry2x32"
    if not default or not config.jax_threefry_partitionable or jax.default_backend() != "cpu":
        return key
    return jax.random.wrap_key_data(_data(key), impl=_written_out)


def _data(key: Any) -> Any:
    return jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key


def _hash(key: Any, a: Any, b: Any) -> tuple[Any, Any]:
    """Threefry 2x32 of the pair (a, b)."""
    keys = key[0], key[1], key[0] ^ key[1] ^ np.uint32(0x1BD11BDA)
    a, b = a + keys[0], b + keys[1]
    for i in range(5):
        for r in ROTATIONS[i % 2]:
            a = a + b
            b = a ^ ((b << np.uint32(r)) | (b >> np.uint32(32 - r)))
        a, b = a + keys[(i + 1) % 3], b + keys[(i + 2) % 3] + np.uint32(i + 1)
    return a, b


@partial(jax.jit, static_argnums=(1, 2), inline=True)
def _bits(key: Any, width: int, shape: tuple[int, ...]) -> Any:
    """Random bits of the elements, which are counted in C order."""
    if math.prod(shape) > 2**32:
        return threefry_prng_impl.random_bits(key, width, shape)
    count = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = np.uint32(math.prod(shape[axis + 1 :]) % 2**32)  # 2**32 itself only counts one element
        count = count + jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * stride
    a, b = _hash(key, jnp.zeros(shape, jnp.uint32), count)
    if width == 64:
        return (a.astype(jnp.uint64) << np.uint64(32)) | b.astype(jnp.uint64)
    return (a ^ b).astype({8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32}[width])


@partial(jax.jit, inline=True)
def _fold_in(key: Any, data: Any) -> Any:
    """The key hashes the pair (0, data)."""
    zero = jnp.zeros((), jnp.uint32)
    return jnp.stack(_hash(key, zero, jnp.asarray(data).astype(jnp.uint32)))


_written_out = define_prng_impl(
    key_shape=(2,),
    seed=threefry_prng_impl.seed,
    split=threefry_prng_impl.split,
    random_bits=_bits,
    fold_in=_fold_in,
    name="threefry2x32_written_out",
    tag="written_out",
)
