"""The Fashion-MNIST trainings, small: killed and continued to the same bits, batches by epochs, and errors in
the user's words.
"""

import os
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from places import ROOT

from jaxsampler import checkpoint, config
from jaxsampler.commands import cli
from jaxsampler.data import fashion
from jaxsampler.training import classify, generate
from jaxsampler.training.optimisers import muon

CONFIGS = ROOT / "configs/train"
SMALL = {
    "edm": dict(model="edm", noise_mean=-1.2, noise_std=1.2),
    "flow": dict(model="flow", noise_mean=0.0, noise_std=1.0),
}
TEXT = textwrap.dedent(
    """
    task = "generate"
    model = "edm"
    seed = 5
    steps = 6
    batch = 4
    widths = [4, 6]
    depth = 1
    embedding = 8
    noise_mean = -1.2
    noise_std = 1.2
    dropout = 0.5
    lr = 1e-2
    warmup = 2
    weight_decay = 1e-3
    clip = 1.0
    average = 0.1
    minutes = 0.0
    """
)
# The command itself, on the shipped photos instead of the 60,000. argv: the command line.
RUN = """
import sys
from jaxsampler.commands import cli
from jaxsampler.data import fashion
fashion.load = lambda split, folder: fashion.some()
sys.exit(cli.main(sys.argv[1:]))
"""


def small(**changes) -> generate.Generate:
    values = dict(
        seed=5, steps=6, batch=32, widths=(8, 12), depth=1, embedding=16, dropout=0.1, lr=1e-2, warmup=2
    )
    return generate.Generate(
        **(values | dict(weight_decay=0.0, clip=1.0, average=0.1) | SMALL["edm"] | changes)
    )


