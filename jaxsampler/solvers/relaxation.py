r"""Relaxation: factors on the derivative estimates of a multistep solver, one set for each interval.

A multistep step extrapolates the network by a Taylor polynomial in lam, F + F' (l - lam_t) + F'' (l - lam_t)^2/2, whose derivatives it
estimates from past outputs. With few steps these estimates are far off, and it pays to trust them by a factor r_{n,k} of its own for the
k-th derivative on the n-th interval:

    F^(k)  ->  r_{n,k} F^(k)            r = 1 is the solver, r = 0 DDIM

UniPC scales the estimates of the corrector as those of the predictor it corrects. The factors are numbers of the table like any other,
so they can be learned (`js.search.learn`); those of the form 1 + O(h) are the relaxation of USF.

Reference: Liu et al. 2023 (USF), sec. 4.
"""

from typing import Any

import numpy as np

from ..tables.steps import Step, schedule

RELAXED = "dpm_2m, dpm_3m, dpmpp_2m, dpmpp_3m, mr_ode, unipc"


def relax(
    solver: Step | list[Step], factors: Any, *, to_zero: bool = False, from_noise: bool = False
) -> list[Step]:
    """The steps of `solver` for len(factors) intervals, their derivative estimates times `factors` [intervals, derivatives].

    Derivatives beyond those given keep the factor 1. to_zero, from_noise: whether the grid ends in sigma = 0, starts from alpha = 0, for a
    list of steps is taken as it is. ValueError if the solver makes no estimate that could be scaled: it has to be one of dpm_2m, dpm_3m,
    dpmpp_2m, dpmpp_3m, mr_ode and unipc.
    """
    if np.ndim(factors) != 2:
        raise ValueError(
            f"relaxation factors are an array [intervals, derivatives], got shape {np.shape(factors)}"
        )
    steps = [
        s.replace(make=None) for s in schedule(solver, len(factors), to_zero=to_zero, from_noise=from_noise)
    ]
    if len(steps) > 1 and not any("relax" in s.options() for s in steps):
        raise ValueError(
            f"{steps[-1].name} has no derivative estimates to relax; solvers that have: {RELAXED}"
        )
    relaxed = []
    for i, s in enumerate(steps):
        options = {"relax": factors[i]} if "relax" in s.options() else {}
        if "relax_before" in s.options() and i:
            options["relax_before"] = factors[i - 1]
        relaxed.append(s(**options))
    return relaxed
