r"""Choosing n+1 grid times out of many: the candidates, and the cheapest way through them.

If the cost of a grid is a sum over its steps, c_ij for the step from candidate i to candidate j, the best
grid of n steps is the shortest path of n edges from the first candidate to the last. Dynamic programming
finds it exactly, with V_k(i) the least cost of k steps from i:

    V_1(i) = c_iK        V_k(i) = min_{j > i} c_ij + gamma V_{k-1}(j)

gamma = 1 gives the least sum; with gamma > 1 a step counts the more, the later it comes [Chen et al. 2024:
1.15].

Reference: Chen et al. 2024 (GITS), sec. 4.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from ..numerics import Grid, Real, on_host
from ..paths import Denoiser, Path, grids
from ..solvers.estimate_statistics import finite_ends


def candidates(
    path: Path, among: Grid | int, *, t_max: Real | None = None, t_min: Real | None = None
) -> Float[np.ndarray, " points"]:
    """Return the times to choose from: `among` itself if it is a grid, else that many intervals.

    The intervals are equal in (sigma/alpha)^(1/7) [Karras et al. 2022], between ends of finite log-SNR;
    infinite ends of the path's default grid are added.
    """
    if not isinstance(among, int | np.integer):
        if t_max is not None or t_min is not None:
            raise ValueError("candidate times have their ends already: leave out t_max and t_min")
        return np.asarray(grids.checked(path, among))
    with on_host():
        high, low = finite_ends(path, t_max, t_min)
    times, end = grids.karras(path, among, t_max=high, t_min=low), grids.default(path, 1)[-1]
    times = np.append(path.t_max, times) if t_max is None and high < path.t_max else times
    return np.append(times, end) if t_min is None and end < low else times


def levels(
    path: Path, times: Float[np.ndarray, " points"]
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """Return alpha and sigma at these times, in float64."""
    exact = lambda f: np.broadcast_to(np.asarray(f(times), np.float64), times.shape)
    with on_host():
        return exact(path.alpha), exact(path.sigma)


def path_of(denoiser: Denoiser | Callable) -> Path:
    """Return the path of a denoiser; TypeError if it is something else, or the denoiser of a system."""
    if not isinstance(denoiser, Denoiser):
        raise TypeError(f"denoiser must be a js.Denoiser(net, path, kind), got {type(denoiser).__name__}")
    if isinstance(denoiser.path, dict):
        raise TypeError(
            "grids are optimised for one array on one path; this denoiser's system has a path per part"
        )
    return denoiser.path


def cheapest(
    cost: Float[np.ndarray, "points points"], n: int, gamma: float = 1.0
) -> Int[np.ndarray, " nodes"]:
    """Return n+1 increasing indices, first and last included, of least total cost.

    cost[i, j] is that of a step from i to j > i; the other entries are not used.
    """
    last = len(cost) - 1
    if not 1 <= n <= last:
        raise ValueError(
            f"{last + 1} candidate times make grids of 1 to {last} intervals, not {n}: give more candidates"
        )
    steps = np.where(np.triu(np.ones_like(cost, bool), 1), cost, np.inf)
    if np.isnan(steps).any():
        i, j = np.argwhere(np.isnan(steps))[0]
        raise ValueError(
            f"the step from candidate {i} to {j} costs NaN: the denoiser's output is not finite on the way"
        )
    value, choices = steps[:, last], [np.full(last + 1, last)]
    for _ in range(n - 1):
        total = steps + gamma * value[None, :]
        choices.append(total.argmin(1))
        value = total.min(1)
    nodes = [0]
    for choice in reversed(choices):
        nodes.append(int(choice[nodes[-1]]))
    return np.array(nodes)
