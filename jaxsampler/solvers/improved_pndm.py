"""iPNDM: DDIM steps with the Adams-Bashforth average of the last noise predictions.

Classical linear multistep methods need a warm-up; this one ramps up through its own lower orders and takes one call per step. The weights
are those of equal steps in rho = sigma/alpha: order 4 there, order 2 on any other grid.

References: Zhang & Chen 2023, app. H.2; Liu et al. 2022.
"""

from ..tables.steps import Step, ramp, variants
from .exponential import taylor

WEIGHTS = ([1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24])


@variants
def ipndm(order: int = 4) -> Step:
    """iPNDM [Zhang & Chen 2023, app. H.2]; second order at best unless steps are equal in rho."""

    def formula(path, ts, x, past, model, z):
        eps = [model(x, ts[-2]), *past]
        mean = sum(w * e for w, e in zip(WEIGHTS[len(past)], eps, strict=True))
        return taylor(path, ts[-2], ts[-1], x, [mean], "noise")

    return ramp("ipndm", formula, order, kind="noise").replace(order=min(order, 2))
