"""Solvers that are the same thing in other words agree to rounding; MR Sampler is the DPM-Solver family on
y = (x - mu)/std.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import random_net

import jaxsampler as js

pytestmark = pytest.mark.usefixtures("x64")
S = js.solvers
KEY = jax.random.key(11)


def runner(denoiser):
    """(table, x) -> the sample, with one compilation for all tables of up to 20 rows."""
    run = jax.jit(lambda table, x: js.run(denoiser, table, x, key=KEY, adjoint=js.Direct()))
    return lambda table, x: run(js.pad(table, nfe=20, regs=8), x)


class Centred(js.Path):
    """The variance-preserving path of y = (x - mu)/std: the same alpha, sigma/std."""

    path: js.MeanReverting = eqx.field(static=True)

    def alpha(self, t):
        return self.path.alpha(t)

    def sigma(self, t):
        return self.path.sigma(t) / self.path.std

    @property
    def t_max(self):
        return self.path.t_max


PAIRS = {
    "ode 1 data": (S.mr_ode(order=1), S.dpmpp_1),
    "ode 1 noise": (S.mr_ode(order=1, kind="noise"), S.dpm_1),
    "ode 2 data": (S.mr_ode(order=2), S.dpmpp_2m(form="taylor")),
    "ode 2 noise": (S.mr_ode(order=2, kind="noise"), S.dpm_2m(form="taylor")),
    "ode 3 data": (S.mr_ode(order=3), S.dpmpp_3m(form="taylor")),
    "ode 3 noise": (S.mr_ode(order=3, kind="noise"), S.dpm_3m(form="taylor")),
    "sde 1 data": (S.mr_sde(order=1), S.dpmpp_sde_1),
    "sde 2 data": (S.mr_sde(order=2), S.dpmpp_2m_sde(form="taylor")),
}


@functools.cache
def shifted_and_centred():
    """MR Sampler's path with a mu, the path of y = (x - mu)/std without, and a run of one network on each."""
    mu, std = jnp.asarray([0.2, 0.5, 0.9]), 0.3
    path, centred = js.MeanReverting(mu, std=std), Centred(js.MeanReverting(0.0, std=std))
    net = random_net(2)
    in_y = lambda y, t: net(jnp.broadcast_to(mu, y.shape) + std * y, t)
    runs = (runner(js.Denoiser(net, path, "noise")), runner(js.Denoiser(in_y, centred, "noise")))
    return mu, std, (path, centred), runs


@pytest.mark.parametrize("name", PAIRS)
def test_mr_sampler_is_the_dpm_family_in_shifted_coordinates(name):
    """Run MR Sampler on x with its mu, and the DPM solver on y with no mu, and compare."""
    mr, dpm = PAIRS[name]
    mu, std, (path, centred), (in_x, in_y) = shifted_and_centred()
    grid, x = np.linspace(100, 0, 8), jax.random.normal(KEY, (5, 3))
    mu = jnp.broadcast_to(mu, x.shape)
    got = in_x(js.tabulate(path, grid, mr), mu + std * x)
    want = in_y(js.tabulate(centred, grid, dpm), x)
    np.testing.assert_allclose((got - mu) / std, want, rtol=1e-11, atol=1e-11)


def test_published_update_term_by_term():
    """One row of the table against the published coefficients of the second-order data ODE step, mu
    included.
    """
    path = js.MeanReverting(jnp.asarray(0.4), std=0.2)
    grid = np.array([90.0, 60.0, 25.0])
    table = js.tabulate(path, grid, S.mr_ode(order=2))
    a, s = path.alpha(grid), path.sigma(grid)
    lam = np.log(a / s)
    h, r0 = lam[2] - lam[1], (lam[1] - lam[0]) / (lam[2] - lam[1])
    e = np.exp(-h) - 1
    on_d1 = a[2] * (e / h + 1)
    np.testing.assert_allclose(table.A[1], s[2] / s[1], rtol=1e-12)
    np.testing.assert_allclose(table.B[1][table.slot[1]], -a[2] * e + on_d1 / r0, rtol=1e-12)
    np.testing.assert_allclose(table.B[1][table.slot[0]], -on_d1 / r0, rtol=1e-12)
    # mu: the table works on x - mu and x0 - mu, so its weight is what these leave over
    weight = 1 - table.A[1] - table.B[1].sum()
    cx = s[2] / s[1]
    np.testing.assert_allclose(weight, 1 - cx + cx * a[1] - a[2], rtol=1e-9)


def unip(**options):
    """UniPC without its corrector and without lower orders at the end."""
    return S.unipc(corrector=False, lower_order_final=False, **options)


