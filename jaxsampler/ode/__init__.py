"""The probability flow as an ODE: diffrax both ways, its continuous adjoint, exact densities, and back from data to noise."""

from . import inversion as inversion
from . import likelihood as likelihood
from . import to_diffrax as to_diffrax
from .adjoint_dpm import AdjointDPM as AdjointDPM
from .from_diffrax import FromDiffrax as FromDiffrax
