"""Solvers are spelled in lower case, classes are not: `edict = factory("edict", EDICT)`."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
S = TypeVar("S")


def factory(name: str, solver: Callable[P, S]) -> Callable[P, S]:
    """Return a function called `name` that makes a `solver`, with its signature and its docstring."""

    def make(*args: P.args, **options: P.kwargs) -> S:
        return solver(*args, **options)

    functools.update_wrapper(make, solver, updated=())
    make.__name__ = make.__qualname__ = name
    return make
