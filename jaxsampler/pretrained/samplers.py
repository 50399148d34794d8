"""Tables from files: the learned ones that are shipped, by name, and anyone's, held against the path of the network they are to run on.

A learned table is the file tables/PROBLEM_CALLS.safetensors beside this one, as `jaxsampler search` writes it for a problem of
`jaxsampler.bench.problems`. Its card tells what the search started from (`what`), its budget (`config`), the best hand-made sampler of as
many network calls (`baseline`), and the `ratio` of the RMSEs of the two to the converged samples, on noise that the search never saw, with
a 95% interval (`low`, `high`).
"""

import dataclasses
import re
from pathlib import Path as FilePath
from typing import Any

import jax
import numpy as np

from ..numerics import on_host
from ..paths.base import Path
from ..spelling import nearest
from ..tables.table import Table

FOLDER = FilePath(__file__).with_name("tables")
LEARNED, USUAL = (
    "learned",
    8,
)  # what `--solver` calls a shipped table, and its network calls where nobody says how many


def tables() -> dict[str, list[int]]:
    """Problems with learned tables, and the numbers of network calls of these."""
    found = sorted(
        (name, int(calls))
        for name, calls in (file.stem.rsplit("_", 1) for file in FOLDER.glob("*.safetensors"))
    )
    return {problem: [calls for name, calls in found if name == problem] for problem, _ in found}


def table(name: str, calls: int) -> Table:
    """The learned table of `calls` network calls for the problem or network called `name`.

    Raises ValueError, with what there is, if there is none.
    """
    return Table.load(shipped(name, calls))


def table_card(name: str, calls: int) -> dict[str, Any]:
    """How that table was found, and how well it does: see the module."""
    return Table.about(shipped(name, calls))


def shipped(name: str, calls: int | None) -> FilePath:
    """The file of a learned table; calls None: 8, or what is nearest."""
    known = tables()
    if name not in known:
        raise ValueError(f"no learned table is for {name!r}; {nearest(name, known)}")
    if calls is None:
        calls = min(known[name], key=lambda k: abs(k - USUAL))
    if calls not in known[name]:
        raise ValueError(
            f"no learned table for {name!r} has {calls} network calls; there are such of {', '.join(map(str, known[name]))}"
        )
    return FOLDER / f"{name}_{calls}.safetensors"


def option(solver: str | None, path: Path, **beside: Any) -> Table | None:
    """The table that the command line's `--solver FILE.safetensors` names, for a network on `path`; None if `solver` is no file's name.

    beside: other options by name. What a table settles by itself must not be given (None), ValueError in one line otherwise.
    """
    if solver is None or FilePath(solver).suffix != ".safetensors":
        return None
    if given := [f"--{name}" for name, value in beside.items() if value is not None]:
        raise ValueError(
            f"the table {solver} settles steps, grid and order itself: leave {', '.join(given)} out"
        )
    return expect(Table.load(solver), path, f"the table {solver}", Table.about(solver).get("path"))


def expect(table: Table, path: Path, called: str = "the table", made_for: Any = None) -> Table:
    """`table`, if it is one for this path: by its card's `path` (`made_for`) if that tells, and by its times; ValueError otherwise."""
    if table.t.ndim != 1:
        raise ValueError(f"{called} holds {table.t.shape[0]} tables: save one of them by itself")
    if not table.nfe or not all(np.isfinite(a).all() for a in (table.t, table.A, table.B, table.C)):
        raise ValueError(f"{called} is broken: it has no rows, or numbers that are not finite")
    first, ends, scale = float(table.t[0]), np.asarray(table.end), float(table.start[0])
    ends = ends[~np.isnan(ends)]
    within = ends.size and np.all((ends >= 0) & (ends < path.t_max)) and 0 < first <= path.t_max * (1 + 1e-6)
    if (
        within and made_for is None
    ):  # without a card the first time must tell, or what x_T is scaled to for it
        with on_host():
            noise = float(path.sigma(first) / path.sigma(path.t_max))
        within = first > 0.5 * path.t_max if scale == 1 else 0.5 < noise / scale < 2
    other = made_for is not None and not tells_of(str(made_for), path)
    if other or not within:
        theirs, ours = (
            " ".join(str(text).split()) for text in (made_for if other else "another path", repr(path))
        )
        raise ValueError(f"{called} was made for {theirs}; this network is on {ours}: make one with that")
    return table


def tells_of(told: str, path: Path) -> bool:
    """Whether `told`, the repr of a path, tells of this path; arrays (the mean of MeanReverting, each image's own) are no matter.

    A repr leaves a field out if its value is the very object of the default: of equal paths one may tell 0.002 and the other not.
    """
    name, _, rest = told.partition("(")
    values = dict(re.findall(r"(\w+)=([^\s,()]+)", rest))
    plain = {f: getattr(path, f.name) for f in dataclasses.fields(path)}
    plain = {
        f: value
        for f, value in plain.items()
        if not any(hasattr(leaf, "dtype") for leaf in jax.tree.leaves(value))
    }
    equal = name == type(path).__name__ and all(
        values.get(f.name, repr(f.default)) == repr(value) for f, value in plain.items()
    )
    return equal or told == repr(path)
