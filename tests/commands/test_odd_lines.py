"""Wrong and odd command lines: each ends with exit code 0 or 2 and words, none with a traceback.

What computes is replaced by something quick; all that reads, checks, plans and writes is real.
"""

import json
import os
import shlex
import struct
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import jaxsampler as js
from jaxsampler import checkpoint
from jaxsampler.commands import cli
from jaxsampler.commands.bench import quality_report
from jaxsampler.commands.bench import report as bench_report
from jaxsampler.commands.generate import work
from jaxsampler.commands.restore import command, photo
from jaxsampler.commands.search import report as search_report
from jaxsampler.data import fashion
from jaxsampler.training import generate, task

ODD = [
    *("", " ", "0", "-1", "1", "3", "nan", "inf", "-inf", "1e9", "1.5", "99999999999999999999", "abc", "ä"),
    *("None", "--", "-", "/dev/null", "/dev/zero", ".", "..", "/", "no/such/place", "a\nb", "%s", "'", "*"),
    *(
        "\udc80",
        "x" * 300,
        "empty",
        "text.txt",
        "deep.toml",
        "bomb.png",
        "photo.png",
        "taken",
        "t.safetensors",
    ),
]
OPTIONS = {
    "sample": "model weights n class solver order steps grid guidance seed batch out",
    "restore": "task mask steps solver order seed out batch weights",
    "train": "out data",
    "search": "out data",
    "bench": "out rounds config data weights against",
}
BASE = {
    "sample": "sample --weights w.safetensors --n 2 --steps 2",
    "restore": "restore photo.png --task derain --weights r.safetensors --steps 2",
    "train": "train c.toml",
    "search": "search s.toml",
    "bench": "bench inversion",
}
LINES = """
-h
--version
--help --version
nonsense
sample --n
sample --bogus 3
sample extra
sample --weights none.safetensors
sample --weights text.txt
sample --weights empty
sample --weights .
sample --weights huge_card.safetensors
sample --weights deep_card.safetensors
sample --weights list_card.safetensors
sample --weights huge_header.safetensors
sample --weights r.safetensors
sample --weights w.safetensors --solver t.safetensors
sample --weights w.safetensors --solver broken.safetensors
sample --weights w.safetensors --solver w.safetensors
sample --weights w.safetensors --solver learned --steps 1000000000
sample --weights w.safetensors --solver dpm_v3
sample --weights w.safetensors --solver edict --n 2 --steps 2
sample --weights w.safetensors --solver score_sde --n 2 --steps 2
sample --weights w.safetensors --out taken
sample --weights w.safetensors --out foreign
sample --weights w.safetensors --out deep_out
sample --weights w.safetensors --out text.txt
sample --weights w.safetensors --out text.txt/below
sample --weights w.safetensors --class cat --guidance 0
sample --weights w.safetensors --n 2 --steps 2 --n 3
restore
restore none.png
restore photo.png
restore photo.png --task
restore photo.png --task derian
restore photo.png --task derain --solver edict --weights r.safetensors
restore photo.png --task derain --solver dpm_adaptive --weights r.safetensors
restore photo.png --task derain --solver score_sde --weights r.safetensors
restore photo.png --task derain --solver dpm_v3 --weights r.safetensors
restore photo.png --task derain --order 0 --weights r.safetensors
restore photo.png --task derain --order 7 --weights r.safetensors
restore photo.png --task derain --out photo.xyz --weights r.safetensors
restore photo.png --task derain --out taken --weights r.safetensors
restore photo.png --task derain --out no/such/place/a.png --weights r.safetensors --steps 2
restore photo.png --task derain --mask mask.png --weights r.safetensors
restore photo.png --task inpaint --weights r.safetensors
restore photo.png --task inpaint --mask small.png --weights r.safetensors
restore photo.png --task derain --full
restore photo.png --task derain --weights w.safetensors
restore photo.png --batch photos --out o --task derain
restore photo.png --task derain --steps 0 --weights r.safetensors
restore photo.png --task derain --steps 1000000000 --weights r.safetensors
restore photo.png --task derain --seed -1 --weights r.safetensors
restore --full --choose
restore --choose --out o
restore --batch photos --task derain --weights r.safetensors
restore --batch photos --task derain --out photos --weights r.safetensors
restore --batch photos --task derain --out o --weights r.safetensors --steps 2
restore --batch photos --task inpaint --mask photos --out o2 --weights r.safetensors --steps 2
restore --batch photo.png --task derain --out o --weights r.safetensors
restore --batch empty_folder --task derain --out o --weights r.safetensors
restore --batch photos --task derain --out foreign_photos --weights r.safetensors
restore bomb.png --task derain --weights r.safetensors
restore text.txt --task derain --weights r.safetensors
restore empty --task derain --weights r.safetensors
restore /dev/zero --task derain --weights r.safetensors
restore photos --task derain --weights r.safetensors
restore deep.png --task derain --weights r.safetensors --steps 2 --out deep.jpg
restore alpha.png --task derain --weights r.safetensors --steps 2 --out alpha.jpg
train
train none.toml
train text.txt
train empty
train /dev/zero
train photos
train deep.toml
train photo.png
train other_task.toml
train c.toml --out w
train c.toml --out taken
train c.toml --data no/such/place
train restore --data photos
train fashion_edn
search
search none.toml
search deep.toml
search c.toml
search s.toml --out text.txt
search bad_search.toml
search mixture --out foreign_search
bench
bench nonsense
bench speed
bench speed --against no/such/place
bench inversion --against .
bench inversion --rounds 0
bench inversion --rounds -3
bench gradients --rounds 1000000000
bench inversion --config s.toml
bench inversion --out text.txt
bench quality --config c.toml
bench quality --config deep.toml
bench quality --out foreign_quality
solvers --bibtext
solvers extra
""".strip().splitlines()
CHANGES = [  # of c.toml, whose training is otherwise in order
    *("batch = 0", "batch = -1", "batch = 1e9", "widths = []", "widths = [0, 8]", "widths = [-8, 8]"),
    *("widths = 8", "widths = ['8']", "depth = -1", "seed = 18446744073709551616", "seed = -1", "lr = nan"),
    *("lr = -1.0", "lr = inf", "lr = true", "dropout = 2", "dropout = -1", "clip = 0", "average = 1.0"),
    *("warmup = 100", "steps = 0", "minutes = -1.0", "noise_std = -1", "model = 'edn'", "size = 7"),
    *("channels = 2", "embedding = 1000000000000", "extra = 1", "seed = 1979-05-27", "images = 'none'"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with good files and files from strangers."""
    here = tmp_path_factory.mktemp("odd")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (32, 32, 3), np.uint8)
    for folder in ("photos", "taken", "empty_folder", "foreign", "deep_out/.samples", "foreign_photos"):
        (here / folder).mkdir(parents=True)
    for folder in ("foreign_quality", "foreign_search/mixture"):
        (here / folder).mkdir(parents=True)
    Image.fromarray(pixels).save(here / "photo.png")
    Image.fromarray(pixels).save(here / "photos/a.png")
    Image.fromarray(pixels[..., 0]).save(here / "photos/a.jpg")
    Image.fromarray(pixels[..., 0]).save(here / "mask.png")
    Image.fromarray(pixels[:5, :5, 0]).save(here / "small.png")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 256).save(here / "deep.png")
    Image.fromarray(np.dstack([pixels, pixels[..., :1]])).save(here / "alpha.png")
    for name in ("empty", "photos/empty.png"):
        (here / name).touch()
    (here / "bomb.png").write_bytes(bomb())
    (here / "text.txt").write_text("neither a config nor a photo")
    (here / "deep.toml").write_text("a = " + "[" * 100_000)
    (here / "other_task.toml").write_text("task = ['restore']")
    (here / "foreign/samples.png").write_text("mine")
    (here / "deep_out/samples.json").write_text("[" * 100_000)
    (here / "deep_out/.samples/settings.json").write_text("{")
    (here / "foreign_photos/a.png.png").write_text("mine")
    (here / "foreign_quality/quality.csv").write_text("a,b\n1,2\n")
    (here / "foreign_search/mixture/results.json").write_text('[{"a": 1}]')
    (here / "c.toml").write_text(CONFIG)
    (here / "s.toml").write_text('problem = "mixture"\ncalls = [3]\n')
    (here / "bad_search.toml").write_text('problem = "mixture"\ncalls = []\nrate = nan\n')
    weights(here)
    path = js.EDM()
    table = js.tabulate(path, js.grids.default(path, 3), js.solvers.dpmpp_2m)
    table.save(here / "t.safetensors", path=repr(path))
    js.tabulate(js.VP(), js.grids.log_snr(js.VP(), 3), js.solvers.ddim).save(here / "broken.safetensors")
    return here


CONFIG = """task = "generate"
model = "edm"
seed = 0
steps = 10
batch = 4
widths = [4]
depth = 1
embedding = 8
noise_mean = 0.0
noise_std = 1.0
dropout = 0.1
lr = 1e-2
warmup = 1
weight_decay = 0.0
clip = 1.0
average = 0.1
size = 8
images = "photos"
"""


def bomb():
    """A PNG of 70 bytes that claims 2 x 10^9 pixels."""
    import zlib

    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
    ]
    made = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


def weights(here):
    """Networks of zeros: one that generates, one that restores, and cards and headers from strangers."""
    import tomllib

    values = {k: v for k, v in tomllib.loads(CONFIG).items() if k != "task"}
    c = generate.Generate(**values | {"widths": tuple(values["widths"])})
    zeros = lambda make: jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), jax.eval_shape(make))
    card = generate.described(c) | {"sigma_data": 0.5, "classes": ["cat", "dog"]}
    checkpoint.save(here / "w.safetensors", zeros(lambda: generate.network(c, 0.5, 2)), card)
    about = checkpoint.read_card(Path(js.pretrained.__file__).with_name("restore.json"))
    about |= {"widths": [4], "depth": 1, "embedding": 4}
    make = lambda: js.pretrained.loading.NAMES["restore"].from_card(about)
    checkpoint.save(here / "r.safetensors", zeros(make), about)
    for name, text in {
        "huge_card": json.dumps(card | {"size": 10**9, "widths": [10**9]}),
        "deep_card": '{"model":' + "[" * 100_000,
        "list_card": "[]",
        "huge_header": json.dumps(card),
    }.items():
        (here / f"{name}.json").write_text(text)
        (here / f"{name}.safetensors").write_bytes((here / "w.safetensors").read_bytes())
    (here / "huge_header.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")


@pytest.fixture
def run(place, monkeypatch, capsys):
    """Runs a command line where the files lie; returns its exit code and what it said."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(
        work,
        "draw",
        lambda d, s, k, numbers, *_: (
            np.zeros((len(numbers), 8, 8, 1), np.uint8),
            np.ones(len(numbers), bool),
        ),
    )
    monkeypatch.setattr(photo, "restore", lambda net, table, mu, *_, **__: mu)
    for name in ("demonstration", "everything", "choice"):
        monkeypatch.setattr(command, name, lambda *_, **__: None)
    monkeypatch.setattr(task, "fit", lambda *_, **__: pytest.fail("an odd config was trained"))
    monkeypatch.setattr(fashion, "load", lambda *_: fashion.some())
    monkeypatch.setattr(search_report, "problem", lambda *_, **__: refuse())
    for module in bench_report.benchmarks().values():
        if module is not bench_report.speed:
            monkeypatch.setattr(module, "measure", lambda **_: refuse())
    monkeypatch.setattr(quality_report, "problem", lambda *_, **__: refuse())

    def run(line):
        capsys.readouterr()
        code = cli.main(line)
        return code, *capsys.readouterr()

    return run


def refuse():
    raise ValueError("here the work would begin")


def expect_words(line, code, out, err):
    assert code in (0, 2), line
    assert "Traceback" not in out + err, line
    if code == 2:
        last = err.rstrip("\n").splitlines()[-1]
        assert last.startswith("jaxsampler: ") or " --help" in err, (line, err)  # the latter is tyro's
        assert len(last) < 1000, line


@pytest.mark.parametrize("line", LINES)
def test_a_wrong_line(run, line):
    expect_words(line, *run(shlex.split(line)))


@pytest.mark.parametrize("change", CHANGES)
def test_a_wrong_config(run, place, change):
    """Each differs from one that trains in one key."""
    key = change.split(" = ")[0]
    lines = [line for line in CONFIG.splitlines() if line.split(" = ")[0] != key]
    (place / "changed.toml").write_text("\n".join([*lines, change]))
    code, out, err = run(["train", "changed.toml"])
    expect_words(change, code, out, err)
    assert code == 2
    assert err.startswith("jaxsampler: ")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("command", OPTIONS)
def test_an_odd_value_of_any_option(run, command):
    """Every option with every odd value would be thousands; some of them, the same ones every time."""
    rng = np.random.default_rng(len(command))
    for _ in range(int(os.environ.get("ODD_LINES", 30))):
        line = shlex.split(BASE[command])
        for name in rng.choice(OPTIONS[command].split(), size=int(rng.integers(1, 3)), replace=False):
            line += [f"--{name}", ODD[rng.integers(len(ODD))]]
        expect_words(line, *run(line))
