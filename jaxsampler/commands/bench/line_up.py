"""Solvers as a config names them, and the largest table of each within a budget of network calls.

An entry is a name of `jaxsampler solvers` with its options, "unipc order=3 variant=bh1"; every solver gets the same kind of grid, with as
many intervals as its calls allow: 10 calls are 10 intervals of DDIM, 5 of Heun.
"""

import tomllib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ...paths import grids
from ...paths.base import Path
from ...solvers import by_name
from ...spelling import nearest
from ...tables.steps import Step
from ...tables.table import Table
from ...tables.tabulation import tabulate

GRIDS: dict[str, Callable[..., Any]] = {
    f.__name__: f
    for f in (grids.default, grids.log_snr, grids.uniform, grids.quadratic, grids.cosine, grids.karras)
}


def solver(entry: str, **given: Any) -> Any:
    """What an entry of a config names, a step or a solver that is no table; `given` are options that no config can hold.

    ValueError in one line: unknown name, unknown option, a value that is none.
    """
    name, *options = entry.split()
    try:
        return by_name(name, **given, **tomllib.loads("\n".join(options)))
    except (tomllib.TOMLDecodeError, TypeError) as e:
        raise ValueError(
            f"solver {entry!r}: give options as name=value after the name, as in 'unipc order=3' ({e})"
        ) from None


def step(entry: str) -> Step:
    """The step that an entry names; ValueError if it is none, as `solver` for the rest."""
    made = solver(entry)
    if not isinstance(made, Step):
        raise ValueError(f"solver {entry!r} is not a table, and only dpm_v3 of those is measured")
    return made


def grid(name: str) -> Callable[[Path, int], np.ndarray]:
    """The kind of grid called `name`: a function of the path and the number of intervals."""
    if name not in GRIDS:
        raise ValueError(f"unknown grid {name!r}; {nearest(name, GRIDS)}")
    return GRIDS[name]


def largest(path: Path, solver: Step, times: Callable[[Path, int], np.ndarray], calls: int) -> Table | None:
    """The table of the most intervals with at most `calls` rows; None if there is none, or none that the path allows."""
    for n in range(calls, 0, -1):
        try:
            table = tabulate(path, times(path, n), solver)
        except ValueError:  # too few intervals for this solver, or an end of the path that it cannot use
            return None
        if table.nfe <= calls:
            return table
    return None


def line_up(
    path: Path, entries: tuple[str, ...], times: Callable[[Path, int], np.ndarray], calls: int
) -> dict[str, Table]:
    """Entry -> table, without entries that cannot keep the budget and those whose table an earlier one has (Heun in t is `edm` on EDM)."""
    found: dict[str, Table] = {}
    for entry in entries:
        table = largest(path, step(entry), times, calls)
        if table is not None and not any(same(table, other) for other in found.values()):
            found[entry] = table
    return found


def same(a: Table, b: Table) -> bool:
    """Whether two tables are the same numbers, to rounding."""
    if (a.nfe, a.regs) != (b.nfe, b.regs):
        return False
    return all(
        np.allclose(u, v, rtol=1e-9, atol=1e-12, equal_nan=True)
        for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )
