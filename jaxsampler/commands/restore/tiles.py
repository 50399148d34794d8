r"""A network on images that are too large for it: overlapping windows, blended inside every network call.

The sampler keeps the whole image as its state, with one noise field; only the network looks through windows.
Its outputs are joined with weights that sum to one,

    net(x)[p] = sum_k w_k(p) net(x[window k])[p],      sum_k w_k(p) = 1,

so neighbouring windows agree after every step and no seam can build up. The weights are 0 on the outer
quarter of an overlap, where a window lacks context, and rise smoothly over its middle half: if the network
sees no further than a quarter overlap, the result is that of the whole image. Windows have one size and start
at multiples of the U-Net's cell, so the network is traced once and its cells lie as they would on the whole
image.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ...nn.unet import RestorationNet
from ...paths import MeanReverting

CELL = 8


def windows(
    length: int, size: int, overlap: int
) -> tuple[Int[np.ndarray, " k"], Float[np.ndarray, "k size"]]:
    """Starts and weights of the windows that cover an axis; one window if `length <= size`."""
    if length % CELL or size % CELL or overlap % CELL or not 0 < overlap < size:
        got = f"got length {length}, size {size}, overlap {overlap}"
        raise ValueError(f"windows need whole cells of {CELL} pixels and 0 < overlap < size; {got}")
    if length <= size:
        return np.zeros(1, np.int32), np.ones((1, length), np.float32)
    count = -(-(length - overlap) // (size - overlap))
    starts = CELL * (np.arange(count) * ((length - size) // CELL) // (count - 1)).astype(np.int32)
    inside = np.arange(size) + 0.5
    rise = np.sin(np.pi / 2 * np.clip(2 * inside / overlap - 0.5, 0, 1)) ** 2
    weights = np.zeros((count, size))
    total = np.zeros(length)
    for k, start in enumerate(starts):
        weights[k] = (rise if k else 1.0) * (rise[::-1] if k < count - 1 else 1.0)
        total[start : start + size] += weights[k]
    for k, start in enumerate(starts):
        weights[k] /= total[start : start + size]
    return starts, weights.astype(np.float32)


class Tiled(eqx.Module):
    """`net` through windows of `size` pixels; an image that fits in one window is passed on as it is."""

    net: RestorationNet
    size: int = eqx.field(static=True, default=768)
    overlap: int = eqx.field(static=True, default=192)

    def path(self, mu: Float[Array, "*batch h w c"]) -> MeanReverting:
        """The path of the network."""
        return self.net.path(mu)

    def __call__(
        self,
        x: Float[Array, "*batch h w 3"],
        t: Float[Array, "..."] | float,
        mu: Float[Array, "*batch h w 3"],
        task: Int[Array, "..."] | int,
    ) -> Float[Array, "*batch h w 3"]:
        """Call the network; sides that exceed `size` must be whole cells."""
        height, width = x.shape[-3:-1]
        if height <= self.size and width <= self.size:
            return self.net(x, t, mu, task)
        (tops, down), (lefts, across) = (windows(n, self.size, self.overlap) for n in (height, width))
        shape = (*x.shape[:-3], down.shape[1], across.shape[1], 3)
        i, j = (k.ravel() for k in np.meshgrid(range(len(tops)), range(len(lefts)), indexing="ij"))

        def add(out, window):
            top, left, rows, columns = window
            start = (*[0] * (x.ndim - 3), top, left, 0)
            part = self.net(
                jax.lax.dynamic_slice(x, start, shape), t, jax.lax.dynamic_slice(mu, start, shape), task
            )
            share = jnp.broadcast_to((rows[:, None] * columns[None, :])[..., None].astype(x.dtype), shape)
            return jax.lax.dynamic_update_slice(
                out, jax.lax.dynamic_slice(out, start, shape) + share * part, start
            ), None

        over = jax.tree.map(jnp.asarray, (tops[i], lefts[j], down[i], across[j]))
        return jax.lax.scan(add, jnp.zeros_like(x), over)[0]
