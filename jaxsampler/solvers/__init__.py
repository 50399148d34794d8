"""Solvers, one file per derivation.

Most names are a `js.Step`, to be called with options for a variant: `dpmpp_2m(form="taylor")`. Adaptive and
reversible solvers, DPM-Solver-v3 and Langevin correctors are functions that make a `js.Solver`:
`edict(p=0.9)`. `jaxsampler solvers` lists both.
"""

from .adams_bashforth import deis as deis
from .adams_bashforth import deis_rho as deis_rho
from .adams_bashforth import lms as lms
from .adaptive import PID as PID
from .adaptive import Adaptive as Adaptive
from .adaptive import dpm_adaptive as dpm_adaptive
from .ancestral import ddim as ddim
from .ancestral import ddpm as ddpm
from .ancestral import posterior as posterior
from .ancestral_split import dpm_2_ancestral as dpm_2_ancestral
from .ancestral_split import dpmpp_2s_ancestral as dpmpp_2s_ancestral
from .ancestral_split import dpmpp_sde as dpmpp_sde
from .ancestral_split import euler_ancestral as euler_ancestral
from .dpm_solver_v3 import dpm_v3 as dpm_v3
from .edm_heun import churn as churn
from .edm_heun import edm as edm
from .edm_heun import rk_rho as rk_rho
from .estimate_statistics import ems as ems
from .euler_heun import euler as euler
from .euler_heun import euler_maruyama as euler_maruyama
from .euler_heun import heun as heun
from .euler_heun import rf_solver as rf_solver
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
from .fitted_kind import FittedKind as FittedKind
from .improved_pndm import ipndm as ipndm
from .langevin import score_sde as score_sde
from .listing import by_name as by_name
from .listing import catalogue as catalogue
from .model_statistics import Statistics as Statistics
from .mr_released import mr_published as mr_published
from .orders import order as order
from .orders import weak_order as weak_order
from .predictor_corrector import unipc as unipc
from .pseudo_numerical import plms as plms
from .pseudo_numerical import pndm as pndm
from .relaxation import relax as relax
from .reversible import bdia as bdia
from .reversible import edict as edict
from .reversible import obelm as obelm
from .reversible_rho import mccallum_foster as mccallum_foster
from .reversible_rho import reversible_heun as reversible_heun
from .single_step import dpm_2 as dpm_2
from .single_step import dpm_3 as dpm_3
from .single_step import dpmpp_2s as dpmpp_2s
from .single_step import dpmpp_3s as dpmpp_3s
from .single_step import singlestep as singlestep
from .single_step import singlestep_fixed as singlestep_fixed
from .stride import strided as strided
from .unified_framework import Decision as Decision
from .unified_framework import shift_data as shift_data
from .unified_framework import usf as usf
