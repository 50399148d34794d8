"""Our own small trained networks: `denoiser = jaxsampler.pretrained.load("fashion_edm")`.

Each is a safetensors file beside this one, with a JSON card: how it was trained, and how well it does.
"""

from jaxsampler.pretrained.load import NAMES, card, load

__all__ = ["NAMES", "card", "load"]
