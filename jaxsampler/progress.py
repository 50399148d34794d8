"""A progress bar that a compiled loop can drive.

`tick(i, bar)` is called from inside the scan with the row's index. The index does not depend on the state, so the bar survives vmap (one
tick per row, not one per sample) and grad (recomputed rows tick again; the bar never runs backwards).
"""

import sys
import time

import jax


class Bar:
    """A one-line text bar on stderr; restarts by itself when the loop does."""

    def __init__(self, total: int, label: str = "sampling"):
        self.total, self.label, self.done, self.began = total, label, 0, 0.0

    def __call__(self, i: int) -> None:
        """Row i (from 0) is finished."""
        i = int(i)
        if i == 0:
            self.done, self.began = 0, time.monotonic()
        if i + 1 <= self.done:
            return
        self.done = i + 1
        seconds = time.monotonic() - self.began
        filled = 30 * self.done // self.total
        rate = f"{self.done / seconds:.1f} rows/s" if seconds > 0 else ""
        end = "\n" if self.done == self.total else ""
        sys.stderr.write(f"\r{self.label} |{'#' * filled}{'-' * (30 - filled)}| {self.done}/{self.total} {rate:<14}{end}")
        sys.stderr.flush()


def tick(i: jax.Array, bar: Bar) -> None:
    """Advance `bar` when row i has run, from traced code."""
    jax.debug.callback(bar, i, ordered=False)
