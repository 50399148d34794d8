r"""Learned tables: the corrections of a `Learnable`, fitted end to end to where a fine table leads.

    min over corrections    log mean over x_T of |table(x_T) - teacher(x_T)|^2

The teacher runs once for each noise; about a thousand noises are enough for so few numbers. Steps are Adam's (b2 = 0.99) with a rate for
each kind of correction, cosine decay to 2%, the gradient clipped at norm 1. After every block of iterations the running average of the
corrections is scored on held-out noise as the float64 table that would be shipped, and the best one is kept, the parent included: the
result is never worse than its start there. Stages follow each other from the best so far: the relaxation first, then the whole table, is
what works best from 5 to 10 rows.

A run of a few minutes has luck: `learn_best` takes several starts and lets the held-out noise choose. Held-out noise must be plentiful, for
most of the error may come from a few noises that end in the wrong mode.

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
from ..numerics import Real
from ..paths.base import Path
from ..paths.predictions import Denoiser
from ..scan.adjoints import Adjoint, Direct
from ..spelling import nearest
from ..tables.table import Table
from .error_measures import squared
from .fit import BLOCKS, RATES, Fit, Objective, Plan
from .initial import at_table
from .parametrisation import Learnable, learnable, replaced
from .teacher import called, pairs, source_of, taught
from .vary import leaves_of

CUT = 4  # blocks after which `learn_best` goes on with the finalists only
LOSSES: dict[str, Callable] = {
    "rmse": lambda x, reference: jnp.log(squared(x, reference).mean()),
    "mean_log": lambda x, reference: jnp.log(squared(x, reference)).mean(),
    "l1": lambda x, reference: 2 * jnp.log(jnp.abs(x - reference).mean()),
}


@dataclasses.dataclass(frozen=True)
class Report:
    """What a run did. Scores are of held-out noise: exp(loss/2), so RMSE for loss="rmse"; the loss itself if it is your own function."""

    start: float  # the parent, or the initial table
    best: float  # the table returned
    history: Float[np.ndarray, "blocks 3"]  # iteration, loss (mean over the block), score
    numbers: tuple[int, ...]  # free in each stage
    model: Learnable  # parent and corrections of the table returned
    seconds: float  # of this call, the teacher's included


def learn(
    denoiser: Denoiser, path: Path, parent: Any, grid: Any, *, key: Any, progress: bool = True, **options: Any
) -> tuple[Table, Report]:
    """A table with the rows of `parent` on `grid`, corrected to end where the teacher does.

    options: `vary`, `noises`, `iterations`, `teacher`, `folder` and the others of `begin`, which see. ValueError: what cannot work, in one
    line, before the teacher runs.
    """
    began = time.monotonic()
    fit = begin(denoiser, path, parent, grid, key=key, progress=progress, **options)
    fit.advance(progress=progress)
    report = _report(fit, began)
    return report.model.table(), report


def begin(
    denoiser: Denoiser,
    path: Path,
    parent: Any,
    grid: Any,
    *,
    key: Any,
    seed: int = 0,
    like: Any = None,
    vary: str | Sequence[str] = ("relaxation", "table"),
    split: Sequence[Real] | None = None,
    noises: int | None = 1024,
    held_out: int = 2048,
    iterations: int = 1500,
    batch: int = 256,
    teacher: Any = None,
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
    """A run of `learn` before its first iteration: the teacher's work is done, `Fit.advance` does the rest.

    key draws the noises, `seed` the order of batches. like: shape and dtype of one sample, without the batch axis that the network gets.
    vary: what is free, see `learnable`, which also takes the `options`; several make stages, which share the iterations as `split` says
    (default: 1 to 2 for two, else evenly). noises: how many the teacher is run for once; None draws fresh ones at every iteration, and
    runs the teacher, a table or a callable in jax, there. held_out: noises that choose the best table. Both are rounded up to whole
    batches; entry i of a batch always holds the same place, so that a network may be bound to one condition for each place. teacher: a
    table, a callable x_T -> x_0, a number of rows for the default one (`fine_table`), or its work: arrays (x_T, x_0) of at least noises +
    held_out samples. loss: "rmse" (log of the mean square), "mean_log" (mean of the log, of BNS: forgives rare failures), "l1", or a
    function (x, reference) -> scalar of batches. radius: the relaxed objective of LD3, which only asks to hit the target from some x'
    within radius |x_T| of x_T. penalty: on the squares of the table's corrections. rates: learning rates by leaf, instead of the measured
    ones. adjoint: of the table's rows, `Direct()`; `Direct(unroll=True)` for networks of convolutions on CPUs. initial: a table on this
    grid, of `distill` for instance, that the run begins from in place of the parent's; `vary` must reach it (`initial.at_table`).
    folder: the state is saved there after each of 12 blocks; a run that was killed and is started again ends with the same bits.
    """
    if not isinstance(denoiser, Denoiser) or not eqx.tree_equal(denoiser.path, path):
        raise ValueError(
            "denoiser must be a js.Denoiser on `path`: the grid and the network's noise levels belong together"
        )
    if isinstance(loss, str) and loss not in LOSSES:
        raise ValueError(
            f"unknown loss {loss!r}; {nearest(loss, LOSSES)} (or give a function (x, reference) -> scalar)"
        )
    if (
        min(held_out, iterations, batch, 1 if noises is None else noises) < 1
        or min(radius, penalty) < 0
        or not 0 <= ema < 1
    ):
        raise ValueError(
            "noises, held_out, iterations and batch count from 1; radius and penalty are not negative; ema is in [0, 1)"
        )
    for name in rates or {}:
        if name not in RATES:
            raise ValueError(f"there is no rate of {name!r}; {nearest(name, RATES)}")
    stages, model = _model(path, parent, grid, vary, **options)
    model = model if initial is None else at_table(model, initial)
    plan = Plan.of(stages, split, iterations, model.rows, rates)

    train, held = _whole(0 if noises is None else noises, batch), _whole(held_out, batch)
    folder = None if folder is None else FilePath(folder)
    source = source_of(path, grid, teacher)
    x, reference = taught(denoiser, source, key, like, train + held, batch, folder, progress)
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
        adjoint=adjoint or Direct(),
    )

    def score(free: dict[str, Any]) -> float:
        try:
            table = replaced(model, {name: np.asarray(a) for name, a in free.items()}).table()
        except ValueError:  # corrections so wild that they leave no grid
            return np.nan
        out = pairs(denoiser, table, x[-held:], chunk=batch, finite=False)
        result = float(value(jnp.asarray(out), jnp.asarray(reference[-held:])))
        return float(np.exp(result / 2)) if isinstance(loss, str) else result

    card = {
        "parent": f"{parent.name} on {np.asarray(grid).tolist()}",
        "start": checkpoint.digest(model.table()),
        "plan": str(plan),
    }
    card |= {"loss": called(loss), "options": str(options), "network": checkpoint.digest(denoiser)}
    card |= {
        "batch": batch,
        "noises": noises,
        "held_out": held_out,
        "radius": radius,
        "penalty": penalty,
        "ema": ema,
        "seed": seed,
    }
    card |= {
        "key": checkpoint.digest(jax.random.key_data(key)),
        "x": checkpoint.digest((x, reference)),
        "path": str(path),
    }
    file = None if folder is None else folder / "state.safetensors"
    return Fit(
        objective, model, score, plan, ema=ema, penalty=penalty, file=file, card=card, taught=(x, reference)
    )


def _model(
    path: Path, parent: Any, grid: Any, vary: str | Sequence[str], **options: Any
) -> tuple[list[tuple[str, ...]], Learnable]:
    """The leaves that each stage frees, and the corrections with all of them."""
    stages = [leaves_of(v) for v in ([vary] if isinstance(vary, str) else vary)]
    return stages, learnable(
        path, parent, grid, vary="+".join(dict.fromkeys(itertools.chain(*stages))), **options
    )


def _report(fit: Fit, began: float) -> Report:
    """What it found; the model in float64."""
    model = replaced(fit.exact, {name: np.asarray(a, np.float64) for name, a in fit.best.items()})
    numbers = tuple(model.count(leaves) for leaves in fit.plan.free)
    return Report(float(fit.log[0, 2]), fit.lowest, fit.log, numbers, model, time.monotonic() - began)


def learn_best(
    denoiser: Denoiser,
    path: Path,
    starts: Sequence[tuple],
    *,
    key: Any,
    seeds: int = 1,
    finalists: int | None = None,
    progress: bool = True,
    **options: Any,
) -> tuple[Table, list[Report]]:
    """`learn` from every start (parent, grid) or (parent, grid, initial), `seeds` times each: the table whose held-out score is best.

    Returns it and the reports of all, in order. finalists: only so many, the best by then, go on after the first third of the iterations.
    options: those of `begin`. Starts, best taken from `best`, have the same number of rows: they share the compiled gradient and, unless
    noises=None, the teacher's work.
    """
    if not starts or seeds < 1 or (finalists is not None and finalists < 1):
        raise ValueError("give at least one start (parent, grid), one seed and one finalist")
    free = {
        name: options[name] for name in ("derivatives", "consistent", "band", "fix_first") if name in options
    }
    rows = [
        _model(path, parent, grid, options.get("vary", "grid"), **free)[1].rows for parent, grid, *_ in starts
    ]
    if len(set(rows)) > 1:
        raise ValueError(f"the starts have tables of {rows} rows: compare samplers of as many network calls")
    folder, began, fits = options.pop("folder", None), time.monotonic(), []
    for i, (parent, grid, *initial) in enumerate(starts):
        for seed in range(seeds):
            where = None if folder is None else FilePath(folder) / f"{i}_{seed}"
            own = {"initial": initial[0] if initial else None, "seed": seed, "folder": where}
            fit = begin(denoiser, path, parent, grid, key=key, progress=progress, **own, **options)
            if options.get("noises", 1) is not None:
                options["teacher"] = fit.taught
            fits.append(fit)
    for fit in fits:
        fit.advance(BLOCKS if finalists is None else CUT, progress)
    for fit in sorted(fits, key=lambda fit: fit.lowest)[:finalists]:
        fit.advance(progress=progress)
    reports = [_report(fit, began) for fit in fits]
    return min(reports, key=lambda r: r.best).model.table(), reports


def _whole(n: int, batch: int) -> int:
    return -(-n // batch) * batch
