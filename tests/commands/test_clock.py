"""Who waits sees something move: a clock, and a bar in every benchmark."""

import re
import time

import numpy as np
import pytest

from jaxsampler.commands import clock
from jaxsampler.commands.bench import inversion, likelihood, precision
from jaxsampler.paths import CondOT, Denoiser


def test_a_clock_shows_for_long_work_only(capsys, monkeypatch):
    monkeypatch.setattr(clock, "PATIENCE", 0.05)
    monkeypatch.setattr(clock, "EVERY", 0.005)
    with clock.clock("short"):
        pass
    assert capsys.readouterr().err == ""
    with pytest.raises(ValueError), clock.clock("long work"):
        time.sleep(0.4)
        raise ValueError
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 2
    assert all(re.fullmatch(r"long work: \d+ s \.\.", line) for line in lines)


def counts(err, unit):
    """The numbers that a bar went through."""
    return [int(n) for n in re.findall(r"(\d+)/\d+ \[[^\]]*" + unit, err)]


def test_inversion_shows_a_bar_that_moves(capsys):
    """It printed nothing for two minutes."""
    inversion.measure((4, 8), ["ddim", "dpmpp_2m"])
    seen = counts(capsys.readouterr().err, "round trip")
    assert seen[-1] == 4 and seen[0] == 0


def test_likelihood_ticks_for_every_image(capsys):
    """From inside one compiled program; the bits are those without the bar, by another batch size."""
    pixels = np.random.default_rng(0).integers(0, 256, (10, 2, 2, 1), np.uint8)
    denoiser = Denoiser(lambda x, t: x * 0.1, CondOT(), "velocity")
    bits = likelihood.bits_of(denoiser, pixels, 2)
    assert counts(capsys.readouterr().err, "image")[-1] == 10
    assert bits.shape == (10,) and np.isfinite(bits).all()
    alone = likelihood.bits_of(denoiser, pixels[:3], 2)
    np.testing.assert_allclose(alone, bits[:3], rtol=1e-5)


def test_precision_shows_a_bar(capsys, monkeypatch):
    steppers = precision.solvers.catalogue()
    monkeypatch.setattr(precision.solvers, "catalogue", lambda: {"ddpm": steppers["ddpm"]})
    precision.measure(steps=3, samples=4)
    assert counts(capsys.readouterr().err, "solver")[-1] == 1
