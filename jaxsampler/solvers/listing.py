"""The solvers by name: for configs, the command line and tables of solvers in guides."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from ..scan import Solver
from ..spelling import nearest
from ..tables import Step
from ..tables.authoring import reference


def catalogue() -> dict[str, Step]:
    """Return the steps that `js.solvers` exports, by name.

    Example:
        >>> [name for name, step in js.solvers.catalogue().items() if step.order == 3 and step.past == 2]
        ['dpm_3m', 'dpmpp_3m']
    """
    from .. import solvers  # it re-exports this function, so it is complete only once this module is

    return {name: s for name, s in vars(solvers).items() if isinstance(s, Step)}


def others() -> dict[str, Callable[..., Solver]]:
    """Return the factories that `js.solvers` exports: of the solvers that are not steps."""
    from .. import solvers

    return {
        n: f for n, f in vars(solvers).items() if inspect.isfunction(f) and hasattr(inspect.unwrap(f), "rows")
    }


def by_name(name: str, **options: Any) -> Step | Solver:
    """Return the solver called `name` with these options.

    It is a `js.Step`, or a `js.Solver` if it has no table: adaptive and reversible solvers, DPM-Solver-v3,
    Langevin correctors.

    Raises:
        ValueError: if there is no such solver; the error suggests the nearest name.
        TypeError: if the solver has no such option.

    Example:
        >>> js.solvers.by_name("unipc", order=2).order
        2
    """
    solvers = catalogue() | others()
    if name not in solvers:
        raise ValueError(f"unknown solver {name!r}; {nearest(name, solvers)}")
    return solvers[name](**options)


@dataclasses.dataclass
class Entry:
    """One row of the table of solvers."""

    name: str
    order: int
    calls: int | str
    kind: str
    stochastic: bool
    needs: str
    options: list[str]
    reference: str


def entries() -> list[Entry]:
    """Return a row for each solver: the steps, then the others."""
    rows = [
        Entry(name, s.order, s.calls, str(s.kind), s.stochastic, _history(s), s.options(), s.reference)
        for name, s in catalogue().items()
    ]
    for name, make in others().items():
        c: Any = inspect.unwrap(make)
        fields = {f.name: f.default for f in dataclasses.fields(c)}
        made = make() if all(f.default is not dataclasses.MISSING for f in dataclasses.fields(c)) else None

        def fact(what: str, c: type = c, fields: dict = fields, made: Solver | None = made) -> Any:
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
                reference(c),
            )
        )
    return rows


def _history(s: Step) -> str:
    return f"{s.past} past output{'s' if s.past > 1 else ''}" if s.past else ""


def markdown() -> str:
    """Return the table of solvers in Markdown."""
    columns = (
        "solver",
        "order",
        "calls per step",
        "prediction",
        "stochastic",
        "needs",
        "options",
        "reference",
    )
    head = f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}\n"
    return head + "".join(
        f"| `{e.name}` | {e.order} | {e.calls} | {e.kind} | {'yes' if e.stochastic else ''} | {e.needs} "
        f"| {', '.join(f'`{o}`' for o in e.options)} | {e.reference} |\n"
        for e in entries()
    )
