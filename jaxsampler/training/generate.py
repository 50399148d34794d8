"""`task = "generate"`: a class-conditional denoiser or velocity of Fashion-MNIST or of a folder of images, from the files to weights.

`model = "edm"` is an `EDMNet` on the EDM path with EDM's loss and noise levels (`noise_mean`, `noise_std`: log rho); `model = "flow"` a
`FlowNet` on CondOT with flow matching at logit-normal times (`noise_mean`, `noise_std`: logit t). Everything else is shared: the U-Net,
the class dropout, the optimiser, the running average whose weights are the ones that count.
"""

import dataclasses
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
from ..data import fashion, folder
from ..nn.small_images import ClassUNet, EDMNet, FlowNet
from ..paths.gaussian import EDM, CondOT
from ..paths.predictions import Denoiser
from ..spelling import nearest
from . import losses, times
from .fitting import fit, power, start
from .optimisers import muon

MODELS = ("edm", "flow")


@dataclass(frozen=True)
class Generate:
    """A training of a generative network."""

    model: str  # "edm" or "flow"
    seed: int
    steps: int
    batch: int  # images per step
    widths: tuple[int, ...]  # channels at 1/2, 1/4, ... resolution
    depth: int  # residual blocks per level, each way
    embedding: int
    noise_mean: float  # of log rho (edm) or logit t (flow)
    noise_std: float
    dropout: float  # how often the class is withheld
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
        if self.model not in MODELS:
            raise ValueError(f"unknown model {self.model!r}; {nearest(self.model, MODELS)}")
        check_size(self)


Photos = fashion.Photos | folder.Images


def check_size(c: Any) -> None:
    """ValueError unless images of that size fit the network."""
    if c.size < 1 or c.size % 2 ** len(c.widths):
        raise ValueError(
            f"size = {c.size} does not fit: with {len(c.widths)} widths it must be a multiple of {2 ** len(c.widths)}"
        )
    if c.channels not in (1, 3):
        raise ValueError(f"channels = {c.channels}: images have 1 (grey) or 3 (RGB)")


def photos(c: Any, split: str) -> Photos:
    """The "train" or "test" images that a config names."""
    if c.images is None:
        if (c.size, c.channels) != (32, 1):
            raise ValueError(
                "size and channels are for a folder of images (images = ..): Fashion-MNIST has 32 and 1"
            )
        return fashion.load(split, c.data)
    if c.data is not None:
        raise ValueError(
            f"the images are those of {c.images} (images), or Fashion-MNIST in {c.data} (data, --data): leave one out"
        )
    return folder.load(split, c.images, c.size, c.channels)


def batches(c: Any, photos: Photos) -> Callable[[int], dict[str, np.ndarray]]:
    """Batches as a function of the step: each epoch is a permutation of the photos, drawn from (seed, epoch)."""
    per_epoch = len(photos) // c.batch
    if not per_epoch:
        raise ValueError(f"a batch of {c.batch} images, but only {len(photos)} in the data")
    known: dict[int, np.ndarray] = {}

    def batch(step: int) -> dict[str, np.ndarray]:
        epoch, place = divmod(step, per_epoch)
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


def optimiser(c: Generate) -> optax.GradientTransformation:
    """Muon, as the config says."""
    return muon(steps=c.steps, lr=c.lr, warmup=c.warmup, weight_decay=c.weight_decay, clip=c.clip)


def loss(c: Generate, net: EDMNet | FlowNet, batch: dict[str, Any], key: Any) -> Float[Array, ""]:
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
    """The network with the path and kind that it was trained for."""
    return Denoiser(net, EDM(), "data") if isinstance(net, EDMNet) else Denoiser(net, CondOT(), "velocity")


def main(c: Generate, target: Path) -> None:
    """Trains what the config says and writes the weights to `target`; checkpoints and the loss log into the folder without its suffix."""
    train, test = photos(c, "train"), photos(c, "test")
    sigma_data = round(float(train.images.std()), 4)
    place, card = target.with_suffix(""), described(c) | {"sigma_data": sigma_data} | origin(train)
    fit(
        network(c, sigma_data, len(classes(card))),
        partial(loss, c),
        batches(c, train),
        optimiser(c),
        steps=c.steps,
        seed=c.seed,
        decay=power(c.average),
        folder=place,
        card=card,
        minutes=c.minutes,
    )
    publish(place, target, test)


def described(c: Any) -> dict[str, Any]:
    """What of a config makes the weights: all but where the data lie and how often it is saved."""
    apart = ("data", "images", "minutes") + (("size", "channels") if c.images is None else ())
    return {k: v for k, v in dataclasses.asdict(c).items() if k not in apart}


def origin(photos: Photos) -> dict[str, Any]:
    """What the card says of images that are not Fashion-MNIST (of that: nothing, it is the same for all)."""
    return (
        {"classes": list(photos.names), "sha256 of images": photos.checksum}
        if isinstance(photos, folder.Images)
        else {}
    )


def classes(card: dict[str, Any]) -> tuple[str, ...]:
    """The names of the classes that a network knows, by its card."""
    return tuple(card.get("classes", fashion.CLASSES))


def shape(card: dict[str, Any]) -> tuple[int, int, int]:
    """(height, width, channels) of the images that a network was trained on, by its card."""
    return card.get("size", 32), card.get("size", 32), card.get("channels", 1)


def from_card(card: dict[str, Any]) -> EDMNet | FlowNet:
    """The network, untrained, that the weights beside a card fit."""
    c = config.pick(card, Generate)
    return network(c, float(card["sigma_data"]), len(classes(card)))


def publish(place: str | Path, out: str | Path, test: Photos) -> dict[str, Any]:
    """Writes the averaged weights of the checkpoint in the folder `place` to `out`, judged on the test photos, with their card."""
    file = Path(place) / "state.safetensors"
    card = checkpoint.read_card(file)
    c = config.pick(card, Generate)
    state = checkpoint.load(file, start(from_card(card), optimiser(c)))
    card |= {"trained_steps": int(state.step), "metrics": {"test loss": round(judge(c, state.ema, test), 5)}}
    checkpoint.save(out, state.ema, card)
    return card


def judge(c: Generate, net: EDMNet | FlowNet, photos: Photos, seed: int = 7) -> float:
    """The training's loss, class dropout included, over other photos: each once, at one time each."""
    compute = eqx.filter_jit(partial(loss, c))
    total = 0.0
    for i in range(0, len(photos), 250):
        part = photos[i : i + 250]
        batch = {"image": jnp.asarray(part.images), "label": jnp.asarray(part.labels)}
        total += len(part) * float(compute(net, batch, jax.random.fold_in(jax.random.key(seed), i)))
    return total / len(photos)
