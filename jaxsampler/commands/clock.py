"""A clock on stderr for work that cannot tell how far it is, so that who waits sees it move."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

PATIENCE = 2.0  # seconds before it shows
EVERY = 1.0  # seconds between two looks on a terminal; elsewhere, where each is a line, ten times as many


@contextlib.contextmanager
def clock(what: str) -> Iterator[None]:
    """Show the seconds that `what` takes while the context is open, if they are more than two."""
    began, over, there = time.monotonic(), threading.Event(), sys.stderr.isatty()
    shown = []

    def show() -> None:
        wait = PATIENCE
        while not over.wait(wait):
            wait = EVERY if there else 10 * EVERY
            shown.append(wait)
            told = f"{what}: {time.monotonic() - began:.0f} s .."
            print(f"\r{told}" if there else told, end="" if there else "\n", file=sys.stderr, flush=True)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        if shown and there:
            print(file=sys.stderr, flush=True)
