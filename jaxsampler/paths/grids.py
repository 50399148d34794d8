r"""Time grids: plain arrays of n+1 decreasing times for n intervals.

A grid of your own is any decreasing array within [0, t_max]; nothing here is special. Grids in terms of lam = log(alpha/sigma) or
rho = sigma/alpha are mapped to times by the path. All return numpy float64. Default: `default(path, n)`.

References: DPM-Solver (log_snr, quadratic) [Lu et al. 2022]; Karras et al. 2022, eq. 5; Lin et al. 2024 (leading, trailing); Sabour et
al. 2024 (ays, arctan); Crowson 2022, k-diffusion (polyexponential). Optimised grids (`optimise`): see `jaxsampler.search`.
"""

import difflib
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..numerics import Real, is_traced, on_host
from .base import Path
from .discrete_vp import DiscreteVP
from .gaussian import EDM, VE, CondOT

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


def _in_lam(path: Path, short: Any, name: str, t_max: Real | None, t_min: Real | None) -> Grid:
    """Times at which lam is short of its last value by these shares, 1 to 0, of its range."""
    ends = _ends(path, t_max, t_min)
    with on_host():
        lam = np.asarray([path.lam(ends[0]), path.lam(ends[1])], np.float64)
    if not np.all(np.isfinite(lam)):
        raise ValueError(
            f"{name} needs finite lam at both ends, got {lam[0]} at t={ends[0]}, {lam[1]} at t={ends[1]}; pass t_max, t_min"
        )
    with on_host():
        return _pinned(path.time(lam[1] - short * (lam[1] - lam[0])), ends)


def log_snr(path: Path, n: int, *, t_max: Real | None = None, t_min: Real | None = None) -> Grid:
    """Equal steps in lam."""
    return _in_lam(path, np.linspace(1, 0, _count(n) + 1), "log_snr", t_max, t_min)


def polyexponential(
    path: Path, n: int, rho: Real = 1.0, *, t_max: Real | None = None, t_min: Real | None = None
) -> Grid:
    """lam falls short of its last value by u^rho of the whole range, u from 1 to 0 in equal steps [Crowson 2022, k-diffusion].

    rho = 1 is `log_snr`, k-diffusion's "exponential"; a larger one takes shorter steps near the data.
    """
    return _in_lam(path, np.linspace(1, 0, _count(n) + 1) ** rho, "polyexponential", t_max, t_min)


def karras(
    path: Path, n: int, rho: Real = 7.0, *, t_max: Real | None = None, t_min: Real | None = None
) -> Grid:
    """Equal steps in (sigma/alpha)^(1/rho) [Karras et al. 2022, eq. 5]; see `append_zero` for its last step to 0."""
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


def quadratic(path: Path, n: int, *, t_max: Real | None = None, t_min: Real | None = None) -> Grid:
    """Equal steps in sqrt(t)."""
    high, low = _ends(path, t_max, t_min)
    return _pinned(np.linspace(np.sqrt(high), np.sqrt(low), _count(n) + 1) ** 2, (high, low))


def cosine(path: Path, n: int, *, t_max: Real | None = None, t_min: Real | None = None) -> Grid:
    """Chebyshev-like: half a cosine between the ends, short steps at both."""
    high, low = _ends(path, t_max, t_min)
    return _pinned(low + (high - low) * (1 + np.cos(np.linspace(0, np.pi, _count(n) + 1))) / 2, (high, low))


def arctan(
    path: Path, n: int, std: Real = 1.0, *, t_max: Real | None = None, t_min: Real | None = None
) -> Grid:
    """Equal steps in arctan(sigma/(std alpha)), on which `ddim` errs least if the data are N(m, std^2 I) [Sabour et al. 2024, sec. 3.1].

    The ends may be those where alpha = 0 or sigma = 0; by default they are those of the default grid. k-diffusion's "kl_optimal" has std 1.
    """
    ends = _ends(path, t_max, default(path, 1)[-1] if t_min is None else t_min)
    with on_host():
        high, low = (float(np.arctan2(path.sigma(t), std * path.alpha(t))) for t in ends)
        return _pinned(path.time(-np.log(std * np.tan(np.linspace(high, low, _count(n) + 1)))), ends)


def _discrete(N: int, index: Any, final: str = "zero") -> Grid:
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
            f"leading, trailing and linspace count training indices: they need a DiscreteVP path, not {type(path).__name__}"
        )
    if _count(n) > len(path.alphas_cumprod):
        raise ValueError(f"{n} steps from {len(path.alphas_cumprod)} training indices: at most one step each")
    return len(path.alphas_cumprod)


