"""Drawing tools of the degradations: smooth fields, kernels, sparse points, a convolution."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

RgbImage = Float[np.ndarray, "H W 3"]


def coordinates(shape: Sequence[int], view: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres, (H, 1) and (1, W), in the photo's unit square."""
    top, left, bottom, right = view
    y = top + (bottom - top) * (np.arange(shape[0]) + 0.5) / shape[0]
    x = left + (right - left) * (np.arange(shape[1]) + 0.5) / shape[1]
    return y[:, None].astype(np.float32), x[None, :].astype(np.float32)


def hills(rng: np.random.Generator, y: np.ndarray, x: np.ndarray, waves: int) -> np.ndarray:
    """A smooth random field of unit variance: plane waves of 1/2 to 2 periods across the photo."""
    total = 0
    for _ in range(2 * waves):
        turn, phase = rng.uniform(0, 2 * np.pi, 2)
        pace = 2 * np.pi * rng.uniform(0.4, 2.0)
        total = total + np.cos(pace * (y * np.sin(turn) + x * np.cos(turn)) + phase)
    return total / np.sqrt(waves)


def splat(path: np.ndarray, width: float = 0.0) -> np.ndarray:
    """A kernel of sum 1: points (2, n), in pixels from its centre, as bilinear or Gaussian spots."""
    half = int(np.ceil(np.abs(path).max() + 3 * width)) + 1
    grid = np.arange(-half, half + 1)
    away = np.abs(grid[:, None, None] - path)
    spots = np.maximum(1 - away, 0) if width == 0 else np.exp(-0.5 * (away / width) ** 2)
    kernel = spots[:, 0] @ spots[:, 1].T
    return (kernel / kernel.sum()).astype(np.float32)


def flake(radius: float, soft: float, stretch: float = 1.0, angle: float = 0.0) -> np.ndarray:
    """A disc of peak 1 whose edge falls over `soft` pixels, stretched along `angle` from the vertical."""
    half = int(np.ceil(radius * stretch + 2 * soft)) + 1
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    along, across = y * np.cos(angle) + x * np.sin(angle), -y * np.sin(angle) + x * np.cos(angle)
    return 1 / (1 + np.exp(np.clip((np.hypot(along / stretch, across) - radius) / (0.35 * soft), -30, 30)))


def scatter(
    rng: np.random.Generator, shape: Sequence[int], kernel: Sequence[int], density: float
) -> np.ndarray:
    """Sparse amplitudes in [0.4, 1] on a field large enough for its valid convolution to have `shape`."""
    size = (shape[0] + kernel[0] - 1, shape[1] + kernel[1] - 1)
    place = rng.random(size, np.float32)
    return np.where(place < density, rng.uniform(0.4, 1.0, size), 0).astype(np.float32)


def blur(image: RgbImage, kernel: np.ndarray) -> RgbImage:
    """Convolve each channel with a normalised kernel of odd sides; the image is mirrored at its edges."""
    from scipy.signal import fftconvolve, oaconvolve  # slow to import

    (top, left), (height, width, _) = (k // 2 for k in kernel.shape), image.shape
    rows, columns = mirror(height, top), mirror(width, left)
    convolve = oaconvolve if height * width > 65_536 else fftconvolve
    out = convolve(image[rows][:, columns], (kernel / kernel.sum())[..., None], "valid", axes=(0, 1))
    return out.astype(np.float32)


def mirror(n: int, pad: int) -> np.ndarray:
    """Indices -pad .. n + pad - 1 reflected into 0 .. n - 1, for any sizes."""
    i = np.arange(-pad, n + pad) % max(2 * n - 2, 1)
    return np.minimum(i, 2 * n - 2 - i) if n > 1 else np.zeros(n + 2 * pad, int)
