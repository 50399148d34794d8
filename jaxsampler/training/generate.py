"""`task = "generate"`: a class-conditional denoiser or velocity of Fashion-MNIST, from its files to shipped weights.

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

from jaxsampler import config
from jaxsampler.data import fashion
from jaxsampler.nn.small_images import ClassUNet, EDMNet, FlowNet
from jaxsampler.paths import EDM, CondOT
from jaxsampler.predictions import Denoiser
from jaxsampler.training import checkpoint, losses, times
from jaxsampler.training.fit import fit, power, start
from jaxsampler.training.optimisers import muon

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
    minutes: float = 5.0  # between checkpoints

    def __post_init__(self):
        if self.model not in MODELS:
            raise ValueError(f"unknown model {self.model!r}; {config.nearest(self.model, MODELS)}")


def batches(c: Any, photos: fashion.Photos) -> Callable[[int], dict[str, np.ndarray]]:
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


def network(c: Generate, sigma_data: float) -> EDMNet | FlowNet:
    """The untrained network of a config."""
    sizes = {"widths": c.widths, "depth": c.depth, "embedding": c.embedding}
    unet = ClassUNet(1, len(fashion.CLASSES), **sizes, key=jax.random.key(c.seed))
    return EDMNet(unet, sigma_data) if c.model == "edm" else FlowNet(unet)


def optimiser(c: Generate) -> optax.GradientTransformation:
    """Muon, as the config says."""
    return muon(steps=c.steps, lr=c.lr, warmup=c.warmup, weight_decay=c.weight_decay, clip=c.clip)


def loss(c: Generate, net: EDMNet | FlowNet, batch: dict[str, Any], key: Any) -> Float[Array, ""]:
    """EDM's loss, or flow matching, with the class withheld now and then."""
    k_label, k_loss = jax.random.split(key)
    predict = partial(net, label=losses.forget(k_label, batch["label"], c.dropout, net.unet.classes))
    if isinstance(net, EDMNet):
        return losses.edm(predict, EDM(), k_loss, batch["image"], sigma_data=net.sigma_data, mean=c.noise_mean, std=c.noise_std)
    return losses.flow_matching(predict, CondOT(), k_loss, batch["image"], times=times.logit_normal(c.noise_mean, c.noise_std))


def denoiser(net: EDMNet | FlowNet) -> Denoiser:
    """The network with the path and kind that it was trained for."""
    return Denoiser(net, EDM(), "data") if isinstance(net, EDMNet) else Denoiser(net, CondOT(), "velocity")


def main(c: Generate, target: Path) -> None:
    """Trains what the config says and writes the weights to `target`; checkpoints and the loss log into the folder without its suffix."""
    photos = fashion.load("train", c.data)
    sigma_data = round(float(photos.images.std()), 4)
    folder, card = target.with_suffix(""), described(c) | {"sigma_data": sigma_data}
    fit(
        network(c, sigma_data),
        partial(loss, c),
        batches(c, photos),
        optimiser(c),
        steps=c.steps,
        seed=c.seed,
        decay=power(c.average),
        folder=folder,
        card=card,
        minutes=c.minutes,
    )
    publish(folder, target, c.data)


def described(c: Any) -> dict[str, Any]:
    """What of a config makes the weights: all but where the data lie and how often it is saved."""
    return {k: v for k, v in dataclasses.asdict(c).items() if k not in ("data", "minutes")}


def from_card(card: dict[str, Any]) -> EDMNet | FlowNet:
    """The network, untrained, that the weights beside a card fit."""
    return network(config.build({k: v for k, v in card.items() if k in names(Generate)}, Generate), float(card["sigma_data"]))


def names(cls: type) -> set[str]:
    """The keys of a config."""
    return {f.name for f in dataclasses.fields(cls)}


def publish(folder: str | Path, out: str | Path, data: str | None = None) -> dict[str, Any]:
    """Writes the averaged weights of the checkpoint in `folder` to `out`, judged on the test photos, with their card."""
    file = Path(folder) / "state.safetensors"
    card = checkpoint.read_card(file)
    c = config.build({k: v for k, v in card.items() if k in names(Generate)}, Generate)
    state = checkpoint.load(file, start(from_card(card), optimiser(c)))
    card |= {"trained_steps": int(state.step), "metrics": {"test loss": round(judge(c, state.ema, fashion.load("test", data)), 5)}}
    checkpoint.save(out, state.ema, card)
    return card


def judge(c: Generate, net: EDMNet | FlowNet, photos: fashion.Photos, seed: int = 7) -> float:
    """The training's loss, class dropout included, over other photos: each once, at one time each."""
    compute = eqx.filter_jit(partial(loss, c))
    total = 0.0
    for i in range(0, len(photos), 250):
        part = photos[i : i + 250]
        batch = {"image": jnp.asarray(part.images), "label": jnp.asarray(part.labels)}
        total += len(part) * float(compute(net, batch, jax.random.fold_in(jax.random.key(seed), i)))
    return total / len(photos)
