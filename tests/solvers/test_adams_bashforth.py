"""Adams-Bashforth in rho into sigma = 0: long steps do not extrapolate far."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import gaussian

import jaxsampler as js

S = js.solvers


def last_weights(path, n, solver):
    """Of the outputs in the last row, in units of the DDIM step's own."""
    grid = js.grids.append_zero(
        js.grids.karras(path, n - 1) if isinstance(path, js.EDM) else js.grids.log_snr(path, n - 1)
    )
    row, rho = js.tabulate(path, grid, solver).B[-1], path.rho(grid[-2])
    return np.abs(row / rho).sum(), row.sum() / -rho


@pytest.mark.parametrize("path", [js.EDM(), js.VP()], ids=["edm", "vp"])
@pytest.mark.parametrize("solver", [S.lms, S.deis_rho(order=3)], ids=["lms", "deis_rho 3"])
def test_weights_into_zero_are_bounded_and_those_of_an_average(path, solver):
    """They sum to 1 whatever their order; order 4 alone has 7e3 (EDM) and 1e5 (VP) at 1,000 steps."""
    for n in (10, 100, 1000):
        size, total = last_weights(path, n, solver)
        assert total == pytest.approx(1.0, rel=1e-6)
        assert size < 0.2 * n + 10
    q, t = js.grids.karras(js.EDM(), 999)[-2:]
    assert last_weights(js.EDM(), 1000, S.lms)[0] == pytest.approx(1 + 2 * t / (2 * (q - t)), rel=1e-6)


def test_a_thousand_float32_steps_are_as_exact_as_the_method():
    path = js.EDM()
    denoiser, flow, _ = gaussian(path)
    x = 80.0 * jnp.linspace(-2, 2, 8, dtype=jnp.float32)
    grid = js.grids.append_zero(js.grids.karras(path, 999))
    out = jax.jit(lambda x: js.sample(denoiser, x, x=x, solver=S.lms, grid=grid, adjoint=js.Direct()))(x)
    np.testing.assert_allclose(out, flow(x, 80.0, 0.0), atol=2e-4)
