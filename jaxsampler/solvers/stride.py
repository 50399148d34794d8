"""Steps of a fixed stride, whatever the grid says: the published DDIM of diffusers.

Its scheduler steps from training index k to k - N//n for every spacing, but makes the next call at the next
time of the grid. The two differ with `linspace` spacing, and with `trailing` spacing if n does not divide N.
The network then sees a state whose noise level is not the one that it is told. A sampler here steps to the
next grid point; this wrapper reproduces the published scheduler.
"""

from ..numerics import Real, namespace
from ..tables import Step


def strided(solver: Step, stride: Real, end: Real = 0.0) -> Step:
    """Return `solver` with steps from t to t - stride, but calls at the times of the grid.

    On `DiscreteVP`, a stride of (N//n)/N is diffusers' DDIM with set_alpha_to_one=True; with end=1/N, that
    with False.

    Args:
        stride: length of a step in t.
        end: lowest time that a step leads to.

    Example:
        >>> solver = js.solvers.strided(js.solvers.ddim, 0.4)
        >>> js.tabulate(js.CondOT(), [0.9, 0.5, 0.4], solver).A.round(4)  # 0.5/0.9, then 0.1/0.5
        array([0.5556, 0.2   ])
    """
    if not (stride > 0 and end >= 0):
        raise ValueError(f"need stride > 0 and end >= 0, got stride={stride}, end={end}")

    def formula(path, ts, *args):
        xp = namespace(ts)
        target = ts[-2] - stride
        # 1e-9: what rounding leaves above the end is the end
        target = xp.where(target < end + 1e-9, xp.asarray(end, ts.dtype), target)
        return solver.formula(path, xp.append(ts[:-1], target), *args)

    return solver.replace(
        formula=formula,
        make=None,
        start=tuple(strided(lower, stride, end) for lower in solver.start),
        origin=(strided, (solver, stride, end)),
    )
