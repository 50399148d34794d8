r"""A network on images that are too large for it: overlapping windows, blended inside every network call.

The sampler keeps the whole image as its state, with one noise field; only the network looks through windows.
Its outputs are joined with weights that sum to one,

    net(x)[p] = sum_k w_k(p) net(x[window k])[p],      sum_k w_k(p) = 1,

so neighbouring windows agree after every step and no seam can build up. The weights are 0 on the outer
quarter of an overlap, where a window lacks context, and rise smoothly over its middle half: if the network
sees no further than a quarter overlap, the result is that of the whole image. Windows have one size and start
at multiples of the U-Net's cell, so the network is traced once and its cells lie as they would on the whole
image.

Overlaps are computed more than once, so an image that memory holds is left whole.
"""

import itertools
import math
import os
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ...nn.unet import RestorationNet
from ...paths import MeanReverting

CELL = 8
NEEDED = 5.0  # bytes for each pixel and channel of the first level that a call of the network holds at most
SHARE = 0.5  # of the memory there is, for a call of the network
UNKNOWN = 4 * 2**30  # bytes of memory, where nobody tells
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container


class Window(NamedTuple):
    """Where a window begins, and the shares of its rows and columns in the image."""

    top: Int[np.ndarray, ""]
    left: Int[np.ndarray, ""]
    down: Float[np.ndarray, " h"]
    across: Float[np.ndarray, " w"]


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


def sides(height: int, width: int, most: int, overlap: int) -> tuple[int, int]:
    """Height and width of the windows of at most `most` pixels that see the fewest pixels in all."""
    found, smallest = [], overlap + CELL
    for rows in itertools.count(1):
        h = _snug(height, rows, overlap)
        widest = most // h // CELL * CELL
        if widest >= min(width, smallest):
            columns = 1 if widest >= width else -(-(width - overlap) // (widest - overlap))
            w = _snug(width, columns, overlap)
            found.append((rows * columns * h * w, rows * columns, h, w))
        if h <= smallest:
            break
    if not found:
        raise ValueError(f"windows of {most} pixels cannot overlap by {overlap}: give them more pixels")
    return min(found)[2:]


def _snug(length: int, count: int, overlap: int) -> int:
    """The size at which `count` windows cover an axis and overlap no more than they must."""
    size = -(-(length + (count - 1) * overlap) // count)
    return min(length, max(-(-size // CELL) * CELL, overlap + CELL))


class Tiled(eqx.Module):
    """`net` through windows of at most size x size pixels; an image of no more is passed on as it is."""

    net: RestorationNet
    size: int = eqx.field(static=True, default=768)
    overlap: int = eqx.field(static=True, default=192)

    def path(self, mu: Float[Array, "*batch h w c"]) -> MeanReverting:
        """The path of the network."""
        return self.net.path(mu)

    def windows(self, height: int, width: int) -> list[Window]:
        """The windows on an image of this size; none if it is left whole."""
        if height * width <= self.size**2:
            return []
        h, w = (max(side, self.overlap + CELL) for side in sides(height, width, self.size**2, self.overlap))
        (tops, down), (lefts, across) = (windows(n, a, self.overlap) for n, a in ((height, h), (width, w)))
        return [
            Window(top, left, rows, columns)
            for top, rows in zip(tops, down, strict=True)
            for left, columns in zip(lefts, across, strict=True)
        ]

    def add(
        self,
        out: Float[Array, "*batch h w 3"],
        x: Float[Array, "*batch h w 3"],
        t: Float[Array, "..."] | float,
        mu: Float[Array, "*batch h w 3"],
        task: Int[Array, "..."] | int,
        window: Window,
    ) -> Float[Array, "*batch h w 3"]:
        """`out` with the share of one window in the network's output."""
        top, left, rows, columns = window
        shape = (*x.shape[:-3], rows.shape[0], columns.shape[0], 3)
        start = (*[0] * (x.ndim - 3), top, left, 0)
        cut = lambda image: jax.lax.dynamic_slice(image, start, shape)
        share = jnp.broadcast_to((rows[:, None] * columns[None, :])[..., None].astype(x.dtype), shape)
        part = self.net(cut(x), t, cut(mu), task)
        return jax.lax.dynamic_update_slice(out, cut(out) + share * part, start)

    def __call__(
        self,
        x: Float[Array, "*batch h w 3"],
        t: Float[Array, "..."] | float,
        mu: Float[Array, "*batch h w 3"],
        task: Int[Array, "..."] | int,
    ) -> Float[Array, "*batch h w 3"]:
        """Predict x0 of the whole image, as `RestorationNet` does."""
        every = self.windows(*x.shape[-3:-1])
        if not every:
            return self.net(x, t, mu, task)
        over = jax.tree.map(lambda *each: jnp.stack(each), *every)
        add = lambda out, window: (self.add(out, x, t, mu, task, window), None)
        return jax.lax.scan(add, jnp.zeros_like(x), over)[0]


def fitting(net: RestorationNet, memory: float | None = None, overlap: int = 192) -> Tiled:
    """`net` through the largest windows that memory holds (bytes; None: what `available` finds)."""
    width = net.unet.stem.weight.shape[-1]
    pixels = SHARE * (available() if memory is None else memory) / (NEEDED * width)
    return Tiled(net, max(CELL * int(math.sqrt(pixels) / CELL), 2 * overlap), overlap)


def available() -> float:
    """Bytes of memory of the device; on CPUs the machine's, or what a container may use of it.

    What is free at the moment does not count: it would change the windows, and with them a photo's last bits.
    """
    device = jax.devices()[0]
    if device.platform != "cpu":
        return float((device.memory_stats() or {}).get("bytes_limit", UNKNOWN))
    bounds = [float(n) for file in LIMITS if (n := _read(file)).isdigit()]
    try:
        bounds.append(float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # not on Windows
        bounds.append(float(UNKNOWN))
    return min(bounds)


def _read(file: str) -> str:
    try:
        return Path(file).read_text().strip()
    except OSError:
        return ""
