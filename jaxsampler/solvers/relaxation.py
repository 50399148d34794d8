r"""Relaxation: factors on the derivative estimates of a multistep solver, one set for each interval.

A multistep step extrapolates the network by a Taylor polynomial in lam, F + F' (l - lam_t) + F'' (l -
lam_t)^2/2, whose derivatives it estimates from past outputs. With few steps these estimates are far off. It
pays to scale the k-th derivative on the n-th interval by a factor of its own:

    F^(k)  ->  r_{n,k} F^(k)            r = 1 is the solver, r = 0 DDIM

UniPC scales the estimates of the corrector by the factors of the predictor that it corrects. The factors are
numbers of the table like any other, so they can be learned (`js.search.learn`). Factors of the form 1 + O(h)
are the relaxation of USF.

Reference: Liu et al. 2023 (USF), sec. 4.
"""

from typing import Any

import numpy as np

from ..tables import Step
from ..tables.scheduling import schedule

RELAXED = "dpm_2m, dpm_3m, dpmpp_2m, dpmpp_3m, mr_ode, unipc"


def relax(
    solver: Step | list[Step],
    factors: Any,
    *,
    to_zero: bool = False,
    from_noise: bool = False,
) -> list[Step]:
    """Return the steps of `solver` for len(factors) intervals, with their derivative estimates scaled.

    Args:
        solver: one of dpm_2m, dpm_3m, dpmpp_2m, dpmpp_3m, mr_ode and unipc, or a list of steps.
        factors: [intervals, derivatives]; derivatives beyond those given keep the factor 1.
        to_zero: whether the grid ends at sigma = 0; a list of steps is taken literally.
        from_noise: whether the grid starts at alpha = 0.

    Raises:
        ValueError: if `solver` estimates no derivatives, or if `factors` is not a matrix.

    Example:
        >>> solver = js.solvers.relax(js.solvers.dpmpp_2m, [[1.0], [0.0]])  # DDIM: the slope counts nothing
        >>> js.tabulate(js.CondOT(), [0.9, 0.5, 0.1], solver).B.round(4)
        array([[0.4444, 0.    ],
               [0.    , 0.8   ]])
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
