"""Files are written whole or not at all."""

import contextlib
import errno
import os
import tempfile
from pathlib import Path


def write(path: str | Path, data: bytes, *, parents: bool = True) -> None:
    """Write `data` to `path`: to a temporary file .NAME.PID.part beside it, flushed to disk, then renamed.

    Args:
        parents: make missing folders.

    Raises:
        OSError: one line that names the file; what was there before is still there, and nothing else is.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or error
        raise OSError(f"cannot write {path}: {reason}") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def writable(folder: Path) -> Path:
    """Return the folder, made if missing; OSError if it is not writable, now rather than after the work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"cannot write into {folder}: {error.strerror}; choose another place with --out"
        ) from None
    return folder
