"""Training: losses, the loop, checkpoints; and `restore`, which puts them to use."""

from .fit import State as State
from .fit import fit as fit
