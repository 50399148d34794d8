"""Who talks to whom in the scan.

Solver      what a sampler is: rows, init, step, final
Body        one iteration of the scan: the solver's step and its observers
Carry       what an iteration hands to the next one
Scanned     what an iteration gets
Adjoint     folds a body over what is scanned, and says how gradients flow back
Watch       what the caller of `sample` or `run` wants to see and do on the way
Stopped     a run that has not come to its end
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
from jaxtyping import Array, Float, Int, PyTree

from ..numerics import Arr, Grid, Key, State, Time
from ..paths import Denoiser, Path
from ..paths.predictions import match
from ..tables import Step, Table

Save = (
    str | int | Sequence[int] | Int[Arr, " k"] | None
)  # "all", or indices of grid points; one int is refused


class Trajectory(NamedTuple):
    """The final sample and the states saved on the way.

    Attributes:
        x: the sample.
        t: the saved grid times [k].
        xs: the states there, stacked along a new leading axis.

    Example:
        >>> denoiser = js.Denoiser(lambda x, t: 0 * x, js.CondOT(), "data")
        >>> x, t, xs = js.sample(denoiser, jnp.ones(1), x=jnp.ones(1), key=None, grid=[1.0, 0.5, 0.0],
        ...     save="all")
        >>> t.tolist(), xs[:, 0].tolist()
        ([1.0, 0.5, 0.0], [1.0, 0.5, 0.0])
    """

    x: State
    t: Float[Array, " k"]
    xs: State


class StepEnd(NamedTuple):
    """What a hook sees at the end of a grid interval.

    Attributes:
        x: the whole state.
        t: its time; a dict of them for a system of diffusions.
        key: a key for this call of the hook, None without a key.

    Example:
        >>> denoiser = js.Denoiser(lambda x, t: 0 * x, js.CondOT(), "data")
        >>> keep_positive = lambda end: jnp.maximum(end.x, 0.1)
        >>> ends = {"x": jnp.ones(1), "key": None, "grid": [1.0, 0.5, 0.0]}
        >>> js.sample(denoiser, jnp.ones(1), **ends, hook=keep_positive)
        Array([0.1], dtype=float32)
    """

    x: State
    t: Any
    key: Key | None


@runtime_checkable
class Solver(Protocol):
    """A sampler that is not a table: norm-dependent steps, adaptive steps, schemes with two states.

    `rows` is a pytree of arrays with one leading axis, a row for each iteration of the scan. Its leaf `end`
    is the grid time at which the interval of a row ends, else NaN; `when`, if there is one, is what hooks get
    as the time instead. The state is a tuple whose first entry is the current x (uncentred). A solver that
    can be undone has `reverse` too, with the arguments of `step`.

    Example:
        >>> isinstance(js.solvers.edict(), js.Solver), isinstance(js.solvers.ddim, js.Solver)
        (True, False)
    """

    def rows(self, path: Path, grid: Grid) -> PyTree:
        """What the scan iterates over."""
        ...

    def init(self, x: State, rows: PyTree) -> tuple:
        """The state before the first row."""
        ...

    def step(self, model: Callable, state: tuple, row: PyTree, key: Key | None) -> tuple:
        """The state after one row; the key is folded from the row's index (None without a key)."""
        ...

    def final(self, state: tuple) -> State:
        """The sample."""
        ...


Sampler = Step | Sequence[Step] | Table | Solver  # what `js.sample` takes as its solver


class Carry(NamedTuple):
    """What an iteration hands to the next one.

    Attributes:
        state: the solver's; its first entry is x, centred for tables.
        saved: buffer of the states to save, None if nothing is saved.
        fault: number of the first fault found by `check`, 2 n if none.
    """

    state: tuple
    saved: State | None
    fault: Int[Array, ""]


class Scanned(NamedTuple):
    """What an iteration gets.

    Attributes:
        row: the solver's.
        index: number of the row.
        slot: place in the buffer that it saves into.
        is_end: whether it ends a grid interval.
        entry: its interval's part of `per_step`, None without.
    """

    row: Any
    index: Any
    slot: Any
    is_end: Any
    entry: Any


