r"""Time grids: plain arrays of n+1 decreasing times for n intervals.

A grid of your own is any decreasing array within [0, t_max]. Grids in terms of lam = log(alpha/sigma) or rho
= sigma/alpha are mapped to times by the path. All return numpy float64. The default is `default(path, n)`.

References: DPM-Solver (log_snr, quadratic) [Lu et al. 2022]; Karras et al. 2022, eq. 5; Lin et al. 2024
(leading, trailing); Sabour et al. 2024 (ays, arctan); Crowson 2022, k-diffusion (polyexponential). For
optimised grids (`optimise`) see `jaxsampler.search`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..numerics import Arr, Grid, Key, Like, Real, Scalar, is_traced, on_host
from ..spelling import nearest
from .base import Path
from .discrete_vp import DiscreteVP
from .gaussian import EDM, VE, CondOT

Times = Float[np.ndarray, " points"]


def _count(n: int) -> int:
    if not float(n).is_integer() or n < 1:
        raise ValueError(f"a grid needs a whole number of intervals, at least one; got n={n}")
    return int(n)


def _ends(path: Path, t_max: Real | None, t_min: Real | None) -> tuple[float, float]:
    high, low = path.t_max if t_max is None else t_max, path.t_min if t_min is None else t_min
    if not 0 <= low < high <= path.t_max * (1 + 1e-9):
        raise ValueError(f"need 0 <= t_min < t_max <= {path.t_max}; got t_min={low}, t_max={high}")
    return high, low


def _pinned(times: Arr, ends: tuple[float, float]) -> Times:
    times = np.array(times, np.float64)
    times[0], times[-1] = ends  # exact ends, whatever the inverse schedule rounds to
    return times


def uniform(path: Path, n: int, *, t_max: Real | None = None, t_min: Real | None = None) -> Times:
    """Equal intervals in t. A CondOT grid ends at t = 0, where its last step is regular.

    Example:
        >>> js.grids.uniform(js.CondOT(), 4).tolist()
        [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if t_min is None and isinstance(path, CondOT):
        t_min = 0.0
    return np.linspace(*_ends(path, t_max, t_min), _count(n) + 1)


def _in_lam(path: Path, short: np.ndarray, name: str, t_max: Real | None, t_min: Real | None) -> Times:
    """Times at which lam is short of its last value by these shares, 1 to 0, of its range."""
    ends = _ends(path, t_max, t_min)
    with on_host():
        lam = np.asarray([path.lam(ends[0]), path.lam(ends[1])], np.float64)
    if not np.all(np.isfinite(lam)):
        raise ValueError(
            f"{name} needs finite lam at both ends, got {lam[0]} at t={ends[0]}, {lam[1]} at t={ends[1]}; "
            "pass t_max, t_min"
        )
    with on_host():
        return _pinned(path.time(lam[1] - short * (lam[1] - lam[0])), ends)


def log_snr(path: Path, n: int, *, t_max: Real | None = None, t_min: Real | None = None) -> Times:
    """Equal intervals in lam.

    Example:
        >>> path = js.VP()
        >>> lam = path.lam(js.grids.log_snr(path, 4))
        >>> np.diff(lam).round(6).tolist() == [round(float(lam[-1] - lam[0]) / 4, 6)] * 4
        True
    """
    return _in_lam(path, np.linspace(1, 0, _count(n) + 1), "log_snr", t_max, t_min)


def polyexponential(
    path: Path, n: int, rho: Real = 1.0, *, t_max: Real | None = None, t_min: Real | None = None
) -> Times:
    """lam is short of its last value by u^rho of the range, u from 1 to 0 [Crowson 2022, k-diffusion].

    rho = 1 is `log_snr`, k-diffusion's "exponential"; a larger rho takes shorter steps near the data.

    Example:
        >>> js.grids.polyexponential(js.EDM(1.0, 16.0), 2, rho=2.0).round(6).tolist()
        [16.0, 2.0, 1.0]
    """
    return _in_lam(path, np.linspace(1, 0, _count(n) + 1) ** rho, "polyexponential", t_max, t_min)


def karras(
    path: Path, n: int, rho: Real = 7.0, *, t_max: Real | None = None, t_min: Real | None = None
) -> Times:
    """Equal intervals in (sigma/alpha)^(1/rho) [Karras et al. 2022, eq. 5].

    Karras et al. add a last step to 0: see `append_zero`.

    Example:
        >>> js.grids.karras(js.EDM(0.002, 80.0), 4).round(3).tolist()
        [80.0, 17.528, 2.515, 0.17, 0.002]
    """
    ends = _ends(path, t_max, t_min)
    with on_host():
        level = np.asarray([path.rho(ends[0]), path.rho(ends[1])], np.float64)
    if not (np.all(np.isfinite(level)) and level[1] > 0):
        raise ValueError(
            f"karras needs 0 < sigma/alpha < inf at both ends, got {level} at t={ends}; pass t_max, t_min"
        )
    levels = np.linspace(level[0] ** (1 / rho), level[1] ** (1 / rho), _count(n) + 1) ** rho
    with on_host():
        return _pinned(path.time(-np.log(levels)), ends)


def quadratic(path: Path, n: int, *, t_max: Real | None = None, t_min: Real | None = None) -> Times:
    """Equal intervals in sqrt(t).

    Example:
        >>> js.grids.quadratic(js.CondOT(), 4, t_min=0.0).tolist()
        [1.0, 0.5625, 0.25, 0.0625, 0.0]
    """
    high, low = _ends(path, t_max, t_min)
    return _pinned(np.linspace(np.sqrt(high), np.sqrt(low), _count(n) + 1) ** 2, (high, low))


def cosine(path: Path, n: int, *, t_max: Real | None = None, t_min: Real | None = None) -> Times:
    """Chebyshev-like: half a cosine between the ends, with short steps at both.

    Example:
        >>> js.grids.cosine(js.CondOT(), 4, t_min=0.0).round(4).tolist()
        [1.0, 0.8536, 0.5, 0.1464, 0.0]
    """
    high, low = _ends(path, t_max, t_min)
    return _pinned(low + (high - low) * (1 + np.cos(np.linspace(0, np.pi, _count(n) + 1))) / 2, (high, low))


def arctan(
    path: Path, n: int, std: Real = 1.0, *, t_max: Real | None = None, t_min: Real | None = None
) -> Times:
    """Equal intervals in arctan(sigma/(std alpha)) [Sabour et al. 2024, sec. 3.1].

    `ddim` errs least on it if the data are N(m, std^2 I). The ends may be those where alpha = 0 or sigma = 0;
    by default they are those of the default grid. k-diffusion's "kl_optimal" has std 1.

    Example:
        >>> js.grids.arctan(js.CondOT(), 2).round(4).tolist()
        [1.0, 0.5, 0.0]
        >>> js.grids.arctan(js.CondOT(), 2, std=3.0).round(4).tolist()
        [1.0, 0.75, 0.0]
    """
    ends = _ends(path, t_max, default(path, 1)[-1] if t_min is None else t_min)
    with on_host():
        high, low = (float(np.arctan2(path.sigma(t), std * path.alpha(t))) for t in ends)
        return _pinned(path.time(-np.log(std * np.tan(np.linspace(high, low, _count(n) + 1)))), ends)


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
    if _count(n) > len(path.alphas_cumprod):
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
    if index and _count(n) == len(index) and isinstance(path, DiscreteVP):
        times = _discrete(1000, index)
        if np.allclose(path.rho(times[:-1]), levels, rtol=0.02):
            return times
    levels = np.exp(np.interp(np.linspace(0, 1, _count(n)), np.linspace(0, 1, len(levels)), np.log(levels)))
    with on_host():
        highest = float(path.rho(path.t_max))
        times = np.minimum(path.time(-np.log(levels)), path.t_max)
    if levels[0] > 1.001 * highest:
        raise ValueError(
            f"table {table!r} starts at sigma/alpha = {levels[0]:g}, this path ends at {highest:g}; "
            "choose the path of its models"
        )
    return append_zero(times)


def append_zero(grid: Grid) -> Times:
    """Add a last interval, to t = 0.

    Example:
        >>> js.grids.append_zero([80.0, 1.0]).tolist()
        [80.0, 1.0, 0.0]
    """
    return np.append(np.asarray(grid, np.float64), 0.0)


def default(path: Path, n: int) -> Times:
    """n intervals, by the kind of path.

    `karras` on EDM (then a step to 0) and VE (down to sigma_min), `uniform` where alpha(t_max) = 0 (CondOT),
    else `log_snr`. Where sigma(t_min) = 0 (MeanReverting "irsde") the last step goes to 0 from a hundredth of
    t_max.

    Example:
        >>> path = js.VP()
        >>> bool(np.all(js.grids.default(path, 5) == js.grids.log_snr(path, 5)))
        True
        >>> js.grids.default(js.CondOT(), 2).tolist()
        [1.0, 0.5, 0.0]
    """
    if isinstance(path, VE):
        return karras(path, n, t_min=0.0)
    if isinstance(path, EDM):
        return np.array([path.t_max, 0.0]) if _count(n) == 1 else append_zero(karras(path, n - 1))
    with on_host():
        pure_noise, clean = bool(path.alpha(path.t_max) == 0), bool(path.sigma(path.t_min) == 0)
    if pure_noise:
        return uniform(path, n)
    if not clean:
        return log_snr(path, n)
    return (
        np.array([path.t_max, 0.0])
        if _count(n) == 1
        else append_zero(log_snr(path, n - 1, t_min=0.01 * path.t_max))
    )


def optimise(
    path: Path,
    n: int,
    objective: str = "dmn",
    *,
    denoiser: Callable | None = None,
    data: Arr | Callable | None = None,
    like: Like | None = None,
    key: Key | None = None,
    t_max: Real | None = None,
    t_min: Real | None = None,
) -> Times:
    """n intervals that minimise an objective; the same key gives the same grid.

    The functions of `js.search` have more options.

    Args:
        objective: "dmn", a bound on how much the solver amplifies errors of the network, which needs no
            network, data or key [Xue et al. 2024]. Or "ays", a bound on the KL divergence of stochastic DDIM,
            by forward paths from `data` through `denoiser` [Sabour et al. 2024]. Or "gits", the errors of
            single long steps along fine trajectories of `denoiser` [Chen et al. 2024].
        like: one sample; the trajectories of "gits" start from noise of its shape.
        data: samples [k, *shape], or a function key -> sample.

    Example:
        >>> js.grids.optimise(js.EDM(), 3, "dmn").round(3).tolist()
        [80.0, 0.459, 0.002, 0.0]
    """
    given: dict[str, dict[str, Any]] = {
        "dmn": {},
        "ays": {"denoiser": denoiser, "data": data, "key": key},
        "gits": {"denoiser": denoiser, "like": like, "key": key},
    }
    if objective not in given:
        raise ValueError(f"unknown objective {objective!r}; {nearest(objective, given)}")
    missing = [name for name, value in given[objective].items() if value is None]
    if missing:
        raise ValueError(f"objective={objective!r} needs {', '.join(f'{name}=' for name in missing)}")
    other = getattr(denoiser, "path", path)
    if other != path:
        raise ValueError(
            f"the denoiser is on another path, {other}, than the grid, {path}: pass path=denoiser.path"
        )
    from .. import search  # outside the core

    chosen, n = given[objective], _count(n)
    if objective == "dmn":
        return search.dmn(path, n, t_max=t_max, t_min=t_min)
    return (search.ays if objective == "ays" else search.gits)(n=n, **chosen, t_max=t_max, t_min=t_min)


def checked(path: Path, grid: Scalar | Sequence) -> Arr:
    """Return the grid as numpy float64; a traced grid as it is.

    Raises:
        ValueError: unless it decreases strictly within [0, t_max].

    Example:
        >>> js.grids.checked(js.CondOT(), [0, 1])
        Traceback (most recent call last):
        ValueError: a grid decreases from noise to data; got grid[0]=0 -> grid[1]=1. Did you mean grid[::-1]?
    """
    if is_traced(grid):
        grid = jnp.asarray(grid)
        if grid.ndim != 1 or grid.shape[0] < 2:
            raise ValueError(f"a grid is a vector of at least 2 times; got shape {grid.shape}")
        return grid
    grid = np.asarray(grid, np.float64)
    if grid.ndim != 1 or len(grid) < 2:
        raise ValueError(f"a grid is a vector of at least 2 times; got shape {grid.shape}")
    if not np.all(np.isfinite(grid)):
        raise ValueError(f"grid[{int(np.argmin(np.isfinite(grid)))}] is not finite: {grid}")
    if not np.all(np.diff(grid) < 0):
        i = int(np.argmax(np.diff(grid) >= 0))
        hint = "Did you mean grid[::-1]?" if np.all(np.diff(grid) > 0) else "Remove repeated or rising times."
        raise ValueError(
            f"a grid decreases from noise to data; got grid[{i}]={grid[i]:g} -> "
            f"grid[{i + 1}]={grid[i + 1]:g}. {hint}"
        )
    slack = 1e-6 * path.t_max  # float32 grids round past the ends
    if grid[0] > path.t_max + slack or grid[-1] < -slack:
        raise ValueError(
            f"grid {grid[0]:g} -> {grid[-1]:g} leaves the path, whose times are [0, {path.t_max:g}] "
            f"({type(path).__name__})"
        )
    return np.clip(grid, 0.0, path.t_max)