def leading(path: Path, n: int, offset: int = 0, final: str = "zero") -> Grid:
    """Indices (n-1-i) (N//n) + offset, then t = 0; starts below the last training index. Stable Diffusion has offset 1, final="first".

    final: "zero" ends at t = 0, where alpha = 1; "first" at the first noise level, t = 1/N (diffusers' set_alpha_to_one=False); a grid
    whose last index is the first level already then has one interval less, for the last call would not move the state.
    """
    N = _training_steps(path, n)
    return _discrete(N, np.arange(n)[::-1] * (N // n) + offset, final)


def trailing(path: Path, n: int, final: str = "zero") -> Grid:
    """Indices round(N - i N/n) - 1, then t = 0 (or the first level: see `leading`); starts at the last one [Lin et al. 2024]."""
    N = _training_steps(path, n)
    return _discrete(N, np.round(N - np.arange(n) * N / n) - 1, final)


def linspace(path: Path, n: int, final: str = "zero") -> Grid:
    """Indices round(linspace(0, N-1, n)) from the last, then t = 0 (or the first level: see `leading`)."""
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


def ays(path: Path, n: int, table: str = "sd15") -> Grid:
    """ "Align Your Steps" [Sabour et al. 2024]: noise levels optimised for a model family ("sd15", "sdxl", "svd"), then t = 0.

    Ten steps are published; for other n, log(sigma/alpha) is interpolated over the index. Where ten published training indices are those
    levels (a DiscreteVP path as Stable Diffusion's), the times are those of the indices, so that network labels are whole numbers.
    """
    if table not in AYS:
        near = difflib.get_close_matches(table, AYS, 1)
        raise ValueError(
            f"unknown table {table!r}; "
            + (f"did you mean {near[0]!r}?" if near else f"valid: {', '.join(AYS)}")
        )
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
            f"table {table!r} starts at sigma/alpha = {levels[0]:g}, this path ends at {highest:g}; choose the path of its models"
        )
    return append_zero(times)


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
    denoiser: Any = None,
    data: Any = None,
    like: Any = None,
    key: Any = None,
    t_max: Real | None = None,
    t_min: Real | None = None,
) -> Grid:
    """n intervals that minimise an objective; the same key gives the same grid. The functions of `js.search` have more options.

    "dmn": a bound on how much the solver amplifies errors of the network; needs no network, data or key [Xue et al. 2024].
    "ays": a bound on the KL divergence of stochastic DDIM, by forward paths from `data` (samples [k, *shape], or a function key -> sample)
    through `denoiser` [Sabour et al. 2024]. "gits": the errors of single long steps along fine trajectories of `denoiser`, which start
    from noise shaped like one sample `like` [Chen et al. 2024].
    """
    given: dict[str, dict[str, Any]] = {
        "dmn": {},
        "ays": {"denoiser": denoiser, "data": data, "key": key},
        "gits": {"denoiser": denoiser, "like": like, "key": key},
    }
    if objective not in given:
        near = difflib.get_close_matches(objective, given, 1)
        raise ValueError(
            f"unknown objective {objective!r}; "
            + (f"did you mean {near[0]!r}?" if near else f"valid: {', '.join(given)}")
        )
    missing = [name for name, value in given[objective].items() if value is None]
    if missing:
        raise ValueError(f"objective={objective!r} needs {', '.join(f'{name}=' for name in missing)}")
    if denoiser is not None and getattr(denoiser, "path", path) != path:
        raise ValueError(
            f"the denoiser is on another path, {denoiser.path}, than the grid, {path}: pass path=denoiser.path"
        )
    from .. import search  # outside the core

    chosen, n = given[objective], _count(n)
    if objective == "dmn":
        return search.dmn(path, n, t_max=t_max, t_min=t_min)
    return (search.ays if objective == "ays" else search.gits)(n=n, **chosen, t_max=t_max, t_min=t_min)


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
        raise ValueError(
            f"a grid decreases from noise to data; got grid[{i}]={grid[i]:g} -> grid[{i + 1}]={grid[i + 1]:g}. {hint}"
        )
    slack = 1e-6 * path.t_max  # float32 grids round past the ends
    if grid[0] > path.t_max + slack or grid[-1] < -slack:
        raise ValueError(
            f"grid {grid[0]:g} -> {grid[-1]:g} leaves the path, whose times are [0, {path.t_max:g}] ({type(path).__name__})"
        )
    return np.clip(grid, 0.0, path.t_max)
