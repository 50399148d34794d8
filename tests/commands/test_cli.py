"""The command line as a whole: the list of solvers, training, help, missing packages."""

import io
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import pytest
from places import ROOT

import jaxsampler
from jaxsampler import config
from jaxsampler.commands import cli, configs, version
from jaxsampler.commands.bench.quality import Quality
from jaxsampler.commands.search.settings import Search
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


# -- what a report begins with, and configs by name


def test_version_names_what_a_report_needs(capsys, monkeypatch):
    monkeypatch.setenv("JAX_ENABLE_X64", "0")
    monkeypatch.setitem(version.EXTRAS, "ot", ("no-such-package",))
    assert cli.main(["--version"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"jaxsampler {jaxsampler.__version__} (")
    assert f"jax {jax.__version__}, jaxlib " in out
    assert f"devices: {len(jax.devices())} x {jax.devices()[0].device_kind}" in out
    assert "extra demo: matplotlib " in out
    assert 'extra ot: no-such-package missing: pip install "jaxsampler[ot]"' in out
    assert "JAX_ENABLE_X64=0" in out
    assert cli.main(["--help"]) == 0
    assert "jaxsampler --version" in capsys.readouterr().out


def test_version_lists_the_packages_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = lambda entries: tuple(entry.partition(">=")[0] for entry in entries)
    assert names(project["dependencies"]) == version.CORE
    for extra, listed in version.EXTRAS.items():
        assert names(project["optional-dependencies"][extra]) == listed


def test_version_without_a_device(monkeypatch):
    def none():
        raise RuntimeError("Unable to initialize backend 'tpu': no such device\nmore")

    monkeypatch.setattr(jax, "devices", none)
    assert "devices: none (Unable to initialize backend 'tpu': no such device)" in version.report()


def test_configs_are_known_by_name_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = {c: sorted((ROOT / "configs" / c).glob("*.toml")) for c in ("bench", "search", "train")}
    for command, files in shipped.items():
        assert list(configs.shipped(command).values()) == files
        for file in files:
            for given in (file.stem, file.name, f"{command}/{file.name}", f"configs/{command}/{file.name}"):
                assert configs.find(given, command) == file
    Path("restore").mkdir()  # where `train restore` keeps its state
    assert configs.find("restore", "train") == ROOT / "configs/train/restore.toml"
    Path("restore").rmdir()
    Path("restore").write_text("mine")
    assert configs.find("restore", "train") == Path("restore")  # a file that exists comes first
    with pytest.raises(ValueError, match="of those shipped, did you mean 'fashion_edm'"):
        configs.find("fashion_edn", "train")
    with pytest.raises(ValueError, match="cannot read config elsewhere/restore.toml: No such file"):
        configs.find("elsewhere/restore.toml", "train")


@pytest.mark.parametrize(("args", "command"), [(["train"], "train"), (["search"], "search")])
def test_help_names_the_shipped_configs(args, command, capsys):
    assert cli.main([*args, "--help"]) == 0
    said = capsys.readouterr().out
    assert [name for name in configs.shipped(command) if name not in said] == []


def test_a_wheel_holds_every_config():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    files = [f for c in ("bench", "search", "train") for f in sorted((ROOT / "configs" / c).glob("*.toml"))]
    places = [str(f.relative_to(ROOT)) for f in files]
    assert build["force-include"] == {place: f"jaxsampler/{place}" for place in places}


def test_names_are_taken_by_every_command(monkeypatch, tmp_path, capsys):
    read = []
    monkeypatch.chdir(tmp_path)

    def load(path, cls):
        read.append((path.name, cls))
        raise ValueError("enough")

    monkeypatch.setattr(config, "load", load)
    assert cli.main(["search", "mixture", "--out", "s"]) == 2
    assert cli.main(["bench", "quality", "--config", "quality"]) == 2
    assert read == [("mixture.toml", Search), ("quality.toml", Quality)]


# -- the machine


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "out of memory: give a smaller --batch"),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating"),
            "the device is out of memory",
        ),
        (
            RuntimeError("Unable to initialize backend 'cuda': none"),
            "Unable to initialize backend 'cuda': none",
        ),
    ],
)
def test_a_machine_that_lacks_something_is_one_line(monkeypatch, capsys, error, message):
    def fails():
        raise error

    monkeypatch.setattr(sys.modules[catalogue.__module__], "markdown", fails)
    assert cli.main(["solvers"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"jaxsampler: {message}")
    assert len(err.splitlines()) == 1


def test_output_that_nobody_reads_any_more(tmp_path):
    """`jaxsampler solvers | head -1`, in a terminal that knows ASCII only."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    command = f"{sys.executable} -m jaxsampler.commands.cli solvers --bibtex | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True)
    assert done.stdout in ("141\n", "0\n")  # it may have written all before the reader left
    assert done.stderr == ""


def test_a_character_that_the_terminal_lacks(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    monkeypatch.setattr(sys.modules[catalogue.__module__], "markdown", lambda: "a ± b")
    assert cli.main(["solvers"]) == 0
    assert raw.getvalue() == b"a ? b"


# -- train


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("weights", "--out weights names no weights: end it with .safetensors"),
        ("w.st", "--out w.st names no weights"),
        ("folder.safetensors", "--out folder.safetensors is a folder: name a file in it"),
    ],
)
def test_train_refuses_a_place_for_the_weights_before_the_work(tmp_path, monkeypatch, capsys, out, message):
    monkeypatch.chdir(tmp_path)
    Path("folder.safetensors").mkdir()
    assert cli.main(["train", "restore", "--out", out]) == 2
    assert message in capsys.readouterr().err
