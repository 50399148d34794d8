"""`task = "classify"`: a classifier of Fashion-MNIST or of a folder of images, clean or noisy, from the files to weights.

A part of every batch (`clean`) has no noise; the rest has x0 + s eps with log s ~ N(noise_mean, noise_std^2), and the network is told s.
Images are mirrored or not, afresh each time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from .. import checkpoint, config
from ..data import fashion
from ..nn.small_images import Classifier
from .fitting import fit, power, start
from .generate import Photos, batches, check_size, classes, described, origin, photos
from .optimisers import muon


@dataclass(frozen=True)
class Classify:
    """A training of a classifier."""

    seed: int
    steps: int
    batch: int  # images per step
    widths: tuple[int, ...]  # channels at 1/2, 1/4, ... resolution
    depth: int  # residual blocks per level
    embedding: int
    features: int  # of the penultimate layer
    clean: float  # the part of a batch without noise
    noise_mean: float  # of log s
    noise_std: float
    lr: float  # peak rate: linear warm-up, cosine decay to a hundredth
    warmup: int  # steps
    weight_decay: float
    clip: float  # global norm of the gradient
    average: float  # width of the power-function average, as a fraction of the training
    data: str | None = None  # folder of the IDX files; None: the user's data folder, filled by download
    images: str | None = None  # a folder of images instead, its subfolders the classes: see `data.folder`
    size: int = 32  # pixels a side, of `images`
    channels: int = 1  # 1 (grey) or 3 (RGB), of `images`
    minutes: float = 5.0  # between checkpoints

    def __post_init__(self):
        check_size(self)


def data(c: Classify, photos: Photos) -> Callable[[int], dict[str, np.ndarray]]:
    """The batches of `generate.batches`, each image mirrored half the time."""
    still = batches(c, photos)

    def batch(step: int) -> dict[str, np.ndarray]:
        b, rng = still(step), np.random.default_rng([c.seed, step, 1])
        mirrored = rng.random((c.batch, 1, 1, 1)) < 0.5
        return b | {"image": np.where(mirrored, b["image"][:, :, ::-1], b["image"])}

    return batch


def network(c: Classify, classes: int = len(fashion.CLASSES)) -> Classifier:
    """The untrained network of a config."""
    sizes = {"widths": c.widths, "depth": c.depth, "embedding": c.embedding, "features": c.features}
    return Classifier(c.channels, classes, **sizes, key=jax.random.key(c.seed))


def optimiser(c: Classify) -> optax.GradientTransformation:
    """Muon, as the config says."""
    return muon(steps=c.steps, lr=c.lr, warmup=c.warmup, weight_decay=c.weight_decay, clip=c.clip)


def loss(c: Classify, net: Callable[..., Array], batch: dict[str, Any], key: Any) -> Float[Array, ""]:
    """Mean of -log p(label | image, s)."""
    image, n = batch["image"], batch["image"].shape[0]
    k_level, k_noise = jax.random.split(key)
    s = jnp.exp(c.noise_mean + c.noise_std * jax.random.normal(k_level, (n,)))
    s = jnp.where(jnp.arange(n) < round(c.clean * n), 0.0, s)
    noisy = image + s[:, None, None, None] * jax.random.normal(k_noise, image.shape)
    return optax.softmax_cross_entropy_with_integer_labels(net(noisy, s), batch["label"]).mean()


def accuracy(net: Classifier, photos: Photos, s: float = 0.0, seed: int = 0) -> float:
    """The part of the photos, with noise of standard deviation `s`, that is classified rightly."""
    guess = eqx.filter_jit(lambda net, x: jnp.argmax(net(x, s), -1))
    right = 0
    for i in range(0, len(photos), 500):
        images = photos[i : i + 500].images
        noise = np.random.default_rng([seed, i]).standard_normal(images.shape).astype(np.float32)
        right += int(
            (
                np.asarray(guess(net, jnp.asarray(images + np.float32(s) * noise)))
                == photos.labels[i : i + 500]
            ).sum()
        )
    return right / len(photos)


def main(c: Classify, target: Path) -> None:
    """Trains what the config says and writes the weights to `target`; checkpoints and the loss log into the folder without its suffix."""
    train, test = photos(c, "train"), photos(c, "test")
    place, card = target.with_suffix(""), described(c) | origin(train)
    fit(
        network(c, len(classes(card))),
        partial(loss, c),
        data(c, train),
        optimiser(c),
        steps=c.steps,
        seed=c.seed,
        decay=power(c.average),
        folder=place,
        card=card,
        minutes=c.minutes,
    )
    publish(place, target, test)


def from_card(card: dict[str, Any]) -> Classifier:
    """The network, untrained, that the weights beside a card fit."""
    return network(config.pick(card, Classify), len(classes(card)))


def publish(place: str | Path, out: str | Path, test: Photos) -> dict[str, Any]:
    """Writes the averaged weights of the checkpoint in the folder `place` to `out`, judged on the test photos, with their card."""
    file = Path(place) / "state.safetensors"
    card = checkpoint.read_card(file)
    c = config.pick(card, Classify)
    state = checkpoint.load(file, start(from_card(card), optimiser(c)))
    scores = {
        f"accuracy at s = {s}": round(accuracy(state.ema, test, s), 4) for s in (0.0, 0.2, 0.5, 1.0, 2.0)
    }
    card |= {"trained_steps": int(state.step), "metrics": scores}
    checkpoint.save(out, state.ema, card)
    return card
