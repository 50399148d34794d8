"""The command line as a whole: the list of solvers, training, help, missing packages."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

from jaxsampler.commands import cli
from jaxsampler.solvers.listing import catalogue, others

CONFIG = ROOT / "configs/train/restore.toml"


def test_solvers_lists_every_solver(capsys):
    assert cli.main(["solvers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("`")[1] for line in lines[2:]] == [*catalogue(), *others()]
    assert {"unipc", "deis", "dpm_v3", "dpm_adaptive", "score_sde", "edict"} <= {
        line.split("`")[1] for line in lines[2:]
    }
    assert next(line for line in lines if "`heun`" in line).split("|")[2:5] == [" 2 ", " 2 ", " velocity "]


@pytest.mark.parametrize(
    "args", [["--help"], ["restore", "--help"], ["train", "--help"], ["solvers", "--help"]]
)
def test_help(args, capsys):
    assert cli.main(args) == 0
    assert "usage: jaxsampler" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (("steps = ", "stps = "), "'steps'"),
        (("batch = 16", "batch = 'many'"), "'batch'"),
        (("seed = 0", ""), "'seed'"),
        (("seed = 0", "seed = = 0"), "not valid TOML"),
        (('"desktop"', '"/no/such/folder"'), "/no/such/folder"),
    ],
)
def test_train_refuses_a_bad_config(tmp_path, capsys, change, hint):
    text = CONFIG.read_text()
    assert change[0] in text
    config = tmp_path / "bad.toml"
    config.write_text(text.replace(*change, 1))
    assert cli.main(["train", str(config), "--out", str(tmp_path / "w.safetensors")]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert hint in err
    assert os.listdir(tmp_path) == ["bad.toml"]


def test_train_passes_the_config_on(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(
        "jaxsampler.commands.train.main", lambda *args: seen.append(args) or Path("w.safetensors")
    )
    assert cli.main(["train", "c.toml", "--out", "o.safetensors"]) == 0
    assert cli.main(["train", "c.toml", "--data", "idx"]) == 0
    assert seen == [("c.toml", "o.safetensors", None), ("c.toml", None, "idx")]
    assert capsys.readouterr().out == "w.safetensors\n" * 2


MISSING = {"tyro": ["solvers"], "skimage": ["restore"], "safetensors": ["restore"]}
SERVER = """
import json, os, sys
import jaxsampler  # the core, once; it needs none of the packages

def said(package, args):
    if (pid := os.fork()) == 0:
        for stream in (1, 2):
            os.dup2(os.open(f"{package}.{stream}", os.O_CREAT | os.O_WRONLY), stream)
        assert package not in sys.modules
        sys.modules[package] = None
        from jaxsampler.commands.cli import main
        sys.exit(main(args))
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code, *(open(f"{package}.{stream}").read() for stream in (1, 2))

found = {package: said(package, args) for package, args in json.loads(sys.argv[1]).items()}
print(json.dumps(found))
"""


def test_missing_packages_are_one_line(tmp_path):
    """A process imports the core, and forks for each package."""
    done = subprocess.run(
        [sys.executable, "-c", SERVER, json.dumps(MISSING)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    for package, (code, out, err) in json.loads(done.stdout).items():
        assert (code, out, len(err.splitlines())) == (2, "", 1), (package, err)
        assert 'pip install "jaxsampler[demo]"' in err, package


def test_bugs_keep_their_traceback(monkeypatch):
    monkeypatch.setattr(sys.modules[catalogue.__module__], "markdown", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["solvers"])
