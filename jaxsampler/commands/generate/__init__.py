"""`jaxsampler sample`: any number of images of a trained network, in batches that survive an interruption."""

from .plans import GRIDS, MODELS, Plan, plan
from .work import draw, run

__all__ = ["GRIDS", "MODELS", "Plan", "draw", "plan", "run"]
