r"""Distillation by least squares: a fine trajectory in N rows, without a gradient.

Every deterministic table is, on states and data predictions m_j,

    x_n = A_n x_0 + sum_{j<n} B_nj m_j,        m_j = D(x_j, t_j)

and its best weights for a given target are linear in known numbers. Row by row, B_n brings the table's own
states, for many noises, as near as possible to the teacher's states at grid[n]:

    min over B_n (and A_n) of    mean |A_n x_0 + sum_j B_nj m_j - teacher at grid[n]|^2.

The outputs m_j belong to the table's own states, so each row corrects what those before it left, and the last
row minimises the error of the samples themselves. It costs N network calls per noise on top of the teacher's,
takes a minute where `learn` takes many, and works for networks that cannot be differentiated. `learn` goes
further: it moves the times, and it changes earlier rows for the sake of later ones.

Unlike the publication: tables are consistent by default (A_n and the sums of B are those of exact solvers,
and the step into sigma = 0 is the last output itself: `learnable`), and the grid is given
(`js.grids.optimise` finds one) where the publication searches the time of each step.

Reference: Duan et al. 2023 (Optimal Linear Subspace Search).
"""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..numerics import Arr, Grid, Key, Time, is_traced, on_host, wide
from ..paths import Denoiser, Path
from ..paths.grids import checked
from ..scan import run
from ..solvers import dpmpp_1, dpmpp_3m
from ..tables import Table, tabulate
from .error_measures import in_chunks
from .nodes import levels
from .unrolled import from_unrolled, unrolled

SMALLEST = 1e-10  # directions of less relative variance are left to the first-order solver
Flat = Float[np.ndarray, "n d"]


