"""Score-SDE samplers: stationarity against exact moments, identities with the posterior and Euler-Maruyama,
orders, and the norms.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import Cubic, gaussian, mixture

import jaxsampler as js

S = js.solvers
PC = S.score_sde
PATHS = {"vp": js.VP(), "subvp": js.SubVP(), "ve": js.VE(0.01, 20.0)}
WEIGHTS, STDS = np.array([0.5, 0.3, 0.2]), np.array([0.3, 0.2, 0.25])
MEANS = np.array([[1.0, -0.5], [-0.8, 0.6], [0.2, 1.2]])


def deviations(x, path, t):
    """Of the mean and of the covariance from those of the exact law at time t, in standard errors."""
    x, a, s = np.asarray(x, np.float64), float(path.alpha(t)), float(path.sigma(t))
    mean = WEIGHTS @ MEANS
    cov = np.einsum("k,ki,kj->ij", WEIGHTS, MEANS - mean, MEANS - mean) + np.eye(2) * (WEIGHTS @ STDS**2)
    mean, cov = a * mean, a**2 * cov + s**2 * np.eye(2)
    products = np.einsum("ni,nj->nij", x - mean, x - mean)
    of_mean = np.abs(x.mean(0) - mean) / np.sqrt(np.diag(cov) / len(x))
    of_cov = np.abs(products.mean(0) - cov) / (products.std(0) / np.sqrt(len(x)))
    return max(of_mean.max(), of_cov.max())


PAIRS = [
    (p, c) for p in ("euler_maruyama", "reverse_diffusion", "ancestral") for c in ("none", "langevin", "ald")
]
ANNEALED = {
    "langevin": 0.25,
    "ald": 0.4,
}  # snr at which 20 steps at each of 60 levels mix: too small a step lags, too large a one is biased


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("predictor", "corrector"), [*PAIRS, ("none", "langevin"), ("none", "ald")])
def test_stationary(path, predictor, corrector):
    """From the prior down to lam = 3: the mean and covariance of the mixture there, within 4 standard
    errors.
    """
    path = PATHS[path]
    end = float(path.time(3.0))
    samples, levels, settings = 20_000, 600, {"snr": 0.1}
    if predictor == "none":  # annealed Langevin dynamics
        samples, levels, settings = 5_000, 60, {"snr": ANNEALED[corrector], "n_corrector": 20}
    x = js.sample(
        js.models.gaussian_mixture(MEANS, STDS, path, WEIGHTS),
        jnp.zeros((samples, 2)),
        key=jax.random.key(1),
        solver=PC(predictor=predictor, corrector=corrector, denoise=False, **settings),
        grid=js.grids.log_snr(path, levels, t_min=end),
        adjoint=js.Direct(),
    )
    assert deviations(x, path, end) < 4


class Pair:
    """A solver and a step that must agree, run on the same noise."""

    def __init__(self, path, solver, step, n=7):
        self.path, self.grid = path, js.grids.log_snr(path, n, t_max=0.9, t_min=0.1)
        self.denoiser, self.x = mixture(path)[0], jnp.array([0.9, -0.3, 0.2])
        self.noise = jax.random.normal(jax.random.key(0), (n, 3))
        self.solver, self.table = solver, js.tabulate(path, self.grid, step)

    def check(self):
        solver = self.solver(noise=self.noise)
        got = js.sample(
            self.denoiser, self.x, key=None, x=self.x, solver=solver, grid=self.grid, adjoint=js.Direct()
        )
        want = js.run(self.denoiser, self.table, self.x, noise=self.noise, adjoint=js.Direct())
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-11)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "path", [js.VP(), js.SubVP(), js.VE(), js.CondOT(), Cubic()], ids=lambda p: type(p).__name__
)
def test_ancestral_is_ddpm_and_euler_maruyama_is_itself(path):
    Pair(path, lambda noise: PC("ancestral", "none", denoise=False, noise=noise), S.ddpm).check()
    Pair(
        path, lambda noise: PC("euler_maruyama", "none", denoise=False, noise=noise), S.euler_maruyama
    ).check()


@pytest.mark.usefixtures("x64")
def test_reverse_diffusion_is_the_reverse_of_the_released_discretisation():
    """On VP with intervals whose forward kernel has variance beta: x + (1 - sqrt(1 - beta)) x + beta score,
    as in the paper's eq. 46.
    """
    path = js.VP()
    beta = 0.3
    s = 0.4
    t = path._time(float(path.log_alpha(s)) + 0.5 * np.log(1 - beta))  # alpha_t^2 = (1 - beta) alpha_s^2
    denoiser, x = mixture(path)[0], jnp.array([0.9, -0.3, 0.2])
    got = js.sample(
        denoiser, x, key=None, x=x, solver=PC(corrector="none", noise=jnp.zeros((1, 3))), grid=[t, s]
    )
    want = (2 - np.sqrt(1 - beta)) * x + beta * denoiser(x, t, kind="score")
    np.testing.assert_allclose(got, want, rtol=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("predictor", ["reverse_diffusion", "euler_maruyama"])
def test_probability_flow_has_order_one_and_draws_nothing(predictor):
    path = js.VP()
    denoiser, flow, _ = gaussian(path)
    x, start, end = jnp.array([0.9, -0.3, 0.2]), 0.6, 0.1
    solver = PC(predictor, "none", probability_flow=True)
    errors = []
    for n in (80, 160, 320):
        got = js.sample(
            denoiser,
            x,
            key=None,
            x=x,
            solver=solver,
            grid=np.linspace(start, end, n + 1),
            adjoint=js.Direct(),
        )
        errors.append(np.abs(np.asarray(got) - flow(x, start, end)).max())
    assert abs(np.polyfit(np.log([80, 160, 320]), -np.log(errors), 1)[0] - 1) < 0.1


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("sde", ["vp", "subvp", "ve"])
def test_published_steps_have_order_one_too(sde):
    """N steps of 1/N from t = 1 on a grid that ends at eps = 1/N: towards the exact flow to t = 0 as N
    grows.
    """
    path = {"vp": js.VP(0.1, 5.0), "subvp": js.SubVP(0.1, 5.0), "ve": js.VE(0.05, 3.0)}[sde]
    denoiser, flow, _ = gaussian(path)
    x = jnp.array([0.9, -0.3, 0.2])
    errors = []
    for n in (160, 320, 640):
        solver = PC("euler_maruyama", "none", probability_flow=True, published=True)
        got = js.sample(
            denoiser, x, key=None, x=x, solver=solver, grid=np.linspace(1, 1 / n, n), adjoint=js.Direct()
        )
        errors.append(np.abs(np.asarray(got) - flow(x, 1.0, 0.0)).max())
    assert abs(np.polyfit(np.log([160, 320, 640]), -np.log(errors), 1)[0] - 1) < 0.2


def test_per_sample_norms_tilt_the_law_and_batch_norms_do_not():
    """On N(0, I_d) small steps 2 (snr |z|/|x|)^2 leave u = |x|^2 ~ u^(d/2) exp(-u d/(2 (d+2))), of mean
    (d+2)^2/d instead of d.

    That is the stationary solution for the drift 4 snr^2 d ((d+2)/u - 1) and the constant diffusion 16 snr^2
    (d+2) of u.
    """
    d, n = 8, 4_000
    path = js.EDM()
    net = js.Denoiser(lambda x, t: -x, path, "score")  # one level, whatever t

    def run(axis, x, key):
        solver = PC("none", "langevin", snr=0.05, n_corrector=1500, batch_axis=axis)
        return js.sample(net, x, key=key, x=x, solver=solver, grid=[1.0 + 1e-6, 1.0], adjoint=js.Direct())

    x = jax.random.normal(jax.random.key(0), (n, d))
    alone = jax.jit(jax.vmap(lambda x, key: run(None, x, key)))(x, jax.random.split(jax.random.key(1), n))
    batch = jax.jit(lambda x, key: run(0, x, key))(x, jax.random.key(1))
    for got, want in ((alone, (d + 2) ** 2 / d), (batch, d)):
        u = np.asarray((got**2).sum(-1))
        assert (
            abs(u.mean() - want) < 4 * u.std() / np.sqrt(n) + 0.01 * want
        )  # the steps are small, not infinitely so


def test_batch_axis_averages_norms_over_samples():
    """Samples of one batch share the step: it is that of the mean norms, and all of x as one sample has the
    norm of all of it.
    """
    net = js.Denoiser(lambda x, t: {"a": 2.0 * x["a"], "b": -x["b"]}, js.EDM(), "score")
    x = {
        "a": jnp.array([[3.0], [0.5]]),
        "b": jnp.array([[[1.0, 2.0]], [[0.0, 1.5]]]),
    }  # two samples, two leaves
    z = {"a": jnp.array([[0.3], [-1.0]]), "b": jnp.array([[[0.2, -0.7]], [[1.1, 0.4]]])}
    score = {"a": 2.0 * x["a"], "b": -x["b"]}
    sizes = [
        [np.sqrt(float((v["a"][i] ** 2).sum() + (v["b"][i] ** 2).sum())) for i in range(2)]
        for v in (z, score)
    ]
    for axis, ratio in (
        (0, np.mean(sizes[0]) / np.mean(sizes[1])),
        (None, np.hypot(*sizes[0]) / np.hypot(*sizes[1])),
    ):
        solver = PC("none", "langevin", snr=0.3, batch_axis=axis, noise=jax.tree.map(lambda a: a[None], z))
        got = js.sample(net, x, key=None, x=x, solver=solver, grid=[2.0, 1.0], adjoint=js.Direct())
        step = 2 * (0.3 * ratio) ** 2
        for leaf in ("a", "b"):
            np.testing.assert_allclose(
                got[leaf], x[leaf] + step * score[leaf] + np.sqrt(2 * step) * z[leaf], rtol=1e-5
            )


def test_last_step_returns_its_mean():
    """denoise drops the noise of the last predictor step, and of no other."""
    path, grid = js.VP(), [0.5, 0.3, 0.2]
    denoiser, x, z = mixture(path)[0], jnp.array([0.9, -0.3]), jnp.array([[0.3, 0.2], [5.0, -7.0]])
    mean, noisy = (
        js.sample(denoiser, x, key=None, x=x, solver=PC("ancestral", "none", denoise=d, noise=z), grid=grid)
        for d in (True, False)
    )
    (a, s), (b, r) = ((path.alpha(t), path.sigma(t)) for t in (0.3, 0.2))
    np.testing.assert_allclose(noisy - mean, r / s * np.sqrt(s**2 - (a / b * r) ** 2) * z[1], rtol=1e-4)


def test_clean_data_and_mean_reversion():
    """Into sigma = 0 the last mean is the posterior mean, also of x - mu where the path reverts to mu."""
    for path in (js.VP(), js.MeanReverting(0.4)):
        t = 0.4 * path.t_max
        denoiser, x = mixture(path)[0], jnp.array([0.9, -0.3, 0.2])
        got = js.sample(
            denoiser, x, key=jax.random.key(0), x=x, solver=PC("ancestral", "none"), grid=[t, 0.0]
        )
        np.testing.assert_allclose(got, denoiser(x, t), rtol=1e-4, atol=1e-5)


def test_traced_grid_and_snr_differentiate():
    """Same sample under a traced grid and step size; the derivative is that of finite differences."""
    path = js.VP()
    denoiser, x = mixture(path)[0], jnp.array([0.9, -0.3, 0.2])
    grid = jnp.asarray(js.grids.log_snr(path, 5, t_max=0.8, t_min=0.1))

    def run(grid, snr):
        return js.sample(denoiser, x, key=jax.random.key(0), x=x, solver=PC(snr=snr), grid=grid).sum()

    value, slopes = jax.jit(jax.value_and_grad(run, argnums=(0, 1)))(grid, 0.2)
    below, want, above = (run(np.asarray(grid), snr) for snr in (0.19, 0.2, 0.21))
    np.testing.assert_allclose(value, want, rtol=1e-4)
    np.testing.assert_allclose(slopes[1], (above - below) / 0.02, rtol=0.02)
    moved = [run(np.asarray(grid) + d * np.eye(6)[2], 0.2) for d in (-0.01, 0.01)]
    np.testing.assert_allclose(slopes[0][2], (moved[1] - moved[0]) / 0.02, rtol=0.02)
    assert jnp.isfinite(slopes[0]).all()


def test_bfloat16_state_and_network():
    path = js.VP()
    net = mixture(path)[0].net
    low = js.Denoiser(lambda x, t: net(x.astype(jnp.float32), t).astype(jnp.bfloat16), path, "data")
    full = js.Denoiser(net, path, "data")
    x = jnp.array([0.9, -0.3, 0.2])
    grid = js.grids.log_snr(path, 8, t_max=0.8)
    a = js.sample(full, x, key=None, x=x, solver=PC(noise=jnp.zeros((16, 3))), grid=grid)
    b = js.sample(
        low,
        x.astype(jnp.bfloat16),
        key=None,
        x=x.astype(jnp.bfloat16),
        solver=PC(noise=jnp.zeros((16, 3))),
        grid=grid,
    )
    assert b.dtype == jnp.bfloat16
    np.testing.assert_allclose(b.astype(jnp.float32), a, atol=0.1)


GRID = np.linspace(1, 1e-3, 25)
BAD = {
    "predictor": (lambda: PC("reverse_difusion"), "did you mean 'reverse_diffusion'"),
    "corrector": (lambda: PC(corrector="mala"), "did you mean 'ald'|valid: langevin"),
    "nothing": (lambda: PC("none", "none"), "both none"),
    "flow": (lambda: PC("ancestral", "none", probability_flow=True), "probability_flow"),
    "count": (lambda: PC(n_corrector=0), "at least 1"),
    "few steps": (
        lambda: PC(published=True).rows(js.VP(), np.linspace(1, 1e-3, 20)),
        "more than beta_max = 20 steps, got 20",
    ),
    "path": (lambda: PC(published=True).rows(js.CosineVP(), GRID), "VP, SubVP and VE, not CosineVP"),
    "grid": (lambda: PC(published=True).rows(js.VP(), js.grids.log_snr(js.VP(), 25)), "np.linspace"),
    "sub-VP": (lambda: PC("ancestral", published=True).rows(js.SubVP(), GRID), "no ancestral"),
    "pure noise": (lambda: PC("ancestral").rows(js.CondOT(), np.linspace(1, 0, 5)), "singular at t=1"),
    "clean data": (lambda: PC("none", "ald").rows(js.VP(), [0.5, 0.2, 0.0]), "singular at t=0"),
    "key": (
        lambda: js.sample(
            mixture(js.VP())[0], jnp.zeros(3), key=None, x=jnp.zeros(3), solver=PC(), grid=[0.5, 0.1]
        ),
        "key=",
    ),
    "noise": (
        lambda: js.sample(
            mixture(js.VP())[0],
            jnp.zeros(3),
            key=None,
            x=jnp.zeros(3),
            solver=PC(noise=jnp.zeros((1, 3))),
            grid=[0.5, 0.1],
        ),
        r"shape \[2, 3\]",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_errors(case):
    make, message = BAD[case]
    error = TypeError if case == "path" else ValueError
    with pytest.raises(error, match=message):
        make()
