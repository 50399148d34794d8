"""Configs: a flat TOML file read into one frozen dataclass, whose fields are the documentation.

Every key of the file must be a field, and every field without a default must be in the file. A value must
have its field's type; the only conversions are the harmless ones that TOML's syntax asks for: int -> float
and array -> tuple. It must also lie in the range that its field declares:

    batch: Count                              an integer, at least 1
    lr: Annotated[float, Range(0, above=True)]
    widths: Annotated[tuple[Count, ...], Length(1, 8)]

A float is finite, whatever its field declares. A dataclass that calls `check(self)` after it is made holds to
its ranges however it is made.
"""

import dataclasses
import math
import tomllib
import types
import typing
from pathlib import Path
from typing import Annotated, Any, TypeVar

from .files import read_some
from .spelling import nearest

C = TypeVar("C")


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; without `low` itself if `above`, without `high` if `below`."""

    low: float | int = -math.inf
    high: float | int = math.inf
    above: bool = False
    below: bool = False

    def fault(self, value: float | int) -> str | None:
        """What a number that is not in the range must be; None if it is."""
        if isinstance(value, float) and not math.isfinite(value):
            return "must be a finite number"
        if value < self.low or (self.above and value == self.low):
            if self.above:
                return f"must be above {self.low}"
            return f"must be at least {self.low}" if self.low else "must not be negative"
        if value > self.high or (self.below and value == self.high):
            return f"must be {'below' if self.below else 'at most'} {self.high}"
        return None


@dataclasses.dataclass(frozen=True)
class Length:
    """Arrays of `least` to `most` entries."""

    least: int
    most: int

    def fault(self, value: tuple) -> str | None:
        """What an array of another length must have; None if it fits."""
        fits = self.least <= len(value) <= self.most
        return None if fits else f"must have {self.least} to {self.most} entries"


# What configs count is held in 32 bits somewhere; what they build must be possible at all.
Count = Annotated[int, Range(1, 10**9)]
Natural = Annotated[int, Range(0, 10**9)]
Seed = Annotated[int, Range(0, 2**32 - 1)]
Width = Annotated[int, Range(1, 2**14)]  # of a layer
Widths = Annotated[tuple[Width, ...], Length(1, 8)]
Depth = Annotated[int, Range(1, 64)]
Positive = Annotated[float, Range(0, 1e9, above=True)]
NonNegative = Annotated[float, Range(0, 1e9)]
Number = Annotated[float, Range(-1e9, 1e9)]
Share = Annotated[float, Range(0, 1)]


def load(path: str | Path, cls: type[C]) -> C:
    """Read the file at `path` as a `cls`; one-line ValueError if it is missing, not TOML, or does not fit."""
    values = read(path)
    try:
        return build(values, cls)
    except ValueError as e:
        raise ValueError(f"config {path}: {e}") from None


def read(path: str | Path) -> dict[str, Any]:
    """Read the keys and values of a TOML file; ValueError in one line if it is missing or not TOML."""
    try:
        return tomllib.loads(read_some(path).decode())
    except OSError as e:
        raise ValueError(f"cannot read config {path}: {e.strerror}.") from None
    except RecursionError:
        raise ValueError(f"config {path} is not valid TOML: it is nested too deeply.") from None
    except ValueError as e:  # what TOML or UTF-8 is not, and integers of thousands of digits
        raise ValueError(f"config {path} is not valid TOML: {e}.") from None


def build(values: dict[str, Any], cls: type[C]) -> C:
    """Return `cls(**values)`; ValueError naming the key that is unknown, missing, of a wrong type or out of
    range.
    """
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
    for name in values:
        if name not in fields:
            raise ValueError(f"unknown key {name!r}; {nearest(name, fields)}")
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ValueError(f"key {name!r} is missing ({spell(hints[name])}).")
    return cls(**{name: fit(name, value, hints[name]) for name, value in values.items()})


def check(config: Any) -> None:
    """Raise ValueError if a field of a dataclass is out of the range that it declares."""
    for name, hint in typing.get_type_hints(type(config), include_extras=True).items():
        fit(name, getattr(config, name), hint)


def pick(values: dict[str, Any], cls: type[C]) -> C:
    """Build a `cls` from values that hold other keys too, such as the card of a training."""
    fields = {f.name for f in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
    return build({name: value for name, value in values.items() if name in fields}, cls)


def fit(name: str, value: Any, hint: Any) -> Any:
    """Return `value` as a `hint`: bool, int, float, str, `X | None`, `tuple[X, ...]`, or one with a range."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        value = fit(name, value, args[0])
        for limit in args[1:]:
            if fault := limit.fault(value):
                raise ValueError(f"key {name!r} {fault}; got {shown(value)}")
        return value
    if origin in (types.UnionType, typing.Union):
        return None if value is None else fit(name, value, next(a for a in args if a is not type(None)))
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(fit(name, v, args[0]) for v in value)
    if hint is float and type(value) is int and abs(value) < 2**1000:
        return float(value)
    if type(value) is not hint:
        raise ValueError(f"key {name!r} must be {spell(hint)}; got {shown(value)}.")
    if hint is float and not math.isfinite(value):
        raise ValueError(f"key {name!r} must be a finite number; got {value}")
    return value


def shown(value: Any, most: int = 80) -> str:
    """A value for an error in one line, cut if it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, an array in arrays in arrays
        return f"a very long {type(value).__name__}"
    return text if len(text) <= most else f"{text[:most]}.."


def spell(hint: Any) -> str:
    """Name a field's type for a reader of TOML."""
    args = typing.get_args(hint)
    if typing.get_origin(hint) is Annotated:
        return spell(args[0])
    if typing.get_origin(hint) is tuple:
        return f"an array of {spell(args[0])}"
    if args:
        return spell(next(a for a in args if a is not type(None)))
    return {bool: "true or false", int: "an integer", float: "a number", str: "a string"}[hint]
