"""Who talks to whom in the scan: what a sampler is, what one iteration carries and gets, what observers see."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Float, PyTree

Save = Any  # "all", indices of grid points, or nothing


class Trajectory(NamedTuple):
    """x: the final sample. t: the saved grid times [k]. xs: the states there, stacked along a new leading axis."""

    x: PyTree
    t: Float[Array, " k"]
    xs: PyTree


class StepEnd(NamedTuple):
    """What a hook sees at the end of a grid interval: the whole state, its time, and a key of its own (None without a key).

    Of a system the time is a dict, one for each part.
    """

    x: PyTree
    t: Any
    key: Any


@runtime_checkable
class Solver(Protocol):
    """A sampler that is not a table: norm-dependent steps, adaptive steps, schemes with two states.

    `rows` is a pytree of arrays with one leading axis, one row per scan iteration, with a leaf `end` (the grid time at which the row's
    interval ends, else NaN; `when`, if there is one, is what hooks get as the time instead). The state is a tuple whose first entry is
    the current x (uncentred).
    """

    def rows(self, path: Any, grid: Any) -> PyTree:
        """What the scan iterates over."""
        ...

    def init(self, x: PyTree, rows: PyTree) -> tuple:
        """The state before the first row."""
        ...

    def step(self, model: Callable, state: tuple, row: PyTree, key: Any) -> tuple:
        """One row: model, state, row and a key folded from the row's index (None without a key)."""
        ...

    def final(self, state: tuple) -> PyTree:
        """The sample."""
        ...


class Scanned(NamedTuple):
    """What one iteration gets: the solver's row, its number, the slot it saves into, whether it ends an interval, its `per_step` entry."""

    row: Any
    index: Any
    slot: Any
    is_end: Any
    entry: Any
