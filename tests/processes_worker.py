"""What the tests of several processes run: `processes_worker.py JSON`, in which

    commands   command lines of `jaxsampler`, each run by a process of its own, joined in this order
    doomed     of each, null or [how, n]: at its n-th piece of work it is killed, or its disk is full, or it
               meets a bug
    port       of process 0

prints a JSON list of (exit code, stdout, stderr). The packages are imported once; the processes are forks.
"""

import errno
import itertools
import json
import os
import signal
import sys
import tempfile
import time

from jaxsampler.commands import cli
from jaxsampler.commands.generate import work
from jaxsampler.commands.restore import folder
from jaxsampler.training import fitting

WORK = ((work, "checked"), (folder, "save_image"), (fitting, "update"))


def doom(how, n):
    """Let the n-th piece of work be the last."""
    for module, name in WORK:
        setattr(module, name, doomed_call(getattr(module, name), how, n))


def doomed_call(call, how, n):
    left = itertools.count(n - 1, -1)

    def called(*args, **options):
        if next(left):
            return call(*args, **options)
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "full":
            raise OSError(errno.ENOSPC, "No space left on device", "photo.png")
        raise ZeroDivisionError("a bug")

    return called


def run(command, doomed, number, total, port):
    """Start a process; return its number and its two files."""
    out, err = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115 read when it has ended
    if (process := os.fork()) == 0:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        if doomed:
            doom(*doomed)
        place = ["--coordinator", f"localhost:{port}", "--process", str(number), "--processes", str(total)]
        sys.exit(cli.main([*command, *place]))
    return process, out, err


def ended(process, out, err, seconds=100):
    """Wait for the end of a process, and say what came of it."""
    until = time.monotonic() + seconds
    while (found := os.waitpid(process, os.WNOHANG))[0] == 0:
        if time.monotonic() > until:
            os.kill(process, signal.SIGKILL)
        time.sleep(0.02)
    for file in (out, err):
        file.seek(0)
    return os.waitstatus_to_exitcode(found[1]), out.read(), err.read()


if __name__ == "__main__":
    what = json.loads(sys.argv[1])
    commands = what["commands"]
    started = [
        run(c, d, i, len(commands), what["port"])
        for i, (c, d) in enumerate(zip(commands, what["doomed"], strict=True))
    ]
    print(json.dumps([ended(*s) for s in started]))
