"""Calls outside `jax.jit` that compile once.

`once(function, *args)` is `function(*args)` in a compiled program, which the next call with equal arguments
uses again: arrays of the same shapes, and everything else equal. Functions and objects without an equality of
their own are equal only to themselves. The cache holds them weakly: the program of a network that nobody
holds any more is dropped, so networks made anew for each call fill no memory.

Inside a program that is being staged (`jax.jit`, `lax.scan`, ..) `function` runs as it is: it becomes part of
that program.
"""

import os
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.extend.core
import numpy as np
from jax.core import Tracer

from .convolutions import VARIABLE


class Latest(OrderedDict):
    """A dict of the values used last, at most `most` of them.

    Example:
        >>> from jaxsampler.eager import Latest
        >>> squares = Latest(2)
        >>> [squares.made(n, lambda n=n: n * n) for n in (3, 4, 3, 5)], list(squares)
        ([9, 16, 9, 25], [3, 5])
    """

    def __init__(self, most: int):
        super().__init__()
        self.most = most

    def made(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The value of `key`, made if it is not there; made each time if the key has no hash."""
        try:
            known = key in self
        except TypeError:
            return make()
        if known:
            self.move_to_end(key)
            return self[key]
        self[key] = value = make()
        if len(self) > self.most:
            self.popitem(last=False)
        return value


_programs = Latest(256)


def once(function: Callable, *args: Any) -> Any:
    """`function(*args)`, compiled at the first call with such arguments.

    Args:
        function: a function of its arguments only, defined at the top of a module.
        args: pytrees; their arrays are arguments of the program, all other leaves are constants in it.

    Example:
        >>> from jaxsampler.eager import once
        >>> traced = []
        >>> def double(x, factor):
        ...     traced.append(factor)
        ...     return factor * x
        >>> [float(once(double, jnp.float32(x), 2.0)) for x in (1.0, 2.0, 3.0)], traced
        ([2.0, 4.0, 6.0], [2.0])
    """
    if staged():
        return function(*args)
    leaves, structure = jax.tree.flatten((function, args))
    arrays = [leaf if isinstance(leaf, np.ndarray | jax.Array) else None for leaf in leaves]
    key = (
        structure,
        os.environ.get(VARIABLE),
        tuple(_held(leaf) for leaf, a in zip(leaves, arrays, strict=True) if a is None),
    )
    try:
        hash(key)
    except TypeError:  # something static has no hash: there is no telling what equals it
        return function(*args)
    program = _programs.made(key, lambda: _compiled(structure, key, [a is None for a in arrays]))
    return program([a for a in arrays if a is not None])


def forget() -> None:
    """Drop all programs."""
    _programs.clear()


def staged() -> bool:
    """Whether what is computed now becomes part of a larger program."""
    if _AT_ONCE is not None and _state() == _AT_ONCE:  # no transformation at all: what costs least to ask
        return False
    return isinstance(jax.lax.neg(np.float32(0)), Tracer)


_state: Any = getattr(jax.extend.core, "get_opaque_trace_state", None)
with jax.ensure_compile_time_eval():
    _AT_ONCE = None if _state is None else _state()


def _compiled(structure: Any, key: tuple, static: list[bool]) -> Callable:
    """The program. It holds weakly what the cache holds weakly: whoever calls it has the rest alive."""

    def call(arrays: list) -> Any:
        constants, values = iter(key[-1]), iter(arrays)
        leaves = [next(constants).value() if is_static else next(values) for is_static in static]
        function, args = jax.tree.unflatten(structure, leaves)
        return function(*args)

    for held in key[-1]:
        held.forget_with(key)
    return jax.jit(call)


class _Held:
    """A leaf with an equality of its own."""

    __slots__ = ("leaf",)

    def __init__(self, leaf: Any):
        self.leaf = leaf

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held) and type(self.leaf) is type(other.leaf) and self.leaf == other.leaf

    def __hash__(self) -> int:
        return hash(self.leaf)

    def value(self) -> Any:
        return self.leaf

    def forget_with(self, key: tuple) -> None:
        """Nothing: it keeps its value alive."""


class _WeaklyHeld:
    """A leaf that equals itself only."""

    __slots__ = ("hash", "value")

    def __init__(self, leaf: Any):
        self.value = _reference(leaf)
        self.hash = hash((id(leaf.__self__), id(leaf.__func__)) if _is_method(leaf) else id(leaf))

    def __eq__(self, other: object) -> bool:
        if self is other:  # also when what it referred to is gone
            return True
        if not isinstance(other, _WeaklyHeld):
            return False
        a, b = self.value(), other.value()
        if _is_method(a) and _is_method(b):
            return a.__self__ is b.__self__ and a.__func__ is b.__func__
        return a is not None and a is b

    def __hash__(self) -> int:
        return self.hash

    def forget_with(self, key: tuple) -> None:
        """Drop the program of this key when the leaf dies."""
        leaf = self.value()
        self.value = _reference(leaf, lambda _, programs=_programs: programs.pop(key, None))


def _held(leaf: Any) -> _Held | _WeaklyHeld:
    equality = type(leaf).__eq__
    if equality is object.__eq__ or isinstance(leaf, types.FunctionType | types.MethodType):
        try:
            return _WeaklyHeld(leaf)
        except TypeError:  # cannot be held weakly
            return _Held(leaf)
    return _Held(leaf)


def _is_method(leaf: Any) -> bool:
    return isinstance(leaf, types.MethodType)


def _reference(leaf: Any, *callback: Callable) -> Callable:
    return (weakref.WeakMethod if _is_method(leaf) else weakref.ref)(leaf, *callback)
