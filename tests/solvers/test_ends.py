"""Both ends of every path: samples and gradients are finite where sigma = 0 and where alpha = 0."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import gaussian, recurrence

import jaxsampler as js

S = js.solvers.catalogue()
DATA = [n for n, s in S.items() if s.kind == "data"]
VELOCITY = [n for n, s in S.items() if s.kind == "velocity"]
X = np.array([1.0, -0.4, 0.2])
NOISE = np.random.default_rng(0).standard_normal((20, 3))
IN_TIME = ("euler", "heun", "euler_maruyama", "mr_sde")
# Adams' methods in rho keep their older slopes in the step to rho = 0; Euler-Maruyama steps in t
NOT_A_PREDICTION = ("deis_rho", "lms", "ipndm", "plms", "pndm", "euler_maruyama")


def into_zero(name):
    """The table of a solver on a VP grid that ends in clean data."""
    path = js.VP()
    grid = [0.9, 0.6, 0.3, 0.05] if name in IN_TIME else js.grids.log_snr(path, 4)
    return js.tabulate(path, [*grid, 0.0], S[name])


@functools.cache
def sample_and_slopes(path):
    """One compilation for all solvers: the table is an argument."""
    base = gaussian(path)[0].net

    def total(x, scale, table):
        net = js.Denoiser(lambda x, t: scale * base(x, t), path, "data")
        out = js.run(net, table, x, noise=jnp.asarray(NOISE, x.dtype))
        return out.sum(), out

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))


def finite_sample(path, table):
    """The sample, after a check that it and its gradients by x_T and by a parameter of the model are
    finite.
    """
    run = sample_and_slopes(path)
    (_, out), grads = run(jnp.asarray(X, jnp.float32), jnp.float32(1.0), js.pad(table, nfe=20, regs=8))
    chex.assert_tree_all_finite((out, grads))
    assert abs(float(grads[1])) > 1e-4
    return out


@pytest.mark.parametrize("name", S)
def test_into_clean_data(name):
    """sigma = 0 at the last grid point: the sample is the network's own prediction, with gradients."""
    path, table = js.VP(), into_zero(name)
    states, predictions = recurrence(gaussian(path)[0].net, path, table, X, NOISE)
    np.testing.assert_allclose(finite_sample(path, table), states[-1], rtol=1e-4, atol=1e-4)
    t, x, x0 = table.t[-1], states[-2], predictions[-1]
    if name in VELOCITY:  # a straight line in t
        want = x - t * (path.alpha_dot(t) * x0 + path.sigma_dot(t) * (x - path.alpha(t) * x0) / path.sigma(t))
        np.testing.assert_allclose(states[-1], want, rtol=1e-9)
    elif name not in NOT_A_PREDICTION:
        np.testing.assert_allclose(states[-1], x0, rtol=1e-9)


@pytest.mark.parametrize(
    "name", [n for n, s in S.items() if s.kind in ("data", "noise") and not s.stochastic]
)
def test_into_clean_data_with_constant_noise(name):
    """A network that always sees the noise e: every solver ends in (x_T - sigma_T e)/alpha_T, the data behind
    e.
    """
    path, table, e = js.VP(), into_zero(name), np.array([0.3, -1.0, 0.5])
    net = lambda x, t: (x - path.sigma(t) * e) / path.alpha(t)
    states, _ = recurrence(net, path, table, X)
    np.testing.assert_allclose(states[-1], net(X, table.t[0]), rtol=1e-7)


@pytest.mark.parametrize("name", DATA)
def test_out_of_pure_noise(name):
    """alpha = 0 at the first grid point (rectified flow): data-kind solvers start there."""
    path = js.CondOT()
    table = js.tabulate(path, np.linspace(1, 0, 6), S[name])
    states, predictions = recurrence(gaussian(path)[0].net, path, table, X, NOISE)
    np.testing.assert_allclose(finite_sample(path, table), states[-1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(states[-1], predictions[-1], rtol=1e-9)


@pytest.mark.parametrize("name", VELOCITY)
def test_flow_solvers_run_a_velocity_network_end_to_end(name):
    """On straight paths the last step from t, x - t v, is the network's data prediction."""
    path = js.CondOT()
    net = js.Denoiser(lambda x, t: 0.3 * x + t, path, "velocity")
    table = js.tabulate(path, np.linspace(1, 0, 6), S[name])
    value, slope = jax.value_and_grad(lambda x: js.run(net, table, x, adjoint=js.Direct()))(jnp.float32(0.7))
    states, predictions = recurrence(lambda x, t: x - t * (0.3 * x + t), path, table, np.array(0.7))
    np.testing.assert_allclose(states[-1], predictions[-1], rtol=1e-9)
    above = recurrence(lambda x, t: x - t * (0.3 * x + t), path, table, np.array(1.7))[0]
    np.testing.assert_allclose([value, slope], [states[-1], above[-1] - states[-1]], rtol=1e-4)
