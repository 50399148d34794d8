"""The cells of `bench quality`, one per problem, solver and number of calls, and their CSV file."""

import csv
import dataclasses
import io
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ...files import write


@dataclasses.dataclass(frozen=True)
class Cell:
    """One measurement; NaN is what does not apply.

    Args:
        calls: the budget.
        rows: the calls made.
        real: how many test samples it is compared with.
        seconds: per sample, without compilation.
        mark: hash of all else that the numbers depend on (network, grid, seed, ..); another mark is another
            run.
    """

    problem: str
    solver: str
    calls: int
    rows: int
    stochastic: bool
    samples: int
    real: int
    rmse: float = math.nan
    rmse_low: float = math.nan
    rmse_high: float = math.nan
    frechet: float = math.nan
    frechet_low: float = math.nan
    frechet_high: float = math.nan
    sliced: float = math.nan
    sliced_low: float = math.nan
    sliced_high: float = math.nan
    seconds: float = math.nan
    mark: str = ""


def save(file: Path, cells: Iterable[Cell]) -> None:
    """Write the cells as CSV, whole or not at all."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(f.name for f in dataclasses.fields(Cell))
    writer.writerows(
        [f"{v:.6g}" if isinstance(v, float) else v for v in dataclasses.astuple(cell)] for cell in cells
    )
    write(file, text.getvalue().encode())


def read(file: Path) -> dict[tuple[str, str, int, str], Cell]:
    """Read the cells of a file, by (problem, solver, calls, mark); none if there is no file."""
    if not file.exists():
        return {}
    kinds = {f.name: f.type for f in dataclasses.fields(Cell)}
    parse: dict[Any, Callable[[str], Any]] = {
        str: str,
        int: int,
        float: float,
        bool: {"True": True, "False": False}.__getitem__,
    }
    try:
        rows = list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))))
        cells = [Cell(**{key: parse[kind](row[key]) for key, kind in kinds.items()}) for row in rows]
    except (KeyError, ValueError, TypeError):
        raise ValueError(f"{file} is not from `bench quality`: choose another --out, or remove it") from None
    return {(cell.problem, cell.solver, cell.calls, cell.mark): cell for cell in cells}
