"""The probability flow as an ODE: diffrax both ways, continuous adjoint, exact densities, inversion."""

from . import bridge as bridge
from . import inversion as inversion
from . import likelihood as likelihood
from .adjoint_dpm import AdjointDPM as AdjointDPM
