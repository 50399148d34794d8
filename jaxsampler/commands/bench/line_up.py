"""Solvers as a config names them, and the largest table of each within a budget of network calls.

An entry is a name of `jaxsampler solvers` with its options, "unipc order=3 variant=bh1". Every solver gets
the same kind of grid, with as many intervals as its calls allow: 10 calls are 10 intervals of DDIM, 5 of
Heun.
"""

import tomllib
from collections.abc import Callable

import jax
import numpy as np

from ...paths import Path, grids
from ...scan import Solver
from ...solvers import Statistics, by_name
from ...spelling import nearest
from ...tables import Step, Table, tabulate

GRIDS: dict[str, Callable[..., np.ndarray]] = {
    f.__name__: f
    for f in (grids.default, grids.log_snr, grids.uniform, grids.quadratic, grids.cosine, grids.karras)
}


def solver(entry: str, **given: Statistics) -> Step | Solver:
    """The solver that an entry of a config names, a step or a solver without a table.

    Args:
        given: options that a config cannot hold.

    Raises:
        ValueError: the name or an option is unknown, or a value is invalid.
    """
    name, *options = entry.split()
    try:
        return by_name(name, **given, **tomllib.loads("\n".join(options)))
    except (tomllib.TOMLDecodeError, TypeError) as e:
        form = "give options as name=value after the name, as in 'unipc order=3'"
        raise ValueError(f"solver {entry!r}: {form} ({e})") from None


def step(entry: str) -> Step:
    """The step that an entry names; ValueError if the solver has no table, else as `solver`."""
    made = solver(entry)
    if not isinstance(made, Step):
        raise ValueError(f"solver {entry!r} has no table; of such solvers only dpm_v3 is measured")
    return made


def grid(name: str) -> Callable[[Path, int], np.ndarray]:
    """The grid called `name`, a function of the path and the number of intervals."""
    if name not in GRIDS:
        raise ValueError(f"unknown grid {name!r}; {nearest(name, GRIDS)}")
    return GRIDS[name]


def largest(path: Path, solver: Step, times: Callable[[Path, int], np.ndarray], calls: int) -> Table | None:
    """The table with the most intervals and at most `calls` rows; None if there is none on this path."""
    for n in range(calls, 0, -1):
        try:
            table = tabulate(path, times(path, n), solver)
        except ValueError:  # too few intervals for this solver, or it cannot use an end of the path
            return None
        if table.nfe <= calls:
            return table
    return None


def line_up(
    path: Path, entries: tuple[str, ...], times: Callable[[Path, int], np.ndarray], calls: int
) -> dict[str, Table]:
    """Entry -> table, without entries over the budget or equal to an earlier one (Heun is `edm` on EDM)."""
    found: dict[str, Table] = {}
    for entry in entries:
        table = largest(path, step(entry), times, calls)
        if table is not None and not any(same(table, other) for other in found.values()):
            found[entry] = table
    return found


def same(a: Table, b: Table) -> bool:
    """Whether two tables hold the same numbers, to rounding."""
    if (a.nfe, a.regs) != (b.nfe, b.regs):
        return False
    return all(
        np.allclose(u, v, rtol=1e-9, atol=1e-12, equal_nan=True)
        for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )
