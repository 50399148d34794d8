"""Shipped weights: they fit their card, they restore, and what is wrong with a file is said in one line."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsampler import data, pretrained
from jaxsampler.nn.unet import RestorationNet
from jaxsampler.training import judge

HERE = Path(pretrained.__file__).parent


def test_the_card_tells_what_the_weights_are():
    net, card = pretrained.load("restore"), pretrained.card("restore")
    assert (HERE / "restore.safetensors").stat().st_size <= 8e6
    assert isinstance(net, RestorationNet)
    assert len(net.residual) == len(data.TASKS)
    assert net.std == card["std"]
    assert list(net.residual) == card["residual"]
    assert set(card["metrics"]) == set(data.TASKS)
    assert 0 < card["trained_steps"] <= card["steps"]


def test_the_weights_restore_as_the_card_says():
    """One held-out photo, every task, one call: the mean gain is that of the card, give or take the photo.
    Seconds of network time.
    """
    net, card = pretrained.load("restore"), pretrained.card("restore")
    clean, degraded, task = judge.crops(data.held_out_photos()[:1], 128, 7)
    mu = jnp.asarray(degraded)
    restored = judge.restore(net, mu, jnp.asarray(task), jax.random.key(0), calls=1)
    gain = judge.psnr(np.asarray(restored), clean) - judge.psnr(degraded, clean)
    claimed = np.mean([m["mr_sde_1 x 1"] - m["input"] for m in card["metrics"].values()])
    assert gain.mean() > 4
    assert abs(gain.mean() - claimed) < 3


def test_an_unknown_name_gives_the_nearest():
    with pytest.raises(ValueError, match="unknown pretrained network 'restor'; did you mean 'restore'"):
        pretrained.load("restor")


@pytest.fixture
def copy(tmp_path):
    for suffix in ("safetensors", "json"):
        shutil.copy(HERE / f"restore.{suffix}", tmp_path)
    return tmp_path / "restore.safetensors"


def test_corrupt_weights_are_one_line(copy):
    copy.write_bytes(copy.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"restore\.safetensors is corrupt") as e:
        pretrained.load("restore", path=copy)
    assert "\n" not in str(e.value)


def test_weights_of_another_network_are_refused(copy):
    card = json.loads(copy.with_suffix(".json").read_text())
    copy.with_suffix(".json").write_text(json.dumps(card | {"widths": [8, *card["widths"][1:]]}))
    with pytest.raises(
        ValueError,
        match=r"array 'unet\.stem\.weight' is float32\[3, 3, 24, 48\], "
        r"the model needs float32\[3, 3, 24, 8\]",
    ):
        pretrained.load("restore", path=copy)


@pytest.mark.parametrize(
    "change",
    [lambda c: c | {"widths": "many"}, lambda c: {k: v for k, v in c.items() if k != "residual"}, list],
)
def test_a_card_of_something_else_is_refused(copy, change):
    card = json.loads(copy.with_suffix(".json").read_text())
    copy.with_suffix(".json").write_text(json.dumps(change(card)))
    with pytest.raises(
        ValueError, match=r"restore\.json is not (the card of a 'restore' network|a card)"
    ) as e:
        pretrained.load("restore", path=copy)
    assert "\n" not in str(e.value)
