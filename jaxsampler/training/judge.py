"""How well a restoration network does: PSNR on held-out crops, before and after, per task."""

from collections.abc import Sequence
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from .. import data, solvers
from ..front_door import sample
from ..nn.unet import RestorationNet
from ..numerics import Key
from ..paths import Denoiser, grids

Crops = Float[np.ndarray, "n h w 3"]


def crops(photos: Sequence[data.Photo], size: int, seed: int) -> tuple[Crops, Crops, Int[np.ndarray, " n"]]:
    """Return (clean, degraded, task): one crop of each photo for each task, cut from the damaged photo.

    It is the most damaged of eight random places: a crop that no shadow or drop touches measures nothing, at
    50 dB.
    """
    rows = []
    for i, photo in enumerate(photos):
        for k, task in enumerate(data.TASKS):
            rng, image = np.random.default_rng([seed, i, k]), photo.image
            damaged = data.degrade(task, (seed, i, k), image)
            corners = rng.integers((0, 0), np.array(image.shape[:2]) - size + 1, (8, 2))
            parts = [np.s_[y : y + size, x : x + size] for y, x in corners]
            part = max(parts, key=lambda at: np.square(damaged[at] - image[at]).mean())
            rows.append((image[part], damaged[part], k))
    clean, degraded, task = zip(*rows, strict=True)
    return np.stack(clean), np.stack(degraded), np.array(task, np.int32)


@eqx.filter_jit
def restore(
    net: RestorationNet, mu: Float[Array, "n h w 3"], task: Int[Array, " n"], key: Key, *, calls: int = 10
) -> Float[Array, "n h w 3"]:
    """Run MR Sampler of first order (SDE, data), uniform in t; one call is the regression E[x0 | mu]."""
    path = net.path(mu)
    denoiser = Denoiser(partial(net, mu=mu, task=task), path, "data")
    return sample(denoiser, mu, key=key, solver=solvers.mr_sde(order=1), grid=grids.uniform(path, calls))


def psnr(image: Crops, truth: Crops) -> Float[np.ndarray, " n"]:
    """Peak signal-to-noise ratio of each image in dB; `image` is clipped to [0, 1]."""
    return -10 * np.log10(np.square(np.clip(image, 0, 1) - truth).mean((1, 2, 3)))


def judge(
    net: RestorationNet, photos: Sequence[data.Photo], *, size: int = 128, seed: int = 7
) -> dict[str, dict[str, float]]:
    """Mean PSNR in dB per task, over one crop of each photo: the input, and restored by 1, 5 and 10 calls."""
    clean, degraded, task = crops(photos, size, seed)
    results = {"input": psnr(degraded, clean)}
    for calls in (1, 5, 10):
        outputs = [
            np.asarray(
                restore(
                    net,
                    jnp.asarray(degraded[part]),
                    jnp.asarray(task[part]),
                    jax.random.key(seed),
                    calls=calls,
                )
            )
            for i in tqdm(range(0, len(task), 10), desc=f"judging, {calls} calls", unit="batch")
            for part in (slice(i, i + 10),)
        ]
        results[f"mr_sde_1 x {calls}"] = psnr(np.concatenate(outputs), clean)
    return {
        name: {what: round(float(values[task == k].mean()), 2) for what, values in results.items()}
        for k, name in enumerate(data.TASKS)
    }
