"""`task = "generate"`: a class-conditional denoiser or velocity of Fashion-MNIST or of a folder of images.

`model = "edm"` is an `EDMNet` on the EDM path with EDM's loss and noise levels (`noise_mean`, `noise_std`:
log rho). `model = "flow"` is a `FlowNet` on CondOT with flow matching at logit-normal times (`noise_mean`,
`noise_std`: logit t). They share all else: the U-Net, the class dropout, the optimiser, and the running
average, whose weights are the ones that count.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from tqdm import tqdm

from .. import config
from ..checkpoint import Card
from ..config import (
    Count,
    Depth,
    Length,
    Natural,
    NonNegative,
    Positive,
    Range,
    Seed,
    Share,
    Width,
    Widths,
)
from ..data import fashion, folder
from ..nn.small_images import ClassUNet, EDMNet, FlowNet
from ..numerics import Key
from ..paths import EDM, CondOT, Denoiser
from ..spelling import nearest
from . import losses, times
from .fitting import power
from .optimisers import check_warmup
from .task import Batch, Placed, Settings, Task

MODELS = ("edm", "flow")
Side = Annotated[int, Range(1, 4096)]  # pixels
Level = Annotated[float, Range(-20, 20)]  # a logarithm
Spread = Annotated[float, Range(0, 20)]
Average = Annotated[float, Range(0, 12**-0.5, above=True, below=True)]  # of `power`


@dataclass(frozen=True)
class Generate:
    """A training of a generative network."""

    model: str  # "edm" or "flow"
    seed: Seed
    steps: Count  # iterations of the optimiser
    batch: Count  # images per iteration
    widths: Widths  # channels at 1/2, 1/4, ... resolution
    depth: Depth  # residual blocks per level, each way
    embedding: Width
    noise_mean: Level  # of log rho (edm) or logit t (flow)
    noise_std: Spread
    dropout: Share  # how often the class is withheld
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
        if self.model not in MODELS:
            raise ValueError(f"unknown model {self.model!r}; {nearest(self.model, MODELS)}")
        check_warmup(self)
        check_size(self)


Photos = fashion.Photos | folder.Images


@runtime_checkable
class OfImages(Settings, Protocol):
    """What the config of a training on Fashion-MNIST or on a folder of images holds."""

    @property
    def batch(self) -> int: ...
    @property
    def widths(self) -> tuple[int, ...]: ...
    @property
    def data(self) -> str | None: ...
    @property
    def images(self) -> str | None: ...
    @property
    def size(self) -> int: ...
    @property
    def channels(self) -> int: ...


def check_size(c: OfImages) -> None:
    """Raise a ValueError unless images of this size fit the network."""
    cell = 2 ** len(c.widths)
    if c.size < 1 or c.size % cell:
        raise ValueError(
            f"size = {c.size} does not fit {len(c.widths)} widths: it must be a multiple of {cell}"
        )
    if c.channels not in (1, 3):
        raise ValueError(f"channels = {c.channels} is neither grey nor colour: use 1 (grey) or 3 (RGB)")


def photos(c: OfImages, split: str) -> Photos:
    """The "train" or "test" images that a config names."""
    if c.images is None:
        if (c.size, c.channels) != (32, 1):
            fact = "size and channels are for a folder of images, Fashion-MNIST has 32 and 1"
            raise ValueError(f"{fact}: leave them out, or name the folder (images = ..)")
        return fashion.load(split, c.data)
    if c.data is not None:
        both = f"two data sets are named, {c.images} (images) and Fashion-MNIST in {c.data} (data, --data)"
        raise ValueError(f"{both}: leave one out")
    return folder.load(split, c.images, c.size, c.channels)


def batches(c: OfImages, photos: Photos) -> Callable[[int], Batch]:
    """Batches by iteration: each epoch is a permutation of the photos, drawn from (seed, epoch)."""
    per_epoch = len(photos) // c.batch
    if not per_epoch:
        raise ValueError(f"a batch of {c.batch} images, but only {len(photos)} in the data: reduce batch")
    known: dict[int, np.ndarray] = {}

    def batch(k: int) -> Batch:
        epoch, place = divmod(k, per_epoch)
        if epoch not in known:
            known.clear()
            known[epoch] = np.random.default_rng([c.seed, epoch]).permutation(len(photos))
        chosen = photos[known[epoch][place * c.batch : (place + 1) * c.batch]]
        return {"image": chosen.images, "label": chosen.labels}

    return batch


def network(c: Generate, sigma_data: float, classes: int = len(fashion.CLASSES)) -> EDMNet | FlowNet:
    """The untrained network of a config."""
    sizes = {"widths": c.widths, "depth": c.depth, "embedding": c.embedding}
    unet = ClassUNet(c.channels, classes, **sizes, key=jax.random.key(c.seed))
    return EDMNet(unet, sigma_data) if c.model == "edm" else FlowNet(unet)


def loss(c: Generate, net: EDMNet | FlowNet, batch: Placed, key: Key) -> Float[Array, ""]:
    """EDM's loss, or flow matching, with the class withheld now and then."""
    k_label, k_loss = jax.random.split(key)
    predict = partial(net, label=losses.forget(k_label, batch["label"], c.dropout, net.unet.classes))
    if isinstance(net, EDMNet):
        return losses.edm(
            predict,
            EDM(),
            k_loss,
            batch["image"],
            sigma_data=net.sigma_data,
            mean=c.noise_mean,
            std=c.noise_std,
        )
    return losses.flow_matching(
        predict, CondOT(), k_loss, batch["image"], times=times.logit_normal(c.noise_mean, c.noise_std)
    )


