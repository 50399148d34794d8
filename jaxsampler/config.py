"""Configs: a flat TOML file read into one frozen dataclass, whose fields are the documentation.

Every key of the file must be a field, and every field without a default must be in the file. A value must
have its field's type; the only conversions are the harmless ones that TOML's syntax asks for: int -> float
and array -> tuple.
"""

import dataclasses
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from .spelling import nearest

C = TypeVar("C")


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
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as e:
        raise ValueError(f"cannot read config {path}: {e.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ValueError(f"config {path} is not valid TOML: {e}.") from None


def build(values: dict[str, Any], cls: type[C]) -> C:
    """Return `cls(**values)`; ValueError naming the key that is unknown, missing or of a wrong type."""
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
    for name in values:
        if name not in fields:
            raise ValueError(f"unknown key {name!r}; {nearest(name, fields)}")
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ValueError(f"key {name!r} is missing ({spell(hints[name])}).")
    return cls(**{name: fit(name, value, hints[name]) for name, value in values.items()})


def pick(values: dict[str, Any], cls: type[C]) -> C:
    """Build a `cls` from values that hold other keys too, such as the card of a training."""
    fields = {f.name for f in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
    return build({name: value for name, value in values.items() if name in fields}, cls)


def fit(name: str, value: Any, hint: Any) -> Any:
    """Return `value` as a `hint`: bool, int, float, str, `X | None` or `tuple[X, ...]`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return fit(name, value, next(a for a in args if a is not type(None)))
    if origin is tuple and isinstance(value, list):
        return tuple(fit(name, v, args[0]) for v in value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is hint:
        return value
    raise ValueError(f"key {name!r} must be {spell(hint)}; got {value!r}.")


def spell(hint: Any) -> str:
    """Name a field's type for a reader of TOML."""
    args = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return f"an array of {spell(args[0])}"
    if args:
        return spell(next(a for a in args if a is not type(None)))
    return {bool: "true or false", int: "an integer", float: "a number", str: "a string"}[hint]
