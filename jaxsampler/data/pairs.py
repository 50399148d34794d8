"""Training pairs: random crops of photos and their damaged versions, a function of (seed, step) alone.

It keeps no state, so a training that resumes sees the bits that it would have seen without the interruption.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from .degradations import TASKS, View, degrade, generator
from .photos import Photo

# Pixels degraded around a crop and cut off again: blur and drops reach in from outside.
MARGIN = 8


def batch(seed: int, step: int, photos: Sequence[Photo], size: int, n: int) -> dict[str, np.ndarray]:
    """Return n training pairs: `clean`, `degraded` float32 [n, size, size, 3], `task` int32 [n] of `TASKS`.

    Each pair is a crop of a photo, reduced by 0.5 to 1 and flipped or not, with a task and a severity. A
    photo is drawn with a chance proportional to its pixels. Much of a good photo is sky or out of focus,
    which teaches little, so seven crops of ten are the most detailed of three. A window wider by `MARGIN` is
    degraded and its centre kept; JPEG's blocks of 8 pixels stay aligned with the crop. Haze and shadow are
    mostly those of a quarter to three quarters of a photo, else of the crop's true place in it, because few
    small crops hold the edge of a shadow.

    Example:
        >>> pixels = np.full((64, 64, 3), 128, np.uint8)
        >>> photo = js.data.Photo("grey", "grey", pixels, source="made", licence="CC0")
        >>> pairs = js.data.batch(seed=0, step=3, photos=[photo], size=16, n=2)
        >>> pairs["degraded"].shape, [list(js.data.TASKS)[k] for k in pairs["task"]]
        ((2, 16, 16, 3), ['raindrop', 'uncompleted'])
    """
    sizes = np.array([photo.pixels.size for photo in photos], float)
    pairs = [_pair((seed, step, i), photos, sizes / sizes.sum(), size) for i in range(n)]
    clean, degraded, task = zip(*pairs, strict=True)
    return {"clean": np.stack(clean), "degraded": np.stack(degraded), "task": np.array(task, np.int32)}


def _pair(key: tuple[int, int, int], photos: Sequence[Photo], weights: np.ndarray, size: int):
    rng = generator(key)
    task, side = int(rng.integers(len(TASKS))), size + 2 * MARGIN
    windows = [_window(rng, photos[i], side) for i in rng.choice(len(photos), size=3, p=weights)]
    crop, view = max(windows, key=_detail) if rng.uniform() < 0.7 else windows[0]
    if rng.uniform() < 0.75:
        part = rng.uniform(0.25, 0.75)
        y, x = rng.uniform(0, 1 - part, 2)
        view = (y, x, y + part, x + part)
    if rng.uniform() < 0.5:
        crop = crop[:, ::-1]
    if crop.shape[0] > side:
        reduced = Image.fromarray(np.ascontiguousarray(crop)).resize((side, side), Image.Resampling.LANCZOS)
        crop = np.asarray(reduced)
    image = crop.astype(np.float32) / 255
    damaged = degrade(list(TASKS)[task], (*key, 1), image, view=view)
    centre = slice(MARGIN, MARGIN + size)
    return image[centre, centre], damaged[centre, centre], task


def _window(rng: np.random.Generator, photo: Photo, side: int) -> tuple[np.ndarray, View]:
    """Cut a random square of one to two times `side`; return it with its place in the photo."""
    height, width, _ = photo.pixels.shape
    window = min(round(side / rng.uniform(0.5, 1.0)), height, width)
    if window < side:
        raise ValueError(
            f"the photo {photo.name!r} is {height} x {width} pixels; training needs at least {side}"
        )
    top, left = int(rng.integers(height - window + 1)), int(rng.integers(width - window + 1))
    view = (top / height, left / width, (top + window) / height, (left + window) / width)
    return photo.pixels[top : top + window, left : left + window], view


def _detail(window: tuple[np.ndarray, View]) -> float:
    """Mean step between neighbouring pixels, in green."""
    green = window[0][..., 1].astype(np.int16)
    return float(np.abs(np.diff(green, axis=0)).mean() + np.abs(np.diff(green, axis=1)).mean())
