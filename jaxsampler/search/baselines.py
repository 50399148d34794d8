"""The best hand-made samplers at a number of network calls: where every search starts, and what it must beat.

Eleven deterministic solvers (`SOLVERS`, the best at few calls) become tables of that many rows on six grids,
with and without lower orders at the end. The step from the last noise level into sigma = 0 may or may not use
up the last row. One compiled function scores all of them.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import Float

from .. import solvers
from ..numerics import Arr, on_host
from ..paths import Denoiser, Path
from ..paths import grids as library
from ..tables import Step, Table, stack, tabulate
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
    """A solver of the library on a grid; `score` is NaN before it is measured."""

    name: str
    solver: Step
    grid: Float[np.ndarray, " points"]
    table: Table
    family: str  # the grid's name in `GRIDS`
    score: float = np.nan


def handmade(
    path: Path, rows: int, *, chosen: dict[str, Step] | None = None, grids: dict[str, Callable] | None = None
) -> list[Handmade]:
    """Return all hand-made samplers whose tables have `rows` rows.

    A solver that the path does not allow is left out (for instance, a noise-kind solver that would start at
    alpha = 0).

    Args:
        path: the path of the tables.
        rows: network calls.
        chosen: solvers by name, by default `SOLVERS`.
        grids: functions (path, n) -> n+1 times by name, by default `GRIDS`.

    Raises:
        ValueError: if no sampler is left.

    Example:
        >>> two = {"dpmpp_2m": js.solvers.dpmpp_2m, "heun": js.solvers.heun}
        >>> for made in js.search.handmade(js.EDM(), 3, chosen=two, grids={"karras": js.grids.karras}):
        ...     print(made.name, len(made.grid) - 1, made.table.nfe)
        dpmpp_2m, karras 3 3
        dpmpp_2m, karras, lower orders last 3 3
        dpmpp_2m, karras, to 0 3 3
        heun, karras, to 0 2 3
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
    """Return the grid on which `step` takes `rows` calls and its table, None if there is none."""
    for n in range(rows, 0, -1):
        try:
            times = np.asarray(grid(path, n - zero)) if n > zero else np.array([path.t_max, 0.0])
            with on_host():
                clean = bool(path.sigma(times[-1]) == 0)
            if zero and n > 1 and clean:
                return None  # the grid ends there anyway
            table = tabulate(path, library.append_zero(times) if zero and not clean else times, step)
        except ValueError:
            return None
        if table.nfe == rows:
            return library.append_zero(times) if zero and not clean else times, table
        if table.nfe < rows:
            return None
    return None


def best(
    denoiser: Denoiser,
    path: Path,
    x: Float[Arr, "n ..."],
    reference: Float[Arr, "n ..."],
    rows: int,
    *,
    batch: int = 256,
    chosen: Sequence[Handmade] | None = None,
) -> list[Handmade]:
    """Return hand-made samplers of `rows` rows with their RMSE from x_T = x to `reference`, best first.

    A candidate whose samples are not finite comes last.

    Args:
        denoiser: the network.
        path: its path.
        x: x_T of each sample.
        reference: where the samples should end.
        rows: network calls.
        batch: samples that go through the network at once; those that fill no batch are left out.
        chosen: candidates, by default all of `handmade`.

    Example:
        >>> path = js.VP()
        >>> denoiser = js.models.gaussian_mixture(np.array([[-1.0], [1.0]]), 0.2, path)
        >>> x = jax.random.normal(jax.random.key(0), (64, 1))
        >>> exact = js.run(denoiser, js.tabulate(path, js.grids.log_snr(path, 40), js.solvers.dpmpp_2m), x)
        >>> two = {"dpmpp_2m": js.solvers.dpmpp_2m, "euler": js.solvers.euler}
        >>> few = js.search.handmade(path, 4, chosen=two)
        >>> first, *_, last = js.search.best(denoiser, path, x, exact, 4, batch=64, chosen=few)
        >>> first.score < 0.3 * last.score
        True
    """
    candidates = handmade(path, rows) if chosen is None else list(chosen)
    scores = rmse(denoiser, x, reference, batch=batch, chunk=min(32, len(candidates)))(
        stack([c.table for c in candidates])
    )
    return sorted(
        (dataclasses.replace(c, score=float(s)) for c, s in zip(candidates, scores, strict=True)),
        key=lambda c: np.nan_to_num(c.score, nan=np.inf),
    )
