"""Sampling over devices: a sharded batch is the batch, bit for bit in its noise, and nothing is gathered on
the way.

Slow (about 20 s in all on two cores) because devices are told to XLA before JAX starts: three processes
import JAX and compile samplers.
"""

import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from places import ROOT

SAMPLERS = ("multistep", "brownian")


def worker(devices, *arguments, file="devices_worker.py"):
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    flags = {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
    }
    env = os.environ | cache | flags | {"PYTHONPATH": paths}
    command = [sys.executable, str(ROOT / "tests" / file), *map(str, arguments)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(*processes):
    """Their outputs; all are gone afterwards, whatever happens."""
    try:
        for process in processes:
            output, _ = process.communicate(timeout=180)
            assert process.returncode == 0, output
    finally:
        for process in processes:
            process.kill()


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """{name: array} of what the eight-device process made."""
    out = tmp_path_factory.mktemp("devices") / "eight.npz"
    finish(worker(8, out))
    return {name.replace("|", "/"): a for name, a in np.load(out).items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_batch_over_eight_devices_is_the_batch_on_one(eight, name):
    """Slow: the first of the tests that share the eight-device process waits for it (about 10 s)."""
    np.testing.assert_array_equal(eight[f"{name}/sharded/blind"], eight[f"{name}/alone/blind"])
    np.testing.assert_allclose(eight[f"{name}/sharded/mixing"], eight[f"{name}/alone/mixing"], atol=1e-5)
    noise = eight[f"{name}/alone/blind"]
    assert len(np.unique(noise)) == noise.size


@pytest.mark.parametrize("name", SAMPLERS)
def test_nothing_moves_between_devices_and_each_does_its_share(eight, name):
    assert eight["a gather is seen"].tolist() == ["all-gather"]  # the check itself works
    assert eight[f"{name}/sharded/moves"].tolist() == []
    assert eight[f"{name}/sharded/flops"] < eight[f"{name}/alone/flops"] / 3


@pytest.mark.parametrize("axes", ["Auto", "Explicit"])
def test_a_sample_is_laid_out_like_its_start(eight, axes):
    """The registers, the saved states and the noise follow x_T in both kinds of mesh that JAX has."""
    for net in ("mixing", "blind"):
        np.testing.assert_allclose(eight[f"given/{axes}/{net}"], eight[f"given/alone/{net}"], atol=1e-5)
    assert eight[f"given/{axes}/moves"].tolist() == []
    assert (
        eight[f"given/{axes}/flops"] < eight["multistep/alone/flops"] / 3
    )  # a noise that is drawn whole on each would show


@pytest.mark.slow
def test_two_processes_sample_one_batch(eight, tmp_path):
    """Slow: two processes of two devices each start JAX and join (about 8 s); each holds its part of the
    single process's batch.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    outs = [tmp_path / f"{i}.npz" for i in range(2)]
    finish(*[worker(2, out, port, i, 2) for i, out in enumerate(outs)])
    for name in SAMPLERS:
        rows = [
            {int(k.split("|")[1]): a for k, a in np.load(out).items() if k.startswith(name)} for out in outs
        ]
        assert [sorted(r) for r in rows] == [[0, 8], [16, 24]]
        both = rows[0] | rows[1]
        np.testing.assert_allclose(
            np.concatenate([both[i] for i in sorted(both)]), eight[f"{name}/alone/mixing"], atol=1e-5
        )
