"""The best of the library by hand at a number of network calls: the start of every search, and the baseline of every claim.

Eleven deterministic solvers (`SOLVERS`: what is best at few calls) as tables of that many rows on six grids, with and without lower orders
at the end, and with the last row used up or not for the step from the last noise level into sigma = 0. Scored together by one compiled
function.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from .. import solvers
from ..numerics import on_host
from ..paths import grids as library
from ..paths.base import Path
from ..paths.predictions import Denoiser
from ..tables.steps import Step
from ..tables.table import Table, stack
from ..tables.tabulation import tabulate
from .score import rmse

GRIDS: dict[str, Callable] = {
    name: getattr(library, name) for name in ("uniform", "log_snr", "karras", "quadratic", "cosine", "arctan")
}
SOLVERS: dict[str, Step] = {
    "dpmpp_2m": solvers.dpmpp_2m,
    "dpmpp_3m": solvers.dpmpp_3m,
    "dpm_2m": solvers.dpm_2m,
    "dpm_3m": solvers.dpm_3m,
    "unipc_2": solvers.unipc(order=2),
    "unipc_3": solvers.unipc(order=3),
    "unipc_2 noise": solvers.unipc(order=2, kind="noise"),
    "unipc_3 noise": solvers.unipc(order=3, kind="noise"),
    "deis": solvers.deis(order=3),
    "ipndm": solvers.ipndm,
    "edm": solvers.edm,
}


@dataclasses.dataclass(frozen=True)
class Handmade:
    """A solver of the library on a grid; `score` is NaN until it is known."""

    name: str
    solver: Step
    grid: Float[np.ndarray, " points"]
    table: Table
    family: str  # the grid's name in `GRIDS`
    score: float = np.nan


def handmade(
    path: Path, rows: int, *, chosen: dict[str, Step] | None = None, grids: dict[str, Callable] | None = None
) -> list[Handmade]:
    """All of them with tables of `rows` rows: `chosen` solvers (default `SOLVERS`) on `grids`, functions (path, n) -> n+1 times.

    What a path does not allow (a noise-kind solver out of alpha = 0) is left out; ValueError if nothing is left.
    """
    found: dict[bytes, Handmade] = {}
    for name, solver in (SOLVERS if chosen is None else chosen).items():
        ends = (
            [solver(lower_order_final=final) for final in (False, True)]
            if solver.order > 1 and (solver.start or solver.rule)
            else [solver]
        )
        for (grid_name, grid), zero, step in (
            (g, z, s)
            for g in (GRIDS if grids is None else grids).items()
            for z in (False, True)
            for s in ends
        ):
            made = _of_rows(path, rows, grid, step, zero)
            if made is not None:
                words = [
                    name,
                    grid_name,
                    *["to 0"] * zero,
                    *["lower orders last"] * (step.lower_order_final and len(ends) > 1),
                ]
                key = b"".join(np.asarray(a).tobytes() for a in jax.tree.leaves(made[1]))
                found.setdefault(key, Handmade(", ".join(words), step, *made, family=grid_name))
    if not found:
        raise ValueError(f"no solver given makes a table of {rows} rows on this {type(path).__name__} path")
    return list(found.values())


def _of_rows(
    path: Path, rows: int, grid: Callable, step: Step, zero: bool
) -> tuple[np.ndarray, Table] | None:
    """The grid on which `step` takes `rows` calls, and its table, if there is one."""
    for n in range(rows, 0, -1):
        try:
            times = np.asarray(grid(path, n - zero)) if n > zero else np.array([path.t_max, 0.0])
            with on_host():
                clean = bool(path.sigma(times[-1]) == 0)
            if zero and n > 1 and clean:
                return None  # it ends there anyway
            table = tabulate(path, library.append_zero(times) if zero and not clean else times, step)
        except ValueError:
            return None
        if table.nfe <= rows:
            return (
                (library.append_zero(times) if zero and not clean else times, table)
                if table.nfe == rows
                else None
            )
    return None


def best(
    denoiser: Denoiser,
    path: Path,
    x: Any,
    reference: Any,
    rows: int,
    *,
    batch: int = 256,
    chosen: Sequence[Handmade] | None = None,
) -> list[Handmade]:
    """Hand-made samplers of `rows` rows with their RMSE from x_T = x [n, ...] to `reference` [n, ...], best first.

    The network gets `batch` samples at once; what does not fill a batch is left out. chosen: candidates of `handmade` other than all.
    A candidate whose samples are not finite comes last.
    """
    candidates = handmade(path, rows) if chosen is None else list(chosen)
    scores = rmse(denoiser, x, reference, batch=batch, chunk=min(32, len(candidates)))(
        stack([c.table for c in candidates])
    )
    return sorted(
        (dataclasses.replace(c, score=float(s)) for c, s in zip(candidates, scores, strict=True)),
        key=lambda c: np.nan_to_num(c.score, nan=np.inf),
    )
