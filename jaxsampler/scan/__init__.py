"""The scan: numbers become a sample, and gradients flow back through it."""

from .adjoints import Direct as Direct
from .adjoints import LastK as LastK
from .adjoints import RecursiveCheckpoint as RecursiveCheckpoint
from .adjoints import Reversible as Reversible
from .protocol import Adjoint as Adjoint
from .protocol import Sampler as Sampler
from .protocol import Solver as Solver
from .protocol import StepEnd as StepEnd
from .protocol import Stopped as Stopped
from .protocol import Trajectory as Trajectory
from .resuming import resume as resume
from .run_table import run as run
