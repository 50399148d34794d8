"""The solvers by name: for configs, the command line and the README's table."""

import difflib
from typing import Any

import numpy as np

from ..paths import VP
from ..steps import Step
from ..tabulate import basis_size, unit_run


def catalogue() -> dict[str, Step]:
    """All steps that `jaxsampler.solvers` exports."""
    from .. import solvers  # it re-exports this function, so it is complete only once this module is

    return {name: s for name, s in vars(solvers).items() if isinstance(s, Step)}


def by_name(name: str, **options: Any) -> Step:
    """The solver called `name` with these options; ValueError naming the nearest one if there is none."""
    solvers = catalogue()
    if name not in solvers:
        near = difflib.get_close_matches(name, solvers, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"valid: {', '.join(solvers)}"
        raise ValueError(f"unknown solver {name!r}; {hint}")
    return solvers[name](**options)


def calls_per_step(s: Step) -> int:
    """Network calls of one full step."""
    path, ts = VP(), np.linspace(0.9, 0.5, max(s.past, s.states) + 2)
    return len(unit_run(s, path, ts, list(np.eye(basis_size(s))))[0])


def markdown() -> str:
    """The table of solvers in Markdown."""
    head = "| solver | order | calls per step | prediction | stochastic | options | reference |\n|---|---|---|---|---|---|---|\n"
    return head + "".join(
        f"| `{name}` | {s.order} | {calls_per_step(s)} | {s.kind} | {'yes' if s.stochastic else ''} "
        f"| {', '.join(f'`{o}`' for o in s.options())} | {s.reference} |\n"
        for name, s in catalogue().items()
    )
