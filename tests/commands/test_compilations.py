"""The commands' compilation cache: found again, bounded, and never in the way."""

import os
import subprocess
import sys
import time

import pytest

from jaxsampler.commands import compilations

PROGRAM = """
import sys, jax, jax.numpy as jnp
from jaxsampler.commands import compilations
compilations.QUICK = 0.0
compilations.keep({wanted})
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
print(float(jax.jit(lambda x: jnp.sin(x).sum())(jnp.arange(3.0))))
print(hits.count("/jax/compilation_cache/cache_hits"))
"""


def process(home, wanted=True):
    """(value, hits, stderr) of a process that compiles one program."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")} | {"XDG_CACHE_HOME": str(home)}
    code = PROGRAM.format(wanted=wanted)
    done = subprocess.run([sys.executable, "-c", code], env=env, text=True, capture_output=True, check=True)
    value, hits = done.stdout.split()
    return value, int(hits), done.stderr


def test_the_next_process_finds_what_was_compiled(tmp_path):
    """Unless it is told not to look; and a file that a kill left unfinished does no harm."""
    value, hits, said = process(tmp_path)
    assert (hits, said) == (0, "")
    assert process(tmp_path) == (value, hits_of := process(tmp_path)[1], "")
    assert hits_of > 0
    assert process(tmp_path, wanted=False)[:2] == (value, 0)
    kept = [f for f in (tmp_path / "jaxsampler" / "compiled").iterdir() if f.name.endswith("-cache")]
    for file in kept:
        file.write_bytes(file.read_bytes()[:100])
    assert process(tmp_path) == (value, 0, "")


def test_without_the_cache_no_folder_is_made(tmp_path):
    process(tmp_path, wanted=False)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named_once(tmp_path):
    (tmp_path / "jaxsampler").write_text("a file, where the folder should be")
    value, hits, said = process(tmp_path)
    assert value
    assert hits == 0
    assert said.count("compiling without a cache") == 1
    assert str(tmp_path) in said


def test_the_files_used_last_stay(tmp_path):
    for i in range(5):
        file = tmp_path / f"{i}-cache"
        file.write_bytes(bytes(100))
        os.utime(file, (1000 + i, 1000 + i))
    os.utime(tmp_path / "0-cache", (2000, 1000))  # read again
    compilations.shrink(tmp_path, 250)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["0-cache", "4-cache"]


@pytest.mark.parametrize(("seconds", "said"), [(0.0, ""), (0.3, "compiling the sampler ..\n")])
def test_a_long_wait_is_explained(capsys, monkeypatch, seconds, said):
    monkeypatch.setattr(compilations, "PATIENCE", 0.1)
    with compilations.waiting("the sampler"):
        time.sleep(seconds)
    assert capsys.readouterr().err == said
