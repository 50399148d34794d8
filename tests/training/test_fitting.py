"""The training loop: a killed run ends with the bits of one that was not, and the average is the one the
docstring gives.
"""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from places import ROOT

from jaxsampler import checkpoint
from jaxsampler.training import restore
from jaxsampler.training.fitting import fit, gradient, power, prefetch
from jaxsampler.training.optimisers import muon


def train(folder: str, hang: int = -1):
    """Train a tiny restoration network with the optimiser of the real one; the data of step `hang` never
    come.
    """
    c = restore.Restore(
        photos=(),
        seed=3,
        steps=6,
        batch=2,
        crop=16,
        std=0.3,
        T=100,
        eps=0.005,
        widths=(6,),
        depth=1,
        embedding=8,
        lr=1e-2,
        warmup=2,
        weight_decay=1e-2,
        clip=1.0,
        decay=0.9,
    )

    def data(step):
        while step == hang:
            time.sleep(1)
        clean = np.random.default_rng(step).random((2, 16, 16, 3), np.float32)
        return {"clean": clean, "degraded": clean**2, "task": np.array([0, step % 2], np.int32)}

    fit(
        restore.network(c, (0.2, 0.3)),
        partial(restore.loss, c),
        data,
        muon(c),
        steps=6,
        seed=3,
        decay=c.decay,
        folder=folder,
        card={"sizes": c.widths},
        minutes=0.0,
        log_every=2,
        progress=False,
    )


def process(code: str, *args: object, devices: int = 1) -> subprocess.Popen:
    """Python in a process of its own, which compiles as this one does and shares its programs."""
    paths = (ROOT, ROOT / "tests", Path(__file__).parent)
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}",
    }
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)


