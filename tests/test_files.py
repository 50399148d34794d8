"""A folder has one writer at a time: the others are told who, and a claim ends with its process."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from places import ROOT

from jaxsampler import files
from jaxsampler.files import claimed, from_json

HOLDER = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("files", sys.argv[1])  # without JAX
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
with files.claimed(sys.argv[2]):
    print("mine", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder tmp_path/out until it is told to end."""
    command = [sys.executable, "-c", HOLDER, str(ROOT / "jaxsampler/files.py"), str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "mine\n"
        yield other
        other.kill()


def test_one_wins_and_the_others_say_who(tmp_path, holder):
    out = tmp_path / "out"
    for _ in range(2):
        with pytest.raises(OSError) as told, claimed(out):
            pytest.fail("two writers")
        since = json.loads((out / ".lock").read_text())["since"]
        assert str(told.value) == (
            f"{out} is in use by process {holder.pid} on {os.uname().nodename} since {since}: wait until it "
            "ends, or choose another folder"
        )
    with claimed(out, "quality"):  # other results of the same folder
        assert sorted(os.listdir(out)) == [".lock", ".quality.lock"]
    holder.communicate("end\n")
    with claimed(out):
        assert json.loads((out / ".lock").read_text())["process"] == os.getpid()
    assert os.listdir(out) == []


def test_a_claim_dies_with_its_process(tmp_path, holder):
    out = tmp_path / "out"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert os.listdir(out) == [".lock"]
    with claimed(out):
        assert json.loads((out / ".lock").read_text())["process"] == os.getpid()
    assert os.listdir(out) == []


def test_a_claim_ends_with_an_error_and_is_not_shared_within_a_process(tmp_path):
    with pytest.raises(ZeroDivisionError), claimed(tmp_path / "a"):
        1 / 0  # noqa: B018
    with claimed(tmp_path / "a"), pytest.raises(OSError, match=f"in use by process {os.getpid()} on"):
        claimed(tmp_path / "a").__enter__()
    assert os.listdir(tmp_path / "a") == []


def test_a_claim_removed_while_it_is_opened_is_made_anew(tmp_path, monkeypatch):
    """Who opens the file just before its holder removes it must not hold a file that nobody else sees."""
    opened, first = os.open, []

    def late(path, *args):
        descriptor = opened(path, *args)
        if not first and str(path).endswith(".lock"):
            first.append(path)
            os.unlink(path)
        return descriptor

    monkeypatch.setattr(files.os, "open", late)
    with claimed(tmp_path):
        assert first and os.listdir(tmp_path) == [".lock"]
        with pytest.raises(OSError, match="in use"):
            claimed(tmp_path).__enter__()


def test_a_holder_that_left_no_name(tmp_path):
    with claimed(tmp_path):
        (tmp_path / ".lock").write_text("[" * 100_000)
        with pytest.raises(OSError, match="in use by another process: wait"):
            claimed(tmp_path).__enter__()


def test_json_nested_too_deeply_is_a_value_error():
    assert from_json('{"a": [1]}') == {"a": [1]}
    for text in ("[" * 200_000, '{"a":' * 200_000, b"\xff", "{", "1" * 5000):
        with pytest.raises(ValueError):
            from_json(text)


def test_arrays_are_read_back_before_they_replace_anything(tmp_path, monkeypatch):
    """A library that writes other numbers is found out, and the file of before stays."""
    import safetensors.numpy

    from jaxsampler.files import write_arrays

    file, save = tmp_path / "x.safetensors", safetensors.numpy.save
    write_arrays(file, {"a": np.arange(3.0)})
    before = file.read_bytes()
    monkeypatch.setattr(
        safetensors.numpy, "save", lambda t, m=None: save({n: a + 1 for n, a in t.items()}, m)
    )
    with pytest.raises(ValueError, match="its array 'a' does not come back from safetensors as it is"):
        write_arrays(file, {"a": np.arange(3.0)})
    assert file.read_bytes() == before
