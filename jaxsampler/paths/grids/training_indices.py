"""Grids that count the training indices of a `DiscreteVP` path, as image pipelines do."""

import numpy as np

from ...numerics import Grid, on_host
from ...spelling import nearest
from ..base import Path
from ..discrete_vp import DiscreteVP
from .checks import Times, append_zero, count


def _discrete(N: int, index: Grid, final: str = "zero") -> Times:
    """Times of training indices, then the end: t = 0 (alpha = 1), which no index has, or the first index."""
    if final not in ("zero", "first"):
        raise ValueError(
            f"unknown final {final!r}; valid: zero (t = 0, alpha = 1), first (t = 1/N, the first noise level)"
        )
    times = (np.asarray(index, np.float64) + 1) / N
    end = 0.0 if final == "zero" else 1 / N
    return times if times[-1] == end and len(times) > 1 else np.append(times, end)


def _training_steps(path: Path, n: int) -> int:
    if not isinstance(path, DiscreteVP):
        raise TypeError(
            "leading, trailing and linspace count training indices: they need a DiscreteVP path, not "
            f"{type(path).__name__}"
        )
    if count(n) > len(path.alphas_cumprod):
        raise ValueError(f"{n} steps from {len(path.alphas_cumprod)} training indices: at most one step each")
    return len(path.alphas_cumprod)


def leading(path: Path, n: int, offset: int = 0, final: str = "zero") -> Times:
    """Indices (n-1-i) (N//n) + offset, then t = 0; the grid starts below the last training index.

    Stable Diffusion has offset 1, final="first".

    Args:
        final: "zero" ends at t = 0, where alpha = 1; "first" at the first noise level, t = 1/N (diffusers'
            set_alpha_to_one=False). A grid whose last index is the first level already then has one interval
            less, because the last call would not move the state.

    Example:
        >>> path = js.DiscreteVP.linear(1000)
        >>> path.network_time(js.grids.leading(path, 4)[:-1]).round(6).tolist()
        [750.0, 500.0, 250.0, 0.0]
    """
    N = _training_steps(path, n)
    return _discrete(N, np.arange(n)[::-1] * (N // n) + offset, final)


def trailing(path: Path, n: int, final: str = "zero") -> Times:
    """Indices round(N - i N/n) - 1, then t = 0 (or the first level: see `leading`) [Lin et al. 2024].

    The grid starts at the last training index.

    Example:
        >>> path = js.DiscreteVP.linear(1000)
        >>> path.network_time(js.grids.trailing(path, 4)[:-1]).round(6).tolist()
        [999.0, 749.0, 499.0, 249.0]
    """
    N = _training_steps(path, n)
    return _discrete(N, np.round(N - np.arange(n) * N / n) - 1, final)


def linspace(path: Path, n: int, final: str = "zero") -> Times:
    """Indices round(linspace(0, N-1, n)) from the last, then t = 0 (or the first level: see `leading`).

    Example:
        >>> path = js.DiscreteVP.linear(1000)
        >>> path.network_time(js.grids.linspace(path, 4)[:-1]).round(6).tolist()
        [999.0, 666.0, 333.0, 0.0]
    """
    N = _training_steps(path, n)
    return _discrete(N, np.round(np.linspace(0, N - 1, n))[::-1], final)


AYS = {  # training indices (of 1000, scaled-linear), sigma/alpha at 10 steps
    "sd15": (
        (999, 850, 736, 645, 545, 455, 343, 233, 124, 24),
        (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152),
    ),
    "sdxl": (
        (999, 845, 730, 587, 443, 310, 193, 116, 53, 13),
        (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.38, 0.234, 0.113),
    ),
    "svd": ((), (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034)),
}


def ays(path: Path, n: int, table: str = "sd15") -> Times:
    """Align Your Steps [Sabour et al. 2024]: noise levels optimised for a model family, then t = 0.

    Ten steps are published; for other n, log(sigma/alpha) is interpolated over the index. Where the ten
    published training indices have those levels (a DiscreteVP path like Stable Diffusion's), the times are
    those of the indices, so network labels are whole numbers.

    Args:
        table: "sd15", "sdxl" or "svd".

    Example:
        >>> path = js.DiscreteVP.scaled_linear(1000)
        >>> path.network_time(js.grids.ays(path, 10)[:3]).round(6).tolist()
        [999.0, 850.0, 736.0]
    """
    if table not in AYS:
        raise ValueError(f"unknown table {table!r}; {nearest(table, AYS)}")
    index, levels = AYS[table]
    if index and count(n) == len(index) and isinstance(path, DiscreteVP):
        times = _discrete(1000, index)
        if np.allclose(path.rho(times[:-1]), levels, rtol=0.02):
            return times
    levels = np.exp(np.interp(np.linspace(0, 1, count(n)), np.linspace(0, 1, len(levels)), np.log(levels)))
    with on_host():
        highest = float(path.rho(path.t_max))
        times = np.minimum(path.time(-np.log(levels)), path.t_max)
    if levels[0] > 1.001 * highest:
        raise ValueError(
            f"table {table!r} starts at sigma/alpha = {levels[0]:g}, this path ends at {highest:g}; "
            "choose the path of its models"
        )
    return append_zero(times)
