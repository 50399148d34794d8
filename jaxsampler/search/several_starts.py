"""Learned tables from several starts: held-out noise chooses among them.

Reference: Tong et al. 2025 (LD3).
"""

import time
from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import Any

from ..numerics import Key
from ..paths import Denoiser, Path
from ..tables import Table
from .fit import BLOCKS
from .learning import Report, begin, model_of, report_of

CUT = 4  # blocks after which only the finalists continue


def learn_best(
    denoiser: Denoiser,
    path: Path,
    starts: Sequence[tuple],
    *,
    key: Key,
    seeds: int = 1,
    finalists: int | None = None,
    progress: bool = True,
    **options: Any,
) -> tuple[Table, list[Report]]:
    """Run `learn` from every start, `seeds` times each; return the table of best score and all reports.

    All starts must have the same number of rows, because they share the compiled gradient and, unless
    noises=None, the teacher's work.

    Args:
        denoiser: the network.
        path: its path.
        starts: tuples (parent, grid) or (parent, grid, initial), for instance those of `best`.
        key: draws the noises.
        seeds: runs from each start.
        finalists: number of runs that continue after the first third of the iterations, the best by then;
            None: all.
        progress: whether to show a progress bar.
        options: those of `begin`.

    Example:
        >>> path, exact = js.VP(), js.models.gaussian_mixture(np.zeros((1, 2)), 0.5, js.VP())
        >>> grid = js.grids.log_snr(path, 2)
        >>> starts = [(js.solvers.euler, grid), (js.solvers.dpmpp_2m, grid)]
        >>> few = dict(noises=16, held_out=16, batch=16, teacher=8, iterations=12, vary="weights")
        >>> run = dict(key=jax.random.key(0), like=jnp.zeros(2), progress=False) | few
        >>> table, reports = js.search.learn_best(exact, path, starts, **run)
        >>> all(report.best <= report.start for report in reports)
        True
    """
    if not starts or seeds < 1 or (finalists is not None and finalists < 1):
        raise ValueError("give at least one start (parent, grid), one seed and one finalist")
    names = "derivatives", "consistent", "band", "fix_first"
    free = {name: options[name] for name in names if name in options}
    vary = options.get("vary", "grid")
    rows = [model_of(path, parent, grid, vary, free)[1].rows for parent, grid, *_ in starts]
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
    reports = [report_of(fit, began) for fit in fits]
    return min(reports, key=lambda r: r.best).model.table(), reports
