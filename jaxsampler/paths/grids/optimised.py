"""Grids that minimise an objective, by the search library."""

from collections.abc import Callable
from typing import Any

from ...numerics import Arr, Key, Like, Real
from ...spelling import nearest
from ..base import Path
from .checks import Times, count


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
    from ... import search  # outside the core

    chosen, n = given[objective], count(n)
    if objective == "dmn":
        return search.dmn(path, n, t_max=t_max, t_min=t_min)
    return (search.ays if objective == "ays" else search.gits)(n=n, **chosen, t_max=t_max, t_min=t_min)
