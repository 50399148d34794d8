"""`task = "restore"`: the restoration network, from photographs to weights.

One network for all ways to damage a photo, trained on random crops of the training photos, each degraded
afresh. The loss is the square of the error of the preconditioned network (`nn/unet.py`); every damage and
time weighs the same. The weights that count are the running average.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import jax
import numpy as np
from jaxtyping import Array, Float
from tqdm import tqdm

from .. import config, data
from ..config import Count, Depth, Length, Natural, NonNegative, Positive, Range, Seed, Width, Widths
from ..nn.unet import RestorationNet
from ..numerics import Key
from . import losses
from .judge import judge
from .optimisers import check_warmup
from .task import Batch, Placed, Task


@dataclass(frozen=True)
class Restore:
    """A training of the restoration network."""

    photos: tuple[str, ...]  # folders besides the photos in Python packages; "desktop": Debian's wallpapers
    seed: Seed
    steps: Count  # iterations of the optimiser
    batch: Count  # crops per iteration
    crop: Annotated[int, Range(1, 4096)]  # pixels
    std: Positive  # of the path, image units
    T: Annotated[int, Range(1, 10_000)]
    eps: Annotated[float, Range(0, 1, above=True, below=True)]  # alpha(T)
    widths: Widths  # channels at 1/2, 1/4, ... resolution
    depth: Depth  # residual blocks per level, each way
    embedding: Width
    lr: Positive  # peak rate: linear warm-up, cosine decay to a hundredth
    warmup: Natural  # iterations
    weight_decay: NonNegative
    clip: Positive  # global norm of the gradient
    decay: Annotated[float, Range(0, 1, below=True)]  # of the running average
    minutes: NonNegative = 5.0  # between checkpoints

    def __post_init__(self):
        config.check(self)
        check_warmup(self)


@dataclass(frozen=True)
class Residuals:
    """What the card of a restoration network says besides its config."""

    residual: Annotated[tuple[Positive, ...], Length(len(data.TASKS), len(data.TASKS))]


def batches(c: Restore, photos: Sequence[data.Photo]) -> Callable[[int], Batch]:
    """Batches by iteration: photos, crops and damage depend on (seed, iteration) only."""
    return lambda k: data.batch(c.seed, k, photos, c.crop, c.batch)


def residuals(c: Restore, photos: Sequence[data.Photo], samples: int = 2000) -> tuple[float, ...]:
    """Root mean square of clean - degraded per damage, over training crops drawn with another seed."""
    sums, counts = np.zeros(len(data.TASKS)), np.zeros(len(data.TASKS))
    for k in tqdm(range(-(-samples // c.batch)), desc="residuals of the tasks", unit="batch"):
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
    network=lambda c, card: network(c, config.pick(card, Residuals).residual),
    batches=batches,
    loss=loss,
    average=lambda c: c.decay,
    judge=lambda c, net, photos: judge(net, photos),
)
