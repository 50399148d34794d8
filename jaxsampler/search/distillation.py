r"""Distillation by least squares: a fine trajectory in N rows, without a gradient.

Every deterministic table is, on states and data predictions m_j,

    x_n = A_n x_0 + sum_{j<n} B_nj m_j,        m_j = D(x_j, t_j)

and its best weights for a given target are linear in known numbers: row by row, B_n are those that bring the table's own states, of many
noises, nearest to the teacher's states at grid[n],

    min over B_n (and A_n) of    mean |A_n x_0 + sum_j B_nj m_j - teacher at grid[n]|^2.

The outputs m_j are of the table's own states, so each row mends what those before it left, and what is asked of the last row is the error
of the samples itself. It costs N network calls for each noise besides the teacher's, a minute where `learn` takes many, and works for
networks that cannot be differentiated. `learn` goes further: it moves the times, and earlier rows for the sake of later ones.

Unlike the publication: consistent tables by default (A_n and the sums of B are those of exact solvers, and the step into sigma = 0 is the
last output itself: `learnable`), and the grid is given (`js.grids.optimise` finds one) where it searches times for each step.

Reference: Duan et al. 2023 (Optimal Linear Subspace Search).
"""

import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..numerics import is_traced, on_host, wide
from ..paths.base import Path
from ..paths.grids import checked
from ..paths.predictions import Denoiser
from ..scan.table_solver import run
from ..solvers.exponential import dpmpp_1, dpmpp_3m
from ..tables.table import Table
from ..tables.tabulation import tabulate
from .error_measures import in_chunks
from .nodes import levels
from .unrolled import from_unrolled, unrolled

SMALLEST = 1e-10  # directions of relative variance below this are left to the first-order solver


def distill(
    denoiser: Denoiser,
    path: Path,
    grid: Any,
    *,
    key: Any = None,
    like: Any = None,
    noises: int = 1024,
    held_out: int = 1024,
    batch: int = 256,
    consistent: bool = True,
    teacher: int | tuple[Any, Any] = 200,
    progress: bool = True,
) -> tuple[Table, Float[np.ndarray, "rows 2"]]:
    """A table of one row for each interval of `grid`, row by row nearest to the teacher.

    Returns it and its RMSE to the teacher at grid[1:], for the noises that it was fitted to and for others. key draws the noises; like:
    shape and dtype of one sample, without the batch axis that the network gets. noises: that the table is fitted to, 1024 are plenty for so
    few numbers; held_out: that it is only compared on (0: NaN); `batch` go through the network at once. consistent: see above. teacher:
    rows of the default one, or its work (`waypoints`): x_T [n, *shape] and its states at grid[1:] [n, rows, *shape], of noises + held_out
    samples or more. ValueError: what cannot work, before the teacher runs; a network or teacher whose outputs are not finite.
    """
    grid = _concrete(path, grid)
    if not isinstance(denoiser, Denoiser) or not eqx.tree_equal(denoiser.path, path):
        raise ValueError(
            "denoiser must be a js.Denoiser on `path`: the grid and the network's noise levels belong together"
        )
    if min(noises, batch) < 1 or held_out < 0:
        raise ValueError(f"noises and batch count from 1, held_out from 0; got {noises}, {batch}, {held_out}")
    n, rows = noises + held_out, len(grid) - 1
    if isinstance(teacher, tuple):
        x, states = (np.asarray(a) for a in teacher)
        if len(x) < n or states.shape != (len(x), rows, *x.shape[1:]):
            raise ValueError(
                f"teacher=(x_T, states at grid[1:]) needs {n} samples or more and {rows} states of each; got {x.shape}, {states.shape}"
            )
        x, states = x[:n], states[:n]
    elif key is None or like is None:
        raise ValueError(
            "give key=, which draws the noises, and like=, the shape of one sample: an array, or jax.ShapeDtypeStruct"
        )
    else:
        x = np.asarray(denoiser.prior(key, jax.ShapeDtypeStruct((n, *like.shape), like.dtype)))
        states = waypoints(denoiser, path, grid, x, rows=teacher, batch=batch, progress=progress)
    if not np.isfinite(states).all():
        raise ValueError(
            f"the teacher's states are not finite for {np.sum(~np.isfinite(states).reshape(n, -1).all(1))} of {n} noises"
        )

    base, sigma = tabulate(path, grid, dpmpp_1), levels(path, grid)[1]
    A, B = (np.array(a) for a in unrolled(base, path))
    flat = lambda a: np.asarray(a, np.float64).reshape(n, -1)
    first, outputs, errors = flat(denoiser.centred(x)), [], []
    current = x
    for k in range(rows):
        # x's dtype for the network, float64 for the sums of squares
        outputs.append(
            flat(path.centred(in_chunks(lambda x, t=grid[k]: _data(denoiser, x, t), current, batch)))
        )
        if not np.isfinite(outputs[-1]).all():
            raise ValueError(
                f"the network's output is not finite in row {k}, at t = {grid[k]:g}: other noises, or another grid"
            )
        target = flat(denoiser.centred(states[:, k]))
        if not consistent or sigma[k + 1] > 0:
            moves = _increments(
                first, outputs, target - _state(A[k + 1], B[k + 1], first, outputs), noises, consistent
            )
            A[k + 1] += moves[0]
            B[k + 1, : k + 1] += moves[1:]
        state = _state(A[k + 1], B[k + 1], first, outputs)
        off = ((state - target) ** 2).mean(1)
        errors.append([np.sqrt(off[:noises].mean()), np.sqrt(off[noises:].mean()) if held_out else np.nan])
        current = np.asarray(denoiser.uncentred(state.reshape(x.shape).astype(x.dtype)))
    return from_unrolled(base, base.t, A, B), np.array(errors)


