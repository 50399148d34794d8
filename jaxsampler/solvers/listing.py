"""The solvers by name: for configs, the command line and the README's table."""

import dataclasses
import difflib
import inspect
from typing import Any

import equinox as eqx
import numpy as np

from ..paths.gaussian import VP
from ..tables.steps import Step, _reference
from ..tables.tabulation import basis_size, unit_run


def catalogue() -> dict[str, Step]:
    """All steps that `jaxsampler.solvers` exports."""
    from .. import solvers  # it re-exports this function, so it is complete only once this module is

    return {name: s for name, s in vars(solvers).items() if isinstance(s, Step)}


def others() -> dict[str, type]:
    """All that it exports which is no step: classes with the four functions of `js.Solver`."""
    from .. import solvers

    return {
        n: c
        for n, c in vars(solvers).items()
        if inspect.isclass(c) and issubclass(c, eqx.Module) and hasattr(c, "rows")
    }


def by_name(name: str, **options: Any) -> Any:
    """The solver called `name` with these options; ValueError naming the nearest one if there is none.

    A `Step`, or a `js.Solver` for what is no table (adaptive and reversible solvers, DPM-Solver-v3, Langevin correctors).
    """
    solvers = catalogue() | others()
    if name not in solvers:
        near = difflib.get_close_matches(name, solvers, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"valid: {', '.join(solvers)}"
        raise ValueError(f"unknown solver {name!r}; {hint}")
    return solvers[name](**options)


def calls_per_step(s: Step) -> int:
    """Network calls of one full step."""
    path, ts = VP(), np.linspace(0.9, 0.5, max(s.past, s.states) + 2)
    return len(unit_run(s, path, ts, list(np.eye(basis_size(s))))[0])


@dataclasses.dataclass
class Entry:
    """One row of the table of solvers."""

    name: str
    order: Any
    calls: Any
    kind: str
    stochastic: bool
    needs: str
    options: list[str]
    reference: str


def entries() -> list[Entry]:
    """Every solver: the steps, then the others."""
    rows = [
        Entry(
            name, s.order, calls_per_step(s), str(s.kind), s.stochastic, _history(s), s.options(), s.reference
        )
        for name, s in catalogue().items()
    ]
    for name, c in others().items():
        fields = {f.name: f.default for f in dataclasses.fields(c)}
        made = c() if all(f.default is not dataclasses.MISSING for f in dataclasses.fields(c)) else None

        def fact(what: str, c: type = c, fields: dict = fields, made: Any = made) -> Any:
            return fields.get(what, getattr(made, what, getattr(c, what, "")))

        rows.append(
            Entry(
                name,
                fact("order"),
                fact("calls"),
                fact("kind"),
                bool(fact("stochastic")),
                fact("needs"),
                list(fields),
                _reference(c),
            )
        )
    return rows


def _history(s: Step) -> str:
    return f"{s.past} past output{'s' if s.past > 1 else ''}" if s.past else ""


def markdown() -> str:
    """The table of solvers in Markdown."""
    head = "| solver | order | calls per step | prediction | stochastic | needs | options | reference |\n|---|---|---|---|---|---|---|---|\n"
    return head + "".join(
        f"| `{e.name}` | {e.order} | {e.calls} | {e.kind} | {'yes' if e.stochastic else ''} | {e.needs} "
        f"| {', '.join(f'`{o}`' for o in e.options)} | {e.reference} |\n"
        for e in entries()
    )
