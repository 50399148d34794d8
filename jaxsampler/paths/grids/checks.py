"""What every grid has: a number of intervals, exact ends, times that decrease within the path."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ...numerics import Arr, Grid, Real, Scalar, is_traced
from ..base import Path

Times = Float[np.ndarray, " points"]


def count(n: int) -> int:
    if not float(n).is_integer() or n < 1:
        raise ValueError(f"a grid needs a whole number of intervals, at least one; got n={n}")
    return int(n)


def intervals(steps: int | None, grid: Any, default: int) -> int:
    """The number of intervals of the default grid.

    Raises:
        ValueError: `steps` is given beside a grid, which says it already.
        TypeError: it is traced.
    """
    if steps is None:
        return default
    if grid is not None:
        raise ValueError(
            f"steps={steps} beside grid=: the grid says how many intervals there are; leave out one of them"
        )
    if is_traced(steps):
        raise TypeError(
            "steps is traced, but it decides the shape of the table: make it static, or pass a table as "
            "argument"
        )
    return steps


def ends_of(path: Path, t_max: Real | None, t_min: Real | None) -> tuple[float, float]:
    high, low = path.t_max if t_max is None else t_max, path.t_min if t_min is None else t_min
    if not 0 <= low < high <= path.t_max * (1 + 1e-9):
        raise ValueError(f"need 0 <= t_min < t_max <= {path.t_max}; got t_min={low}, t_max={high}")
    return high, low


def pinned(times: Arr, ends: tuple[float, float]) -> Times:
    times = np.array(times, np.float64)
    times[0], times[-1] = ends  # exact ends, whatever the inverse schedule rounds to
    return times


def append_zero(grid: Grid) -> Times:
    """Add a last interval, to t = 0.

    Example:
        >>> js.grids.append_zero([80.0, 1.0]).tolist()
        [80.0, 1.0, 0.0]
    """
    return np.append(np.asarray(grid, np.float64), 0.0)


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
