r"""Learned tables: the corrections of a `Learnable`, fitted end to end to the samples of a fine table.

    min over corrections    log mean over x_T of |table(x_T) - teacher(x_T)|^2

The teacher runs once for each noise; about a thousand noises are enough for this few numbers. Iterations are
Adam's (b2 = 0.99) with a rate for each kind of correction, cosine decay to 2%, and the gradient clipped at
norm 1. After every block of iterations the running average of the corrections is scored on held-out noise as
the float64 table that would be shipped. The best one, the start included, is kept, so the result is never
worse than its start there. Each stage begins at the best so far; to free the relaxation first, then the whole
table, works best from 5 to 10 rows.

A run of a few minutes depends on luck: `learn_best` takes several starts and lets the held-out noise choose.
Held-out noise must be plentiful, because most of the error may come from a few noises that end in the wrong
mode.

References: Tong et al. 2025 (LD3); Shaul et al. 2024 (BNS); Frankel et al. 2025 (S4S).
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path as FilePath
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from .. import checkpoint
from ..numerics import Arr, Grid, Key, Real
from ..paths import Denoiser, Path
from ..scan import Adjoint, Direct
from ..spelling import nearest
from ..tables import Step, Table
from .error_measures import squared
from .fit import RATES, Corrections, Fit, Objective, Plan
from .initial import at_table
from .parametrisation import Learnable, learnable, replaced
from .teacher import Teacher, called, pairs, source_of, taught
from .vary import leaves_of

LOSSES: dict[str, Callable] = {
    "rmse": lambda x, reference: jnp.log(squared(x, reference).mean()),
    "mean_log": lambda x, reference: jnp.log(squared(x, reference)).mean(),
    "l1": lambda x, reference: 2 * jnp.log(jnp.abs(x - reference).mean()),
}


@dataclasses.dataclass(frozen=True)
class Report:
    """What a run did.

    A score is exp(loss/2) on held-out noise, so the RMSE for loss="rmse"; it is the loss itself if that is
    your own function.
    """

    start: float  # score of the parent or the initial table
    best: float  # score of the table returned
    history: Float[np.ndarray, "blocks 3"]  # iteration, loss (mean over the block), score
    numbers: tuple[int, ...]  # how many are free in each stage
    model: Learnable  # parent and corrections of the table returned
    seconds: float  # of this call, the teacher's work included


def learn(
    denoiser: Denoiser,
    path: Path,
    parent: Step,
    grid: Grid,
    *,
    key: Key,
    progress: bool = True,
    **options: Any,
) -> tuple[Table, Report]:
    """Return a table, that of `parent` on `grid` corrected to end where the teacher does, and a report.

    Args:
        denoiser: the network.
        path: its path.
        parent: a deterministic step.
        grid: the times of the parent.
        key: draws the noises.
        progress: whether to show a progress bar.
        options: `vary`, `noises`, `iterations`, `teacher`, `folder` and the others of `begin`.

    Raises:
        ValueError: if the arguments do not fit together, before the teacher runs.

    Example:
        >>> path = js.VP()
        >>> denoiser = js.models.gaussian_mixture(np.array([[-1.0], [1.0]]), 0.2, path)
        >>> few = dict(noises=64, held_out=64, batch=64, iterations=24, teacher=30, progress=False)
        >>> table, report = js.search.learn(
        ...     denoiser, path, js.solvers.dpmpp_1, js.grids.log_snr(path, 2), key=jax.random.key(0),
        ...     like=jnp.zeros(1), vary="weights", consistent=False, rates={"weights": 0.03}, **few
        ... )
        >>> table.nfe, report.best < 0.9 * report.start
        (2, True)
    """
    began = time.monotonic()
    fit = begin(denoiser, path, parent, grid, key=key, progress=progress, **options)
    fit.advance(progress=progress)
    report = report_of(fit, began)
    return report.model.table(), report


def begin(
    denoiser: Denoiser,
    path: Path,
    parent: Step,
    grid: Grid,
    *,
    key: Key,
    seed: int = 0,
    like: Arr | jax.ShapeDtypeStruct | None = None,
    vary: str | Sequence[str] = ("relaxation", "table"),
    split: Sequence[Real] | None = None,
    noises: int | None = 1024,
    held_out: int = 2048,
    iterations: int = 1500,
    batch: int = 256,
    teacher: Teacher | int | None = None,
    loss: str | Callable = "rmse",
    radius: float = 0.0,
    penalty: float = 0.0,
    rates: dict[str, float] | None = None,
    ema: float = 0.97,
    adjoint: Adjoint | None = None,
    initial: Table | None = None,
    folder: str | FilePath | None = None,
    progress: bool = False,
    **options: Any,
) -> Fit:
    """Prepare a run of `learn`: the teacher's work is done, and `Fit.advance` does the iterations.

    The numbers of noises are rounded up to whole batches. Entry i of a batch always holds the same place, so
    a network may be bound to one condition for each place.

    Args:
        denoiser: the network.
        path: its path.
        parent: a deterministic step.
        grid: the times of the parent.
        key: draws the noises.
        seed: decides the order of batches.
        like: shape and dtype of one sample, without the batch axis that the network gets.
        vary: what is free, see `learnable`; several entries make several stages.
        split: shares of the stages in the iterations, by default 1 to 2 for two stages, else equal.
        noises: number that the teacher is run for, once. None: every iteration draws fresh ones and runs the
            teacher, a table or a callable in jax.
        held_out: number of noises that choose the best table.
        iterations: of Adam, in all stages together.
        batch: noises in an iteration.
        teacher: a table, a callable x_T -> x_0, the number of rows of the default one (`fine_table`), or its
            work: arrays (x_T, x_0) of at least noises + held_out samples.
        loss: "rmse" (log of the mean square), "mean_log" (mean of the log, as in BNS; forgives rare
            failures), "l1", or a function (x, reference) -> scalar of batches.
        radius: that of the relaxed objective of LD3, which is content to hit the target from some x' within
            radius |x_T| of x_T.
        penalty: on the squares of the table's corrections.
        rates: learning rates by leaf, in place of the measured ones.
        ema: decay of the running average of the corrections.
        adjoint: of the table's rows, by default `Direct()`.
        initial: a table on this grid, for instance of `distill`, that the run starts from in place of the
            parent's; `vary` must be able to reach it.
        folder: where the state is saved after each of 12 blocks; a killed and restarted run ends with the
            same bits.
        progress: whether to show a progress bar of the teacher.
        options: `derivatives`, `consistent`, `band`, `fix_first` of `learnable`.

    Raises:
        ValueError: if the arguments do not fit together, or the folder holds another run.

    Example:
        >>> path, exact = js.VP(), js.models.gaussian_mixture(np.zeros((1, 2)), 0.5, js.VP())
        >>> few = dict(noises=16, held_out=16, batch=16, teacher=8, vary="weights")
        >>> run = dict(key=jax.random.key(0), like=jnp.zeros(2)) | few
        >>> fit = js.search.begin(exact, path, js.solvers.dpmpp_2m, js.grids.log_snr(path, 3), **run)
        >>> fit.done, bool(fit.lowest == fit.log[0, 2])
        (0, True)
    """
    if not isinstance(denoiser, Denoiser) or not eqx.tree_equal(denoiser.path, path):
        raise ValueError(
            "denoiser must be a js.Denoiser on `path`: "
            "the grid and the network's noise levels belong together"
        )
    if isinstance(loss, str) and loss not in LOSSES:
        raise ValueError(
            f"unknown loss {loss!r}; {nearest(loss, LOSSES)} (or give a function (x, reference) -> scalar)"
        )
    least = min(held_out, iterations, batch, 1 if noises is None else noises)
    if least < 1 or min(radius, penalty) < 0 or not 0 <= ema < 1:
        raise ValueError(
            "noises, held_out, iterations and batch count from 1; radius and penalty must not be negative; "
            "ema must be in [0, 1)"
        )
    for name in rates or {}:
        if name not in RATES:
            raise ValueError(f"there is no rate of {name!r}; {nearest(name, RATES)}")
    stages, model = model_of(path, parent, grid, vary, options)
    model = model if initial is None else at_table(model, initial)
    plan = Plan.of(stages, split, iterations, model.rows, rates)

    train, held = _whole(0 if noises is None else noises, batch), _whole(held_out, batch)
    folder = None if folder is None else FilePath(folder)
    source = source_of(path, grid, teacher)
    x, reference = taught(
        denoiser, source, key, like, train + held, batch, folder, progress, float(np.asarray(grid)[0])
    )
    data = (jnp.asarray(x[:train]), jnp.asarray(reference[:train])) if train else source
    if not train and isinstance(data, tuple):
        raise ValueError(
            "noises=None runs the teacher on fresh noise: give a table or a callable, not arrays"
        )
    value: Callable = LOSSES[loss] if isinstance(loss, str) else loss
    objective = Objective(
        denoiser=denoiser,
        data=data,
        key=jax.random.fold_in(key, 2 + seed),
        radius=float(radius),
        batch=batch,
        loss=value,
        like=jax.ShapeDtypeStruct(x.shape[1:], x.dtype),
        first=float(np.asarray(grid)[0]),
        adjoint=adjoint or Direct(),
    )

    def score(free: Corrections) -> float:
        try:
            table = replaced(model, {name: np.asarray(a) for name, a in free.items()}).table()
        except ValueError:  # these corrections leave no grid
            return np.nan
        out = pairs(denoiser, table, x[-held:], chunk=batch, finite=False)
        result = float(value(jnp.asarray(out), jnp.asarray(reference[-held:])))
        return float(np.exp(result / 2)) if isinstance(loss, str) else result

    card = {
        "parent": f"{parent.name} on {np.asarray(grid).tolist()}",
        "start": checkpoint.digest(model.table()),
    }
    card |= {"plan": str(plan), "loss": called(loss), "options": str(options)}
    card |= {"network": checkpoint.digest(denoiser), "batch": batch, "noises": noises, "held_out": held_out}
    card |= {"radius": radius, "penalty": penalty, "ema": ema, "seed": seed}
    card |= {"key": checkpoint.digest(jax.random.key_data(key)), "x": checkpoint.digest((x, reference))}
    card |= {"path": str(path)}
    file = None if folder is None else folder / "state.safetensors"
    kept = {"file": file, "card": card, "taught": (x, reference)}
    return Fit(objective, model, score, plan, ema=ema, penalty=penalty, **kept)


def model_of(
    path: Path, parent: Step, grid: Grid, vary: str | Sequence[str], options: dict[str, Any]
) -> tuple[list[tuple[str, ...]], Learnable]:
    """Return the leaves that each stage frees, and the corrections with all of them."""
    stages = [leaves_of(v) for v in ([vary] if isinstance(vary, str) else vary)]
    free = "+".join(dict.fromkeys(itertools.chain(*stages)))
    return stages, learnable(path, parent, grid, vary=free, **options)


def report_of(fit: Fit, began: float) -> Report:
    """Return what a run found, with the model in float64."""
    model = replaced(fit.exact, {name: np.asarray(a, np.float64) for name, a in fit.best.items()})
    numbers = tuple(model.count(leaves) for leaves in fit.plan.free)
    return Report(float(fit.log[0, 2]), fit.lowest, fit.log, numbers, model, time.monotonic() - began)


def _whole(n: int, batch: int) -> int:
    return -(-n // batch) * batch
