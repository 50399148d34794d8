"""The yardstick of likelihood: bits of a closed-form density on the shipped photographs, its standard error
and its check of the grid.
"""

import numpy as np
import pytest

import jaxsampler as js
from jaxsampler.commands.bench import likelihood, report
from jaxsampler.data import fashion


def test_bits_of_gaussians_on_both_paths():
    """A Gaussian's cross-entropy of centred dequantised images is its second moment's; its divergence is
    known to any probe.
    """
    std, n = 0.6, 6
    edm = js.Denoiser(lambda x, t: x * std**2 / (std**2 + t**2), js.EDM(), "data")
    flow = js.Denoiser(
        lambda x, t: x * (t - (1 - t) * std**2) / (t**2 + (1 - t) ** 2 * std**2), js.CondOT(), "velocity"
    )
    found = likelihood.measure(n, 3, {"edm": edm, "flow": flow}, steps=24)
    assert found.labels == fashion.some().labels[:n].tolist()
    second = (fashion.some().images[:n].astype(np.float64) ** 2).mean((1, 2, 3)) + (1 / 127.5) ** 2 / 12
    for name, t_min in (("edm", 0.002), ("flow", 0.0)):
        one, var = found.networks[name], std**2 + t_min**2
        exact = (second / (2 * var) + np.log(2 * np.pi * var) / 2) / np.log(2) + np.log2(127.5)
        np.testing.assert_allclose(one.bits, exact, atol=3e-3)
        assert (one.t_min, one.calls) == (t_min, 96)
        assert one.error == pytest.approx(np.sqrt(np.var(exact) * n / (n - 1) / n), rel=0.05)
        assert abs(one.change) < 2e-3
    text = likelihood.markdown(found)
    assert f"| {found.networks['edm'].mean:.3f} ±" in text
    assert report.png(likelihood.figure(found)).startswith(b"\x89PNG")
    assert report.benchmarks()["likelihood"] is likelihood


def test_a_coarse_grid_shows_in_the_change():
    std = 0.6
    edm = js.Denoiser(lambda x, t: x * std**2 / (std**2 + t**2), js.EDM(), "data")
    assert abs(likelihood.measure(2, 2, {"edm": edm}, steps=3).networks["edm"].change) > 0.02