EQUAL = {
    "UniP-1 = DDIM": (unip(order=1), S.ddim),
    "UniP-2 bh2 = 2M": (unip(order=2), S.dpmpp_2m),
    "UniP-2 bh2 = 2M noise": (unip(order=2, kind="noise"), S.dpm_2m),
    "UniP-2 bh2 = 2M, lower orders at the end": (
        S.unipc(order=2, corrector=False),
        S.dpmpp_2m(lower_order_final=True),
    ),
    "UniP-2 vary = 2M taylor": (unip(order=2, variant="vary"), S.dpmpp_2m(form="taylor")),
    "UniP-2 vary = 2M taylor noise": (unip(order=2, variant="vary", kind="noise"), S.dpm_2m(form="taylor")),
    "UniP-3 bh2 = 3M": (unip(order=3), S.dpmpp_3m),
    "UniP-3 bh2 = 3M noise": (unip(order=3, kind="noise"), S.dpm_3m),
    "UniP-3 vary = 3M taylor": (unip(order=3, variant="vary"), S.dpmpp_3m(form="taylor")),
    "posterior = mr_sde 1": (S.posterior, S.mr_sde(order=1)),
    "posterior = ddpm": (S.posterior, S.ddpm),
    "ddim eta 1 = ddpm": (S.ddim(eta=1.0), S.ddpm),
    "dpmpp_sde_1 = ddpm": (S.dpmpp_sde_1, S.ddpm),
    "ddim = dpmpp_1": (S.ddim, S.dpmpp_1),
    "dpm_1 = dpmpp_1": (S.dpm_1, S.dpmpp_1),
    "deis 1 = ddim": (S.deis(order=1), S.ddim),
    "deis_rho 1 = ddim": (S.deis_rho(order=1), S.ddim),
    "ipndm 1 = ddim": (S.ipndm(order=1), S.ddim),
    "rk_rho euler = ddim": (S.rk_rho(tableau="euler"), S.ddim),
    "lms = deis_rho": (S.lms, S.deis_rho),
    "ipndm 2 = dpm_2m, in equal steps of lam": (S.ipndm(order=2), S.dpm_2m),
    "sde_1 eta 0 = dpmpp_1": (S.dpmpp_sde_1(eta=0.0), S.dpmpp_1),
    "2m_sde eta 0 = 2m": (S.dpmpp_2m_sde(eta=0.0), S.dpmpp_2m),
    "2m_sde eta 0 taylor = 2m taylor": (S.dpmpp_2m_sde(eta=0.0, form="taylor"), S.dpmpp_2m(form="taylor")),
    "3m_sde eta 0 = 3m": (S.dpmpp_3m_sde(eta=0.0), S.dpmpp_3m(form="taylor")),
    "3m_sde eta 0 published": (
        S.dpmpp_3m_sde(eta=0.0, published=True),
        S.dpmpp_3m(form="taylor", published=True),
    ),
}


@functools.cache
def on_random_net(path):
    return runner(js.Denoiser(random_net(4), path, "data"))


@pytest.mark.parametrize("name", EQUAL)
@pytest.mark.parametrize(
    "path", [js.VP(), js.EDM(0.01, 20.0), js.MeanReverting(0.3)], ids=["vp", "edm", "mr"]
)
def test_two_names_for_one_sampler(name, path):
    x = jax.random.normal(KEY, (4, 3))
    grid = js.grids.log_snr(path, 6)
    a, b = (on_random_net(path)(js.tabulate(path, grid, s), x) for s in EQUAL[name])
    np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


@functools.cache
def on_vp_and_edm():
    """Runs of one function of (x/alpha, rho), seen from both paths."""
    vp, edm, net = js.VP(), js.EDM(1e-3, 200.0), random_net(5)
    on_vp = js.Denoiser(lambda x, t: net(x / vp.alpha(t).astype(x.dtype), vp.rho(t)), vp, "data")
    return vp, edm, runner(on_vp), runner(js.Denoiser(net, edm, "data"))


@pytest.mark.parametrize(
    "solver",
    [
        S.dpmpp_2m,
        S.dpmpp_3s,
        S.dpm_3m,
        S.dpmpp_2m_sde,
        S.lms,
        S.plms,
        S.unipc,
        S.edm,
        S.rk_rho(tableau="3kutta"),
    ],
    ids=lambda s: s.name,
)
def test_methods_in_lam_do_not_see_the_schedule(solver):
    """VP and EDM solutions coincide after x = alpha y."""
    vp, edm, run_vp, run_edm = on_vp_and_edm()
    lam = np.linspace(vp.lam(0.95), vp.lam(0.05), 7)
    t_vp, t_edm = vp.time(lam), edm.time(lam)
    y = 3 * jax.random.normal(KEY, (4, 3))
    got = run_vp(js.tabulate(vp, t_vp, solver), vp.alpha(t_vp[0]) * y) / vp.alpha(t_vp[-1])
    want = run_edm(js.tabulate(edm, t_edm, solver), y)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)


