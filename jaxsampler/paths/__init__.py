"""Paths: schedules of signal and noise, what a network predicts on them, and times on them."""

from . import exact as exact
from . import grids as grids
from .base import KINDS as KINDS
from .base import Path as Path
from .base import VariancePreserving as VariancePreserving
from .discrete_vp import DiscreteVP as DiscreteVP
from .gaussian import EDM as EDM
from .gaussian import VE as VE
from .gaussian import VP as VP
from .gaussian import CondOT as CondOT
from .gaussian import CosineVP as CosineVP
from .gaussian import SubVP as SubVP
from .labels import discrete as discrete
from .labels import label as label
from .mean_reverting import MeanReverting as MeanReverting
from .pfgm import PFGMpp as PFGMpp
from .predictions import Denoiser as Denoiser
from .predictions import convert as convert
