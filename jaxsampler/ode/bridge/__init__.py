"""diffrax, both ways: its adaptive solvers on our flows, its one-step solvers in our scan."""

from .from_diffrax import FromDiffrax as FromDiffrax
from .to_diffrax import Solution as Solution
from .to_diffrax import ode_terms as ode_terms
from .to_diffrax import sde_terms as sde_terms
from .to_diffrax import solve as solve
