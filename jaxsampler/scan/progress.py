"""A progress bar that a compiled loop can drive.

`begin` runs once before the loop and its token goes into the row indices, so it comes first; `tick(i, bar)`
is called from inside the scan. Indices do not depend on the state, so the bar survives vmap (one tick per
row, not one per sample) and grad (recomputed rows tick again, but the bar never runs backwards).
"""

import functools
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback


class Bar:
    """A one-line text bar on stderr."""

    def __init__(self, total: int, label: str = "sampling"):
        self.total, self.label, self.done, self.began = total, label, 0, 0.0

    @classmethod
    @functools.lru_cache(maxsize=256)
    def of(cls, total: int) -> "Bar":
        """The bar of this many rows: one object, so that the program that drives it is compiled once."""
        return cls(total)

    def restart(self) -> np.ndarray:
        """Back to nothing done; returns a zero that the row indices are added to."""
        self.done, self.began = 0, time.monotonic()
        return np.zeros((), np.int32)

    def advance(self, i: Any) -> None:
        """Row i (from 0) has run."""
        if int(i) + 1 <= self.done:
            return
        self.done = int(i) + 1
        filled = 30 * self.done // self.total
        rate = self.done / max(time.monotonic() - self.began, 1e-9)
        end = "\n" if self.done == self.total else ""
        sys.stderr.write(
            f"\r{self.label} |{'#' * filled}{'-' * (30 - filled)}| {self.done}/{self.total} {rate:8.1f} "
            f"rows/s{end}"
        )
        sys.stderr.flush()


def begin(bar: Bar, index: np.ndarray) -> jax.Array:
    """The row indices, which cannot be had before the bar has restarted."""
    return jnp.asarray(index) + io_callback(bar.restart, jax.ShapeDtypeStruct((), jnp.int32))


def tick(i: jax.Array, bar: Bar) -> None:
    """Advance `bar` when row i has run, from traced code."""
    jax.debug.callback(bar.advance, i, ordered=False)
