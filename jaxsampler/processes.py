"""One command run by several processes: how they find one another, agree, share the work, and end.

    srun jaxsampler sample ..                                                found from SLURM (or a TPU pod)
    jaxsampler sample .. --coordinator HOST:PORT --process I --processes N   by hand, one on each machine

A process that is alone pays for none of this: `join` returns, `gather` gives its own value back. Joined
processes stop together: when one dies or fails, all others end with a line that says which. They leave by
`os._exit`, because JAX's own end would wait minutes for the missing one, or abort; nothing is lost by it,
because files are written whole or not at all.
"""

import contextlib
import os
import re
import secrets
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import jax

from . import files
from .rollcall import Member

PATIENCE = 300.0  # seconds for all processes to come
WORD = 5.0  # seconds of waiting for them before a word
NEWS = 10.0  # seconds in which a failed collective turns out to be another process's death
AGAIN = "run it again, with any number of processes, to go on"
T = TypeVar("T")
TPU_PORT = 8476

_member: Member | None = None
_speech = threading.Lock()


class Place(NamedTuple):
    """Where process 0 is, which process this is, of how many, and the GPUs that it may take (None: all)."""

    host: str
    port: int
    process: int
    processes: int
    gpus: list[int] | None = None


def place(coordinator: str | None, process: int | None, processes: int | None) -> Place | None:
    """The place that the options name, or the environment; None: alone.

    Raises:
        ValueError: the options do not fit.
    """
    given = {"--process": process, "--processes": processes}
    if coordinator is None:
        for name, value in given.items():
            if value is not None:
                fix = "give --coordinator HOST:PORT, where process 0 runs"
                raise ValueError(f"{name} {value} without --coordinator: {fix}")
        return from_slurm(os.environ) or from_tpu(os.environ)
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f"--coordinator {coordinator} is not HOST:PORT: write for instance localhost:1234")
    for name, value in given.items():
        if value is None:
            raise ValueError(f"--coordinator without {name}: give each process its number and their count")
    assert process is not None and processes is not None
    if processes < 1:
        raise ValueError(f"--processes must be at least 1, got {processes}")
    if not 0 <= process < processes:
        fix = f"number them from 0 to {processes - 1}"
        raise ValueError(f"--process {process} is none of the {processes} of --processes: {fix}")
    return Place(host.strip("[]"), int(port), process, processes) if processes > 1 else None


def from_slurm(env: Mapping[str, str]) -> Place | None:
    """The place that `srun` gave this process, if it started several."""
    if not {"SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_JOB_ID"} <= {*env}:
        return None
    total, number = int(env["SLURM_STEP_NUM_TASKS"]), int(env["SLURM_PROCID"])
    if total == 1:
        return None
    # the first of "a", "a,b", "a[001-004,7],b"
    first = re.match(r"([^\[,]+)(?:\[(\w+))?", env["SLURM_STEP_NODELIST"])
    assert first is not None
    step = int(env.get("SLURM_STEP_ID", 0))
    port = 61440 + (int(env["SLURM_JOB_ID"]) + 64 * step) % 4096
    return Place(first[1] + (first[2] or ""), port, number, total, shared_gpus(env))


