"""Training: losses, what they are made of, the loop, checkpoints; and the trainings that put them to use."""

from . import couplings as couplings
from . import losses as losses
from . import times as times
from . import weights as weights
from .fitting import State as State
from .fitting import fit as fit
from .fitting import power as power
