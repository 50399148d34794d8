"""Both ends of every path: samples and gradients are finite where sigma = 0 and where alpha = 0."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import gaussian

import jaxsampler as js

S = js.solvers.catalogue()
DATA = [n for n, s in S.items() if s.kind == "data"]


def grad_of_sample(path, grid, name, x):
    """The sample and the gradient of its sum with respect to x_T and a parameter of the model."""
    table = js.tabulate(path, grid, S[name])
    base = gaussian(path)[0].net

    @jax.jit
    def total(x, scale):
        net = js.Denoiser(lambda x, t: scale * base(x, t), path, "data")
        out = js.run(net, table, x, key=jax.random.key(0))
        return out.sum(), out

    (_, out), grads = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(x, jnp.float32(1.0))
    return out, grads


@pytest.mark.parametrize("name", S)
def test_into_clean_data(name):
    """sigma = 0 at the last grid point: the sample is the network's own prediction, with gradients."""
    path = js.VP()
    x = jnp.asarray([1.0, -0.4, 0.2])
    solver = S[name]
    if name in ("euler", "heun", "euler_maruyama", "mr_sde"):
        grid = [0.9, 0.6, 0.3, 0.05, 0.0]
    else:
        grid = [*js.grids.log_snr(path, 4), 0.0]
    out, grads = grad_of_sample(path, grid, name, x)
    assert all(jnp.isfinite(g).all() for g in (out, *grads))
    table = js.tabulate(path, grid, solver)
    if (
        solver.kind in ("data", "noise") and not solver.stochastic
    ):  # the last row replaces the state by its prediction
        np.testing.assert_allclose(
            table.form[-1] @ np.array([1.0, 0.0]) * table.B[-1].sum(),
            1.0 if solver.kind == "data" else 0.0,
            atol=1e-9,
        )


@pytest.mark.parametrize("name", DATA)
def test_out_of_pure_noise(name):
    """alpha = 0 at the first grid point (rectified flow): data-kind solvers start there."""
    path = js.CondOT()
    out, grads = grad_of_sample(path, np.linspace(1, 0, 6), name, jnp.asarray([1.0, -0.4, 0.2]))
    assert all(jnp.isfinite(g).all() for g in (out, *grads))


@pytest.mark.parametrize("name", ["euler", "heun"])
def test_flow_solvers_run_a_velocity_network_end_to_end(name):
    path = js.CondOT()
    net = js.Denoiser(lambda x, t: 0.3 * x + t, path, "velocity")
    table = js.tabulate(path, np.linspace(1, 0, 6), S[name])
    value, slope = jax.value_and_grad(lambda x: js.run(net, table, x))(jnp.float32(0.7))
    assert np.isfinite(value)
    assert np.isfinite(slope)
