"""Tables from files: the shipped learned ones, by name, and a user's own, checked against a network's path.

A learned table is the file tables/PROBLEM_CALLS.safetensors beside this one, as `jaxsampler search` writes it
for a problem of `jaxsampler bench`. Its card tells what the search started from (`what`), its budget
(`config`), the best hand-made sampler of as many network calls (`baseline`), and the `ratio` of the RMSEs of
the two to the converged samples, on noise that the search never saw, with a 95% interval (`low`, `high`).
"""

import dataclasses
import re
from pathlib import Path as FilePath

import equinox as eqx
import jax
import numpy as np

from ..checkpoint import Card
from ..numerics import on_host
from ..paths import Path
from ..spelling import nearest
from ..tables import Table

FOLDER = FilePath(__file__).with_name("tables")
LEARNED = "learned"  # what `--solver` calls a shipped table
USUAL = 8  # its network calls, unless they are given


def tables() -> dict[str, list[int]]:
    """Return the problems that have learned tables, and the numbers of network calls of these.

    Example:
        >>> js.pretrained.tables()["mixture"]
        [3, 4, 5, 6, 7, 8, 9, 10]
    """
    found = sorted(
        (name, int(calls))
        for name, calls in (file.stem.rsplit("_", 1) for file in FOLDER.glob("*.safetensors"))
    )
    return {problem: [calls for name, calls in found if name == problem] for problem, _ in found}


def table(name: str, calls: int) -> Table:
    """Return the learned table of `calls` network calls for the problem or network called `name`.

    Raises:
        ValueError: there is none; the error tells what there is.

    Example:
        >>> js.pretrained.table("fashion_edm", 5).nfe
        5
    """
    return Table.load(shipped(name, calls))


def table_card(name: str, calls: int) -> Card:
    """Return how a learned table was found, and how well it does (see the module).

    Example:
        >>> js.pretrained.table_card("fashion_edm", 5)["ratio"] < 1  # RMSE over the usual best
        True
    """
    return Table.about(shipped(name, calls))


def shipped(name: str, calls: int | None) -> FilePath:
    """The file of a learned table; calls None: 8, or the nearest."""
    known = tables()
    if name not in known:
        raise ValueError(f"there is no learned table for {name!r}; {nearest(name, known)}")
    if calls is None:
        calls = min(known[name], key=lambda k: abs(k - USUAL))
    if calls not in known[name]:
        there = ", ".join(map(str, known[name]))
        raise ValueError(f"no learned table for {name!r} has {calls} network calls: choose one of {there}")
    return FOLDER / f"{name}_{calls}.safetensors"


def option(solver: str | None, path: Path, **beside: int | str | None) -> Table | None:
    """Return the table that `--solver FILE.safetensors` names, for a network on `path`; else None.

    Args:
        beside: options by name that a table determines itself, so they must be None.
    """
    if solver is None or FilePath(solver).suffix != ".safetensors":
        return None
    if given := [f"--{name}" for name, value in beside.items() if value is not None]:
        raise ValueError(
            f"the table {solver} has its own steps, grid and order: leave {', '.join(given)} out"
        )
    return expect(Table.load(solver), path, f"the table {solver}", Table.about(solver).get("path"))


def expect(table: Table, path: Path, called: str = "the table", made_for: str | None = None) -> Table:
    """Return `table` if its card's `path` (`made_for`) and its times suit this path; else ValueError."""
    if table.t.ndim != 1:
        raise ValueError(f"{called} holds {table.t.shape[0]} tables: save one of them by itself")
    if not table.nfe or not all(
        np.isfinite(a).all() for a in (table.t, table.A, table.B, table.C, table.form, table.start)
    ):
        raise ValueError(f"{called} is broken: it has no rows, or numbers that are not finite")
    first, ends, scale = float(table.t[0]), np.asarray(table.end), float(table.start[0])
    ends = ends[~np.isnan(ends)]
    within = ends.size and np.all((ends >= 0) & (ends < path.t_max)) and 0 < first <= path.t_max * (1 + 1e-6)
    if within and made_for is None:  # without a card the first time must tell, or the scale of x_T
        with on_host():
            noise = float(path.sigma(first) / path.sigma(path.t_max))
        within = first > 0.5 * path.t_max if scale == 1 else 0.5 < noise / scale < 2
    other = made_for is not None and not tells_of(str(made_for), path)
    if other or not within:
        texts = (made_for if other else "another path", repr(path))
        theirs, ours = (" ".join(str(text).split()) for text in texts)
        raise ValueError(f"{called} was made for {theirs}; this network is on {ours}: make one for that path")
    return table


def tells_of(told: str, path: Path) -> bool:
    """Whether `told`, the repr of a path, describes this path; arrays, such as its mean, do not matter.

    A repr omits a field whose value is the very object of its default: of equal paths one may show 0.002
    and the other not.
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
    known = (
        repr(path),
        eqx.tree_pformat(path),
    )  # the latter: cards from before all paths printed as one line
    return equal or "".join(told.split()) in ["".join(text.split()) for text in known]
