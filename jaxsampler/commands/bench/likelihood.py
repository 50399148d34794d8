r"""Bits per dimension of the shipped Fashion-MNIST networks on test photos: `jaxsampler bench likelihood`.

Measured is the density p of the probability flow, which is continuous, on images of 8 bits. Each of the 1,024
numbers of a 32 x 32 image, v = k/127.5 - 1, becomes x = v + w (u - 1/2) with the width w = 1/127.5 of its
cell and u ~ U[0, 1), the black margin like the rest, and

    bits = (-log2 p(x) - 1024 log2 w)/1024,

whose mean over u is an upper bound on the bits of the model that p makes of the cells (Jensen). Two things
make this number special.

The margin, 240 of the 1,024 numbers, is constant. A perfect model spends nothing on it, so these bits cannot
be compared with those of 28 x 28 images. The photographs alone cost at most 1024/784 times as much per pixel,
by the chain rule.

The density is that at the end of the flow. EDM's is of data with noise of sigma_min = 0.002, about the
deviation w/sqrt(12) = 0.0023 of the dequantisation. CondOT's velocity determines the flow down to t = 0, the
data themselves. Networks are hardly trained at such levels, and how sharply they know which pixels are
exactly black counts for much in the number.

The trace is Hutchinson's with one Rademacher probe per image; its noise is part of the scatter over images,
hence of the standard error.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from ... import pretrained
from ...data import fashion
from ...numerics import Key
from ...ode.likelihood import bits_per_dim, log_prob
from ...paths import EDM, Denoiser, grids
from .timing import device

STEPS = 64  # of RK4, four calls each
HALF_CELL = 1 / 255


@dataclasses.dataclass
class Bits:
    """One network's bits per dimension of each image.

    Args:
        t_min: where the grid ends.
        change: of the mean of the first `checked` images on twice the steps.
    """

    t_min: float
    calls: int
    bits: list[float]
    change: float
    checked: int

    @property
    def mean(self) -> float:
        """Mean over the images."""
        return float(np.mean(self.bits))

    @property
    def error(self) -> float:
        """Standard error of the mean, from images, dequantisation and probes."""
        return float(np.std(self.bits, ddof=1) / math.sqrt(len(self.bits)))


@dataclasses.dataclass
class Likelihoods:
    """The bits of each network, on the same images, and the class of each image."""

    device: str
    networks: dict[str, Bits]
    labels: list[int]


def grid_of(denoiser: Denoiser, steps: int) -> np.ndarray:
    """`karras` down to sigma_min on EDM, else equal steps in sqrt(t) down to 0."""
    path: Any = denoiser.path
    grid = grids.karras(path, steps) if isinstance(path, EDM) else grids.quadratic(path, steps, t_min=0.0)
    return np.asarray(grid, np.float64)


def bits_of(denoiser: Denoiser, pixels: np.ndarray, steps: int) -> np.ndarray:
    """Bits per dimension of uint8 images [n, ...]; dequantisation and probes do not depend on `steps`."""
    bar = tqdm(total=len(pixels), desc=f"{4 * steps} calls", unit="image")

    def tick(_: Any) -> None:
        bar.update()

    def density(denoiser: Denoiser, x: jax.Array, *, key: Key) -> jax.Array:
        found = log_prob(denoiser, x, key=key, trace="hutchinson", grid=grid_of(denoiser, steps))
        jax.debug.callback(tick, found)  # after it is computed
        return found

    measured = jax.jit(
        lambda images: bits_per_dim(
            denoiser,
            images,
            jax.random.key(0),
            low=-1 - HALF_CELL,
            high=1 + HALF_CELL,
            density=density,
            batch_size=min(8, len(images)),
        )
    )
    with bar:
        found = np.asarray(measured(jnp.asarray(pixels)))
        jax.effects_barrier()
    return found


def measure(
    images: int = 128, checked: int = 16, networks: dict[str, Denoiser] | None = None, steps: int = STEPS
) -> Likelihoods:
    """Measure the first `images` test photographs under each network (by default the shipped ones).

    Args:
        checked: this many are measured with twice the steps too.
    """
    photos = fashion.some()[slice(images)]
    pixels = np.pad(photos.pixels, ((0, 0), (2, 2), (2, 2)))[..., None]
    if networks is None:
        networks = {name: pretrained.load(name) for name in ("fashion_edm", "fashion_flow")}
    found = {}
    for name, denoiser in networks.items():
        bits, finer = bits_of(denoiser, pixels, steps), bits_of(denoiser, pixels[:checked], 2 * steps)
        change, grid = float((finer - bits[:checked]).mean()), grid_of(denoiser, steps)
        found[name] = Bits(float(grid[-1]), 4 * steps, bits.tolist(), change, checked)
    return Likelihoods(device(), found, photos.labels.tolist())


def markdown(result: Likelihoods) -> str:
    """Format the table."""
    head = ["network", "bits/dim (1,024 dims)", "per pixel of the photo, at most", "density at", "calls"]
    lines = ["| " + " | ".join([*head, "change on twice the calls"]) + " |", "|---" * 6 + "|"]
    for name, one in result.networks.items():
        mean, error = (f"{x * 1024 / 784:.2f}" for x in (one.mean, one.error))
        cells = [
            f"{one.mean:.3f} ± {one.error:.3f}",
            f"{mean} ± {error}",
            f"t = {one.t_min:g}",
            f"{one.calls}",
        ]
        lines.append(f"| {name} | " + " | ".join([*cells, f"{one.change:+.4f}"]) + " |")
    return "\n".join(lines) + "\n"


def figure(result: Likelihoods) -> Any:
    """Plot the bits of each image, by class."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    for i, (name, one) in enumerate(result.networks.items()):
        x = np.asarray(result.labels) + 0.25 * (i - 0.5)
        axes.plot(x, one.bits, "o", ms=3, alpha=0.6, label=f"{name}: {one.mean:.2f}")
    axes.set(ylabel="bits per dimension")
    axes.set_xticks(range(10), fashion.CLASSES, rotation=30)
    axes.grid(alpha=0.3)
    axes.legend()
    return fig