def waypoints(
    denoiser: Denoiser,
    path: Path,
    grid: Any,
    x: Any,
    *,
    rows: int = 200,
    batch: int = 256,
    progress: bool = False,
) -> Float[np.ndarray, "n points ..."]:
    """Where DPM-Solver++(3M) leads from x_T = x [n, ...]: its states at grid[1:]; some `rows` steps in all, as many in each interval."""
    grid = _concrete(path, grid)
    parts = -(-rows // (len(grid) - 1))
    if parts < 1:
        raise ValueError(f"a teacher has at least one row; got {rows}")
    table = jax.tree.map(jnp.asarray, tabulate(path, between(path, grid, parts), dpmpp_3m))
    saved = tuple(parts * i for i in range(1, len(grid)))
    follow = lambda x: jnp.moveaxis(_saved(denoiser, table, x, saved), 0, 1)
    return in_chunks(follow, x, batch, label="teacher" if progress else None)


def between(path: Path, grid: Any, parts: int) -> Float[np.ndarray, " points"]:
    """`grid` with every interval in `parts`: equal steps in log-SNR, in t next to alpha = 0 or sigma = 0."""
    with on_host():
        lam = np.asarray(path.lam(grid), np.float64)
        pieces = []
        for i, (high, low) in enumerate(itertools.pairwise(grid)):
            inner = np.linspace(high, low, parts + 1)[1:-1]
            if np.isfinite(lam[i : i + 2]).all():
                inner = np.asarray(path.time(np.linspace(lam[i], lam[i + 1], parts + 1)[1:-1]), np.float64)
            pieces += [[high], inner]
    return np.concatenate([*pieces, grid[-1:]])


def _concrete(path: Path, grid: Any) -> Float[np.ndarray, " points"]:
    grid = checked(path, grid)
    if is_traced(grid):
        raise ValueError("the grid of a distillation is data, not traced: distill outside jit")
    return grid


def _increments(
    first: Any, outputs: list, residual: Any, noises: int, consistent: bool
) -> Float[np.ndarray, " weights"]:
    """What to add to A_n and B_n for the least squares of `residual` on the first `noises` of all."""
    k, last = len(outputs), outputs[-1]
    columns = [m - last for m in outputs[:-1]] if consistent else [first, *outputs]
    if not columns:
        return np.zeros(k + 1)
    gram = np.array([[np.vdot(a[:noises], b[:noises]) for a in columns] for b in columns])
    push = np.array([np.vdot(a[:noises], residual[:noises]) for a in columns])
    scale = np.sqrt(np.maximum(np.diag(gram), 1e-300))
    found = np.linalg.lstsq(gram / np.outer(scale, scale), push / scale, rcond=SMALLEST)[0] / scale
    return np.array([0.0, *found, -found.sum()]) if consistent else found


def _state(A: Any, B: Any, first: Any, outputs: list) -> Any:
    return A * first + sum(B[j] * m for j, m in enumerate(outputs))


@eqx.filter_jit
def _data(denoiser: Denoiser, x: Any, t: Any) -> Any:
    return denoiser(x, jnp.asarray(t, wide(x)), kind="data")


@eqx.filter_jit
def _saved(denoiser: Denoiser, table: Table, x: Any, saved: tuple[int, ...]) -> Any:
    return run(denoiser, table, x, save=saved).xs
