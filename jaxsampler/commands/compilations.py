"""The commands' compilation cache, in the user's cache folder, and a word to who waits for a compilation.

JAX writes a file for each program and reads it in the next process. What it would let grow without end is
bounded here: the files used last stay. Two processes may share the folder; a file that a kill left unfinished
is compiled and written again.
"""

import contextlib
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

MOST = 512 * 2**20  # bytes
QUICK = 0.2  # seconds of compilation below which a program is not kept
PATIENCE = 1.0  # seconds before a word


def folder() -> Path:
    """Where programs are kept: $XDG_CACHE_HOME/jaxsampler/compiled, by default below ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxsampler" / "compiled"


def keep(wanted: bool = True) -> None:
    """Use the cache for this process, unless the user has set JAX's own or it is not wanted.

    A folder that cannot be written is named once, and the command works without.
    """
    config: Any = jax.config
    if config.jax_compilation_cache_dir or not wanted:
        return
    where = folder()
    try:
        where.mkdir(parents=True, exist_ok=True)
        (probe := where / f".{os.getpid()}").touch()
        probe.unlink()
        shrink(where, MOST)
    except OSError as e:
        print(f"jaxsampler: compiling without a cache: {e.strerror} ({where})", file=sys.stderr)
        return
    config.update("jax_compilation_cache_dir", str(where))
    config.update("jax_persistent_cache_min_compile_time_secs", QUICK)
    # an unreadable entry is compiled again: of no concern to the user
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")


def shrink(where: Path, most: int) -> None:
    """Delete the files not used for longest until at most this many bytes are left."""
    found = []
    for file in where.iterdir():
        with contextlib.suppress(OSError):  # another process may delete it first
            about = file.stat()
            found.append((max(about.st_mtime, about.st_atime), about.st_size, file))
    total = sum(size for _, size, _ in found)
    for _, size, file in sorted(found):
        if total <= most:
            break
        with contextlib.suppress(OSError):
            file.unlink()
        total -= size


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """Say on stderr what is being compiled, if it takes more than a second."""
    say = lambda: print(f"compiling {what} ..", file=sys.stderr, flush=True)
    timer = threading.Timer(PATIENCE, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
