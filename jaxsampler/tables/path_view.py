"""A path seen through something: its functions are wrapped, the rest is the path's."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from ..paths import Path


class PathView:
    """`path`, each of its functions as `_wrapped` makes it, once."""

    def __init__(self, path: Path):
        self._path = path

    @property
    def __class__(self):  # isinstance sees the path: a step may ask what it runs on
        return self._path.__class__

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._path, name)
        if not callable(value):
            return value
        wrapped = self._wrapped(name, value)
        setattr(self, name, wrapped)
        return wrapped

    @abstractmethod
    def _wrapped(self, name: str, function: Callable) -> Callable:
        """What takes the place of this function of the path."""
