"""`task = "restore"`: the restoration network, from photographs to weights.

One network for all ways to damage a photo, trained on random crops of the training photos, each degraded
afresh. The loss is the square of the error of the preconditioned network (`nn/unet.py`); every damage and
time weighs the same. The weights that count are the running average.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Array, Float

from .. import data
from ..nn.unet import RestorationNet
from ..numerics import Key
from . import losses
from .judge import judge
from .task import Batch, Placed, Task


@dataclass(frozen=True)
class Restore:
    """A training of the restoration network."""

    photos: tuple[str, ...]  # folders besides the photos in Python packages; "desktop": Debian's wallpapers
    seed: int
    steps: int  # iterations of the optimiser
    batch: int  # crops per iteration
    crop: int  # pixels
    std: float  # of the path, image units
    T: int
    eps: float  # alpha(T)
    widths: tuple[int, ...]  # channels at 1/2, 1/4, ... resolution
    depth: int  # residual blocks per level, each way
    embedding: int
    lr: float  # peak rate: linear warm-up, cosine decay to a hundredth
    warmup: int  # iterations
    weight_decay: float
    clip: float  # global norm of the gradient
    decay: float  # of the running average
    minutes: float = 5.0  # between checkpoints


def batches(c: Restore, photos: Sequence[data.Photo]) -> Callable[[int], Batch]:
    """Batches by iteration: photos, crops and damage depend on (seed, iteration) only."""
    return lambda k: data.batch(c.seed, k, photos, c.crop, c.batch)


def residuals(c: Restore, photos: Sequence[data.Photo], samples: int = 2000) -> tuple[float, ...]:
    """Root mean square of clean - degraded per damage, over training crops drawn with another seed."""
    sums, counts = np.zeros(len(data.TASKS)), np.zeros(len(data.TASKS))
    for k in range(-(-samples // c.batch)):
        b = data.batch(c.seed + 1, k, photos, c.crop, c.batch)
        np.add.at(sums, b["task"], np.square(b["clean"] - b["degraded"]).mean((1, 2, 3)))
        np.add.at(counts, b["task"], 1)
    return tuple(float(r) for r in np.round(np.sqrt(sums / counts), 4))


def network(c: Restore, residual: tuple[float, ...]) -> RestorationNet:
    """The untrained network of a config."""
    sizes = {"widths": c.widths, "depth": c.depth, "embedding": c.embedding}
    return RestorationNet(residual, std=c.std, T=c.T, eps=c.eps, **sizes, key=jax.random.key(c.seed))


def loss(c: Restore, net: RestorationNet, batch: Placed, key: Key) -> Float[Array, ""]:
    """Mean square of the error of F, which is the error of the data divided by std c_out."""
    mu, task = batch["degraded"], batch["task"]
    k1, k2 = jax.random.split(key)
    t = losses.stratified(k1, mu.shape[0], 0.0, float(net.T))
    return losses.matching(
        lambda x, t: net(x, t, mu, task),
        net.path(mu),
        batch["clean"],
        t,
        k2,
        weight=lambda t: 1 / (net.std * net.scales(t, task)[2]),
    )


TASK = Task[Restore, list[data.Photo], RestorationNet](
    config=Restore,
    data=lambda c: (data.training_photos(c.photos), data.held_out_photos()),
    card=lambda c, photos: dataclasses.asdict(c) | {"residual": residuals(c, photos)},
    network=lambda c, card: network(c, tuple(card["residual"])),
    batches=batches,
    loss=loss,
    average=lambda c: c.decay,
    judge=lambda c, net, photos: judge(net, photos),
)