@runtime_checkable
class Body(Protocol):
    """One iteration of the scan: a pytree whose leaves (network, conditioning, noise) are what is
    differentiated.

    Attributes:
        solver: the four functions that are scanned.
        model: what they call.
        key: of the solver's noise and of hooks.
        denoiser: whose mu the state of a table leaves out; None for a plain callable.
        hook: called at the ends of intervals.
    """

    solver: Any
    model: Callable
    key: Key | None
    denoiser: Denoiser | None
    hook: Callable | None

    def __call__(self, carry: Carry, scanned: Scanned) -> Carry:
        """The carry after this iteration."""
        ...

    def reverse(self, carry: Carry, scanned: Scanned) -> Carry:
        """The carry before this iteration, by the solver's own inverse; what was saved is left as it is."""
        ...


@runtime_checkable
class Adjoint(Protocol):
    """How gradients flow through the scan: a stand-in for `lax.scan` without outputs per row.

    `loop` is compiled with the rows as arguments. An adjoint that must look at their values has also
    `planned(body, scanned) -> Adjoint`, called before: a copy of itself that knows what it saw.

    Example:
        >>> all(isinstance(a, js.scan.Adjoint) for a in (js.Direct(), js.LastK(2), js.AdjointDPM()))
        True
    """

    def loop(self, body: Body, carry: Carry, scanned: Scanned) -> Carry:
        """Fold `body` over the leading axis of `scanned`."""
        ...


@dataclasses.dataclass(frozen=True)
class Watch:
    """What the caller wants to see and do on the way; `run` says what each option means."""

    adjoint: Adjoint | None = None
    save: Save = None
    progress: bool = False
    hook: Callable[[StepEnd], State] | None = None
    check: bool = False
    per_step: PyTree | None = None
    jit: bool = True
    stop: int | None = None


jax.tree_util.register_dataclass(
    Watch, ("adjoint", "hook", "per_step"), ("save", "progress", "check", "jit", "stop")
)


class Stopped(eqx.Module):
    """A run that has stopped at a grid time: `js.sample(.., stop=i)` returns it, `js.resume` goes on.

    It holds all that the rest of the run needs: the solver's memory, the key, the rows. It is a pytree;
    functions in it (the network's) are leaves, so `eqx.filter_jit` returns it and `jax.jit` does not.

    Example:
        >>> denoiser = js.Denoiser(lambda x, t: 0 * x, js.CondOT(), "data")
        >>> half = js.sample(denoiser, x=jnp.ones(1), grid=[1.0, 0.5, 0.0], stop=1)
        >>> float(half.t), half.x.tolist(), js.resume(half).tolist()
        (0.5, [0.5], [0.0])
    """

    carry: Carry
    solver: Any
    rows: PyTree
    model: Callable
    key: Key | None
    denoiser: Denoiser | None
    watch: Watch
    observe: bool = eqx.field(static=True)
    row: int = eqx.field(static=True)  # the first that is left

    @property
    def t(self) -> Time | dict[str, Time]:
        """The grid time it stopped at."""
        last = jax.tree.map(lambda a: a[self.row - 1], self.rows)
        return hook_time(last)

    @property
    def x(self) -> State:
        """The state there."""
        x = self.carry.state[0]
        return x if self.denoiser is None else self.denoiser.uncentred(x)

    def replace(self, x: State) -> "Stopped":
        """Return the run with another state at this time; the solver's memory stays."""
        x = match(x, self.x)
        x = x if self.denoiser is None else self.denoiser.centred(x)
        state = (x, *self.carry.state[1:])
        return dataclasses.replace(self, carry=self.carry._replace(state=state))


def hook_time(row: Any) -> Time | dict[str, Time]:
    """The time that a hook gets at the end of a row."""
    return getattr(row, "when", row.end)