@functools.cache
def constant(kind):
    """A run of a network that answers (0.3, -1.0) everywhere."""
    return runner(js.Denoiser(lambda x, t: jnp.asarray([0.3, -1.0]), js.VP(), kind))


DATA_KIND = [s for s in S.catalogue().values() if s.kind == "data"]


@pytest.mark.parametrize("solver", [s for s in DATA_KIND if not s.stochastic], ids=lambda s: s.name)
def test_data_solvers_are_exact_on_one_point(solver):
    """If x0 is known, x_t = alpha x0 + sigma (x_T - alpha_T x0)/sigma_T whatever the grid."""
    path, point = js.VP(), np.array([0.3, -1.0])
    x = np.array([1.5, 0.2])
    got = constant("data")(js.tabulate(path, [0.97, 0.5, 0.41, 0.1], solver), x)
    eps = (x - path.alpha(0.97) * point) / path.sigma(0.97)
    np.testing.assert_allclose(got, path.alpha(0.1) * point + path.sigma(0.1) * eps, rtol=1e-12)


@pytest.mark.parametrize(
    "solver", [s for s in DATA_KIND if s.stochastic and s.name != "ddim"], ids=lambda s: s.name
)
def test_stochastic_data_solvers_are_exact_on_one_point(solver):
    """Mean and variance of x_s given x_T for a known x0: the noise decays by sigma_s/sigma_t e^{-h} and is
    refilled
    to sigma_s.
    """
    path = js.VP()
    grid = np.array([0.97, 0.5, 0.41, 0.1])
    table = js.tabulate(path, grid, solver)
    by = np.zeros(
        (1 + table.regs, 2 + table.draw.max())
    )  # x, registers as combinations of x_T, draws, at x0 = 0
    by[0, 0] = 1.0
    for n in range(table.nfe):
        by[1 + table.keep[n]] = by[0]
        by[1 + table.slot[n]] = 0.0
        by[0] = table.A[n] * by[0] + table.B[n] @ by[1:]
        by[0, 1 + table.draw[n]] += table.C[n]
    mean_gain, variance = by[0, 0], (by[0, 1:] ** 2).sum()
    kept = path.sigma(0.1) ** 2 * path.alpha(0.97) / (path.sigma(0.97) ** 2 * path.alpha(0.1))
    np.testing.assert_allclose(mean_gain, kept, rtol=1e-11)
    np.testing.assert_allclose(variance, path.sigma(0.1) ** 2 - (kept * path.sigma(0.97)) ** 2, rtol=1e-11)


def test_noise_solvers_are_exact_for_constant_noise():
    path, eps = js.VP(), np.array([0.3, -1.0])
    grid, x = np.array([0.97, 0.5, 0.41, 0.1]), np.array([1.5, 0.2])
    x0 = (x - path.sigma(0.97) * eps) / path.alpha(0.97)
    for solver in (S.dpm_1, S.dpm_2m, S.dpm_3m, S.dpm_2, S.dpm_3, S.deis, S.lms, S.ipndm, S.pndm, S.plms):
        got = constant("noise")(js.tabulate(path, grid, solver), x)
        np.testing.assert_allclose(
            got, path.alpha(0.1) * x0 + path.sigma(0.1) * eps, rtol=1e-11, err_msg=solver.name
        )


def test_equivariance_under_shift_and_scale():
    """x -> c x + b with mu, std to match moves the sample the same way."""
    net, grid = random_net(7), np.linspace(100, 0, 6)
    b, c = 0.3, 1.7
    one = js.MeanReverting(jnp.asarray(0.2), std=0.25)
    two = js.MeanReverting(jnp.asarray(c * 0.2 + b), std=c * 0.25)
    x = jax.random.normal(KEY, (4, 3))
    a = runner(js.Denoiser(net, one, "data"))(js.tabulate(one, grid, S.mr_sde), x)
    moved = js.Denoiser(lambda u, t: c * net((u - b) / c, t) + b, two, "data")
    got = runner(moved)(js.tabulate(two, grid, S.mr_sde), c * x + b)
    np.testing.assert_allclose(got, c * a + b, rtol=1e-11)
