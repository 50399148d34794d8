"""Our own small trained networks: `net, card = jaxsampler.pretrained.load("restore")`.

Each is a safetensors file beside this one, with a JSON card: how it was trained, and how well it does.
"""

from jaxsampler.pretrained.load import NAMES, load

__all__ = ["NAMES", "load"]
