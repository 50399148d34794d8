"""What a training is: the nine parts that differ between our trainings, and the course that they share.

    config -> data -> card -> network, batches, loss, average -> weights, judged, with their card

A module of this folder (`restore`, `generate`, `classify`) holds the parts as plain functions and, at its
end, its `TASK`. Commands and loaders know trainings by this protocol only.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float

from .. import checkpoint, config, processes
from ..checkpoint import Card
from ..files import memory
from ..numerics import Key
from .fitting import Profile, fit, start
from .optimisers import Rates, muon


@runtime_checkable
class Settings(Rates, Protocol):
    """What the config of every training holds."""

    @property
    def seed(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def widths(self) -> tuple[int, ...]: ...
    @property
    def minutes(self) -> float:  # between checkpoints
        ...


C = TypeVar("C", bound=Settings)
D = TypeVar("D")  # data
N = TypeVar("N")  # network
Batch = dict[str, np.ndarray]  # as `batches` gives it
Placed = dict[str, Array]  # on the device, as `loss` sees it


def affordable(c: Settings) -> None:
    """Raise a ValueError if a batch would not fit into the machine's memory: its first layers, both ways."""
    pixels = getattr(c, "crop", None) or getattr(c, "size", 32)
    needs = 4 * c.batch * (pixels // 2 + 1) ** 2 * c.widths[0] * 2
    if needs > memory():
        raise ValueError(f"{too_much(needs)} for a batch: reduce batch, widths, or the size of the images")


def too_much(needs: float) -> str:
    """Begin an error: what a training needs, and what there is."""
    needed, there = (f"{n / 2**30:,.0f} GB" for n in (needs, memory()))
    return f"this training needs about {needed} of memory, of which this machine has {there},"


def made(folder: Path) -> int:
    """How many iterations the state in a folder has behind it."""
    file = folder / "state.safetensors"
    return int(checkpoint.read(file).get("step", 0)) if file.exists() else 0


@dataclass(frozen=True)
class Task(Generic[C, D, N]):
    """The parts of a training.

    Args:
        config: the frozen dataclass that its TOML file is read into.
        data: the (training, test) data of a config.
        card: the settings that make the weights, and what the network needs to know of the training data.
        network: the untrained network of a config and such a card.
        batches: iteration -> batch, a function of config and training data.
        loss: the scalar to minimise, as a function of (config, network, batch, key).
        average: decay or profile of the running average, whose weights are the ones that count.
        judge: the card's `metrics`, by (config, network, test data).
        ready: network -> what `pretrained.load` returns.
    """

    config: type  # C; a protocol's attributes rule out type[C] at run time
    data: Callable[[C], tuple[D, D]]
    card: Callable[[C, D], Card]
    network: Callable[[C, Card], N]
    batches: Callable[[C, D], Callable[[int], Batch]]
    loss: Callable[[C, N, Placed, Key], Float[Array, ""]]
    average: Callable[[C], float | Profile]
    judge: Callable[[C, N, D], dict[str, Any]]
    ready: Callable[[N], Any] = lambda net: net

    def from_card(self, card: Card) -> N:
        """The untrained network that fits the weights beside a card."""
        return self.network(config.pick(card, self.config), card)

    def train(self, c: C, target: Path) -> None:
        """Train as the config says and write the weights to `target`.

        Checkpoints and the loss log go into the folder `target` without its suffix; an interrupted training
        goes on from there.
        """
        affordable(c)
        train, test = processes.after_first(lambda: self.data(c))  # which may download them
        card, folder = self.card(c, train), target.with_suffix("")
        size = 4 * sum(a.size for a in jax.tree.leaves(eqx.filter_eval_shape(self.network, c, card)))
        if (needs := 5 * size) > memory():  # weights, their average, two moments, a gradient
            raise ValueError(f"{too_much(needs)} for its weights: reduce widths, depth or embedding")
        network, batches = self.network(c, card), self.batches(c, train)
        processes.agree(card)
        with processes.claimed(folder):
            before = made(folder)
            fit(
                network,
                partial(self.loss, c),
                batches,
                muon(c),
                steps=c.steps,
                seed=c.seed,
                decay=self.average(c),
                folder=folder,
                card=card,
                minutes=c.minutes,
            )
            if processes.number() == 0:
                if before == c.steps:
                    print(f"{folder} holds this training, finished: nothing was trained", file=sys.stderr)
                self.publish(folder, target, test)

    def publish(self, folder: Path, out: Path, test: D) -> Card:
        """Write the averaged weights of the checkpoint in `folder` to `out`, judged, with their card.

        The training may go on meanwhile.
        """
        file = folder / "state.safetensors"
        card = checkpoint.read_card(file)
        c = config.pick(card, self.config)
        state = checkpoint.load(file, start(self.network(c, card), muon(c)))
        card |= {"trained_steps": int(state.step), "metrics": self.judge(c, state.ema, test)}
        checkpoint.save(out, state.ema, card)
        return card
