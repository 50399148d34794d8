"""`jaxsampler sample`: the images are the library's, whatever the batch, and whatever kills it; every way to
hold it wrong is one line.
"""

import errno
import io
import json
import os
import shlex
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from places import ROOT

import jaxsampler as js
from jaxsampler import checkpoint, files
from jaxsampler.commands import cli
from jaxsampler.commands import generate as generate_command
from jaxsampler.commands.generate import plans, work
from jaxsampler.nn import small_images
from jaxsampler.pretrained import samplers
from jaxsampler.training import generate

NAMES = ("cat", "dog", "emu")
USUAL = ("--n", 7, "--batch", 3, "--steps", 2)  # one compilation for many tests
RESULTS = ["samples.json", "samples.npz", "samples.png"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """{model: file} of networks of 8 x 8 images in three classes, random in every weight, so that all of them
    matter.
    """
    place, saved = tmp_path_factory.mktemp("weights"), {}
    common = dict(
        seed=0,
        steps=1,
        batch=1,
        widths=(4,),
        depth=1,
        embedding=8,
        dropout=0.1,
        lr=1e-2,
        warmup=0,
        weight_decay=0.0,
        clip=1.0,
    )
    for model in ("edm", "flow"):
        c = generate.Generate(
            model=model, **common, noise_mean=0.0, noise_std=1.0, average=0.1, images="pets", size=8
        )
        leaves, structure = jax.tree.flatten(generate.network(c, 0.5, len(NAMES)))
        keys = jax.random.split(jax.random.key(1), len(leaves))
        leaves = [a + 0.2 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
        saved[model] = place / f"{model}.safetensors"
        card = generate.described(c) | {"sigma_data": 0.5, "classes": list(NAMES)}
        checkpoint.save(saved[model], jax.tree.unflatten(structure, leaves), card)
    return saved


@pytest.fixture
def sample(weights, tmp_path, monkeypatch, capsys):
    """Runs `jaxsampler sample` in an empty folder: the images; a failure is the one line that it says."""
    monkeypatch.chdir(tmp_path)

    def run(*args, out="out", model="edm", fails=False):
        capsys.readouterr()
        network = () if model is None else ("--weights", weights[model])
        code = cli.main(["sample", *map(str, network), "--out", str(out), *map(str, args)])
        run.said = said = capsys.readouterr()
        if fails:
            last = said.err.splitlines()[-1:]  # above it there may be a progress bar
            assert (code, said.out) == (2, ""), said.err
            assert last[0].startswith("jaxsampler: ")
            return last[0]
        assert code == 0, said.err
        assert said.out == f"{out}/samples.png\n"
        with np.load(Path(str(out), "samples.npz")) as file:
            return file["images"].astype(int)

    return run


def contents(folder):
    """{name: bytes} of all files in a folder, hidden ones too."""
    return {
        str(f.relative_to(folder)): f.read_bytes() for f in sorted(Path(folder).rglob("*")) if f.is_file()
    }


# -- what comes out


@pytest.mark.parametrize("solver", ["heun", "dpm_adaptive"])
def test_the_next_process_finds_what_was_compiled(sample, compiled_again, solver):
    folders = iter("ab")
    anew, found = compiled_again(
        lambda: sample("--n", 3, "--steps", 2, "--solver", solver, out=next(folders))
    )
    assert anew == 0
    assert found > 2


def grey(x):
    return np.round((np.clip(np.asarray(x), -1, 1) + 1) * 127.5).astype(int)


@pytest.mark.parametrize("case", ["guided", "stochastic", "one class", "any class", "adaptive"])
def test_the_images_are_those_of_the_library(sample, weights, case):
    """Image i, alone, by js.sample under the key fold_in(key(seed), i)."""
    model, options = "edm", ("--n", 4, "--seed", 7, "--batch", 3)
    denoiser = js.pretrained.load("fashion_edm", path=weights["edm"])
    if case == "guided":
        got = sample("--guidance", 2.5, "--steps", 3, *options)
        how = dict(steps=3)
    elif case == "stochastic":
        got = sample("--solver", "euler_ancestral", "--steps", 3, "--grid", "uniform", *options)
        how = dict(solver=js.solvers.euler_ancestral, grid=np.linspace(80, 0, 4))
    elif case == "one class":
        model, denoiser = "flow", js.pretrained.load("fashion_flow", path=weights["flow"])
        got = sample(
            "--class", "dog", "--solver", "unipc", "--order", 2, "--steps", 3, *options, model="flow"
        )
        how = dict(solver=js.solvers.unipc(order=2), grid=np.linspace(1, 0, 4))
    elif case == "any class":
        got = sample("--guidance", 0, "--solver", "heun", "--steps", 2, "--grid", "karras", *options)
        how = dict(solver=js.solvers.heun, grid=[80.0, 0.002, 0.0])
    else:
        got = sample("--solver", "dpm_adaptive", "--steps", 2, *options)
        how = dict(solver=js.solvers.dpm_adaptive(), steps=2)
    one = jax.jit(lambda d, key: js.sample(d, jnp.zeros((8, 8, 1)), key=key, **how))
    for i in range(4):
        label = {"one class": 1, "any class": 3}.get(case, i % 3)  # 3 is the network's null class
        d = denoiser.bind(label=jnp.asarray(label))
        if case == "guided":
            d = js.guidance.classifier_free(d, denoiser.bind(label=jnp.asarray(3)), 2.5)
        want = one(d, jax.random.fold_in(jax.random.key(7), i))
        want = grey(want.x if case == "adaptive" else want)
        assert np.abs(got[i] - want).max() <= 1, model
        assert want.std() > 10


@pytest.mark.parametrize("solver", ["dpmpp_2m_sde", "dpm_adaptive"])
def test_the_batch_is_no_matter(sample, solver):
    a, b = (sample("--n", 5, "--steps", 3, "--solver", solver, "--batch", k, out=k) for k in (5, 2))
    assert np.abs(a - b).max() <= 1
    assert np.abs(a[0] - a[3]).max() > 10  # of one class, but other noise
    for name in ("class", "n", "batch", "seed"):
        assert json.loads(Path("5/samples.json").read_text())["settings"][name] == {
            "class": "all in turn",
            "seed": 0,
        }.get(name, 5)


def test_files_hold_all_that_is_needed_to_repeat_them(sample, weights, tmp_path):
    images = sample(*USUAL, "--class", "2", "--seed", 3)
    assert sorted(os.listdir("out")) == RESULTS
    with np.load("out/samples.npz") as file:
        np.testing.assert_array_equal(file["labels"], [2] * 7)
        assert file["images"].shape == (7, 8, 8, 1)
    with zipfile.ZipFile("out/samples.npz") as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    sheet = np.asarray(Image.open("out/samples.png"))
    np.testing.assert_array_equal(sheet, sheet[::8, ::8].repeat(8, 0).repeat(8, 1))  # enlarged, to be seen
    sheet = sheet[::8, ::8]
    assert sheet.shape == (2 + 10 * 3, 2 + 10 * 3)  # three by three, on white
    for i in range(9):
        y, x = 2 + 10 * (i // 3), 2 + 10 * (i % 3)
        np.testing.assert_array_equal(sheet[y : y + 8, x : x + 8], images[i, ..., 0] if i < 7 else 255)
    card = json.loads(Path("out/samples.json").read_text())
    assert card["settings"]["class"] == "emu"
    assert card["settings"]["network calls per image"] == 2
    before = contents("out")
    assert cli.main([*shlex.split(card["command"])[1:], "--out", "again"]) == 0
    assert contents("again") == before
    # once more into the same folder: nothing to do
    times = [os.stat(f"out/{name}").st_mtime_ns for name in RESULTS]
    sample(*USUAL, "--class", "emu", "--seed", 3)
    assert sample.said.err == "out holds these 7 images already: nothing was drawn\n"
    assert times == [os.stat(f"out/{name}").st_mtime_ns for name in RESULTS]
    # damaged: made again
    Path("out/samples.npz").write_bytes(before["samples.npz"][:-9])
    sample(*USUAL, "--class", "emu", "--seed", 3)
    assert contents("out") == before


def test_one_trace_for_all_batches(sample, monkeypatch):
    traced = []
    batched = small_images.batched
    monkeypatch.setattr(small_images, "batched", lambda *args: traced.append(args[1].shape) or batched(*args))
    sample("--n", 7, "--steps", 5, "--batch", 3, "--solver", "ddim")
    assert len(traced) == 1


def test_a_saved_table(sample, weights):
    path = js.EDM()
    table = js.tabulate(path, js.grids.default(path, 4), js.solvers.dpmpp_3m)
    table.save("mine.safetensors", path=repr(path), parent="dpmpp_3m")
    table.save("anonymous.safetensors")
    by_name = sample("--n", 3, "--solver", "dpmpp_3m", "--steps", 4, out="a")
    np.testing.assert_array_equal(sample("--n", 3, "--solver", "mine.safetensors", out="b"), by_name)
    np.testing.assert_array_equal(sample("--n", 3, "--solver", "anonymous.safetensors", out="c"), by_name)
    assert json.loads(Path("b/samples.json").read_text())["settings"]["table"]["parent"] == "dpmpp_3m"
    said = sample(
        "--solver", "mine.safetensors", "--steps", 4, "--grid", "karras", "--order", 2, out="d", fails=True
    )
    assert said.endswith(
        "the table mine.safetensors has its own steps, grid and order: leave --steps, --grid, --order out"
    )
    assert "was made for EDM(); this network is on CondOT()" in sample(
        "--solver", "mine.safetensors", out="d", model="flow", fails=True
    )
    assert "was made for another path" in sample(
        "--solver", "anonymous.safetensors", out="d", model="flow", fails=True
    )
    js.stack([table, table]).save("two.safetensors")
    assert "holds 2 tables" in sample("--solver", "two.safetensors", out="d", fails=True)
    assert "cannot read the table none.safetensors" in sample(
        "--solver", "none.safetensors", out="d", fails=True
    )
    Path("bad.safetensors").write_bytes(Path("mine.safetensors").read_bytes()[:-3])
    assert "bad.safetensors is corrupt" in sample("--solver", "bad.safetensors", out="d", fails=True)
    assert not Path("d").exists()


def test_a_learned_table(sample, monkeypatch, tmp_path_factory):
    """The shipped one of the model and of --steps calls, also on other weights; without --steps of 8 calls,
    or what is nearest.
    """
    folder = tmp_path_factory.mktemp("tables")
    monkeypatch.setattr(samplers, "FOLDER", folder)
    for name, path in (("fashion_edm", js.EDM()), ("fashion_flow", js.CondOT()), ("mixture", js.VP())):
        for calls in (3, 4):
            table = js.tabulate(path, js.grids.default(path, calls), js.solvers.dpmpp_2m)
            table.save(folder / f"{name}_{calls}.safetensors", path=repr(path), calls=calls)
    for model in ("edm", "flow"):
        want = sample(
            "--n", 3, "--solver", folder / f"fashion_{model}_4.safetensors", model=model, out=f"{model}/want"
        )
        np.testing.assert_array_equal(
            sample("--n", 3, "--solver", "learned", "--steps", 4, model=model, out=f"{model}/a"), want
        )
        np.testing.assert_array_equal(
            sample("--n", 3, "--solver", "learned", model=model, out=f"{model}/b"), want
        )
        assert (
            np.abs(
                sample("--n", 3, "--solver", "learned", "--steps", 3, model=model, out=f"{model}/c") - want
            ).max()
            > 10
        )
    card = json.loads(Path("edm/b/samples.json").read_text())
    assert card["settings"]["table"] == {"path": "EDM()", "calls": 4}
    assert card["settings"]["network calls per image"] == 4
    assert (
        "--solver learned --steps 4" in card["command"]
    )  # what it was, also when there are tables of more calls
    said = sample("--solver", "learned", "--steps", 9, out="d", fails=True)
    assert said.endswith("no learned table for 'fashion_edm' has 9 network calls: choose one of 3, 4")
    assert "leave --grid, --order out" in sample(
        "--solver", "learned", "--grid", "karras", "--order", 2, out="d", fails=True
    )
    for file in folder.glob("fashion_edm*"):
        file.unlink()
    assert "there is no learned table for 'fashion_edm'; did you mean 'fashion_flow'?" in sample(
        "--solver", "learned", out="d", fails=True
    )
    assert not Path("d").exists()


# -- interruptions

SERVER = """
    import os, random, signal, sys, time
    from pathlib import Path
    from jaxsampler.commands import cli, generate  # imported once; nothing is computed before the forks

    random.seed(4)
    args = ["sample", *sys.argv[1:]]

    def start(out):
        pid = os.fork()
        if pid == 0:
            os._exit(cli.main([*args, "--out", out]))
        return pid

    def ended(pid):
        return os.waitpid(pid, os.WNOHANG)[0] == pid

    kept = Path("killed/.samples")
    batches = lambda: len(list(kept.glob("*.npy")))
    for out in ("whole", "again"):  # the first compiles, the second knows the programs
        began = time.monotonic()
        assert os.waitpid(start(out), 0)[1] == 0
    duration, kills, amid = time.monotonic() - began, 0, 0
    while kills < 4:
        pid, before, began, over = start("killed"), batches(), time.monotonic(), False
        if kills % 2:  # at any moment
            time.sleep(random.uniform(0, duration))
        else:  # soon after a batch
            while batches() <= before and not (over := ended(pid)):
                time.sleep(0.001)
            time.sleep(random.uniform(0, 0.02))
        if over or ended(pid):  # it was faster: from the beginning
            for name in os.listdir("killed"):
                os.unlink(f"killed/{name}")
            continue
        os.kill(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
        kills += 1
        amid += 0 < batches() < 16
    assert os.waitpid(start("killed"), 0)[1] == 0
    print(kills, amid)
"""


@pytest.mark.slow
def test_killed_four_times_it_ends_with_the_same_files(weights, tmp_path):
    """Slow because seven processes trace and compile; they are forks, which import once."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    env |= {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    args = [
        "--weights",
        str(weights["edm"]),
        *["--n", "16", "--batch", "1", "--steps", "2", "--solver", "dpmpp_2m_sde"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SERVER), *args],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    kills, amid = map(int, done.stdout.split()[-2:])
    assert kills == 4
    assert amid >= 2
    assert contents(tmp_path / "killed") == contents(tmp_path / "again") == contents(tmp_path / "whole")
    assert sorted(contents(tmp_path / "whole")) == RESULTS


def test_a_fault_at_any_write_loses_nothing(sample, monkeypatch):
    """The disk full, or control-C, at each write in turn: nothing half-written is left, and the next run
    completes it.
    """
    sample(*USUAL, out="whole")
    want, sync = contents("whole"), os.fsync
    for k in range(7):  # settings, three batches, three results
        calls = []

        def full(descriptor, k=k, calls=calls):
            calls.append(descriptor)
            if len(calls) == k + 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            sync(descriptor)

        with monkeypatch.context() as m:
            m.setattr(files.os, "fsync", full)
            assert "the disk is full" in sample(*USUAL, out=k, fails=True)
        left = contents(str(k))
        assert not any(name.endswith(".part") for name in left)
        assert "samples.json" not in left
        assert all(left[name] == want[name] for name in left if name in want)
        Path(f"{k}/.samples.npz.123.part").write_bytes(b"of a run that was killed")
        sample(*USUAL, out=k)
        assert contents(str(k)) == want


def test_what_another_run_left_is_not_touched(sample, monkeypatch):
    sample(*USUAL)
    before = contents("out")
    said = sample(*USUAL, "--seed", 1, "--class", "cat", fails=True)
    assert "out holds the results of a run with another class, seed: choose another --out" in said
    assert contents("out") == before
    Path("out/samples.json").unlink()
    assert "out holds samples.npz and samples.png without samples.json" in sample(*USUAL, fails=True)
    saved, write = [], work.write

    def killed_at_the_third(path, data):
        saved.append(path)
        if len(saved) == 3:
            raise KeyboardInterrupt
        write(path, data)

    command = shlex.split(json.loads(before["samples.json"])["command"])[1:]
    with monkeypatch.context() as m:
        m.setattr(work, "write", killed_at_the_third)
        assert cli.main([*command, "--out", "half"]) == 130
    left = contents("half")
    assert sorted(left) == [".samples/0.npy", ".samples/settings.json"]
    assert "half holds an unfinished run with another seed" in sample(
        *USUAL, "--seed", 1, out="half", fails=True
    )
    assert contents("half") == left


def test_kept_batches_are_not_trusted(sample, weights):
    """What is not the very batch of this run is computed again, and named; the results are the same."""
    want = sample(*USUAL, out="whole")
    plan = generate_command.plan(weights=weights["edm"], n=7, batch=3, steps=2)
    other = generate_command.plan(weights=weights["edm"], n=7, batch=3, steps=2, seed=1)
    settings = (json.dumps(plan.settings, indent=2) + "\n").encode()
    npy = lambda images: work.saved(np.save, np.asarray(images, np.uint8))
    seal = lambda plan, first: files.seal(npy(want[:3]), work.called(plan, first))
    kept = {
        "empty": b"",
        "as numpy saves it": npy(want[:3]),
        "two of three": npy(want[:2]),
        "of another place": seal(plan, 3),
        "of another run": seal(other, 0),
        "damaged": seal(plan, 0)[:-1] + b"!",
    }
    for name, data in kept.items():
        folder = Path("out", name, ".samples")
        folder.mkdir(parents=True)
        (folder / "settings.json").write_bytes(settings)
        (folder / "0.npy").write_bytes(data)
        sample(*USUAL, out=folder.parent)
        assert f"{folder}/0.npy is not what this run has written" in sample.said.err, name
        assert contents(folder.parent) == contents("whole"), name
    folder = Path("good", ".samples")  # and what is, is not computed
    folder.mkdir(parents=True)
    (folder / "settings.json").write_bytes(settings)
    (folder / "0.npy").write_bytes(files.seal(npy(want[:3] * 0), work.called(plan, 0)))
    assert np.array_equal(sample(*USUAL, out="good"), np.concatenate([want[:3] * 0, want[3:]]))


@pytest.mark.parametrize("text", ["", "[]", "3", "{", "[" * 200_000, '{"settings": 3}'], ids=range(6))
def test_a_foreign_card_in_the_folder_is_named(sample, text):
    Path("out").mkdir()
    Path("out/samples.json").write_text(text)
    said = sample(*USUAL, out="out", fails=True)
    assert "out holds the results of a run with another" in said
    assert contents("out") == {"samples.json": text.encode()}


def test_a_folder_in_use_is_left_alone(sample):
    with files.claimed("out"):
        assert f"out is in use by process {os.getpid()} on " in sample(*USUAL, fails=True)
    assert os.listdir("out") == []


def test_eight_images_are_seen(tmp_path):
    """The picture of eight small images: near 800 pixels wide, each image at least 256."""
    images = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 1), np.uint8)
    sheet = Image.open(io.BytesIO(work.contact_sheet(images, 3)))
    assert sheet.size == (8 * 104, 8 * 104)
    assert np.array_equal(np.asarray(sheet)[8 * 2 : 8 * 34 : 8, 8 * 2 : 8 * 34 : 8], images[0, ..., 0])
    many = np.zeros((100, 64, 64, 3), np.uint8)
    assert Image.open(io.BytesIO(work.contact_sheet(many, 10))).size == (2 * 662, 2 * 662)
    large = np.zeros((4, 512, 512, 3), np.uint8)
    assert Image.open(io.BytesIO(work.contact_sheet(large, 2))).size == (1030, 1030)


# -- held wrong


@pytest.mark.parametrize(
    ("args", "model", "message"),
    [
        ("--model fashion_edn", None, "unknown model 'fashion_edn'; did you mean 'fashion_edm'?"),
        (
            "--model fashion_flow",
            "edm",
            "holds weights of 'fashion_edm', not 'fashion_flow': leave --model out",
        ),
        ("--weights none.safetensors", None, "cannot read none.json"),
        ("--class cta", "edm", "unknown class 'cta'; did you mean 'cat'?"),
        ("--class 3", "edm", "there is no class 3: choose 0 to 2"),
        ("--class dog --guidance 0", "edm", "leave --class dog out"),
        ("--solver dpmpp_2x", "edm", "unknown solver 'dpmpp_2x'; did you mean 'dpmpp_2s'?"),
        ("--solver euler --order 2", "edm", "leave --order out"),
        ("--solver dpm_v3", "edm", "use js.sample"),
        ("--solver dpm_2m", "flow", "not finite"),
        ("--grid karas", "edm", "unknown grid 'karas'; did you mean 'karras'?"),
        (
            "--grid log_snr",
            "flow",
            "the grid 'log_snr' does not fit CondOT(), which has no signal at its start; use uniform, "
            "quadratic, cosine",
        ),
        ("--steps 0", "edm", "--steps must be at least 1, got 0"),
        ("--steps 1000000000", "edm", "--steps must be at most 10000, got 1000000000"),
        ("--n 1000000000000", "edm", "are too many at once: at most"),
        ("--n 0", "edm", "--n must be at least 1, got 0"),
        ("--batch 0", "edm", "--batch must be at least 1, got 0"),
        ("--seed -1", "edm", "--seed must lie between 0 and"),
        ("--guidance nan", "edm", "--guidance must be a number"),
    ],
)
def test_what_is_asked_wrongly_is_one_line_and_leaves_nothing(sample, tmp_path, args, model, message):
    assert message in sample(*args.split(), model=model, fails=True)
    assert os.listdir(tmp_path) == []


def test_what_does_not_fit_into_the_memory_is_refused(sample, monkeypatch):
    monkeypatch.setattr(plans, "memory", lambda: 2**20)  # 4096 images, or 1024 with their first layer
    assert "--n 5000 images of 8x8 are too many at once: at most 4096 fit" in sample("--n", 5000, fails=True)
    said = sample("--n", 2000, "--batch", 2000, fails=True)
    assert said.endswith("a batch of 2000 images of 8x8 does not fit into the memory: give --batch 1024")


def test_corrupt_weights_and_foreign_cards(sample, weights, tmp_path):
    file = tmp_path / "w.safetensors"
    file.write_bytes(weights["edm"].read_bytes()[:-1])
    file.with_suffix(".json").write_bytes(weights["edm"].with_suffix(".json").read_bytes())
    assert "w.safetensors is corrupt" in sample("--weights", file, model=None, fails=True)
    file.with_suffix(".json").write_text('{"widths": [4]}')
    assert "w.json is not the card of a network that generates images" in sample(
        "--weights", file, model=None, fails=True
    )
    assert sorted(os.listdir(tmp_path)) == ["w.json", "w.safetensors"]


def test_a_place_that_cannot_be_written(sample):
    Path("file").write_text("not a folder")
    for out in ("file", "file/inside"):
        assert f"cannot write into {out}" in sample("--n", 1, out=out, fails=True)
    assert Path("file").read_text() == "not a folder"


def test_samples_that_are_not_finite_are_no_images(sample, weights, tmp_path):
    net = js.pretrained.load("fashion_edm", path=weights["edm"]).net
    broken = jax.tree.map(lambda a: a * jnp.nan, net)
    checkpoint.save("nan.safetensors", broken, checkpoint.read_card(weights["edm"]))
    assert "the solver diverges on image 0, or does not arrive" in sample(
        "--weights", "nan.safetensors", *USUAL, model=None, fails=True
    )
    assert contents("out") == {}


def test_boots_of_the_shipped_network(tmp_path):
    """Six guided boots in ten steps: at least five are boots to the shipped classifier (by chance 0.05 in a
    thousand would be).
    """
    assert (
        cli.main(
            ["sample", "--n", "6", "--class", "boot", "--guidance", "2", "--out", str(tmp_path / "boots")]
        )
        == 0
    )
    with np.load(tmp_path / "boots/samples.npz") as file:
        images, labels = file["images"].astype(np.float32) / 127.5 - 1, file["labels"]
    np.testing.assert_array_equal(labels, [9] * 6)
    assert (js.pretrained.load("fashion_classifier")(jnp.asarray(images)).argmax(-1) == labels).sum() >= 5
