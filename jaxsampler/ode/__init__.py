"""The probability flow as an ODE: diffrax both ways, its continuous adjoint, exact densities, and back from data to noise."""

from . import bridge as bridge
from . import inversion as inversion
from . import likelihood as likelihood
from .adjoint_dpm import AdjointDPM as AdjointDPM
