"""Steps of a fixed stride, whatever the grid says: the published DDIM of diffusers.

Its scheduler steps from training index k to k - N//n for every spacing, but makes the next call at the next time of the grid. The two
differ with `linspace` spacing, and with `trailing` where n does not divide N: the network then sees a state whose noise level is not
the one that it is told. A sampler here steps to the next grid point; this wrapper reproduces the published one.
"""

from typing import Any

from ..numerics import Real, namespace
from ..tables.steps import Step


def strided(solver: Step, stride: Real, end: Real = 0.0) -> Step:
    """`solver`, every step of which leads from its time t to t - stride, at least `end`; the next call is made where the grid says.

    On `DiscreteVP`, stride (N//n)/N with end 0 is diffusers' DDIM with set_alpha_to_one=True, end 1/N that with False.
    """
    if not (stride > 0 and end >= 0):
        raise ValueError(f"need stride > 0 and end >= 0, got stride={stride}, end={end}")

    def formula(path: Any, ts: Any, *args: Any) -> Any:
        xp = namespace(ts)
        target = ts[-2] - stride
        target = xp.where(
            target < end + 1e-9, xp.asarray(end, ts.dtype), target
        )  # 1e-9: what rounding leaves above the end is the end
        return solver.formula(path, xp.append(ts[:-1], target), *args)

    return solver.replace(
        formula=formula, make=None, start=tuple(strided(lower, stride, end) for lower in solver.start)
    )
