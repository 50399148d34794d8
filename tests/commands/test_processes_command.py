"""Commands run by several processes: what comes out is what one process makes; a process that dies or fails
stops the others with a line that says which; and another number of processes goes on from there.
"""

import csv
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import pytest
from PIL import Image
from places import ROOT
from test_generate_command import weights as weights

from jaxsampler import checkpoint, data
from jaxsampler.commands import cli
from jaxsampler.rollcall import free_port
from jaxsampler.training import fitting, restore

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
    return [(code, last_line(out), last_line(err)) for code, out, err in json.loads(done.stdout)]


def last_line(text):
    """Gloo, by which JAX joins CPUs, prints lines of its own."""
    lines = [line for line in text.splitlines() if not line.startswith("[Gloo]")]
    return lines[-1] if lines else ""


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


CONFIG = """
task = "generate"
model = "edm"
seed = 1
steps = 6
batch = 6
widths = [4]
depth = 1
embedding = 8
noise_mean = -1.0
noise_std = 1.0
dropout = 0.1
lr = 0.01
warmup = 2
weight_decay = 0.0
clip = 1.0
average = 0.1
images = "pets"
size = 8
minutes = 0.0
"""


@pytest.mark.slow
def test_train(tmp_path, monkeypatch, capsys):
    """Process 1 of two is killed in the fourth iteration, when three are saved; three processes make the
    rest, and end where one process ends that was stopped at the same place. Slow: five processes.
    """
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for kind in ("cat", "dog"):
        (folder := Path("pets", kind)).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(folder / f"{i}.png")
    Path("c.toml").write_text(CONFIG)
    command = ("train", "c.toml", "--out")
    told, killed = joined(*[(*command, "many.safetensors")] * 2, doomed={1: ("killed", 4)})
    assert killed[0] == -9
    assert told == (2, "", f"jaxsampler: process 1 of 2 died{GO_ON}")
    assert checkpoint.read("many/state.safetensors")["step"] == 3
    said = joined(*[(*command, "many.safetensors")] * 3)
    assert [s[:2] for s in said] == [(0, "many.safetensors"), (0, ""), (0, "")]

    update, left = fitting.update, iter(range(3))
    monkeypatch.setattr(
        fitting, "update", lambda *args: update(*args) if next(left, None) is not None else interrupt()
    )
    assert cli.main([*command, "one.safetensors"]) == 130
    monkeypatch.setattr(fitting, "update", update)
    assert cli.main([*command, "one.safetensors"]) == 0
    many, one = (checkpoint.read(f"{name}/state.safetensors") for name in ("many", "one"))
    assert many["step"] == one["step"] == 6
    for name, a in one.items():
        np.testing.assert_allclose(many[name], a, rtol=0, atol=2e-4 * np.abs(a).max(), err_msg=name)
    losses = [
        list(csv.DictReader(Path(name, "log.csv").read_text().splitlines())) for name in ("many", "one")
    ]
    for a, b in zip(*losses, strict=True):
        assert a["step"] == b["step"]
        for what in ("loss", "gradient"):
            assert float(a[what]) == pytest.approx(float(b[what]), rel=1e-5)
    assert sorted(os.listdir("many")) == sorted(os.listdir("one"))
    cards = [checkpoint.read_card(f"{name}.safetensors") for name in ("many", "one")]
    assert cards[0].pop("metrics")["test loss"] == pytest.approx(
        cards[1].pop("metrics")["test loss"], abs=2e-5
    )
    assert cards[0] == cards[1]


def interrupt():
    raise KeyboardInterrupt


RESTORE = restore.Restore(
    photos=(),
    seed=0,
    steps=2,
    batch=1,
    crop=16,
    std=0.2,
    T=100,
    eps=0.005,
    widths=(4,),
    depth=1,
    embedding=8,
    lr=1e-2,
    warmup=0,
    weight_decay=0.0,
    clip=1.0,
    decay=0.9,
)


@pytest.mark.slow
def test_restore_a_folder(tmp_path, monkeypatch, capsys):
    """The disk of process 1 of two is full at its second photo; three processes do the rest. One photo is
    none. Slow: five processes.
    """
    monkeypatch.chdir(tmp_path)
    rng, residual = np.random.default_rng(0), [0.1] * len(data.TASKS)
    shapes = eqx.filter_eval_shape(restore.network, RESTORE, tuple(residual))
    net = jax.tree.map(lambda a: (0.2 * rng.standard_normal(a.shape)).astype(a.dtype), shapes)
    checkpoint.save("net.safetensors", net, dataclasses.asdict(RESTORE) | {"residual": residual})
    Path("photos").mkdir()
    for i in range(7):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(f"photos/{i}.png")
    Path("photos/6.png").write_bytes(b"no image")
    command = ("restore", "--batch", "photos", "--task", "dejpeg", "--weights", "net.safetensors")
    command = (*command, "--steps", 2, "--out")
    told, full = joined(*[(*command, "many")] * 2, doomed={1: ("full", 2)})
    why = "the disk is full (photo.png): make room and run the command again"
    assert full == (2, "", f"jaxsampler: {why}")
    assert told[::2] == (2, f"jaxsampler: process 1 of 2 stopped: {why}{GO_ON}")
    before = {f.name: f.stat().st_mtime_ns for f in Path("many").glob("*.png")}
    assert "1.png" in before and "3.png" not in before

    (code, out, err), *others = joined(*[(*command, "many")] * 3)
    assert code == 2 and err.startswith("jaxsampler: 6.png: ")
    assert out == f"{6 - len(before)} restored into many, {len(before)} were there already, 1 failed"
    assert [o[1] for o in others] == ["", ""]
    assert cli.main([*map(str, command), "one"]) == 2
    assert (
        sorted(os.listdir("many"))
        == sorted(os.listdir("one"))
        == [".restored.json", *(f"{i}.png" for i in range(6))]
    )
    for i in range(6):
        a, b = (np.asarray(Image.open(f"{name}/{i}.png")).astype(int) for name in ("many", "one"))
        assert np.abs(a - b).max() <= 1
    assert {name: Path("many", name).stat().st_mtime_ns for name in before} == before
    assert Path("many/.restored.json").read_bytes() == Path("one/.restored.json").read_bytes()
