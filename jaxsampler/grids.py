r"""Time grids: plain arrays of n+1 decreasing times for n intervals.

A grid of your own is any decreasing array within [0, t_max]; nothing here is special. Grids in terms of lam = log(alpha/sigma) or
rho = sigma/alpha are mapped to times by the path. All return numpy float64. Default: `default(path, n)`.

References: DPM-Solver (log_snr, quadratic) [Lu et al. 2022]; Karras et al. 2022, eq. 5; Lin et al. 2024 (leading, trailing).
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from .numerics import Real, is_traced, on_host
from .paths import EDM, VE, CondOT, Path
from .tabulated import DiscreteVP

Grid = Float[np.ndarray, " points"]


def _count(n: int) -> int:
    if not float(n).is_integer() or n < 1:
        raise ValueError(f"a grid needs a whole number of intervals, at least one; got n={n}")
    return int(n)


def _ends(path: Path, t_max: Real | None, t_min: Real | None) -> tuple[float, float]:
    high, low = path.t_max if t_max is None else t_max, path.t_min if t_min is None else t_min
    if not 0 <= low < high <= path.t_max * (1 + 1e-9):
        raise ValueError(f"need 0 <= t_min < t_max <= {path.t_max}; got t_min={low}, t_max={high}")
    return high, low


def _pinned(times: Any, ends: tuple[float, float]) -> Grid:
    times = np.array(times, np.float64)
    times[0], times[-1] = ends  # exact ends, whatever the inverse schedule rounds to
    return times


def uniform(path: Path, n: int, *, t_max: Real | None = None, t_min: Real | None = None) -> Grid:
    """Equal steps in t. A CondOT grid ends at t = 0: its last step is regular."""
    if t_min is None and isinstance(path, CondOT):
        t_min = 0.0
    return np.linspace(*_ends(path, t_max, t_min), _count(n) + 1)


def log_snr(path: Path, n: int, *, t_max: Real | None = None, t_min: Real | None = None) -> Grid:
    """Equal steps in lam."""
    ends = _ends(path, t_max, t_min)
    with on_host():
        lam = np.asarray([path.lam(ends[0]), path.lam(ends[1])], np.float64)
    if not np.all(np.isfinite(lam)):
        raise ValueError(f"log_snr needs finite lam at both ends, got {lam[0]} at t={ends[0]}, {lam[1]} at t={ends[1]}; pass t_max, t_min")
    with on_host():
        return _pinned(path.time(np.linspace(lam[0], lam[1], _count(n) + 1)), ends)


def karras(path: Path, n: int, rho: Real = 7.0, *, t_max: Real | None = None, t_min: Real | None = None) -> Grid:
    """Equal steps in (sigma/alpha)^(1/rho) [Karras et al. 2022, eq. 5]; see `append_zero` for its last step to 0."""
    ends = _ends(path, t_max, t_min)
    with on_host():
        level = np.asarray([path.rho(ends[0]), path.rho(ends[1])], np.float64)
    if not (np.all(np.isfinite(level)) and level[1] > 0):
        raise ValueError(f"karras needs 0 < sigma/alpha < inf at both ends, got {level} at t={ends}; pass t_max, t_min")
    levels = np.linspace(level[0] ** (1 / rho), level[1] ** (1 / rho), _count(n) + 1) ** rho
    with on_host():
        return _pinned(path.time(-np.log(levels)), ends)


def quadratic(path: Path, n: int, *, t_max: Real | None = None, t_min: Real | None = None) -> Grid:
    """Equal steps in sqrt(t)."""
    high, low = _ends(path, t_max, t_min)
    return _pinned(np.linspace(np.sqrt(high), np.sqrt(low), _count(n) + 1) ** 2, (high, low))


def cosine(path: Path, n: int, *, t_max: Real | None = None, t_min: Real | None = None) -> Grid:
    """Chebyshev-like: half a cosine between the ends, short steps at both."""
    high, low = _ends(path, t_max, t_min)
    return _pinned(low + (high - low) * (1 + np.cos(np.linspace(0, np.pi, _count(n) + 1))) / 2, (high, low))


def _discrete(N: int, index: Any) -> Grid:
    """Times of training indices, then t = 0 (alpha = 1), which no index has."""
    return np.append((np.asarray(index, np.float64) + 1) / N, 0.0)


def _training_steps(path: Path, n: int) -> int:
    if not isinstance(path, DiscreteVP):
        raise TypeError(f"leading, trailing and linspace count training indices: they need a DiscreteVP path, not {type(path).__name__}")
    if _count(n) > len(path.alphas_cumprod):
        raise ValueError(f"{n} steps from {len(path.alphas_cumprod)} training indices: at most one step each")
    return len(path.alphas_cumprod)


def leading(path: Path, n: int, offset: int = 0) -> Grid:
    """Indices (n-1-i) (N//n) + offset, then 0; starts below the last training index."""
    N = _training_steps(path, n)
    return _discrete(N, np.arange(n)[::-1] * (N // n) + offset)


def trailing(path: Path, n: int) -> Grid:
    """Indices round(N - i N/n) - 1, then 0."""
    N = _training_steps(path, n)
    return _discrete(N, np.round(N - np.arange(n) * N / n) - 1)


def linspace(path: Path, n: int) -> Grid:
    """Indices round(linspace(0, N-1, n)) from the last, then 0."""
    N = _training_steps(path, n)
    return _discrete(N, np.round(np.linspace(0, N - 1, n))[::-1])


def append_zero(grid: Any) -> Grid:
    """The grid with a last step to t = 0."""
    return np.append(np.asarray(grid, np.float64), 0.0)


def default(path: Path, n: int) -> Grid:
    """n intervals: karras on EDM (then a step to 0) and VE (down to sigma_min), uniform where alpha(t_max) = 0 (CondOT), else log_snr.

    Where sigma(t_min) = 0 (MeanReverting "irsde") the last step goes to 0 from a hundredth of t_max.
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
    return np.array([path.t_max, 0.0]) if _count(n) == 1 else append_zero(log_snr(path, n - 1, t_min=0.01 * path.t_max))


def checked(path: Path, grid: Any) -> Any:
    """The grid as numpy float64 (a traced grid as it is); ValueError unless it decreases strictly within [0, t_max]."""
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
        raise ValueError(f"a grid decreases from noise to data; got grid[{i}]={grid[i]:g} -> grid[{i + 1}]={grid[i + 1]:g}. {hint}")
    slack = 1e-6 * path.t_max  # float32 grids round past the ends
    if grid[0] > path.t_max + slack or grid[-1] < -slack:
        raise ValueError(f"grid {grid[0]:g} -> {grid[-1]:g} leaves the path, whose times are [0, {path.t_max:g}] ({type(path).__name__})")
    return np.clip(grid, 0.0, path.t_max)
