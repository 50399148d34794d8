"""How a textbook update becomes a solver: decorators, and the orders of one formula.

`tables/steps.py` says what an author writes.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from .steps import Step, named, unknown


def step(**rules: Any) -> Callable[[Callable], Step]:
    """Decorate a textbook update with its rules, the fields of `Step`: it becomes a solver named after the
    function.

    Example:
        >>> @js.step(kind="velocity", order=1)
        ... def my_euler(path, ts, x, past, model, z):
        ...     t, s = ts[-2:]
        ...     return x + (s - t) * model(x, t)
        >>> my_euler
        <my_euler: order 1, 1 call a step>
        >>> js.tabulate(js.CondOT(), [0.9, 0.5, 0.1], my_euler).B[:, 0]
        array([-0.4, -0.4])
    """

    def wrap(formula: Callable) -> Step:
        return Step(formula, formula.__name__, **_about(formula), **rules)

    return wrap


def variants(build: Callable[..., Step]) -> Step:
    """Decorate `build(**options) -> Step`, all options with defaults: it becomes the default step, callable
    for the others.
    """

    def variant(chosen: dict[str, Any]) -> Step:
        def make(**options: Any) -> Step:  # options add up: mr_ode(order=3)(kind="noise") is of order 3
            unknown(options, list(inspect.signature(build).parameters), build.__name__)
            return variant(chosen | options)

        make.__signature__ = inspect.signature(build)
        given = tuple(chosen.items())
        return dataclasses.replace(
            build(**chosen), name=build.__name__, make=make, given=given, **_about(build)
        )

    return variant({})


def ramp(name: str, formula: Callable, order: int, *, highest: int = 4, **rules: Any) -> Step:
    """A multistep solver that starts itself: orders 1 .. `order` of one formula, which uses all past outputs
    it is given.
    """
    if order not in range(1, highest + 1):
        raise ValueError(f"{name} has orders 1 to {highest}, got {order!r}")
    steps: list[Step] = []
    for p in range(1, order + 1):
        steps.append(Step(formula, name, order=p, past=p - 1, start=tuple(steps), **rules))
    return steps[-1]


def _about(function: Callable) -> dict[str, Any]:
    """What a step takes from the function that it is written as."""
    origin = (named, (function.__module__, function.__qualname__))
    return {"reference": reference(function), "doc": inspect.getdoc(function) or "", "origin": origin}


def reference(documented: Any) -> str:
    """The publication that a docstring cites in [brackets]."""
    doc = " ".join((documented.__doc__ or "").split())
    return doc[doc.find("[") + 1 : doc.find("]")] if "[" in doc else ""
