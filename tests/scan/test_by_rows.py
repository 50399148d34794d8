"""Rows driven one by one from outside: the sample of `run`, whatever the table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsampler as js
from jaxsampler.scan.by_rows import ByRows

PATHS = {"VP": js.VP(), "MeanReverting": js.MeanReverting(jnp.array([1.5, -0.5]))}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("solver", ["dpmpp_2m", "heun", "mr_sde", "unipc", "euler_ancestral"])
def test_it_is_run(path, solver):
    """With memory, two calls a step, noise, a corrector; the network predicts another kind than rows want."""
    path = PATHS[path]
    x = 0.8 * jnp.arange(6.0).reshape(3, 2)
    kind = "data" if path is PATHS["MeanReverting"] else "noise"
    denoiser = js.Denoiser(lambda x, t: jnp.sin(x) + 0.01 * t, path, kind)
    table, key = js.tabulate(path, js.grids.log_snr(path, 6), js.solvers.by_name(solver)), jax.random.key(3)
    rows = ByRows(table, path, kind, key=key)
    seen, state = rows.begin(x)
    for i, t in enumerate(rows.times):
        seen, state = rows.advance(i, state, denoiser.net(seen, t))
    assert len(rows.times) == table.nfe
    want = js.run(denoiser, table, x, key=key)
    np.testing.assert_allclose(seen, want, rtol=2e-5, atol=2e-5)


def test_the_first_state_is_churned():
    path = js.EDM()
    table = js.tabulate(path, js.grids.karras(path, 4), js.solvers.edm(s_churn=20.0))
    assert np.any(table.start != np.array([1.0, 0.0]))
    denoiser = js.models.gaussian_mixture(jnp.array([[1.0], [-1.0]]), 0.2, path)
    x, key = 80 * jnp.array([[0.3], [-1.2]]), jax.random.key(0)
    rows = ByRows(table, path, denoiser.kind, key=key)
    seen, state = rows.begin(x)
    assert float(abs(seen - x).max()) > 0.1
    for i, t in enumerate(rows.times):
        seen, state = rows.advance(i, state, denoiser.net(seen, t))
    np.testing.assert_allclose(seen, js.run(denoiser, table, x, key=key), rtol=1e-4, atol=1e-4)


def test_what_it_refuses():
    path = js.VP()
    table = js.tabulate(path, js.grids.log_snr(path, 3), js.solvers.mr_sde())
    with pytest.raises(ValueError, match="draws noise: pass key"):
        ByRows(table, path, "noise")
    with pytest.raises(ValueError, match="a stack of tables"):
        ByRows(js.stack([table, table]), path, "noise")
