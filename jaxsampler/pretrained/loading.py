"""Loading of shipped weights: the card says how to build the network, the safetensors file fills it."""

from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx

from .. import checkpoint
from ..checkpoint import Card
from ..spelling import nearest
from ..training import classify, generate, restore
from ..training.task import Task

NAMES: dict[str, Task] = {
    "restore": restore.TASK,
    "fashion_edm": generate.TASK,
    "fashion_flow": generate.TASK,
    "fashion_classifier": classify.TASK,
}


def load(name: str, *, path: str | Path | None = None) -> Any:
    """Return the trained network called `name`, ready for use.

    "fashion_edm", "fashion_flow": a `Denoiser` of images [32, 32, 1] in [-1, 1], or of batches of them. It
    knows any class; `.bind(label=...)` gives it one, for all images or one each. "fashion_classifier": a
    `nn.Classifier`. "restore": a `nn.RestorationNet`.

    Args:
        path: other weights of the same kind, a .safetensors file with its .json card.

    Raises:
        ValueError: the name is unknown (the nearest is suggested), or the file is missing, corrupt or holds
            another network.

    Example:
        >>> denoiser = js.pretrained.load("fashion_flow")
        >>> denoiser.kind, denoiser.path
        ('velocity', CondOT())
    """
    task, file = _find(name, path)
    about = checkpoint.read_card(file)
    try:
        net = eqx.filter_eval_shape(partial(task.from_card, about))  # no random weights to be thrown away
    except (KeyError, TypeError, ValueError) as e:
        raise ValueError(f"{file.with_suffix('.json')} is not the card of a {name!r} network: {e}.") from None
    return task.ready(checkpoint.load(file, net))


def card(name: str, *, path: str | Path | None = None) -> Card:
    """Return how the network called `name` was trained (its config), and how well it does (`metrics`).

    Example:
        >>> card = js.pretrained.card("fashion_edm")
        >>> card["steps"], card["metrics"]
        (4000, {'test loss': 0.15506})
    """
    return checkpoint.read_card(_find(name, path)[1])


def _find(name: str, path: str | Path | None) -> tuple[Task, Path]:
    if name not in NAMES:
        raise ValueError(f"unknown pretrained network {name!r}; {nearest(name, NAMES)}")
    return NAMES[name], Path(__file__).with_name(f"{name}.safetensors") if path is None else Path(path)