def test_a_killed_training_ends_with_the_same_files(tmp_path, monkeypatch, capsys):
    """Killed once there is a checkpoint, anywhere in a step or a write; one process imports JAX and trains:
    some seconds.
    """
    (tmp_path / "c.toml").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fashion, "load", lambda split, folder: fashion.some())
    env = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    command = lambda name: ["train", "c.toml", "--out", f"{name}/edm.safetensors"]
    first = subprocess.Popen(
        [sys.executable, "-c", RUN, *command("killed")],
        env=env,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    file, deadline = tmp_path / "killed/edm/state.safetensors", time.monotonic() + 300
    while not file.exists():
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert not (tmp_path / "killed/edm.safetensors").exists()
    assert checkpoint.read(file)["step"] < 6
    assert cli.main(command("killed")) == cli.main(command("whole")) == 0
    for name in ("edm.safetensors", "edm.json", "edm/state.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    left = sorted(os.listdir(tmp_path / "killed/edm"))
    assert [f for f in left if not f.endswith(".part")] == [
        "log.csv",
        "loss.png",
        "state.json",
        "state.safetensors",
    ]
    assert "nothing was trained" not in capsys.readouterr().err
    assert cli.main(command("whole")) == 0
    assert "whole/edm holds this training, finished: nothing was trained" in capsys.readouterr().err
    card = checkpoint.read_card(tmp_path / "whole/edm.safetensors")
    assert card["sigma_data"] == pytest.approx(fashion.some().images.std(), abs=1e-4)
    assert "data" not in card

    # What was written is a denoiser that `load` makes ready.
    from jaxsampler import pretrained

    denoiser = pretrained.load("fashion_edm", path=tmp_path / "whole/edm.safetensors")
    x = jnp.ones((2, 32, 32, 1))
    assert np.abs(denoiser.bind(label=3)(x, 1.0) - denoiser(x, 1.0)).max() > 0


@pytest.mark.parametrize("model", SMALL)
def test_it_learns(model):
    """Forty steps on a flow or denoiser of 16 kB take a fifth off its loss at least. Some seconds of
    training.
    """
    from jaxsampler.training.fitting import fit

    c = small(steps=40, **SMALL[model])
    photos, losses = fashion.some(), []
    net = generate.network(c, 0.66)
    batch = jax.tree.map(jnp.asarray, generate.batches(c, photos)(0))
    score = jax.jit(lambda n: generate.loss(c, n, batch, jax.random.key(9)))
    losses.append(float(score(net)))
    state = fit(
        net,
        partial(generate.loss, c),
        generate.batches(c, photos),
        muon(c),
        steps=40,
        seed=0,
        decay=0.5,
        progress=False,
    )
    losses.append(float(score(state.ema)))
    assert losses[1] < 0.8 * losses[0]


def test_an_epoch_shows_every_photo_once():
    c = small(batch=100)
    photos = fashion.some()
    batch = generate.batches(c, photos)
    first = np.concatenate([batch(k)["image"] for k in range(5)])
    again = np.concatenate([batch(k)["image"] for k in range(5, 10)])
    key = lambda images: {image.tobytes() for image in images}
    assert len(key(first)) == 500
    assert key(first) <= key(photos.images)
    assert np.any(first != again)
    np.testing.assert_array_equal(
        generate.batches(c, photos)(7)["image"], batch(7)["image"]
    )  # whatever came before
    by_image = {image.tobytes(): label for image, label in zip(photos.images, photos.labels, strict=True)}
    b = batch(3)
    assert [by_image[image.tobytes()] for image in b["image"]] == list(b["label"])


def test_a_classifier_learns_and_half_its_batch_is_clean():
    """Sixty steps of a small classifier on the shipped photos: far better than chance on them, worse in
    strong noise.
    """
    from jaxsampler.training.fitting import fit

    values = dict(
        seed=0,
        steps=60,
        batch=64,
        widths=(8, 16, 24),
        depth=1,
        embedding=16,
        features=16,
        clean=0.5,
        noise_mean=-1.0,
        noise_std=1.0,
    )
    c = classify.Classify(**values, lr=3e-2, warmup=5, weight_decay=0.0, clip=1.0, average=0.1)
    photos = fashion.some()
    net = classify.network(c)
    state = fit(
        net,
        partial(classify.loss, c),
        classify.batches(c, photos),
        muon(c),
        steps=60,
        seed=0,
        decay=0.8,
        progress=False,
    )
    clean, noisy = classify.accuracy(state.ema, photos), classify.accuracy(state.ema, photos, 5.0)
    assert clean > 0.6
    assert noisy < clean - 0.2

    seen = []

    class Spy:
        def __call__(self, x, s):
            seen.append((x, s))
            return jnp.zeros((len(x), 10))

    batch = jax.tree.map(jnp.asarray, classify.batches(c, photos)(0))
    assert float(classify.loss(c, Spy(), batch, jax.random.key(0))) == pytest.approx(np.log(10), rel=1e-5)
    (x, s) = seen[0]
    np.testing.assert_array_equal(s == 0, np.arange(64) < 32)
    np.testing.assert_array_equal(x[:32], batch["image"][:32])
    level = np.asarray((x - batch["image"]).std((1, 2, 3)))
    np.testing.assert_allclose(level[32:], s[32:], rtol=0.1)


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("fashion_*.toml")), ids=lambda f: f.stem)
def test_the_configs_are_valid_and_their_networks_small(file):
    import tomllib

    values = tomllib.loads(file.read_text())
    task = {"generate": generate, "classify": classify}[values.pop("task")]
    if task is generate:
        net = generate.network(config.build(values, generate.Generate), 0.66)
    else:
        net = classify.network(config.build(values, classify.Classify))
    size = sum(x.size for x in jax.tree.leaves(net))
    assert 4 * size < 8e6
    assert task is classify or 1e6 <= size <= 3e6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('"generate"', '"generat"'), "unknown task 'generat'; did you mean 'generate'?"),
        (('"edm"', '"edn"'), "unknown model 'edn'; did you mean 'edm'?"),
        (("dropout", "drop_out"), "unknown key 'drop_out'; did you mean 'dropout'?"),
        (("batch = 4", "batch = 4000"), "a batch of 4000 images, but only 512 in the data"),
        (("seed = 5", 'data = "/no/such/folder"\nseed = 5'), "neither train-images-idx3-ubyte"),
    ],
)
def test_what_is_wrong_with_a_config_is_one_line(tmp_path, monkeypatch, capsys, change, message):
    if "folder" not in change[1]:
        monkeypatch.setattr(fashion, "load", lambda split, folder: fashion.some())
    (tmp_path / "c.toml").write_text(TEXT.replace(*change, 1))
    assert cli.main(["train", str(tmp_path / "c.toml"), "--out", str(tmp_path / "w.safetensors")]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert os.listdir(tmp_path) == ["c.toml"]


def test_a_folder_of_data_is_no_option_of_restoration(capsys):
    assert cli.main(["train", str(CONFIGS / "restore.toml"), "--data", "x"]) == 2
    assert "the data of task 'restore' are named in its config" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("batch = 4", "batch = 0"), "key 'batch' must be at least 1; got 0"),
        (("batch = 4", "batch = -4"), "key 'batch' must be at least 1; got -4"),
        (("batch = 4", "batch = 900000000"), "reduce batch"),
        (("widths = [4, 6]", "widths = [0, 8]"), "key 'widths' must be at least 1; got 0"),
        (("widths = [4, 6]", "widths = []"), "key 'widths' must have 1 to 8 entries; got ()"),
        (("widths = [4, 6]", "widths = [-8, 8]"), "key 'widths' must be at least 1; got -8"),
        (
            ("widths = [4, 6]\ndepth = 1", "widths = [16384, 16384, 16384]\ndepth = 60"),
            "GB, for its weights: reduce widths, depth or embedding",
        ),
        (("depth = 1", "depth = -1"), "key 'depth' must be at least 1; got -1"),
        (("seed = 5", "seed = 36893488147419103232"), "key 'seed' must be at most 4294967295; got 368934"),
        (("seed = 5", "seed = -1"), "key 'seed' must not be negative; got -1"),
        (("lr = 1e-2", "lr = nan"), "key 'lr' must be a finite number; got nan"),
        (("lr = 1e-2", "lr = -1e-2"), "key 'lr' must be above 0; got -0.01"),
        (("dropout = 0.5", "dropout = 2"), "key 'dropout' must be at most 1; got 2.0"),
        (("clip = 1.0", "clip = 0"), "key 'clip' must be above 0; got 0.0"),
        (("warmup = 2", "warmup = 6"), "key 'warmup' must be below the 6 steps; got 6"),
        (("average = 0.1", "average = 0.3"), "key 'average' must be below 0.288"),
        (("noise_std = 1.2", "noise_std = -1"), "key 'noise_std' must not be negative; got -1.0"),
    ],
)
def test_nonsense_in_a_config_is_one_line(tmp_path, monkeypatch, capsys, change, message):
    monkeypatch.setattr(fashion, "load", lambda split, folder: fashion.some())
    assert change[0] in TEXT
    (tmp_path / "c.toml").write_text(TEXT.replace(*change, 1))
    assert cli.main(["train", str(tmp_path / "c.toml"), "--out", str(tmp_path / "w.safetensors")]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert os.listdir(tmp_path) == ["c.toml"]
