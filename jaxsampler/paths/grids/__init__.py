r"""Time grids: plain arrays of n+1 decreasing times for n intervals.

A grid of your own is any decreasing array within [0, t_max]. Grids in terms of lam = log(alpha/sigma) or rho
= sigma/alpha are mapped to times by the path. All return numpy float64. The default is `default(path, n)`.

References: DPM-Solver (log_snr, quadratic) [Lu et al. 2022]; Karras et al. 2022, eq. 5; Lin et al. 2024
(leading, trailing); Sabour et al. 2024 (ays, arctan); Crowson 2022, k-diffusion (polyexponential). For
optimised grids (`optimise`) see `jaxsampler.search`.
"""

from .checks import append_zero as append_zero
from .checks import checked as checked
from .flow_times import shift_for as shift_for
from .flow_times import shifted as shifted
from .flow_times import stretched as stretched
from .optimised import optimise as optimise
from .schedules import arctan as arctan
from .schedules import cosine as cosine
from .schedules import default as default
from .schedules import from_sigmas as from_sigmas
from .schedules import karras as karras
from .schedules import log_snr as log_snr
from .schedules import polyexponential as polyexponential
from .schedules import quadratic as quadratic
from .schedules import uniform as uniform
from .training_indices import ays as ays
from .training_indices import leading as leading
from .training_indices import linspace as linspace
from .training_indices import trailing as trailing
