"""Training pairs: random crops of photos and their damaged versions, a function of (seed, step) alone.

No state is kept, so a training that resumes sees the bits that it would have seen without the interruption.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from .degradations import TASKS, degrade, generator
from .photos import Photo

# Pixels degraded around a crop and cut off again: blur and drops reach in from outside.
MARGIN = 8


def batch(seed: int, step: int, photos: Sequence[Photo], size: int, n: int) -> dict[str, np.ndarray]:
    """n training pairs: `clean` and `degraded` float32 [n, size, size, 3], `task` int32 [n], of `TASKS`.

    Each is a photo (as likely as it has pixels), a crop of it reduced by 0.5 to 1 and flipped or not, a task
    and a severity. A window wider by `MARGIN` is degraded and its centre kept; JPEG's blocks of 8 pixels stay
    aligned with the crop. Haze and shadow are those of the window's true place in the photo one half of the
    time, of a larger part the other half, as few small crops hold the edge of a shadow.
    """
    weights = np.array([p.pixels.shape[0] * p.pixels.shape[1] for p in photos], float)
    pairs = [_pair((seed, step, i), photos, weights / weights.sum(), size) for i in range(n)]
    clean, degraded, task = zip(*pairs, strict=True)
    return {"clean": np.stack(clean), "degraded": np.stack(degraded), "task": np.array(task, np.int32)}


def _pair(key: tuple[int, int, int], photos: Sequence[Photo], weights: np.ndarray, size: int):
    rng = generator(key)
    photo = photos[rng.choice(len(photos), p=weights)]
    task = int(rng.integers(len(TASKS)))
    height, width, _ = photo.pixels.shape
    side = size + 2 * MARGIN
    window = min(round(side / rng.uniform(0.5, 1.0)), height, width)
    if window < side:
        raise ValueError(
            f"the photo {photo.name!r} is {height} x {width}; crops of {size} need {side} at least"
        )
    top, left = int(rng.integers(height - window + 1)), int(rng.integers(width - window + 1))
    crop = photo.pixels[top : top + window, left : left + window]
    if rng.uniform() < 0.5:
        crop = crop[:, ::-1]
    if window > side:
        reduced = Image.fromarray(np.ascontiguousarray(crop)).resize((side, side), Image.Resampling.LANCZOS)
        crop = np.asarray(reduced)
    image = crop.astype(np.float32) / 255
    view = (top / height, left / width, (top + window) / height, (left + window) / width)
    if rng.uniform() < 0.5:
        (y, x), part = rng.uniform(0, 0.5, 2), rng.uniform(0.25, 0.5)
        view = (y, x, y + part, x + part)
    damaged = degrade(list(TASKS)[task], (*key, 1), image, view=view)
    centre = slice(MARGIN, MARGIN + size)
    return image[centre, centre], damaged[centre, centre], task
