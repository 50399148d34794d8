"""`jaxsampler restore` from the command line, in this process: files in, files out, and every way to hold it
wrong.
"""

import csv
import errno
import os
import resource
from pathlib import Path

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxsampler as js
from jaxsampler import checkpoint, data
from jaxsampler.commands import cli
from jaxsampler.commands.restore import comparison, folder
from jaxsampler.data.image_files import deep_png
from jaxsampler.files import claimed


@pytest.fixture
def here(tmp_path, monkeypatch, photo):
    """An empty working folder with `photo.png` in it."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.round(photo * 255).astype(np.uint8)).save("photo.png")
    return tmp_path


@pytest.fixture
def restore(weights, capsys):
    """Runs `jaxsampler restore ...` with two steps of the small network: (exit code, stdout, stderr)."""

    def run(*args, steps=2):
        capsys.readouterr()
        code = cli.main(
            [
                "restore",
                *map(str, args),
                "--weights",
                str(weights),
                *([] if steps is None else ["--steps", str(steps)]),
            ]
        )
        return code, *capsys.readouterr()

    return run


def pixels(path, mode=None):
    with Image.open(path) as image:
        return np.asarray(image if mode is None else image.convert(mode))


def test_a_photo_with_defaults(here, restore, photo):
    code, out, err = restore("photo.png", "--task", "derain")
    assert (code, out) == (0, "photo_restored.png\n")
    assert "2/2" in err  # the progress bar
    assert np.abs(pixels("photo_restored.png") / 255 - photo).mean() > 0.01
    assert sorted(os.listdir()) == ["photo.png", "photo_restored.png"]


def test_the_next_process_finds_what_a_photo_compiled(here, restore, compiled_again):
    """With the bar, which JAX would not keep in a program."""
    denoiser, start = js.models.gaussian_mixture(jnp.ones((1, 2)), 0.1, js.VP()), jnp.ones((3, 2))
    for progress, again in ((False, 0), (True, 1)):
        bar = lambda progress=progress: js.sample(
            denoiser, start, x=start, key=None, progress=progress, steps=3
        )
        assert compiled_again(bar)[0] == again
    anew, found = compiled_again(lambda: restore("photo.png", "--task", "derain", "--solver", "mr_ode"))
    assert anew == 0
    assert found > 2


def test_equal_seeds_write_equal_bytes_and_solvers_differ(here, restore):
    for name, *options in (
        ("a",),
        ("b",),
        ("c", "--seed", "1"),
        ("d", "--solver", "mr_ode"),
        ("e", "--solver", "posterior"),
        ("f", "--solver", "mr_sde", "--order", "1"),
    ):
        assert restore("photo.png", "--task", "desnow", "--out", f"{name}.png", *options)[0] == 0
    files = {name: Path(f"{name}.png").read_bytes() for name in "abcd"}
    assert files["a"] == files["b"] != files["c"]
    assert files["d"] != files["a"]
    assert (
        np.abs(pixels("e.png").astype(int) - pixels("f.png")).max() <= 1
    )  # posterior sampling is mr_sde of order 1


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "RGB"])
def test_mode_and_alpha_survive(here, restore, mode):
    image = Image.open("photo.png").convert(mode)
    if "A" in mode:
        image.putalpha(Image.fromarray(np.arange(64 * 64, dtype=np.uint32).reshape(64, 64).astype(np.uint8)))
    image.save("in.png")
    assert restore("in.png", "--task", "denoise", "--out", "out.png")[0] == 0
    restored = Image.open("out.png")
    assert (restored.mode, restored.size) == (mode, (64, 64))
    if "A" in mode:
        np.testing.assert_array_equal(restored.getchannel("A"), image.getchannel("A"))
    assert not np.array_equal(np.asarray(restored)[..., 0], np.asarray(image)[..., 0])


def test_inpainting_keeps_known_pixels_to_the_bit(here, restore):
    mask = np.full((64, 64), 255, np.uint8)
    mask[10:30, 20:60] = 0
    Image.fromarray(mask).save("mask.png")
    assert restore("photo.png", "--task", "inpaint", "--mask", "mask.png", "--out", "new/out.png")[0] == 0
    before, after = pixels("photo.png"), pixels("new/out.png")
    np.testing.assert_array_equal(after[mask > 0], before[mask > 0])
    assert np.abs(after[mask == 0].astype(int) - before[mask == 0]).mean() > 5


def fill(names):
    os.mkdir("in")
    for k, name in enumerate(names):
        Image.fromarray(np.roll(pixels("photo.png"), 5 * k, axis=0)).save(f"in/{name}")


def test_an_interrupted_folder_goes_on_where_it_stopped(here, restore, monkeypatch):
    fill(["a.png", "b.jpg", "c.png"])
    batch = ("--batch", "in", "--task", "dehaze", "--out")
    assert restore(*batch, "whole")[0] == 0
    save, saved = folder.save_image, []

    def killed_at_the_second(path, *args):
        if saved:
            raise KeyboardInterrupt
        saved.append(path)
        save(path, *args)

    monkeypatch.setattr(folder, "save_image", killed_at_the_second)
    code, _, err = restore(*batch, "cut")
    assert (code, sorted(os.listdir("cut"))) == (130, [folder.MARK, "a.png"])
    assert err.splitlines()[-1] == "jaxsampler: interrupted"
    monkeypatch.undo()
    os.chdir(here)
    for name in (".b.png.123.part", f".{folder.MARK}.123.part"):
        Path("cut", name).write_bytes(b"half")
    before = os.stat("cut/a.png").st_mtime_ns
    code, out, _ = restore(*batch, "cut")
    assert code == 0
    assert out == "2 restored into cut, 1 were there already, 0 failed\n"
    assert os.stat("cut/a.png").st_mtime_ns == before
    assert sorted(os.listdir("cut")) == [folder.MARK, "a.png", "b.png", "c.png"]
    for name in os.listdir("cut"):
        assert Path("cut", name).read_bytes() == Path("whole", name).read_bytes()


@pytest.fixture
def saved(net):
    """A table of the small network's path, four calls of a stochastic solver, as a file with its card and one
    without; what it is of.
    """
    path = net.path(jnp.zeros((2, 8, 8, 3)))
    table = js.tabulate(path, js.grids.log_snr(path, 4), js.solvers.mr_sde(order=2))
    table.save("mine.safetensors", path=repr(path), parent="mr_sde")
    table.save("anonymous.safetensors")
    return table


def test_a_saved_table(here, restore, saved):
    by_name = ("--solver", "mr_sde", "--order", 2)
    assert restore("photo.png", "--task", "derain", *by_name, "--out", "a.png", steps=4)[0] == 0
    for file in ("mine.safetensors", "anonymous.safetensors"):
        code, _, err = restore(
            "photo.png", "--task", "derain", "--solver", file, "--out", f"{file}.png", steps=None
        )
        assert code == 0
        assert "4/4" in err
        assert Path(f"{file}.png").read_bytes() == Path("a.png").read_bytes()
    fill(["a.png"])
    assert (
        restore(
            "--batch", "in", "--task", "derain", "--solver", "mine.safetensors", "--out", "many", steps=None
        )[0]
        == 0
    )
    assert Path("many/a.png").read_bytes() == Path("a.png").read_bytes()


def test_a_folder_restored_by_something_else_is_not_touched(here, restore, saved):
    """The numbers of the table count, not its name; so do the task, the seed and the network."""
    fill(["a.png", "b.png"])
    batch = ("--batch", "in", "--out", "out")
    table = ("--task", "derain", "--solver", "mine.safetensors")
    assert restore(*batch, *table, steps=None)[0] == 0
    os.unlink("out/b.png")
    before = {f: f.read_bytes() for f in Path("out").iterdir()}

    def refused(*args, steps=None):
        code, out, err = restore(*batch, *args, steps=steps)
        assert (code, out) == (2, "")
        assert before == {f: f.read_bytes() for f in Path("out").iterdir()}
        return err

    assert "out holds a run with another seed: use another folder or delete it" in refused(
        *table, "--seed", 1
    )
    assert "out holds a run with another task:" in refused("--task", "desnow", *table[2:])
    assert "out holds a run with another solver or steps:" in refused("--task", "derain")
    eqx.tree_at(lambda t: t.A, saved, saved.A * np.array([1, 1, 1, 1 + 1e-6])).save("mine.safetensors")
    assert "out holds a run with another solver or steps:" in refused(*table)
    saved.save("mine.safetensors", another="card")
    code, out, _ = restore(*batch, *table, steps=None)
    assert (code, out) == (0, "1 restored into out, 1 were there already, 0 failed\n")
    assert Path("out/a.png").read_bytes() == before[Path("out/a.png")]
    Path(f"out/{folder.MARK}").unlink()
    _, _, err = restore(*batch, *table, steps=None)
    assert "out/a.png exists, from an unknown run: choose another --out, or delete it" in err


def test_a_table_that_does_not_fit(here, restore, saved, net):
    def refused(file, *args):
        code, out, err = restore("photo.png", "--task", "derain", "--solver", file, *args, steps=None)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert not os.path.exists("photo_restored.png")
        return err

    settles = "the table mine.safetensors has its own steps, grid and order: leave"
    assert f"{settles} --steps out" in refused("mine.safetensors", "--steps", 4)
    assert f"{settles} --order out" in refused("mine.safetensors", "--order", 1)
    for change in ({"std": 0.4}, {"schedule": "linear"}, {"eps": 0.01}, {"variant": "irsde"}):
        path = js.MeanReverting(np.zeros(()), **{"std": net.std, "eps": net.eps, **change})
        saved.save("other.safetensors", path=repr(path))
        assert "the table other.safetensors was made for MeanReverting(" in refused("other.safetensors")
    path = js.VP()
    js.tabulate(path, js.grids.log_snr(path, 4), js.solvers.ddim).save("vp.safetensors")
    assert "the table vp.safetensors was made for another path; this network is on MeanReverting(" in refused(
        "vp.safetensors"
    )
    js.stack([saved, saved]).save("two.safetensors")
    assert "holds 2 tables" in refused("two.safetensors")
    assert "cannot read the table none.safetensors" in refused("none.safetensors")
    Path("bad.safetensors").write_bytes(Path("mine.safetensors").read_bytes()[:-3])
    assert "bad.safetensors is corrupt" in refused("bad.safetensors")


def test_a_folder_reports_bad_photos_and_goes_on(here, restore):
    fill(["a.png", "a.jpg", "z.png"])
    Path("in/empty.png").touch()
    Path("in/notes.txt").write_text("not a photo")
    code, out, err = restore("--batch", "in", "--task", "deblur", "--out", "out")
    assert code == 2
    assert out.startswith("3 restored into out, 0 were there already, 1 failed")
    assert "empty.png" in err.splitlines()[-1]
    assert sorted(os.listdir("out")) == [folder.MARK, "a.jpg.png", "a.png.png", "z.png"]


def test_no_photo_is_written_over_by_another(here, restore):
    """t.tiff and t.bmp, in one folder and in two; the same command again writes the same file."""
    for k, name in enumerate(["t.tiff", "t.bmp", "deep/u.png", "u.jpg"]):
        Path(name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.roll(pixels("photo.png"), 7 * k, axis=1)).save(name)
    said = {}
    for name in ("t.tiff", "t.bmp", "deep/u.png", "u.jpg", "t.bmp", "u.jpg"):
        code, out, err = restore(name, "--task", "derain")
        assert code == 0, err
        assert said.setdefault(name, out) == out
    assert list(said.values()) == [
        "t.tiff_restored.png\n",
        "t.bmp_restored.png\n",
        "u_restored.png\n",
        "u_restored_2.png\n",
    ]
    assert len({Path(out.strip()).read_bytes() for out in said.values()}) == 4
    assert restore("u.jpg", "--task", "derain", "--out", "u_restored.png")[0] == 0  # as asked for
    assert Path("u_restored.png").read_bytes() == Path("u_restored_2.png").read_bytes()


def test_outputs_of_a_folder_are_all_different(tmp_path):
    names = ["a.jpg", "a.png", "a.jpg.png", "a.jpg.png.png", "A.bmp", "b.png", "a.png.gif"]
    (tmp_path / "in").mkdir()
    for name in names:
        (tmp_path / "in" / name).touch()
    found = dict(folder.outputs(tmp_path / "in", tmp_path / "out"))
    assert sorted(f.name for f in found) == sorted(names)
    outs = [f.name.casefold() for f in found.values()]
    assert len(set(outs)) == len(names)
    assert found[tmp_path / "in/b.png"].name == "b.png"


def test_sixteen_bits_of_colour_are_kept_and_what_is_not_is_said(here, restore):
    deep = np.random.default_rng(0).integers(0, 65536, (32, 32, 3)).astype(np.uint16)
    Path("deep.png").write_bytes(deep_png(deep, None))
    mask = np.full((32, 32), 255, np.uint8)
    mask[8:16] = 0
    Image.fromarray(mask).save("mask.png")
    code, out, err = restore("deep.png", "--task", "inpaint", "--mask", "mask.png")
    assert (code, out) == (0, "deep_restored.png\n")
    assert "not kept" not in err
    image, form = data.load_image("deep_restored.png")
    assert form.bits == 16
    np.testing.assert_array_equal(np.round(image[mask > 0] * 65535), deep[mask > 0])
    _, _, err = restore("deep.png", "--task", "inpaint", "--mask", "mask.png", "--out", "deep.jpg")
    assert "not kept of deep.png: 16 bits per channel (JPEG holds 8)" in err
    os.mkdir("in")
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        Image.open("photo.png").save(f"in/{name}", **({} if name == "c.jpg" else {"exif": exif}))
    _, _, err = restore("--batch", "in", "--task", "derain", "--out", "out")
    assert "not kept of a.jpg and 1 others: EXIF data" in err


def test_a_folder_in_use_is_left_alone(here, restore):
    fill(["a.png"])
    with claimed("out"):
        code, out, err = restore("--batch", "in", "--task", "derain", "--out", "out")
    assert (code, out) == (2, "")
    assert f"out is in use by process {os.getpid()} on " in err
    assert os.listdir("out") == []


@pytest.mark.parametrize("solver", ["edict", "dpm_adaptive", "score_sde", "bdia", "obelm", "mccallum_foster"])
def test_solvers_without_a_table_are_refused_in_one_line(here, restore, solver):
    code, out, err = restore("photo.png", "--task", "derain", "--solver", solver)
    assert (code, out) == (2, "")
    assert err == f"jaxsampler: {solver} has no table, by which photos are restored: choose another solver\n"


def test_a_folder_of_masks(here, restore):
    fill(["a.png", "b.png"])
    os.mkdir("masks")
    for name, left in (("a", 0), ("b", 32)):
        mask = np.full((64, 64), 255, np.uint8)
        mask[:, left : left + 16] = 0
        Image.fromarray(mask).save(f"masks/{name}.png")
    assert restore("--batch", "in", "--task", "inpaint", "--mask", "masks", "--out", "out")[0] == 0
    changed = [(pixels(f"in/{n}.png") != pixels(f"out/{n}.png")).any((0, 2)) for n in "ab"]
    assert changed[0][:16].all()
    assert not changed[0][16:].any()
    assert changed[1][32:48].all()
    assert not changed[1][:32].any()


def test_without_arguments(here, restore, monkeypatch):
    """The whole demonstration, if with a small network and small crops: 140 calls, three compilations."""
    shown = comparison.shown
    monkeypatch.setattr(comparison, "shown", lambda size: shown(32))
    code, out, _ = restore(steps=None)
    assert code == 0
    assert sorted(os.listdir("restored")) == ["restored.csv", "restored.png"]
    with open("restored/restored.csv") as file:
        rows = list(csv.DictReader(file))
    for task in data.TASKS:
        line = next(line for line in out.splitlines() if line.startswith(f"| {task} "))
        (sde,) = (r for r in rows if (r["task"], r["solver"], r["calls"]) == (task, "mr_sde 2", "10"))
        column = (
            out.splitlines()[1]
            .split("|")
            .index(next(c for c in out.splitlines()[1].split("|") if "mr_sde 2 x10" in c))
        )
        assert line.split("|")[column].strip() == f"{float(sde['psnr']):.2f}/{float(sde['ssim']):.3f}"
    assert pixels("restored/restored.png").shape[0] > 1500


def make_bad_files(here):
    Path("empty.png").touch()
    Path("text.png").write_text("hello")
    Path("text.safetensors").write_text("hello")
    Path("zero.ppm").write_bytes(b"P6 0 0 255\n")
    Path("cut.png").write_bytes(Path("photo.png").read_bytes()[:900])
    Image.new("L", (32, 64), 255).save("mask.png")
    os.mkdir("folder")
    os.mkdir("none")
    Image.new("RGBA", (8, 8)).save("alpha.png")


WRONG = {
    "missing": (["no.png", "--task", "derain"], "no.png"),
    "empty": (["empty.png", "--task", "derain"], "empty"),
    "text": (["text.png", "--task", "derain"], "text.png"),
    "no pixels": (["zero.ppm", "--task", "derain"], "zero.ppm"),
    "truncated": (["cut.png", "--task", "derain"], "cut.png"),
    "a folder": (["folder", "--task", "derain"], "folder"),
    "no task": (["photo.png"], "missing --task: choose one of deblur, dehaze"),
    "unknown task": (["photo.png", "--task", "derian"], "'derain'"),
    "unknown solver": (["photo.png", "--task", "derain", "--solver", "mr_sd"], "'mr_sde'"),
    "no table": (["photo.png", "--task", "derain", "--solver", "edict"], "edict has no table"),
    "unknown order": (["photo.png", "--task", "derain", "--solver", "mr_sde", "--order", "3"], "order=3"),
    "no order": (
        ["photo.png", "--task", "derain", "--solver", "posterior", "--order", "2"],
        "leave --order out",
    ),
    "mask size": (["photo.png", "--task", "inpaint", "--mask", "mask.png"], "32x64"),
    "mask missing": (["photo.png", "--task", "inpaint"], "needs a mask"),
    "mask unreadable": (["photo.png", "--task", "inpaint", "--mask", "empty.png"], "empty"),
    "mask without use": (["photo.png", "--task", "derain", "--mask", "mask.png"], "leave it out"),
    "out suffix": (["photo.png", "--task", "derain", "--out", "out.xyz"], ".png"),
    "out folder": (["photo.png", "--task", "derain", "--out", "folder"], "name a file"),
    "out under a file": (
        ["photo.png", "--task", "derain", "--out", "text.png/out.png"],
        "cannot write into text.png",
    ),
    "alpha in jpeg": (["alpha.png", "--task", "derain", "--out", "out.jpg"], "use .png"),
    "seed": (["photo.png", "--task", "derain", "--seed", "-1"], "seed"),
    "task without photo": (["--task", "derain"], "missing photo"),
    "solver without photo": (["--solver", "mr_ode"], "missing photo"),
    "steps without photo": (["--full", "--steps", "3"], "missing photo"),
    "photo and batch": (
        ["photo.png", "--batch", "folder", "--out", "o", "--task", "derain"],
        "leave one out",
    ),
    "photo and full": (["photo.png", "--full", "--task", "derain"], "leave the photo out"),
    "batch without out": (["--batch", "folder", "--task", "derain"], "--out"),
    "batch of none": (["--batch", "none", "--task", "derain", "--out", "o"], "no photos"),
    "batch of a file": (["--batch", "photo.png", "--task", "derain", "--out", "o"], "not a folder"),
    "batch into itself": (["--batch", ".", "--task", "derain", "--out", "."], "another folder"),
    "report under a file": (["--out", "text.png"], "cannot write into text.png"),
    "what is no table": (
        ["photo.png", "--task", "derain", "--solver", "text.safetensors"],
        "text.safetensors is corrupt",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_line_and_leaves_nothing(here, restore, case):
    make_bad_files(here)
    before = sorted(str(f) for f in here.rglob("*"))
    args, hint = WRONG[case]
    code, out, err = restore(*args, steps=None)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("jaxsampler: ")
    assert hint in line
    assert [f for f in sorted(str(f) for f in here.rglob("*")) if f not in before] in ([], [str(here / "o")])


@pytest.mark.parametrize("steps", [0, -3])
def test_too_few_steps(here, restore, steps):
    code, _, err = restore("photo.png", "--task", "derain", "--solver", "mr_sde", steps=steps)
    assert (code, err) == (2, f"jaxsampler: mr_sde needs at least 1 step, got {steps}; 5 to 20 are usual\n")


def test_options_that_cannot_be_parsed(here, restore):
    code, _, err = restore("photo.png", "--task", "derain", "--stps", "3")
    assert code == 2
    assert "--steps" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("damage", ["missing", "corrupt", "no card", "other card", "other weights"])
def test_bad_weights(here, weights, capsys, damage):
    path = Path("w.safetensors")
    if damage != "missing":
        path.write_bytes(weights.read_bytes()[: 1000 if damage == "corrupt" else None])
    if damage != "no card":
        path.with_suffix(".json").write_bytes(weights.with_suffix(".json").read_bytes())
    if damage == "other card":
        path.with_suffix(".json").write_text('{"widths": [8, 8]}')
    if damage == "other weights":
        checkpoint.save(path, {"a": np.zeros(3, np.float32)})
    code = cli.main(["restore", "photo.png", "--task", "derain", "--weights", str(path)])
    out, err = capsys.readouterr()
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith("jaxsampler: ")
    assert path.stem in err
    assert not os.path.exists("photo_restored.png")


def test_a_file_too_large_for_its_place_leaves_nothing(here, restore):
    """The operating system itself refuses, half-way through the file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        code, out, err = restore("photo.png", "--task", "derain")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (code, out) == (2, "")
    assert "photo_restored.png: File too large" in err.splitlines()[-1]
    assert os.listdir() == ["photo.png"]


