"""`task = "classify"`: a classifier of Fashion-MNIST or of a folder of images, clean or noisy.

The part `clean` of every batch has no noise. The rest is x0 + s eps with log s ~ N(noise_mean, noise_std^2),
and the network is told s. Each image is mirrored or not, afresh each time.
"""

from collections.abc import Callable
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from tqdm import tqdm

from .. import config
from ..config import Count, Depth, Natural, NonNegative, Positive, Seed, Share, Width, Widths
from ..data import fashion
from ..nn.small_images import Classifier
from ..numerics import Key
from . import generate
from .fitting import power
from .generate import (
    Average,
    Level,
    Photos,
    Side,
    Spread,
    check_size,
    classes,
    described,
    origin,
    photos,
)
from .optimisers import check_warmup
from .task import Batch, Placed, Task


@dataclass(frozen=True)
class Classify:
    """A training of a classifier."""

    seed: Seed
    steps: Count  # iterations of the optimiser
    batch: Count  # images per iteration
    widths: Widths  # channels at 1/2, 1/4, ... resolution
    depth: Depth  # residual blocks per level
    embedding: Width
    features: Width  # of the penultimate layer
    clean: Share  # the part of a batch without noise
    noise_mean: Level  # of log s
    noise_std: Spread
    lr: Positive  # peak rate: linear warm-up, cosine decay to a hundredth
    warmup: Natural  # iterations
    weight_decay: NonNegative
    clip: Positive  # global norm of the gradient
    average: Average  # width of the power-function average, as a fraction of the training
    data: str | None = None  # folder of the IDX files; None: the user's data folder, filled by download
    images: str | None = None  # a folder of images instead, its subfolders the classes: see `data.folder`
    size: Side = 32  # pixels a side, of `images`
    channels: int = 1  # 1 (grey) or 3 (RGB), of `images`
    minutes: NonNegative = 5.0  # between checkpoints

    def __post_init__(self):
        config.check(self)
        check_warmup(self)
        check_size(self)


def batches(c: Classify, photos: Photos) -> Callable[[int], Batch]:
    """The batches of `generate.batches`, each image mirrored half the time."""
    still = generate.batches(c, photos)

    def batch(k: int) -> Batch:
        b, rng = still(k), np.random.default_rng([c.seed, k, 1])
        mirrored = rng.random((c.batch, 1, 1, 1)) < 0.5
        return b | {"image": np.where(mirrored, b["image"][:, :, ::-1], b["image"])}

    return batch


def network(c: Classify, classes: int = len(fashion.CLASSES)) -> Classifier:
    """The untrained network of a config."""
    sizes = {"widths": c.widths, "depth": c.depth, "embedding": c.embedding, "features": c.features}
    return Classifier(c.channels, classes, **sizes, key=jax.random.key(c.seed))


def loss(c: Classify, net: Callable[..., Array], batch: Placed, key: Key) -> Float[Array, ""]:
    """Mean of -log p(label | image, s)."""
    image, n = batch["image"], batch["image"].shape[0]
    k_level, k_noise = jax.random.split(key)
    s = jnp.exp(c.noise_mean + c.noise_std * jax.random.normal(k_level, (n,)))
    s = jnp.where(jnp.arange(n) < round(c.clean * n), 0.0, s)
    noisy = image + s[:, None, None, None] * jax.random.normal(k_noise, image.shape)
    return optax.softmax_cross_entropy_with_integer_labels(net(noisy, s), batch["label"]).mean()


def accuracy(net: Classifier, photos: Photos, s: float = 0.0, seed: int = 0) -> float:
    """The fraction of the photos, with noise of standard deviation `s`, that is classified correctly."""
    guess = eqx.filter_jit(lambda net, x: jnp.argmax(net(x, s), -1))
    right = 0
    for i in tqdm(range(0, len(photos), 500), desc=f"judging at s = {s:g}", unit="batch"):
        images = photos[i : i + 500].images
        noise = np.random.default_rng([seed, i]).standard_normal(images.shape).astype(np.float32)
        guessed = np.asarray(guess(net, jnp.asarray(images + np.float32(s) * noise)))
        right += int((guessed == photos.labels[i : i + 500]).sum())
    return right / len(photos)


LEVELS = (0.0, 0.2, 0.5, 1.0, 2.0)

TASK = Task[Classify, Photos, Classifier](
    config=Classify,
    data=lambda c: (photos(c, "train"), photos(c, "test")),
    card=lambda c, train: described(c) | origin(train),
    network=lambda c, card: network(c, len(classes(card))),
    batches=batches,
    loss=loss,
    average=lambda c: power(c.average),
    judge=lambda c, net, test: {f"accuracy at s = {s}": round(accuracy(net, test, s), 4) for s in LEVELS},
)
