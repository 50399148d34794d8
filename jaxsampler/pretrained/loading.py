"""Loading of shipped weights: the card says how to build the network, the safetensors file fills it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from .. import checkpoint
from ..spelling import nearest
from ..training import classify, generate, restore


class _Kind(NamedTuple):
    build: Callable[[dict[str, Any]], Any]  # card -> untrained network
    ready: Callable[[Any], Any] = lambda net: net  # network -> what `load` returns


NAMES = {
    "restore": _Kind(restore.from_card),
    "fashion_edm": _Kind(generate.from_card, generate.denoiser),
    "fashion_flow": _Kind(generate.from_card, generate.denoiser),
    "fashion_classifier": _Kind(classify.from_card),
}


def load(name: str, *, path: str | Path | None = None) -> Any:
    """The trained network called `name`, ready for use; `path` reads other weights of the same kind (a .safetensors with its .json).

    "fashion_edm", "fashion_flow": a `Denoiser` of images [32, 32, 1] or batches of them in [-1, 1], of any class or, with
    `.bind(label=...)`, of the class given, one for all images or one each. "fashion_classifier": a `nn.Classifier`. "restore": a
    `nn.RestorationNet`.

    Raises ValueError: unknown name (naming the nearest), or a file that is missing, corrupt or of another network.
    """
    kind, file = _find(name, path)
    about = checkpoint.read_card(file)
    try:
        net = kind.build(about)
    except (KeyError, TypeError, ValueError) as e:
        raise ValueError(f"{file.with_suffix('.json')} is not the card of a {name!r} network: {e}.") from None
    return kind.ready(checkpoint.load(file, net))


def card(name: str, *, path: str | Path | None = None) -> dict[str, Any]:
    """How the network called `name` was trained (the keys of its config), and how well it does (`metrics`)."""
    return checkpoint.read_card(_find(name, path)[1])


def _find(name: str, path: str | Path | None) -> tuple[_Kind, Path]:
    if name not in NAMES:
        raise ValueError(f"unknown pretrained network {name!r}; {nearest(name, NAMES)}")
    return NAMES[name], Path(__file__).with_name(f"{name}.safetensors") if path is None else Path(path)
