"""iPNDM: DDIM steps with the Adams-Bashforth average of the last noise predictions.

Classical linear multistep methods need a warm-up. This one ramps up through its own lower orders and takes
one call per step. Its weights are those of equal steps in rho = sigma/alpha: it has order 4 on such grids and
order 2 on all others.

References: Zhang & Chen 2023, app. H.2; Liu et al. 2022.
"""

from ..tables import Step
from ..tables.authoring import ramp, variants
from .exponential import taylor

WEIGHTS = ([1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24])


@variants
def ipndm(order: int = 4) -> Step:
    """iPNDM, of second order at best unless steps are equal in rho [Zhang & Chen 2023, app. H.2].

        x_s = DDIM(x_t, e),        e = (55 e_0 - 59 e_1 + 37 e_2 - 9 e_3)/24 at order 4, e_0 the newest output

    Options:
        order: 1 to 4, the number of outputs that e averages.

    Example:
        >>> js.tabulate(js.CondOT(), [0.9, 0.5, 0.1], js.solvers.ipndm).B.round(4)
        array([[-4. ,  0. ],
               [ 0.4, -1.2]])
    """

    def formula(path, ts, x, past, model, z):
        eps = [model(x, ts[-2]), *past]
        mean = sum(w * e for w, e in zip(WEIGHTS[len(past)], eps, strict=True))
        return taylor(path, ts[-2], ts[-1], x, [mean], "noise")

    return ramp("ipndm", formula, order, kind="noise").replace(order=min(order, 2))
