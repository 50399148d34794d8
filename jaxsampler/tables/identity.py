"""When two functions are the same: made by the same code, from equal values.

`ddim(eta=0.3)` makes a new function each time it is called. Compared by what they close over, two of them are
equal and hash equal, so what is compiled for one serves the other. Functions written twice are different,
even with the same text: what they read from their modules may have changed in between.
"""

import dataclasses
import functools
import types
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import jax
import numpy as np


class Same:
    """An object that equals itself only; kept alive, so that its id means it."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def identity(value: Any, inside: tuple = ()) -> Hashable:
    """A hashable stand-in for `value`: equal for equal values, and for functions of one code over equal
    values.

    Args:
        value: a number, array, function, dataclass, or a container of them. A traced array equals itself
            only.
        inside: what is being looked at already; a function may close over itself.

    Example:
        >>> from jaxsampler.tables.identity import identity
        >>> make = lambda a: lambda x: a * x
        >>> identity(make(0.3)) == identity(make(0.3)), identity(make(0.3)) == identity(make(0.4))
        (True, False)
    """
    if isinstance(value, np.bool | np.integer | np.floating | np.complexfloating):
        value = value.item()  # np.float64(0.3) is 0.3
    if value is None or isinstance(value, str | bytes | bool | int | float | complex | type):
        return type(value), value
    if isinstance(value, np.ndarray):
        return "array", str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, jax.Array):
        return Same(value)
    if any(value is seen for seen in inside):
        return "itself", len(inside)
    deeper = functools.partial(identity, inside=(*inside, value))
    if isinstance(value, types.FunctionType):
        return _function(value, deeper)
    if isinstance(value, types.MethodType):
        return "method", deeper(value.__func__), deeper(value.__self__)
    if isinstance(value, functools.partial):
        return "partial", deeper(value.func), deeper(value.args), deeper(value.keywords)
    if isinstance(value, tuple | list):
        return type(value), tuple(map(deeper, value))
    if isinstance(value, dict):
        return dict, tuple((deeper(k), deeper(v)) for k, v in value.items())
    if dataclasses.is_dataclass(value):
        return type(value), tuple(
            deeper(getattr(value, f.name)) for f in dataclasses.fields(value) if f.compare
        )
    return Same(value)


def codes(same: Hashable) -> Iterator[types.CodeType]:
    """The code of all functions in what `identity` returned."""
    if isinstance(same, Same) and isinstance(same.value, types.CodeType):
        yield same.value
    if isinstance(same, tuple):
        for part in same:
            yield from codes(part)


def _function(f: types.FunctionType, deeper: Callable) -> Hashable:
    if f.__globals__.get("__name__") == "jaxtyping._decorator":  # its checks make no other function
        return deeper(f.__wrapped__)
    if f.__closure__ is None and not f.__defaults__ and not f.__kwdefaults__:
        return Same(f.__code__)
    cells = tuple(deeper(cell.cell_contents) for cell in f.__closure__ or ())
    return Same(f.__code__), cells, deeper(f.__defaults__ or ()), deeper(f.__kwdefaults__ or {})