def denoiser(net: EDMNet | FlowNet) -> Denoiser:
    """The network with the path and the kind that it was trained for."""
    return Denoiser(net, EDM(), "data") if isinstance(net, EDMNet) else Denoiser(net, CondOT(), "velocity")


def described(c: OfImages) -> Card:
    """The settings that make the weights: all but where the data lie and how often the state is saved."""
    apart = ("data", "images", "minutes") + (("size", "channels") if c.images is None else ())
    return {k: v for k, v in vars(c).items() if k not in apart}


def origin(photos: Photos) -> Card:
    """What a card says of images in a folder; of Fashion-MNIST nothing, because it is the same for all."""
    if isinstance(photos, folder.Images):
        return {"classes": list(photos.names), "sha256 of images": photos.checksum}
    return {}


@dataclass(frozen=True)
class Trained:
    """What the card of a network says besides its config."""

    sigma_data: Positive = 0.5
    classes: Annotated[tuple[str, ...], Length(1, 100_000)] = tuple(fashion.CLASSES)
    size: Side = 32
    channels: int = 1


def classes(card: Card) -> tuple[str, ...]:
    """The names of the classes that a network knows, by its card."""
    return config.pick(card, Trained).classes


def shape(card: Card) -> tuple[int, int, int]:
    """(height, width, channels) of the images that a network was trained on, by its card."""
    about = config.pick(card, Trained)
    return about.size, about.size, about.channels


def sigma_data(c: Generate, card: Card) -> float:
    """The standard deviation of the training images, which an EDM network must know."""
    if c.model == "edm" and "sigma_data" not in card:
        raise ValueError("key 'sigma_data' is missing (a number).")
    return config.pick(card, Trained).sigma_data


def judge(c: Generate, net: EDMNet | FlowNet, photos: Photos, seed: int = 7) -> float:
    """The loss of the training, class dropout included, over other photos: each once, at one time."""
    compute = eqx.filter_jit(partial(loss, c))
    total = 0.0
    for i in tqdm(range(0, len(photos), 250), desc="judging", unit="batch"):
        part = photos[i : i + 250]
        batch = {"image": jnp.asarray(part.images), "label": jnp.asarray(part.labels)}
        total += len(part) * float(compute(net, batch, jax.random.fold_in(jax.random.key(seed), i)))
    return total / len(photos)


TASK = Task[Generate, Photos, EDMNet | FlowNet](
    config=Generate,
    data=lambda c: (photos(c, "train"), photos(c, "test")),
    card=lambda c, train: described(c) | {"sigma_data": round(float(train.images.std()), 4)} | origin(train),
    network=lambda c, card: network(c, sigma_data(c, card), len(classes(card))),
    batches=batches,
    loss=loss,
    average=lambda c: power(c.average),
    judge=lambda c, net, test: {"test loss": round(judge(c, net, test), 5)},
    ready=denoiser,
)
