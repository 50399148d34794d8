"""`jaxsampler train configs/train/restore.toml`: the restoration network, from photographs to shipped weights.

One network for all tasks, trained on random crops of the training photos, each degraded afresh. The loss is the square of the error
of the preconditioned network (`nn/unet.py`), every task and time weighing the same. The weights that count are the running average.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from .. import checkpoint, config
from .. import data as pictures
from ..nn.unet import RestorationNet
from . import losses
from .fitting import fit, start
from .optimisers import muon


@dataclass(frozen=True)
class Restore:
    """A training of the restoration network."""

    photos: tuple[
        str, ...
    ]  # folders of training photos besides those of the wheels; "desktop" names Debian's wallpapers
    seed: int
    steps: int
    batch: int  # crops per step
    crop: int  # pixels
    std: float  # of the path, image units
    T: int
    eps: float  # alpha(T)
    widths: tuple[int, ...]  # channels at 1/2, 1/4, ... resolution
    depth: int  # residual blocks per level, each way
    embedding: int
    lr: float  # peak rate: linear warm-up, cosine decay to a hundredth
    warmup: int  # steps
    weight_decay: float
    clip: float  # global norm of the gradient
    decay: float  # of the running average
    minutes: float = 5.0  # between checkpoints


def data(c: Restore) -> Callable[[int], dict[str, np.ndarray]]:
    """Batches as a function of the step: photos, crops and damage depend on (seed, step) only."""
    images = pictures.training_photos(c.photos)
    return lambda step: pictures.batch(c.seed, step, images, c.crop, c.batch)


def residuals(c: Restore, samples: int = 2000) -> tuple[float, ...]:
    """Root mean square of clean - degraded per task, over training crops drawn with another seed."""
    images = pictures.training_photos(c.photos)
    sums, counts = np.zeros(len(pictures.TASKS)), np.zeros(len(pictures.TASKS))
    for step in range(-(-samples // c.batch)):
        b = pictures.batch(c.seed + 1, step, images, c.crop, c.batch)
        np.add.at(sums, b["task"], np.square(b["clean"] - b["degraded"]).mean((1, 2, 3)))
        np.add.at(counts, b["task"], 1)
    return tuple(float(r) for r in np.round(np.sqrt(sums / counts), 4))


def network(c: Restore, residual: tuple[float, ...]) -> RestorationNet:
    """The untrained network of a config."""
    sizes = {"widths": c.widths, "depth": c.depth, "embedding": c.embedding}
    return RestorationNet(residual, std=c.std, T=c.T, eps=c.eps, **sizes, key=jax.random.key(c.seed))


def optimiser(c: Restore) -> optax.GradientTransformation:
    """Muon, as the config says."""
    return muon(steps=c.steps, lr=c.lr, warmup=c.warmup, weight_decay=c.weight_decay, clip=c.clip)


def loss(net: RestorationNet, batch: dict[str, Any], key: Any) -> Any:
    """Mean square of the error of F: the data error divided by std c_out."""
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


def main(c: Restore, target: Path) -> None:
    """Trains what the config says and writes the weights to `target`.

    Checkpoints and the loss log live in the folder `target` without its suffix; an interrupted run is continued from there.
    """
    residual = residuals(c)
    fit(
        network(c, residual),
        loss,
        data(c),
        optimiser(c),
        steps=c.steps,
        seed=c.seed,
        decay=c.decay,
        folder=target.with_suffix(""),
        card=dataclasses.asdict(c) | {"residual": residual},
        minutes=c.minutes,
    )
    publish(target.with_suffix(""), target)


def from_card(card: dict[str, Any]) -> RestorationNet:
    """The network, untrained, that the weights beside a card fit."""
    return network(config.pick(card, Restore), tuple(card["residual"]))


def publish(folder: str | Path, out: str | Path) -> dict[str, Any]:
    """Writes the averaged weights of the checkpoint in `folder` to `out`, judged, with their card; the run may go on meanwhile."""
    from .judge import judge  # needs the sampler, which training does not

    file = Path(folder) / "state.safetensors"
    card = checkpoint.read_card(file)
    net = from_card(card)
    state = checkpoint.load(file, start(net, optimiser(config.pick(card, Restore))))
    card |= {"trained_steps": int(state.step), "metrics": judge(state.ema)}
    checkpoint.save(out, state.ema, card)
    return card
