"""Grids by a formula in t, lam = log(alpha/sigma) or rho = sigma/alpha, and the default of each path."""

import numpy as np

from ...numerics import Grid, Real, on_host
from ..base import Path
from ..gaussian import EDM, VE, CondOT
from .checks import Times, append_zero, count, ends_of, pinned


def uniform(path: Path, n: int, *, t_max: Real | None = None, t_min: Real | None = None) -> Times:
    """Equal intervals in t. A CondOT grid ends at t = 0, where its last step is regular.

    Example:
        >>> js.grids.uniform(js.CondOT(), 4).tolist()
        [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if t_min is None and isinstance(path, CondOT):
        t_min = 0.0
    return np.linspace(*ends_of(path, t_max, t_min), count(n) + 1)


def _in_lam(path: Path, short: np.ndarray, name: str, t_max: Real | None, t_min: Real | None) -> Times:
    """Times at which lam is short of its last value by these shares, 1 to 0, of its range."""
    ends = ends_of(path, t_max, t_min)
    with on_host():
        lam = np.asarray([path.lam(ends[0]), path.lam(ends[1])], np.float64)
    if not np.all(np.isfinite(lam)):
        raise ValueError(
            f"{name} needs finite lam at both ends, got {lam[0]} at t={ends[0]}, {lam[1]} at t={ends[1]}; "
            "pass t_max, t_min"
        )
    with on_host():
        return pinned(path.time(lam[1] - short * (lam[1] - lam[0])), ends)


def log_snr(path: Path, n: int, *, t_max: Real | None = None, t_min: Real | None = None) -> Times:
    """Equal intervals in lam.

    Example:
        >>> path = js.VP()
        >>> lam = path.lam(js.grids.log_snr(path, 4))
        >>> np.diff(lam).round(6).tolist() == [round(float(lam[-1] - lam[0]) / 4, 6)] * 4
        True
    """
    return _in_lam(path, np.linspace(1, 0, count(n) + 1), "log_snr", t_max, t_min)


def polyexponential(
    path: Path, n: int, rho: Real = 1.0, *, t_max: Real | None = None, t_min: Real | None = None
) -> Times:
    """lam is short of its last value by u^rho of the range, u from 1 to 0 [Crowson 2022, k-diffusion].

    rho = 1 is `log_snr`, k-diffusion's "exponential"; a larger rho takes shorter steps near the data.

    Example:
        >>> js.grids.polyexponential(js.EDM(1.0, 16.0), 2, rho=2.0).round(6).tolist()
        [16.0, 2.0, 1.0]
    """
    return _in_lam(path, np.linspace(1, 0, count(n) + 1) ** rho, "polyexponential", t_max, t_min)


def karras(
    path: Path, n: int, rho: Real = 7.0, *, t_max: Real | None = None, t_min: Real | None = None
) -> Times:
    """Equal intervals in (sigma/alpha)^(1/rho) [Karras et al. 2022, eq. 5].

    Karras et al. add a last step to 0: see `append_zero`.

    Example:
        >>> js.grids.karras(js.EDM(0.002, 80.0), 4).round(3).tolist()
        [80.0, 17.528, 2.515, 0.17, 0.002]
    """
    ends = ends_of(path, t_max, t_min)
    with on_host():
        level = np.asarray([path.rho(ends[0]), path.rho(ends[1])], np.float64)
    if not (np.all(np.isfinite(level)) and level[1] > 0):
        raise ValueError(
            f"karras needs 0 < sigma/alpha < inf at both ends, got {level} at t={ends}; pass t_max, t_min"
        )
    levels = np.linspace(level[0] ** (1 / rho), level[1] ** (1 / rho), count(n) + 1) ** rho
    with on_host():
        return pinned(path.time(-np.log(levels)), ends)


def from_sigmas(path: Path, sigmas: Grid) -> Times:
    """Return the times of these noise levels sigma/alpha, as k-diffusion and ComfyUI count them.

    Args:
        path: the path.
        sigmas: decreasing levels. 0 is the time where sigma = 0, if the path has one; inf is where alpha = 0.
            The "sigmas" of flow-matching schedulers are times, and need no conversion.

    Raises:
        ValueError: a level is not on the path, or they do not decrease.

    Example:
        >>> js.grids.from_sigmas(js.EDM(), [10.0, 1.0, 0.0]).round(9).tolist()
        [10.0, 1.0, 0.0]
        >>> path = js.DiscreteVP.scaled_linear()
        >>> times = js.grids.from_sigmas(path, [14.6146, 3.0, 0.1])
        >>> path.rho(times).round(4).tolist()
        [14.6146, 3.0, 0.1]
    """
    levels = np.asarray(sigmas, np.float64)
    if levels.ndim != 1 or len(levels) < 2 or not np.all(np.diff(levels) < 0) or levels[-1] < 0:
        raise ValueError(f"sigmas are at least two levels that decrease to 0 or above; got {levels}")
    with on_host():
        high, low = float(path.rho(path.t_max)), float(path.rho(0.0))
        if levels[0] > high * (1 + 1e-6) or levels[-1] < low * (1 - 1e-6):
            raise ValueError(
                f"sigmas {levels[0]:g} -> {levels[-1]:g} leave the path, whose levels sigma/alpha are "
                f"{high:g} -> {low:g}"
            )
        inner = np.asarray(path.time(-np.log(np.clip(levels, 1e-300, 1e300))), np.float64)
    times = np.where(levels <= low, 0.0, np.where(levels >= high, path.t_max, inner))
    return np.asarray(times, np.float64)


def quadratic(path: Path, n: int, *, t_max: Real | None = None, t_min: Real | None = None) -> Times:
    """Equal intervals in sqrt(t).

    Example:
        >>> js.grids.quadratic(js.CondOT(), 4, t_min=0.0).tolist()
        [1.0, 0.5625, 0.25, 0.0625, 0.0]
    """
    high, low = ends_of(path, t_max, t_min)
    return pinned(np.linspace(np.sqrt(high), np.sqrt(low), count(n) + 1) ** 2, (high, low))


def cosine(path: Path, n: int, *, t_max: Real | None = None, t_min: Real | None = None) -> Times:
    """Chebyshev-like: half a cosine between the ends, with short steps at both.

    Example:
        >>> js.grids.cosine(js.CondOT(), 4, t_min=0.0).round(4).tolist()
        [1.0, 0.8536, 0.5, 0.1464, 0.0]
    """
    high, low = ends_of(path, t_max, t_min)
    return pinned(low + (high - low) * (1 + np.cos(np.linspace(0, np.pi, count(n) + 1))) / 2, (high, low))


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
    ends = ends_of(path, t_max, default(path, 1)[-1] if t_min is None else t_min)
    with on_host():
        high, low = (float(np.arctan2(path.sigma(t), std * path.alpha(t))) for t in ends)
        return pinned(path.time(-np.log(std * np.tan(np.linspace(high, low, count(n) + 1)))), ends)


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
        return np.array([path.t_max, 0.0]) if count(n) == 1 else append_zero(karras(path, n - 1))
    with on_host():
        pure_noise, clean = bool(path.alpha(path.t_max) == 0), bool(path.sigma(path.t_min) == 0)
    if pure_noise:
        return uniform(path, n)
    if not clean:
        return log_snr(path, n)
    return (
        np.array([path.t_max, 0.0])
        if count(n) == 1
        else append_zero(log_snr(path, n - 1, t_min=0.01 * path.t_max))
    )