def shared_gpus(env: Mapping[str, str]) -> list[int] | None:
    """This task's part of the GPUs that the tasks of a machine all see; None if each sees its own."""
    seen = len([gpu for gpu in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu])
    counts: list[int] = []  # "2(x3),1" is 2, 2, 2, 1
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", env.get("SLURM_STEP_TASKS_PER_NODE", "1")):
        counts += [int(count)] * int(times or 1)
    tasks, local = (
        counts[min(int(env.get("SLURM_NODEID", 0)), len(counts) - 1)],
        int(env.get("SLURM_LOCALID", 0)),
    )
    if tasks == 1 or seen < tasks:
        return None
    return list(range(local * seen // tasks, (local + 1) * seen // tasks))


def from_tpu(env: Mapping[str, str]) -> Place | None:
    """The place of this worker of a TPU pod, of several slices perhaps."""
    workers = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES") or ""
    names, slices = [w for w in workers.split(",") if w], int(env.get("MEGASCALE_NUM_SLICES") or 1)
    if len(names) * slices < 2 or "TPU_WORKER_ID" not in env:
        return None
    host = (env.get("MEGASCALE_COORDINATOR_ADDRESS") or names[0]).partition(":")[0]
    number = int(env["TPU_WORKER_ID"]) + len(names) * int(env.get("MEGASCALE_SLICE_ID") or 0)
    return Place(host, TPU_PORT, number, len(names) * slices)


def join(
    coordinator: str | None = None, process: int | None = None, processes: int | None = None, **asked: Any
) -> None:
    """Become one of several processes, before JAX is used; without options or environment stay alone.

    Args:
        asked: what the command was asked for, which must be the same for all.

    Raises:
        ValueError: the options do not fit, process 0 cannot be reached in time, others do not come or were
            asked for something else, or JAX is in use.
    """
    global _member
    if (here := place(coordinator, process, processes)) is None:
        return
    word = threading.Timer(WORD, print, ["waiting for the other processes .."], {"file": sys.stderr})
    word.daemon = True
    word.start()
    try:
        _member = Member(here.process, here.processes, (here.host, here.port), gone=_stop, patience=PATIENCE)
    finally:
        word.cancel()
    agree({name: str(value) for name, value in asked.items()})
    os.environ["no_grpc_proxy"] = local = "127.0.0.1"  # noqa: SIM112 the name that gRPC reads
    jax.config.update("jax_check_proxy_envs", False)  # the tunnel begins here, no proxy is in its way
    local = f"{local}:{_member.inner}"
    try:
        jax.distributed.initialize(
            local,
            here.processes,
            here.process,
            local_device_ids=here.gpus,
            cluster_detection_method="deactivate",
            coordinator_bind_address=local,
            initialization_timeout=int(PATIENCE),
        )
    except RuntimeError as error:
        if "before any JAX calls" in (why := " ".join(str(error).split())):
            why = "JAX is in use already: join before the first computation"
        raise ValueError(f"the processes cannot be joined: {why}") from None


def alone() -> bool:
    """Whether this process is the only one."""
    return _member is None


def number() -> int:
    """Which process this is, from 0."""
    return 0 if _member is None else _member.number


def count() -> int:
    """How many processes there are."""
    return 1 if _member is None else _member.total


def gather(value: Any = None, seconds: float | None = None) -> list[Any]:
    """Give a value that JSON can hold and wait for those of all processes: the list by their number.

    Args:
        seconds: how long to wait at most; None: as long as all are alive.

    Example:
        >>> from jaxsampler import processes
        >>> processes.gather("mine")
        ['mine']
    """
    if _member is None:
        return [value]
    try:
        return _member.gather(value, seconds)
    except TimeoutError:
        raise ValueError(f"the other processes are not at the same point after {seconds:g} s") from None


def from_first(value: Any = None) -> Any:
    """The value that process 0 gives, for all; the others wait for it."""
    return gather(value if number() == 0 else None)[0]


def agree(settings: dict[str, Any]) -> None:
    """Raise a ValueError, in all processes, unless these are the same everywhere."""
    everyone = gather(settings)
    for i, theirs in enumerate(everyone):
        ours = everyone[0]
        if other := sorted(k for k in {*ours, *theirs} if ours.get(k) != theirs.get(k)):
            fix = "start all with the same arguments and files"
            raise ValueError(f"process {i} has another {', '.join(other)} than process 0: {fix}")


def after_first(work: Callable[[], T]) -> T:
    """Let process 0 do something, then all others, which find done what needs doing once."""
    if number() > 0:
        gather()
    result = work()
    if number() == 0:
        gather()
    return result


@contextlib.contextmanager
def first_to_fail() -> Iterator[None]:
    """What fails in all processes is said by process 0, which has time to write what it keeps."""
    try:
        yield
    except ValueError:
        if number() > 0:
            time.sleep(NEWS)
        raise


@contextlib.contextmanager
def claimed(folder: str | Path, of: str = "") -> Iterator[Path]:
    """`files.claimed` by process 0 for all, which must see the same folder."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(files.claimed(folder, of)) if number() == 0 else Path(folder)
        if not alone():
            share(folder)
        yield folder


def share(folder: Path) -> None:
    """Raise a ValueError, in all processes, unless they all see this folder."""
    mark = folder / from_first(f".shared.{secrets.token_hex(8)}")
    if number() == 0:
        mark.touch()
    gather()
    blind = [str(i) for i, sees in enumerate(gather(mark.exists())) if not sees]
    if number() == 0:
        mark.unlink()
    if blind:
        fix = "choose a folder that all machines share"
        raise ValueError(f"process {', '.join(blind)} does not see {folder} of process 0: {fix}")


def stop(code: int, why: str) -> int:
    """Say why this process ends, to the user and to the other processes; return the exit code if alone."""
    if _member is None:
        print(f"jaxsampler: {why}", file=sys.stderr)
        return code
    if re.match("[A-Z_]{5,}: ", why):  # of XLA, which names the state of a call: OUT_OF_RANGE, UNKNOWN, ..
        _member.thread.join(
            NEWS
        )  # a collective fails when another process dies, of which this one then hears
    with _speech:
        print(f"jaxsampler: {why}", file=sys.stderr)
        _member.fail(why)
        _exit(code)


def stop_for_bug(error: Exception) -> NoReturn:
    """End a joined process by an exception that is no message to the user: with its traceback."""
    assert _member is not None
    if isinstance(error, jax.errors.JaxRuntimeError):
        _member.thread.join(NEWS)
    with _speech:
        traceback.print_exception(error)
        _member.fail(f"{type(error).__name__}: {' '.join(str(error).split())}")
        _exit(1)


def finish() -> None:
    """End together: wait for all others, then leave JAX."""
    global _member
    if _member is not None:
        _member.gather(last=True)
        jax.distributed.shutdown()
        _member.leave()
        _member = None


def _stop(why: str) -> None:
    with _speech:
        below = "" if number() else "\n"  # the progress bar, which process 0 shows
        print(f"{below}jaxsampler: {why}; {AGAIN}", file=sys.stderr)
        _exit(2)


def _exit(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)
