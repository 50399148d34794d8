"""jaxsampler: sample from, steer and differentiate through diffusion and flow models. A sampler is data."""

from typing import TYPE_CHECKING

from . import paths as paths
from . import scan as scan
from . import solvers as solvers
from . import tables as tables
from .front_door import sample as sample
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

if TYPE_CHECKING:  # at run time they are imported when they are first used
    from . import data as data
    from . import guidance as guidance
    from . import nn as nn
    from . import ode as ode
    from . import pretrained as pretrained
    from . import search as search
    from . import training as training
    from .ode import bridge as bridge
    from .ode import inversion as inversion
    from .ode import likelihood as likelihood
    from .ode.adjoint_dpm import AdjointDPM as AdjointDPM

__version__ = "0.1.0"

models = _exact
_LAZY = {name: f".{name}" for name in ("data", "guidance", "nn", "ode", "pretrained", "search", "training")}
_LAZY |= {name: f".ode.{name}" for name in ("bridge", "inversion", "likelihood")}
_LAZY |= {"AdjointDPM": ".ode"}
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
for _name in (*_GROUND, "TYPE_CHECKING"):
    globals().pop(_name, None)


def __getattr__(name: str):
    """Import what sampling does not need, when it is first used."""
    if name in _LAZY:
        import importlib

        found = importlib.import_module(_LAZY[name], __name__)
        return globals().setdefault(name, getattr(found, name) if name == "AdjointDPM" else found)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    names = {n for n in globals() if not n.startswith("_") and n not in {*_GROUND, "TYPE_CHECKING"}}
    return sorted(names | {*_LAZY, "__version__"})
