"""Ancestral splits: without noise they are the ODE solvers, with it they keep the marginals to the order of
their
flow step.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import gaussian, random_net
from test_orders import recursion

import jaxsampler as js

pytestmark = pytest.mark.usefixtures("x64")
S = js.solvers
PATHS = {"vp": js.VP(), "edm": js.EDM(0.01, 20.0), "mr": js.MeanReverting(0.3), "ve": js.VE(0.01, 20.0)}
SAME = {  # two names for one sampler, on any path
    "euler_ancestral = ddim": (S.euler_ancestral(eta=0.6), S.ddim(eta=0.6)),
    "euler_ancestral eta 1 = ddpm": (S.euler_ancestral, S.ddpm),
    "dpmpp_2s_ancestral eta 0 = dpmpp_2s": (S.dpmpp_2s_ancestral(eta=0.0), S.dpmpp_2s),
    "dpm_2_ancestral eta 0 = dpm_2": (S.dpm_2_ancestral(eta=0.0), S.dpm_2),
    "dpmpp_sde eta 0 = dpmpp_2s": (S.dpmpp_sde(eta=0.0), S.dpmpp_2s),
    "dpmpp_sde eta 0, r = dpmpp_2s, r": (S.dpmpp_sde(eta=0.0, r=0.3), S.dpmpp_2s(r=0.3)),
}


@functools.cache
def runner(path):
    """One compilation for all tables of a path."""
    net = js.Denoiser(random_net(3), path, "noise")
    run = jax.jit(lambda table, x, noise: js.run(net, table, x, noise=noise, adjoint=js.Direct()))
    return lambda table, x, noise: run(js.pad(table, nfe=12, regs=4), x, noise)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", SAME)
def test_two_names_for_one_sampler(name, path):
    path = PATHS[path]
    noise = jax.random.normal(jax.random.key(2), (12, 4, 3))
    x = path.prior(jax.random.key(1), noise[0])
    grid = js.grids.log_snr(path, 6, t_min=path.t_min or 1.0)
    a, b = (runner(path)(js.tabulate(path, grid, s), x, noise) for s in SAME[name])
    np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "solver", [S.euler_ancestral, S.dpmpp_2s_ancestral, S.dpm_2_ancestral], ids=lambda s: s.name
)
@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("path", [js.VP(), js.MeanReverting(0.3)], ids=["vp", "mr"])
def test_marginals_have_the_order_of_the_flow_step(solver, eta, path):
    """Gaussian data, x_T from its exact law: the mean is exact, the variance has order 1 or 2, whatever
    eta.
    """
    mean, std = 0.7, 0.4
    start, end = float(path.time(-1.0)), float(path.time(1.2))
    _, _, moments = gaussian(path, mean, std)
    (c0, V0), (c1, V1) = moments(start), moments(end)
    errors = []
    for n in (20, 40, 80):
        table = js.tabulate(path, js.grids.log_snr(path, n, t_max=start, t_min=end), solver(eta=eta))
        (at_c, variance), (above, _) = (recursion(table, path, mean, std, x) for x in (c0, c0 + 1))
        assert abs(at_c - c1) < 1e-10
        errors.append(abs((above - at_c) ** 2 * V0 + variance - V1))
    assert abs(np.polyfit(np.log([20, 40, 80]), -np.log(errors), 1)[0] - solver.order) < 0.1


def test_more_noise_than_the_level_holds_is_refused_by_the_split():
    """eta = 5 asks for more than rho_s: all of it is replaced, and the variance at s is sigma_s^2 all the
    same.
    """
    path, grid = js.VP(), np.array([0.9, 0.4])
    table = js.tabulate(path, grid, S.euler_ancestral(eta=5.0))
    np.testing.assert_allclose(table.A[0], 0.0, atol=1e-12)
    np.testing.assert_allclose(table.C[0], path.sigma(0.4), rtol=1e-12)


@pytest.mark.parametrize(
    "solver", [S.dpmpp_2s_ancestral, S.dpm_2_ancestral, S.dpmpp_sde], ids=lambda s: s.name
)
def test_eta_may_be_learned(solver):
    """The gradient with respect to eta, at eta = 0 too, against a central difference of concrete tables."""
    path, grid = js.VP(), np.array([0.9, 0.6, 0.3])
    noise = jax.random.normal(jax.random.key(2), (12, 4, 3))
    x = path.prior(jax.random.key(1), noise[0])

    @jax.jit
    @jax.grad
    def slope(eta):
        net = js.Denoiser(random_net(3), path, "noise")
        table = js.tabulate(path, grid, solver(eta=eta))
        return js.run(net, table, x, noise=noise, adjoint=js.Direct()).sum()

    for eta in (0.0, 0.7):
        above, below = (
            runner(path)(js.tabulate(path, grid, solver(eta=e)), x, noise).sum()
            for e in (eta + 1e-5, eta - 1e-5)
        )
        np.testing.assert_allclose(slope(jnp.asarray(eta)), (above - below) / 2e-5, rtol=1e-6)
