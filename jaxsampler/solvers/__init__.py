"""Solvers, one file per derivation. Every name is a `js.steps.Step`; call it with options for a variant."""

from .ancestral import ddim as ddim
from .ancestral import ddpm as ddpm
from .ancestral import posterior as posterior
from .catalogue import by_name as by_name
from .catalogue import catalogue as catalogue
from .euler import euler as euler
from .euler import euler_maruyama as euler_maruyama
from .euler import heun as heun
from .exponential import dpm_1 as dpm_1
from .exponential import dpm_2m as dpm_2m
from .exponential import dpm_3m as dpm_3m
from .exponential import dpmpp_1 as dpmpp_1
from .exponential import dpmpp_2m as dpmpp_2m
from .exponential import dpmpp_3m as dpmpp_3m
from .exponential import mr_ode as mr_ode
from .exponential_sde import dpmpp_2m_sde as dpmpp_2m_sde
from .exponential_sde import dpmpp_3m_sde as dpmpp_3m_sde
from .exponential_sde import dpmpp_sde_1 as dpmpp_sde_1
from .exponential_sde import mr_sde as mr_sde
from .mr_published import mr_published as mr_published
from .singlestep import dpm_2 as dpm_2
from .singlestep import dpm_3 as dpm_3
from .singlestep import dpmpp_2s as dpmpp_2s
from .singlestep import dpmpp_3s as dpmpp_3s
