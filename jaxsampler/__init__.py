"""jaxsampler: sample from, steer and differentiate through diffusion and flow models. A sampler is data."""

from . import guidance as guidance
from . import ode as ode
from . import paths as paths
from . import scan as scan
from . import solvers as solvers
from . import tables as tables
from .front_door import sample as sample
from .ode import bridge as bridge
from .ode import inversion as inversion
from .ode import likelihood as likelihood
from .ode.adjoint_dpm import AdjointDPM as AdjointDPM
from .paths import exact as _exact
from .paths import grids as grids
from .paths.base import Path as Path
from .paths.batches import per_sample as per_sample
from .paths.discrete_vp import DiscreteVP as DiscreteVP
from .paths.gaussian import EDM as EDM
from .paths.gaussian import VE as VE
from .paths.gaussian import VP as VP
from .paths.gaussian import CondOT as CondOT
from .paths.gaussian import CosineVP as CosineVP
from .paths.gaussian import SubVP as SubVP
from .paths.labels import discrete as discrete
from .paths.mean_reverting import MeanReverting as MeanReverting
from .paths.pfgm import PFGMpp as PFGMpp
from .paths.predictions import Denoiser as Denoiser
from .paths.predictions import convert as convert
from .scan.adjoints import Direct as Direct
from .scan.adjoints import LastK as LastK
from .scan.adjoints import RecursiveCheckpoint as RecursiveCheckpoint
from .scan.adjoints import Reversible as Reversible
from .scan.protocol import Solver as Solver
from .scan.protocol import StepEnd as StepEnd
from .scan.protocol import Stopped as Stopped
from .scan.protocol import Trajectory as Trajectory
from .scan.resuming import resume as resume
from .scan.run_table import run as run
from .tables.authoring import step as step
from .tables.oracle import loop as loop
from .tables.steps import Step as Step
from .tables.table import Table as Table
from .tables.table import pad as pad
from .tables.table import stack as stack
from .tables.tabulation import tabulate as tabulate

__version__ = "0.1.0"

models = _exact
_LAZY = ("data", "nn", "pretrained", "search", "training")  # rooms that sampling does not need
_GROUND = (
    "checkpoint",
    "config",
    "convolutions",
    "eager",
    "files",
    "front_door",
    "metrics",
    "numerics",
    "processes",
    "rollcall",
    "spelling",
    "threefry",
)

# Nobody is promised these as js.NAME; `from jaxsampler.files import write` works all the same.
for _name in _GROUND:
    globals().pop(_name, None)


def __getattr__(name: str):
    """Import one of the rooms that sampling does not need, when it is first used."""
    if name in _LAZY:
        import importlib

        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(
        {n for n in globals() if not n.startswith("_") and n not in _GROUND} | {*_LAZY, "__version__"}
    )
