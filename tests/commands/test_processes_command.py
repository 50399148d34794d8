"""Commands run by several processes: what comes out is what one process makes; a process that dies or fails
stops the others with a line that says which; and another number of processes goes on from there.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from places import ROOT
from test_generate_command import weights as weights

from jaxsampler.commands import cli
from jaxsampler.rollcall import free_port

GO_ON = "; run it again, with any number of processes, to go on"


def joined(*commands, doomed=None):
    """Run command lines as processes 0, 1, ..: [(exit code, last line of stdout, last line of stderr)].

    Args:
        doomed: {process: (how it ends, at which piece of its work)}.
    """
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {
        "PYTHONPATH": paths,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    what = {
        "commands": [list(map(str, c)) for c in commands],
        "doomed": [(doomed or {}).get(i) for i in range(len(commands))],
        "port": free_port(),
    }
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "processes_worker.py"), json.dumps(what)],
        env=env,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    last = lambda text: text.splitlines()[-1] if text else ""
    return [(code, last(out), last(err)) for code, out, err in json.loads(done.stdout)]


@pytest.mark.slow
def test_sample(weights, tmp_path, monkeypatch):
    """Process 0, which keeps the others together, is killed; three go on. Slow: five processes."""
    monkeypatch.chdir(tmp_path)
    command = ("sample", "--weights", weights["edm"], "--n", 11, "--batch", 2, "--steps", 2, "--out")
    killed, told = joined(*[(*command, "out")] * 2, doomed={0: ("killed", 2)})
    assert killed[0] == -9
    assert told == (2, "", f"jaxsampler: process 0 of 2 died{GO_ON}")
    kept = {f.name for f in Path("out/.samples").glob("*.npy")}
    assert "0.npy" in kept and "4.npy" not in kept  # the first's one batch; the other's are 2 and 6 and 10
    assert not {f.name for f in Path("out").iterdir()} & {"samples.npz", "samples.png", "samples.json"}

    (code, out, _), *others = joined(*[(*command, "out")] * 3)
    assert (code, out) == (0, "out/samples.png")
    assert [o[:2] for o in others] == [(0, "")] * 2
    assert sorted(os.listdir("out")) == ["samples.json", "samples.npz", "samples.png"]
    assert cli.main([*map(str, command), "alone"]) == 0
    with np.load("out/samples.npz") as a, np.load("alone/samples.npz") as b:
        np.testing.assert_array_equal(a["labels"], b["labels"])
        assert np.abs(a["images"].astype(int) - b["images"]).max() <= 1
        assert b["images"].std() > 10
    about = [json.loads(Path(out, "samples.json").read_text()) for out in ("out", "alone")]
    assert about[0]["settings"] == about[1]["settings"] and about[0]["command"] == about[1]["command"]


@pytest.mark.slow
def test_processes_that_were_asked_for_different_things(weights, tmp_path, monkeypatch):
    """Slow: two processes."""
    monkeypatch.chdir(tmp_path)
    command = ("sample", "--weights", weights["edm"], "--n", 4)
    said = joined((*command, "--seed", 1), (*command, "--seed", 2))
    line = "process 1 has another seed than process 0: start all with the same arguments and files"
    assert {code for code, _, _ in said} == {2}
    assert any(err == f"jaxsampler: {line}" for _, _, err in said)
    assert all(line in err for _, _, err in said)
    assert os.listdir(tmp_path) == []
