"""Loading of shipped weights: the card says how to build the network, the safetensors file fills it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxsampler.config import nearest
from jaxsampler.nn.unet import RestorationNet
from jaxsampler.training import checkpoint, restore

NAMES: dict[str, Callable[[dict[str, Any]], Any]] = {"restore": restore.from_card}


def load(name: str = "restore", *, path: str | Path | None = None) -> tuple[RestorationNet, dict[str, Any]]:
    """The network called `name` and its card; `path` reads other weights of the same kind (a .safetensors with its .json).

    Raises ValueError: unknown name (naming the nearest), or a file that is missing, corrupt or of another network.
    """
    if name not in NAMES:
        raise ValueError(f"unknown pretrained network {name!r}; {nearest(name, NAMES)}")
    path = Path(__file__).with_name(f"{name}.safetensors") if path is None else Path(path)
    card = checkpoint.read_card(path)
    try:
        net = NAMES[name](card)
    except (KeyError, TypeError, ValueError) as e:
        raise ValueError(f"{path.with_suffix('.json')} is not the card of a {name!r} network: {e}.") from None
    return checkpoint.load(path, net), card