def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    """A process of its own imports JAX, trains and is killed: some seconds."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    first = process("import sys, test_fitting as t; t.train(sys.argv[1], hang=3)", killed)
    file = killed / "state.safetensors"
    try:
        deadline = time.monotonic() + 200
        while not (file.exists() and checkpoint.read(file)["step"] == 3):
            assert time.monotonic() < deadline
            assert first.poll() is None
            time.sleep(0.1)
    finally:
        os.kill(first.pid, signal.SIGKILL)
    first.wait()
    train(str(killed))
    train(str(whole))

    a, b = checkpoint.read(whole / "state.safetensors"), checkpoint.read(file)
    assert a["step"] == 6
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].tobytes() == b[name].tobytes(), name
    moved = [n for n in a if n.startswith("model.") and np.any(a[n] != a["ema" + n[5:]])]
    assert len(moved) == sum(n.startswith("model.") for n in a)  # every weight was trained, and averaged

    logs = [list(csv.DictReader((f / "log.csv").open())) for f in (whole, killed)]
    assert [r["step"] for r in logs[0]] == [r["step"] for r in logs[1]] == ["2", "4", "6"]
    for k in (0, 2):  # the middle row of the killed run lacks the step before the kill
        assert logs[0][k]["loss"] == logs[1][k]["loss"]
    assert sorted(os.listdir(killed)) == ["log.csv", "state.json", "state.safetensors"]


def square(model, batch, key):
    return 0.5 * jnp.square(model - batch) + 0 * jax.random.normal(key)


def test_model_and_average_follow_their_recurrences():
    state = fit(
        jnp.float32(5.0),
        square,
        lambda k: np.float32(k % 3),
        optax.sgd(0.1),
        steps=60,
        seed=0,
        decay=0.7,
        progress=False,
    )
    w = ema = 5.0
    for k in range(60):
        w -= 0.1 * (w - k % 3)
        d = min(0.7, (1 + k) / (10 + k))
        ema = d * ema + (1 - d) * w
    assert float(state.model) == pytest.approx(w, rel=1e-5)
    assert float(state.ema) == pytest.approx(ema, rel=1e-5)
    assert int(state.step) == 60


def test_each_step_has_its_own_key_and_the_seed_counts():
    def walk(model, batch, key):  # gradient: the noise itself
        return model * jax.random.normal(key)

    def end(steps, seed):
        return float(
            fit(
                jnp.float32(0.0), walk, lambda k: k, optax.sgd(1.0), steps=steps, seed=seed, progress=False
            ).model
        )

    draws = np.diff([0.0, *(-end(n, 0) for n in (1, 2, 3))])
    expected = [jax.random.normal(jax.random.fold_in(jax.random.key(0), k)) for k in range(3)]
    np.testing.assert_allclose(draws, expected, atol=1e-6)
    assert end(1, 1) != end(1, 0)


def test_another_run_is_not_continued_and_a_finished_one_is_left_alone(tmp_path):
    def go(card, data=lambda k: np.float32(1.0)):
        model = jnp.float32(5.0)
        return fit(
            model, square, data, optax.sgd(0.1), steps=4, seed=0, folder=tmp_path, card=card, progress=False
        )

    done = go({"lr": 0.1, "sizes": (1, 2)})

    def never(k):
        raise AssertionError("a finished run needs no data")

    assert float(go({"lr": 0.1, "sizes": (1, 2)}, never).model) == float(done.model)
    with pytest.raises(ValueError, match="another lr: use another folder"):
        go({"lr": 0.2, "sizes": (1, 2)})


def test_batches_come_in_order_and_their_errors_arrive():
    assert list(prefetch(lambda k: k * k, 2, 9)) == [(k, k * k) for k in range(2, 9)]

    def broken(k):
        if k == 3:
            raise ValueError("no photo")
        return k

    with pytest.raises(ValueError, match="no photo"):
        list(prefetch(broken, 0, 9))


def falling(bad: int):
    """The distance to 0, whose data are not finite in iteration `bad` (from 1)."""
    data = lambda k: np.float32(np.nan if k + 1 == bad else 0.0)
    return lambda model, batch, key: jnp.square(model - batch), data


def test_a_lost_loss_stops_the_training_at_its_iteration(tmp_path):
    """The last good state and that of the lowest loss are kept; nothing that is not finite is written."""
    loss, data = falling(bad=9)
    go = lambda **options: fit(
        jnp.float32(1.0),
        loss,
        data,
        optax.sgd(-0.1),  # the wrong way: the first state is the best
        steps=20,
        seed=0,
        card={"lr": 0.1},
        progress=False,
        **options,
    )
    with pytest.raises(ValueError, match=r"^the loss of iteration 9 is nan: lower lr or clip") as told:
        go(folder=tmp_path, log_every=3)
    assert f"{tmp_path}/state.safetensors is the last good state, after 6 iterations" in str(told.value)
    assert f"{tmp_path}/best.safetensors is that of the lowest loss" in str(told.value)
    assert str(told.value).endswith("lowest loss, 1, after 1")
    for name, made in (("state", 6), ("best", 1)):
        kept = checkpoint.read(tmp_path / f"{name}.safetensors")
        assert kept["step"] == made
        assert kept["model"] == pytest.approx(1.2**made, rel=1e-5)
        assert checkpoint.read_card(tmp_path / f"{name}.safetensors") == {"lr": 0.1}
    steps = [int(r["step"]) for r in csv.DictReader((tmp_path / "log.csv").open())]
    assert steps == [3, 6]
    with pytest.raises(ValueError, match=r"^the loss of iteration 9 is nan"):  # goes on from there
        go(folder=tmp_path, log_every=3)
    assert checkpoint.read(tmp_path / "state.safetensors")["step"] == 6
    with pytest.raises(ValueError, match=r"^the loss of iteration 9 is nan.* look at the data$"):
        go()


def test_a_loss_that_is_lost_before_the_first_line_of_the_log(tmp_path):
    loss, data = falling(bad=6)
    options = dict(steps=20, seed=0, folder=tmp_path, progress=False)
    with pytest.raises(ValueError, match="the loss of iteration 6 is nan"):
        fit(jnp.float32(1.0), loss, data, optax.sgd(0.1), **options)
    for name in ("state", "best"):
        kept = checkpoint.read(tmp_path / f"{name}.safetensors")
        assert kept["step"] == 4
        assert kept["model"] == pytest.approx(0.8**4, rel=1e-5)


@pytest.mark.parametrize("minutes", [0.0, 5.0])
def test_a_state_that_breaks_the_next_iteration_is_not_kept_as_good(tmp_path, minutes):
    """Iteration 4 has a finite loss and gradient, and makes weights whose loss is infinite."""

    def loss(model, batch, key):
        return jnp.square(model) + batch * model

    data = lambda k: np.float32(1e30 if k == 3 else 0.0)
    with pytest.raises(ValueError, match=r"^the loss of iteration 5 is inf"):
        options = dict(steps=20, seed=0, folder=tmp_path, minutes=minutes, log_every=1, progress=False)
        fit(jnp.float32(1.0), loss, data, optax.sgd(0.1), **options)
    kept = checkpoint.read(tmp_path / "state.safetensors")
    assert kept["step"] == 3
    assert kept["model"] == pytest.approx(0.8**3, rel=1e-5)


def test_an_infinite_gradient_is_a_lost_loss():
    with pytest.raises(ValueError, match="the gradient of iteration 1 is inf"):
        fit(
            jnp.float32(0.0),
            lambda model, batch, key: jnp.sqrt(jnp.abs(model)),
            lambda k: k,
            optax.sgd(0.1),
            steps=3,
            seed=0,
            progress=False,
        )


@pytest.mark.parametrize("width", [0.05, 0.15, 0.25])
def test_a_power_average_remembers_the_same_fraction_of_any_run(width):
    """The weight of each step in the average: its standard deviation is `width` of the run, however long, and
    it grows like a power.
    """
    profile = power(width)
    for n in (1000, 4000):
        keep = np.array([float(d) for d in jax.vmap(profile)(jnp.arange(n, dtype=jnp.float32))])
        weight = (1 - keep) * np.append(np.cumprod(keep[:0:-1])[::-1], 1)
        assert weight.sum() == pytest.approx(1, abs=1e-3)
        k = (np.arange(n) + 1) / n
        mean = (weight * k).sum()
        assert np.sqrt((weight * (k - mean) ** 2).sum()) == pytest.approx(width, rel=0.02)
        powers = np.diff(np.log(weight[[n // 4, n // 2, n - 1]])) / np.log([2.0, 2.0])
        assert powers[0] == pytest.approx(powers[1], rel=0.02)


@pytest.mark.parametrize("width", [0.0, 0.3])
def test_an_impossible_width_is_refused(width):
    with pytest.raises(ValueError, match=r"between 0 and 0\.288"):
        power(width)


def test_a_batch_in_parts_gives_the_same_gradient():
    def distance(model, batch, key):
        return jnp.square(model["w"][None] - batch["x"]).mean() + model["b"] ** 2

    def go(parts):
        model = {"w": jnp.zeros(3), "b": jnp.float32(2.0)}
        x = lambda k: {"x": np.random.default_rng(k).normal(size=(8, 3)).astype(np.float32)}
        return fit(
            model, distance, x, optax.adam(0.1), steps=5, seed=0, accumulate=parts, progress=False
        ).model

    chex.assert_trees_all_close(go(1), go(4), rtol=1e-5)


def test_parts_must_divide_the_batch():
    with pytest.raises(ValueError, match="accumulate=3 does not divide a batch of 8: choose a divisor"):
        gradient(
            lambda model, batch, key: (model * batch).mean(),
            jnp.ones(()),
            jnp.ones((8,)),
            jax.random.key(0),
            3,
        )


def spread():
    """Train on batches of eight: the number of devices that a batch lay on, and the weights."""
    seen = []

    def loss(model, batch, key):
        noise = jax.random.normal(key, batch["x"].shape)
        jax.debug.inspect_array_sharding(batch["x"], callback=lambda s: seen.append(len(s.device_set)))
        return jnp.square(batch["x"] @ model + 0.1 * noise).mean() + batch["odd"].sum() * model.sum()

    def data(k):
        x = np.random.default_rng(k).normal(size=(8, 4)).astype(np.float32)
        return {"x": x, "odd": np.ones(3, np.float32)}

    state = fit(jnp.ones((4, 4)), loss, data, optax.adam(0.1), steps=4, seed=0, progress=False)
    return max(seen), np.asarray(state.model).ravel().tolist()


def test_a_batch_spread_over_devices_trains_the_same():
    """Four devices of this machine's one CPU against one: a process that imports JAX, some seconds."""
    done = process("import json, test_fitting as t; print(json.dumps(t.spread()))", devices=4)
    said, _ = done.communicate()
    assert done.returncode == 0
    (one, alone), (four, together) = spread(), json.loads(said)
    assert (one, four) == (jax.device_count(), 4) == (1, 4)
    np.testing.assert_allclose(alone, together, rtol=1e-5)
    assert np.abs(np.array(alone) - 1).min() > 0.1
