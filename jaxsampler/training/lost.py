"""A training whose loss or gradient is not finite any more stops there, and keeps what it was before."""

from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array

from .. import checkpoint


class Kept(NamedTuple):
    """A state in memory, after `made` iterations, with the mean loss of the last ones."""

    made: int
    state: Any
    loss: float


class Watch:
    """Stops a training whose loss or gradient is lost, and keeps what it was before.

    Numbers are looked at two iterations late, so that nothing waits for them, but all of them before any is
    logged or a state saved. States are kept in memory when the loss is logged, and before that after 1, 2, 4,
    .. iterations. One is good once the next iteration, which evaluates it, is finite.

    Args:
        file: where the last good state goes; the best one goes into best.safetensors beside it.
    """

    def __init__(self, file: Path | None, card: checkpoint.Card, made: int):
        self.file, self.card = file, card
        self.saved = made  # iterations of the state in the file
        self.waiting: list[tuple[int, dict[str, Array]]] = []
        self.newest: Kept | None = None
        self.last: Kept | None = None
        self.best: Kept | None = None

    def see(self, made: int, numbers: dict[str, Array], all_now: bool) -> None:
        """Look at the numbers of the iterations so far; ValueError at the first that are not finite."""
        self.waiting.append((made, numbers))
        while len(self.waiting) > (0 if all_now else 2):
            at, found = self.waiting.pop(0)
            for name in sorted(found, reverse=True):  # the loss before its gradient
                if not np.isfinite(found[name]):
                    self.stop(at, name, float(found[name]))
            if self.newest is not None:  # kept when all numbers before it had been seen
                self.last, self.newest = self.newest, None
                if self.best is None or self.last.loss < self.best.loss:
                    self.best = self.last

    def keep(self, made: int, state: Any, loss: float) -> None:
        """Copy a state, which the next update overwrites, with its mean loss."""
        if self.file is not None:
            copy = jax.tree.map(lambda x: np.array(x) if eqx.is_array(x) else x, state)
            self.newest = Kept(made, copy, loss)

    def stop(self, at: int, name: str, value: float) -> NoReturn:
        """Write the kept states and raise."""
        told = [f"the {name} of iteration {at} is {value}: lower lr or clip, or look at the data"]
        file, last, best = self.file, self.last, self.best
        if file is not None and last and best:
            if not last.made <= self.saved < at - 1:
                checkpoint.save(file, last.state, self.card)
                self.saved = last.made
            beside = file.with_name("best.safetensors")
            checkpoint.save(beside, best.state, self.card)
            told.append(f"{file} is the last good state, after {self.saved} iterations")
            told.append(f"{beside} is that of the lowest loss, {best.loss:.4g}, after {best.made}")
        raise ValueError("; ".join(told))