def distill(
    denoiser: Denoiser,
    path: Path,
    grid: Grid,
    *,
    key: Key | None = None,
    like: Arr | jax.ShapeDtypeStruct | None = None,
    noises: int = 1024,
    held_out: int = 1024,
    batch: int = 256,
    consistent: bool = True,
    teacher: int | tuple[Arr, Arr] = 200,
    progress: bool = True,
) -> tuple[Table, Float[np.ndarray, "rows 2"]]:
    """Return a table with one row per interval of `grid`, each row fitted to the teacher, and its RMSE.

    The RMSE is that to the teacher at grid[1:], for the noises that the table is fitted to and for the
    held-out ones.

    Args:
        denoiser: the network.
        path: its path.
        grid: the times of the table.
        key: draws the noises, unless `teacher` holds them.
        like: shape and dtype of one sample, without the batch axis that the network gets.
        noises: number that the table is fitted to; 1024 are plenty for this few numbers.
        held_out: number that the table is only compared on; with 0 the RMSE there is NaN.
        batch: samples that go through the network at once.
        consistent: whether rows stay exact for a constant data prediction, see the module.
        teacher: rows of the default teacher, or its work (`waypoints`): x_T [n, *shape] and the states at
            grid[1:], [n, rows, *shape], for at least noises + held_out samples.
        progress: whether to show a progress bar of the teacher.

    Raises:
        ValueError: if the arguments do not fit together (before the teacher runs), or an output is not
            finite.

    Example:
        >>> path = js.VP()
        >>> denoiser = js.models.gaussian_mixture(np.array([[-1.0], [1.0]]), 0.2, path)
        >>> grid = js.grids.log_snr(path, 3)
        >>> x = np.random.default_rng(0).standard_normal((64, 1)).astype(np.float32)
        >>> teacher = x, js.search.waypoints(denoiser, path, grid, x, rows=30)
        >>> table, rmse = js.search.distill(denoiser, path, grid, teacher=teacher, noises=64, held_out=0)
        >>> ddim = js.run(denoiser, js.tabulate(path, grid, js.solvers.ddim), jnp.asarray(x))
        >>> bool(rmse[-1, 0] < 0.6 * jnp.sqrt(jnp.mean((ddim - teacher[1][:, -1]) ** 2)))
        True
    """
    grid = _concrete(path, grid)
    if not isinstance(denoiser, Denoiser) or not eqx.tree_equal(denoiser.path, path):
        raise ValueError(
            "denoiser must be a js.Denoiser on `path`: "
            "the grid and the network's noise levels belong together"
        )
    if min(noises, batch) < 1 or held_out < 0:
        raise ValueError(f"noises and batch count from 1, held_out from 0; got {noises}, {batch}, {held_out}")
    n, rows = noises + held_out, len(grid) - 1
    if isinstance(teacher, tuple):
        x, states = (np.asarray(a) for a in teacher)
        if len(x) < n or states.shape != (len(x), rows, *x.shape[1:]):
            raise ValueError(
                f"teacher=(x_T, states at grid[1:]) needs {n} samples or more and {rows} states of each; "
                f"got {x.shape}, {states.shape}"
            )
        x, states = x[:n], states[:n]
    elif key is None or like is None:
        raise ValueError(
            "give key=, which draws the noises, and like=, the shape of one sample: "
            "an array or a jax.ShapeDtypeStruct"
        )
    else:
        x = np.asarray(denoiser.prior(key, jax.ShapeDtypeStruct((n, *like.shape), like.dtype), grid[0]))
        states = waypoints(denoiser, path, grid, x, rows=teacher, batch=batch, progress=progress)
    if not np.isfinite(states).all():
        bad = np.sum(~np.isfinite(states).reshape(n, -1).all(1))
        raise ValueError(f"the teacher's states are not finite for {bad} of {n} noises")

    base, sigma = tabulate(path, grid, dpmpp_1), levels(path, grid)[1]
    A, B = (np.array(a) for a in unrolled(base, path))
    flat = lambda a: np.asarray(a, np.float64).reshape(n, -1)
    first, outputs, errors = flat(denoiser.centred(x)), [], []
    current = x
    for k in range(rows):
        # x's dtype for the network, float64 for the sums of squares
        output = in_chunks(lambda x, t=grid[k]: _data(denoiser, x, t), current, batch)
        outputs.append(flat(path.centred(output)))
        if not np.isfinite(outputs[-1]).all():
            raise ValueError(
                f"the network's output is not finite in row {k}, at t = {grid[k]:g}: "
                "use other noises or another grid"
            )
        target = flat(denoiser.centred(states[:, k]))
        if not consistent or sigma[k + 1] > 0:
            residual = target - _state(A[k + 1], B[k + 1], first, outputs)
            moves = _increments(first, outputs, residual, noises, consistent)
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
    grid: Grid,
    x: Float[Arr, "n ..."],
    *,
    rows: int = 200,
    batch: int = 256,
    progress: bool = False,
) -> Float[np.ndarray, "n points ..."]:
    """Return the states at grid[1:] to which DPM-Solver++(3M) leads from x_T = x.

    Args:
        denoiser: the network.
        path: its path.
        grid: where states are kept, after the first time.
        x: x_T of each sample.
        rows: network calls in all, rounded up to as many in each interval.
        batch: samples that go through the network at once.
        progress: whether to show a progress bar.

    Example:
        >>> path = js.VP()
        >>> point = js.Denoiser(lambda x, t: 0 * x + 3.0, path, "data")  # all data are 3
        >>> x, grid = np.zeros((2, 1), np.float32), np.array([1.0, 0.5, 0.1])
        >>> states = js.search.waypoints(point, path, grid, x, rows=4)
        >>> exact = 3 * (path.alpha(grid) - path.alpha(1.0) * path.sigma(grid) / path.sigma(1.0))
        >>> np.allclose(states[0, :, 0], exact[1:], atol=1e-5)
        True
    """
    grid = _concrete(path, grid)
    parts = -(-rows // (len(grid) - 1))
    if parts < 1:
        raise ValueError(f"a teacher has at least one row; got {rows}")
    table = jax.tree.map(jnp.asarray, tabulate(path, between(path, grid, parts), dpmpp_3m))
    saved = tuple(parts * i for i in range(1, len(grid)))
    follow = lambda x: jnp.moveaxis(_saved(denoiser, table, x, saved), 0, 1)
    return in_chunks(follow, x, batch, label="teacher" if progress else None)


def between(path: Path, grid: Float[np.ndarray, " nodes"], parts: int) -> Float[np.ndarray, " points"]:
    """Cut every interval of `grid` into `parts`, equal in log-SNR, or in t next to alpha = 0 or sigma = 0."""
    with on_host():
        lam = np.asarray(path.lam(grid), np.float64)
        pieces = []
        for i, (high, low) in enumerate(itertools.pairwise(grid)):
            inner = np.linspace(high, low, parts + 1)[1:-1]
            if np.isfinite(lam[i : i + 2]).all():
                inner = np.asarray(path.time(np.linspace(lam[i], lam[i + 1], parts + 1)[1:-1]), np.float64)
            pieces += [[high], inner]
    return np.concatenate([*pieces, grid[-1:]])


def _concrete(path: Path, grid: Grid) -> Float[np.ndarray, " points"]:
    grid = checked(path, grid)
    if is_traced(grid):
        raise ValueError("the grid of a distillation must not be traced: distill outside jit")
    return np.asarray(grid)


def _increments(
    first: Flat, outputs: list[np.ndarray], residual: Flat, noises: int, consistent: bool
) -> Float[np.ndarray, " weights"]:
    """Return the least-squares change of A_n and B_n for `residual`, on the first `noises` samples."""
    k, last = len(outputs), outputs[-1]
    columns = [m - last for m in outputs[:-1]] if consistent else [first, *outputs]
    if not columns:
        return np.zeros(k + 1)
    gram = np.array([[np.vdot(a[:noises], b[:noises]) for a in columns] for b in columns])
    push = np.array([np.vdot(a[:noises], residual[:noises]) for a in columns])
    scale = np.sqrt(np.maximum(np.diag(gram), 1e-300))
    found = np.linalg.lstsq(gram / np.outer(scale, scale), push / scale, rcond=SMALLEST)[0] / scale
    return np.array([0.0, *found, -found.sum()]) if consistent else found


def _state(
    A: float | np.floating, B: Float[np.ndarray, " points"], first: Flat, outputs: list[np.ndarray]
) -> Flat:
    return A * first + sum(B[j] * m for j, m in enumerate(outputs))


@eqx.filter_jit
def _data(denoiser: Denoiser, x: Array, t: Time) -> Array:
    return denoiser(x, jnp.asarray(t, wide(x)), kind="data")


@eqx.filter_jit
def _saved(denoiser: Denoiser, table: Table, x: Array, saved: tuple[int, ...]) -> Array:
    return run(denoiser, table, x, save=saved).xs