@pytest.mark.parametrize("where", ["photo", "folder", "report"])
def test_a_full_disk_leaves_nothing(here, restore, monkeypatch, where):
    shown = comparison.shown
    monkeypatch.setattr(comparison, "shown", lambda size: shown(32))

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    fill(["a.png"])
    if where == "photo":  # the rehearsal's single pixel still fits
        real, calls = os.fsync, []
        monkeypatch.setattr(os, "fsync", lambda d: full(d) if calls else calls.append(real(d)))
    else:
        monkeypatch.setattr(os, "fsync", full)
    args = {
        "photo": ["photo.png", "--task", "derain", "--out", "o/x.png"],
        "folder": ["--batch", "in", "--task", "derain", "--out", "o"],
    }
    code, _, err = restore(*args.get(where, ["--out", "o"]), steps=None if where == "report" else 2)
    assert code == 2
    assert "the disk is full" in err.splitlines()[-1]
    assert os.listdir("o") == []


def test_a_folder_that_must_not_be_written(here, restore, monkeypatch):
    def denied(*args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "o")

    monkeypatch.setattr("tempfile.TemporaryFile", denied)
    code, _, err = restore("photo.png", "--task", "derain", "--out", "o/x.png")
    assert (code, err) == (
        2,
        "jaxsampler: cannot write into o: Permission denied; choose another place with --out\n",
    )
