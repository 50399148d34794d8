"""The shipped Fashion-MNIST networks: made by their configs, as good as their cards say, and obedient to
labels and guidance.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from places import ROOT

import jaxsampler as js
from jaxsampler import config, pretrained
from jaxsampler.data import fashion
from jaxsampler.training import classify, generate

GENERATIVE = ("fashion_edm", "fashion_flow")


@pytest.mark.parametrize("name", [*GENERATIVE, "fashion_classifier"])
def test_the_config_in_the_repository_made_the_weights(name):
    import tomllib

    values = tomllib.loads((ROOT / f"configs/train/{name}.toml").read_text())
    cls = {"generate": generate.Generate, "classify": classify.Classify}[values.pop("task")]
    card = pretrained.card(name)
    want = generate.described(config.build(values, cls))
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in card.items() if k in want} == want
    assert card["trained_steps"] == card["steps"]
    assert Path(pretrained.__file__).with_name(f"{name}.safetensors").stat().st_size <= 8e6


def test_the_classifier_is_as_good_as_its_card_says():
    """On the 512 shipped test photos, within 4 standard errors of the 10,000; worse with noise, as told."""
    net, card = pretrained.load("fashion_classifier"), pretrained.card("fashion_classifier")
    photos = fashion.some()
    assert card["metrics"]["accuracy at s = 0.0"] >= 0.92
    for s in (0.0, 1.0):
        claimed = card["metrics"][f"accuracy at s = {s}"]
        assert classify.accuracy(net, photos, s) == pytest.approx(
            claimed, abs=4 * np.sqrt(claimed * (1 - claimed) / 512)
        )


@pytest.mark.parametrize("name", GENERATIVE)
def test_the_loss_on_test_photos_is_that_of_the_card(name):
    """512 of the 10,000 photos at other times: to a tenth."""
    d, card = pretrained.load(name), pretrained.card(name)
    c = config.pick(card, generate.Generate)
    assert generate.judge(c, d.net, fashion.some()) == pytest.approx(card["metrics"]["test loss"], rel=0.1)


@pytest.mark.parametrize("name", GENERATIVE)
def test_samples_are_of_the_class_asked_for(name):
    """20 samples, two of each class, judged by the classifier; more of them with guidance."""
    d, judge = pretrained.load(name), pretrained.load("fashion_classifier")
    labels, null = jnp.repeat(jnp.arange(10), 2), jnp.full(20, 10)
    like = jax.ShapeDtypeStruct((20, 32, 32, 1), jnp.float32)
    draw = lambda model: js.sample(model, like, key=jax.random.key(0), steps=10, adjoint=js.Direct())
    plain = jax.jit(lambda label: draw(d.bind(label=label)))
    guided = jax.jit(lambda label: draw(js.guidance.classifier_free(d.bind(label=label), d, 2.0)))

    def right(images):
        assert -1.5 < images.min() < -0.9
        return float((judge(images).argmax(-1) == labels).mean())

    assert right(plain(labels)) > 0.6
    assert right(guided(labels)) > 0.75
    assert right(plain(null)) < 0.4  # of any class: agreement with labels that it never saw is chance
