"""A comparison of solvers on photographs: PSNR, SSIM and time per solver and number of calls.

All solvers start from the same x_T and see the same crops. Ten crops, one per task, are one batch. A solver
with its number of calls is one table, and all tables share the compilation of the network, whose time is kept
apart.
"""

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from skimage.metrics import structural_similarity
from tqdm import tqdm

from ... import data, solvers
from ...data.photos import Photo
from ...nn.unet import RestorationNet
from ...tables import Step, Table, pad
from .photo import prepare, restore, table

FAMILY: dict[str, Step] = {
    "mr_ode 1": solvers.mr_ode(order=1),
    "mr_ode 2": solvers.mr_ode(order=2),
    "mr_sde 1": solvers.mr_sde(order=1),
    "mr_sde 2": solvers.mr_sde(order=2),
    "posterior": solvers.posterior,
    "euler_maruyama": solvers.euler_maruyama,
}
SEVERITY = 0.5

# One crop of a held-out photo per task, chosen for its content: name, top, left.
SHOWN = {
    "motion-blurry": ("china", 80, 96),
    "hazy": ("china", 152, 216),
    "jpeg-compressed": ("chelsea", 56, 128),
    "low-light": ("coffee", 200, 304),
    "noisy": ("astronaut", 56, 168),
    "raindrop": ("astronaut", 336, 120),
    "rainy": ("coffee", 24, 168),
    "shadowed": ("chelsea", 112, 160),
    "snowy": ("astronaut", 248, 216),
    "uncompleted": ("astronaut", 120, 352),
}


class Batch(NamedTuple):
    """Crops in the order of `data.TASKS`, one per task."""

    photos: list[str]
    clean: Float[np.ndarray, "n h w 3"]
    degraded: Float[np.ndarray, "n h w 3"]


class Row(NamedTuple):
    """One restored crop; `seconds` is a tenth of its batch's time. Solver "input" is the degraded crop."""

    task: str
    photo: str
    solver: str
    calls: int
    psnr: float
    ssim: float
    seconds: float


def shown(size: int = 128, seed: int = 1) -> Batch:
    """The ten crops of the demonstration."""
    photos = {p.name: p for p in data.held_out_photos()}
    return _batch(
        [[(photos[name], top, left)] for name, top, left in (SHOWN[task] for task in data.TASKS)], size, seed
    )


def crops(photos: Sequence[Photo], size: int = 128, each: int = 2, seed: int = 2) -> Iterator[Batch]:
    """Yield `each` crops of every photo for every task, the most damaged of three random places.

    A crop that no drop touches measures nothing.
    """
    for photo in photos:
        rows, columns = ((n - size) // 8 for n in photo.pixels.shape[:2])
        for i in range(each):
            rng = np.random.default_rng([seed, i, *photo.name.encode()])
            corners = rng.integers((rows + 1, columns + 1), size=(len(data.TASKS), 3, 2)).tolist()
            choices = [[(photo, 8 * y, 8 * x) for y, x in three] for three in corners]
            yield _batch(choices, size, seed + 1000 * (i + 1))


def _batch(choices: Sequence[Sequence[tuple[Photo, int, int]]], size: int, seed: int) -> Batch:
    """Crop the most damaged of each task's places, all in one photo (photo, top, left).

    The whole photo is damaged, then cropped: drops and blur reach in, shadows are larger than a crop.
    """
    clean, degraded, photos = [], [], []
    for k, (task, places) in enumerate(zip(data.TASKS, choices, strict=True)):
        photo = places[0][0]
        damaged = data.degrade(task, (seed, k), photo.image, SEVERITY)
        parts = [np.s_[top : top + size, left : left + size] for _, top, left in places]
        part = max(parts, key=lambda at: np.square(damaged[at] - photo.image[at]).mean())
        clean.append(photo.image[part])
        degraded.append(damaged[part])
        photos.append(photo.name)
    return Batch(photos, np.stack(clean), np.stack(degraded))


def psnr(image: Float[np.ndarray, "h w 3"], truth: Float[np.ndarray, "h w 3"]) -> float:
    """Peak signal-to-noise ratio in dB; `image` is clipped to [0, 1]."""
    with np.errstate(divide="ignore"):  # infinite for equal images
        return float(-10 * np.log10(np.square(np.clip(image, 0, 1) - truth).mean()))


def ssim(image: Float[np.ndarray, "h w 3"], truth: Float[np.ndarray, "h w 3"]) -> float:
    """Structural similarity with the Gaussian window of Wang et al. 2004, averaged over channels."""
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    return np.asarray(
        structural_similarity(np.clip(image, 0, 1).astype(np.float32), truth, channel_axis=-1, **options)
    ).item()


class Bench:
    """Run solvers on batches; the network is compiled once for a batch shape."""

    def __init__(self, net: RestorationNet, seed: int = 0):
        self.net, self.key, self.compile_seconds = net, jax.random.key(seed), 0.0

    def table(self, solver: Step, calls: int) -> Table:
        """Tabulate with two registers, so that orders 1 and 2 share a compilation."""
        return pad(table(self.net, solver, calls), regs=2)

    def run(self, batch: Batch, rows: Table) -> tuple[Float[np.ndarray, "n h w 3"], float]:
        """Return the restored images (not clipped, known pixels kept) and the seconds without compilation."""
        mu, task = jnp.asarray(batch.degraded), jnp.arange(len(batch.degraded))
        began = time.perf_counter()
        prepare(self.net, mu, task)
        self.compile_seconds += time.perf_counter() - began
        began = time.perf_counter()
        out = np.array(restore(self.net, rows, mu, task, self.key))
        seconds = time.perf_counter() - began
        holes = list(data.TASKS).index("uncompleted")
        known = batch.degraded[holes].any(-1, keepdims=True)
        out[holes] = np.where(known, batch.degraded[holes], out[holes])
        return out, seconds

    def rows(
        self, batch: Batch, members: Sequence[tuple[str, int]]
    ) -> tuple[list[Row], dict[tuple[str, int], np.ndarray]]:
        """Run all members (a name of `FAMILY`, calls) on a batch; return rows, the input's first, and images.

        Solvers with equal tables are one solver (posterior sampling is mr_sde of order 1) and run once.
        """
        rows, done = self._score(batch, "input", 0, batch.degraded, 0.0), {}
        for name, calls in tqdm(members, desc="solvers", unit="run", leave=False):
            sampler = self.table(FAMILY[name], calls)
            same = next((known for known in done.values() if _equal(known[0], sampler)), None)
            done[name, calls] = (sampler, *self.run(batch, sampler)) if same is None else same
            rows += self._score(batch, name, calls, *done[name, calls][1:])
        return rows, {member: images for member, (_, images, _) in done.items()}

    def _score(self, batch: Batch, name: str, calls: int, images: np.ndarray, seconds: float) -> list[Row]:
        return [
            Row(task, photo, name, calls, psnr(image, truth), ssim(image, truth), seconds / len(images))
            for task, photo, image, truth in zip(data.TASKS, batch.photos, images, batch.clean, strict=True)
        ]


def _equal(a: Table, b: Table) -> bool:
    """Whether two tables hold the same numbers, to rounding."""
    alike = a.nfe == b.nfe and a.regs == b.regs and jax.tree.structure(a) == jax.tree.structure(b)
    return alike and all(
        np.allclose(u, v, rtol=1e-9, atol=1e-12, equal_nan=True)
        for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )
