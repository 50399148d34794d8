"""Files are written whole or not at all, and a folder of results has one writer at a time."""

import contextlib
import errno
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

try:
    import fcntl
except ModuleNotFoundError:  # not on this system: folders are not claimed
    fcntl = None

CLAIM = ".lock"


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


def write_arrays(path: str | Path, arrays: dict[str, Any], header: dict[str, str] | None = None) -> None:
    """Write arrays as one safetensors file.

    safetensors writes the memory of an array as it lies, so a transposed one would come back as other
    numbers: all are made contiguous, and what will be written is read back before it replaces anything.

    Raises:
        ValueError: an array does not come back as it is.
        OSError: as `write`.
    """
    from safetensors.numpy import load, save

    whole = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    data = save(whole, header)
    again = load(data)
    for name, array in whole.items():
        other = again[name]
        if (other.dtype, other.shape, other.tobytes()) != (array.dtype, array.shape, array.tobytes()):
            raise ValueError(
                f"cannot write {path}: its array {name!r} does not come back from safetensors as it is; "
                "nothing is written"
            )
    write(path, data)


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


def read_some(path: str | Path, most: int = 2**25) -> bytes:
    """The bytes of a small file, a card or a config; ValueError if there are more, such as a device's."""
    with open(path, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it is longer than {most // 2**20} MB")
    return data


def seal(data: bytes, of: str) -> bytes:
    """Bytes to be kept, followed by a checksum of them and of what they are."""
    return data + hashlib.sha256(of.encode() + data).digest()


def unsealed(path: Path, of: str) -> bytes | None:
    """The bytes that `seal` kept in a file, None if there is none.

    What is damaged, or is of something else, is named on stderr and also None: it has to be made again.
    """
    if not path.exists():
        return None
    data = path.read_bytes()[:-32]
    if seal(data, of) != path.read_bytes():
        print(f"{path} is not what this run has written: it is computed again", file=sys.stderr)
        return None
    return data


def memory() -> int:
    """Bytes of memory that this process may have at most: what a file asks for beyond that is refused."""
    try:
        most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not told on this system
        return 2**40
    with contextlib.suppress(OSError, ValueError):  # a container's share
        most = min(most, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return most


def from_json(data: bytes | str) -> Any:
    """What a JSON file holds; ValueError if it is not JSON, or nested too deeply to be read."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


@contextlib.contextmanager
def claimed(folder: str | Path, of: str = "") -> Iterator[Path]:
    """Be the only process that writes into `folder`, which is made if missing, while the context is open.

    The claim is a lock of the system on the file .lock, which says who holds it. It ends with its process,
    killed or not, so nothing is ever left to be removed by hand.

    Args:
        of: claim only the results of this name; the file is .NAME.lock then.

    Raises:
        OSError: another process holds the folder; the error names it. Or the folder cannot be made.
    """
    folder = writable(Path(folder))
    file = folder / (f".{of}{CLAIM}" if of else CLAIM)
    if fcntl is None:
        yield folder
        return
    descriptor = _locked(file)
    if descriptor is None:
        yield folder
        return
    try:
        mine = {
            "process": os.getpid(),
            "host": os.uname().nodename,
            "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        }
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(mine).encode(), 0)
        yield folder
    finally:
        with contextlib.suppress(OSError):
            file.unlink()  # while it is locked, so that nobody removes the claim of the next
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _locked(file: Path) -> int | None:
    """Open and lock a file; None where locks are not possible, OSError if another process has it."""
    assert fcntl
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise OSError(
                f"{file.parent} is in use by {_holder(file)}: wait until it ends, or choose another folder"
            ) from None
        except OSError as error:  # a file system without locks
            os.close(descriptor)
            print(f"jaxsampler: {file.parent} cannot be locked: {error.strerror}", file=sys.stderr)
            return None
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), os.stat(file)):
                return descriptor
        os.close(descriptor)  # its holder has just removed it


def _holder(file: Path, patience: float = 1.0) -> str:
    """Who holds a claim, in words; a holder needs a moment to write its name."""
    began = time.monotonic()
    while True:
        try:
            told = from_json(file.read_bytes())
            return f"process {told['process']} on {told['host']} since {told['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            if time.monotonic() - began > patience:
                return "another process"
        time.sleep(0.05)
