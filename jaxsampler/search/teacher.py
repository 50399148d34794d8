"""Where samples should end: what a learned table is taught, once for each noise."""

from collections.abc import Callable
from pathlib import Path as FilePath

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from .. import checkpoint
from ..numerics import Arr, Grid, Key, on_host
from ..paths import Denoiser, Path, grids
from ..solvers import dpmpp_3m
from ..tables import Table, tabulate
from .error_measures import endpoints, in_chunks

# a table, a function x_T -> x_0, or the work itself: (x_T, x_0)
Teacher = Table | Callable | tuple[Arr, Arr]


def fine_table(path: Path, grid: Grid, rows: int = 200) -> Table:
    """Return the default teacher: DPM-Solver++(3M) from grid[0] to grid[-1], but not below path.t_min.

    Its steps are equal in lam, or in t if alpha = 0 at grid[0].
    """
    with on_host():
        pure = bool(path.alpha(grid[0]) == 0)
    ends = {"t_max": float(grid[0]), "t_min": max(float(grid[-1]), path.t_min)}
    return tabulate(path, (grids.uniform if pure else grids.log_snr)(path, rows, **ends), dpmpp_3m)


def pairs(
    denoiser: Denoiser,
    teacher: Table | Callable,
    x: Float[Arr, "n ..."],
    *,
    chunk: int,
    progress: bool = False,
    finite: bool = True,
) -> np.ndarray:
    """Return where a teacher leads from x_T = x, `chunk` samples at a time.

    `finite`: ValueError if some sample is not."""
    if isinstance(teacher, Table):
        if teacher.draws:
            raise ValueError(
                "the teacher draws noise, so x_T does not decide its sample: take a deterministic table"
            )
        teacher = eqx.Partial(endpoints, denoiser, jax.tree.map(jnp.asarray, teacher))
    out = in_chunks(teacher, x, chunk, label="teacher" if progress else None)
    if out.shape != np.shape(x) or (finite and not np.all(np.isfinite(out))):
        raise ValueError(
            f"the teacher must return finite samples of shape {np.shape(x)}; "
            f"got {out.shape}, finite: {np.isfinite(out).all()}"
        )
    return out


def source_of(path: Path, grid: Grid, teacher: Teacher | int | None) -> Teacher:
    """Return the teacher as a table, a callable, or the arrays (x_T, x_0)."""
    if teacher is None or isinstance(teacher, int):
        return fine_table(path, grid, *([] if teacher is None else [teacher]))
    if not (isinstance(teacher, Table | tuple) or callable(teacher)):
        raise TypeError(
            "teacher must be a table, a callable, a number of rows or arrays (x_T, x_0), "
            f"got {type(teacher).__name__}"
        )
    return teacher


def taught(
    denoiser: Denoiser,
    teacher: Teacher,
    key: Key,
    like: Arr | jax.ShapeDtypeStruct | None,
    n: int,
    batch: int,
    folder: FilePath | None,
    progress: bool,
    first: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return x_T, drawn for the time `first`, and where the teacher leads from it, n of each.

    They are kept in the folder, if there is one.
    """
    if isinstance(teacher, tuple):
        x, reference = (np.asarray(a) for a in teacher)
        if x.shape != reference.shape or len(x) < n:
            raise ValueError(
                f"teacher=(x_T, x_0) needs {n} samples or more of one shape, in whole batches; "
                f"got {x.shape} and {reference.shape}"
            )
        if not (np.isfinite(x[:n]).all() and np.isfinite(reference[:n]).all()):
            raise ValueError("teacher=(x_T, x_0) holds NaN or infinite numbers: leave out those samples")
        return x[:n], reference[:n]
    if like is None:
        raise ValueError(
            "give like=, the shape of one sample: an array or jax.ShapeDtypeStruct(shape, dtype)"
        )
    many = jax.ShapeDtypeStruct((n, *like.shape), like.dtype)
    x = denoiser.prior(jax.random.fold_in(key, 1), many, first)
    file = None if folder is None else folder / "noises.safetensors"
    told = checkpoint.digest(teacher) if isinstance(teacher, Table) else called(teacher)
    card = {"x": checkpoint.digest(x), "teacher": told, "network": checkpoint.digest(denoiser)}
    blank = {"reference": jnp.full_like(x, jnp.nan)}
    known = blank if file is None else checkpoint.resume(file, blank, card)
    if known is not blank:
        reference = np.asarray(known["reference"])
        again = reference[:batch]
        if not isinstance(teacher, Table):
            again = pairs(denoiser, teacher, x[:batch], chunk=batch)
        if not np.allclose(again, reference[:batch], rtol=1e-3, atol=1e-3):
            raise ValueError(f"{folder} holds a run with another teacher: use another folder or delete it.")
        return np.asarray(x), reference
    reference = pairs(denoiser, teacher, x, chunk=batch, progress=progress)
    if file is not None:
        checkpoint.save(file, {"reference": reference}, card)
    return np.asarray(x), reference


def called(what: str | Callable) -> str:
    """Return the name of a function, which is the same in the next process, unlike its address."""
    return what if isinstance(what, str) else getattr(what, "__qualname__", type(what).__name__)
