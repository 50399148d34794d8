"""Log-densities against closed forms: Gaussians, the golden mixture, known numbers; estimators against exact
traces.
"""

import functools
import itertools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import GOLDEN, PATHS, denoiser
from oracle import Cubic, mixture
from scipy.stats import multivariate_normal

import jaxsampler as js
from jaxsampler.ode.likelihood import bits_per_dim, log_prob, prior_log_prob

M, S = np.array([0.2, -0.1, 0.4]), np.array([[1, 0.3, 0], [0.3, 0.5, 0.1], [0, 0.1, 0.2]])
X = np.array([0.7, 0.3, 0.1])
NOTHING = lambda x: jnp.zeros((), x.dtype)


def correlated(path, kind="data"):
    """The exact denoiser of x0 ~ N(M, S), and log p_t, by scipy."""
    mu = np.zeros(3) if path.centre is None else np.asarray(path.centre)
    w, V = np.linalg.eigh(S)

    def data(x, t):
        a, s = path.alpha(t), path.sigma(t)
        gain = (
            (a * w / (a**2 * w + s**2)).astype(x.dtype) if hasattr(a, "dtype") else a * w / (a**2 * w + s**2)
        )
        return M + V @ (gain * (V.T @ (x - (mu + a * (M - mu)))))

    def log_p(x, t):
        a, s = float(path.alpha(t)), float(path.sigma(t))
        return multivariate_normal(mu + a * (M - mu), a**2 * S + s**2 * np.eye(3)).logpdf(np.asarray(x))

    den = js.Denoiser(data, path, "data")
    return (den if kind == "data" else js.Denoiser(lambda x, t: den(x, t, kind=kind), path, kind)), log_p


@pytest.mark.parametrize("name", ["vp_linear", "vp_cosine", "ve", "subvp"])
def test_golden_truth(x64, name):
    """log p at both ends of the golden trajectories, prior mismatch excluded."""
    t_max, t_min = (float(t) for t in GOLDEN[f"truth/{name}/t"])
    found = functools.partial(log_prob, denoiser(PATHS[name]), t_max=t_max, t_min=t_min, prior=NOTHING)
    ends = jnp.asarray(GOLDEN[f"truth/{name}/x_end"])
    exact = GOLDEN[f"truth/{name}/logp_end"] - GOLDEN[f"truth/{name}/logp_T"]
    np.testing.assert_allclose(jax.vmap(functools.partial(found, steps=200))(ends), exact, atol=1e-6)
    if name == "subvp":
        controller = diffrax.PIDController(rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(
            jax.vmap(functools.partial(found, controller=controller))(ends), exact, atol=1e-6
        )


def test_prior_mismatch(x64):
    """The numbers of specs: exact, under the prior N(0, I), and how the true p_T closes the gap."""
    path = js.VP()
    den, log_p = correlated(path)
    exact = log_p(X, 1e-5)
    assert exact == pytest.approx(-2.013494, abs=1e-6)
    both = lambda prior: float(
        log_prob(den, jnp.asarray(X), t_min=1e-5, steps=200, prior=prior, adjoint=js.Direct())
    )
    assert both("path") == pytest.approx(-2.011532, abs=1e-6)
    cov = path.alpha(1.0) ** 2 * S + path.sigma(1.0) ** 2 * np.eye(3)
    true = lambda x: jax.scipy.stats.multivariate_normal.logpdf(
        x, jnp.asarray(path.alpha(1.0) * M), jnp.asarray(cov)
    )
    assert both(true) == pytest.approx(exact, abs=1e-6)


ANY = {
    "EDM": lambda: js.EDM(sigma_max=20.0),
    "CondOT": js.CondOT,
    "MeanReverting": lambda: js.MeanReverting(jnp.asarray([0.5, -0.2, 0.1])),
    "user's": Cubic,
    "VE": lambda: js.VE(sigma_max=20.0),
}


@pytest.mark.parametrize("name", ANY)
def test_any_path(x64, name):
    """Where alpha(t_max) = 0 the variable is t, with a velocity network."""
    path = ANY[name]()
    den, log_p = correlated(path, "velocity" if name in ("CondOT", "user's") else "data")
    controller = diffrax.PIDController(rtol=1e-8, atol=1e-8)
    adaptive = (
        [{"controller": controller, "adjoint": diffrax.ForwardMode()}] if name in ("EDM", "CondOT") else []
    )
    for how in [{"steps": 200, "adjoint": js.Direct()}, *adaptive]:
        ends = []
        got = log_prob(
            den, jnp.asarray(X), prior=lambda x, ends=ends: (ends.append(x), jnp.zeros(()))[1], **how
        )
        np.testing.assert_allclose(got + log_p(ends[0], path.t_max), log_p(X, path.t_min), atol=1e-6)


def test_prior_of_the_path(x64):
    mu = jnp.asarray([0.5, -0.2, 0.1])
    path = js.MeanReverting(mu, std=0.3)
    exact = multivariate_normal(np.asarray(mu), 0.09 * np.eye(3)).logpdf(X)
    assert float(prior_log_prob(correlated(path)[0], jnp.asarray(X))) == pytest.approx(exact, rel=1e-12)


def test_solvers_and_own_grid(x64):
    """Any noise-kind table integrates the pair, at its order."""
    path = js.VP()
    den, log_p = correlated(path)
    change = log_p(X, 0.1) - log_prob(den, jnp.asarray(X), t_max=0.7, t_min=0.1, prior=NOTHING, steps=400)
    for solver, order in ((js.solvers.dpm_2, 2), (js.solvers.dpm_2m, 2), (js.solvers.dpm_1, 1)):
        grids = [js.grids.log_snr(path, n, t_max=0.7, t_min=0.1) for n in (40, 80)]
        errors = [
            abs(
                float(log_prob(den, jnp.asarray(X), grid=g, prior=NOTHING, solver=solver) + change)
                - log_p(X, 0.1)
            )
            for g in grids
        ]
        assert order - 0.25 < np.log2(errors[0] / errors[1]) < order + 0.6, solver.name


def test_all_sign_vectors(x64):
    """Their zz' average to the identity: Hutchinson over all of them is the exact trace, on a linear field
    and on any other.
    """
    signs = jnp.asarray(list(itertools.product([-1.0, 1.0], repeat=3)))
    for den in (correlated(js.VP())[0], denoiser(PATHS["vp_linear"])):

        @jax.jit
        def densities(den=den):
            by = functools.partial(log_prob, den, jnp.asarray(X), steps=40, adjoint=js.Direct())
            one = jax.vmap(lambda z: by(trace="hutchinson", noise=z[None]))(signs[:4])
            return by(), by(trace="hutchinson", noise=signs), one

        exact, every, one = densities()
        assert float(every) == pytest.approx(float(exact), abs=1e-10)
        assert np.ptp(one) > 1e-3
        np.testing.assert_allclose(np.mean(one), exact, atol=1e-10)  # -z gives what z gives


def coupled(d=9, rank=None):
    """A network on EDM whose Jacobian is full, or of a given rank."""
    keys = jax.random.split(jax.random.key(3), 2)
    r = d if rank is None else rank
    A, B = (
        jax.random.normal(keys[0], (d, r), jnp.float64) / d,
        jax.random.normal(keys[1], (r, d), jnp.float64),
    )
    return js.Denoiser(
        lambda x, t: A @ jnp.tanh(B @ x) * (1 + t), js.EDM(sigma_min=0.1, sigma_max=3.0), "noise"
    )


@pytest.mark.parametrize(
    ("trace", "noise", "probes"),
    [("hutchinson", "rademacher", 3), ("hutchinson", "gaussian", 3), ("hutch++", "gaussian", 6)],
)
def test_unbiased(x64, trace, noise, probes):
    """Value and gradient, over 400 keys, within four standard errors; estimates do scatter."""
    den, x = coupled(), 0.3 * jnp.arange(9.0)
    density = lambda x, **how: log_prob(den, x, steps=4, **how)
    exact = jax.value_and_grad(density)(x)
    keys = jax.random.split(jax.random.key(0), 400)
    drawn = jax.jit(
        jax.vmap(
            jax.value_and_grad(lambda x, key: density(x, trace=trace, noise=noise, probes=probes, key=key)),
            (None, 0),
        )
    )(x, keys)
    for got, want in zip(drawn, exact, strict=True):
        error = np.asarray(got).std(0) / np.sqrt(len(keys))
        assert np.all(error > 1e-5)
        assert np.all(np.abs(np.asarray(got).mean(0) - want) < 4 * error)


def test_hutch_plus_plus_has_less_variance(x64):
    """At the same number of products; on a Jacobian of rank 2 two columns of S see all of it."""
    x, keys = 0.3 * jnp.arange(9.0), jax.random.split(jax.random.key(1), 200)

    def spread(den, trace):
        one = lambda key: log_prob(den, x, steps=4, trace=trace, probes=12, key=key, noise="gaussian")
        return float(jnp.std(jax.jit(jax.vmap(one))(keys)))

    assert spread(coupled(), "hutch++") < 0.7 * spread(coupled(), "hutchinson")
    den = coupled(rank=2)
    exact = float(log_prob(den, x, steps=4))
    assert float(log_prob(den, x, steps=4, trace="hutch++", probes=6, key=keys[0])) == pytest.approx(
        exact, abs=1e-10
    )
    assert spread(den, "hutchinson") > 1e-3


def test_probes_by_default(x64):
    """One of Hutchinson's, three of Hutch++'s."""
    x, key = 0.3 * jnp.arange(9.0), jax.random.key(2)
    for trace, probes in (("hutchinson", 1), ("hutch++", 3)):
        default, given = (
            log_prob(coupled(), x, steps=2, trace=trace, key=key, **how) for how in ({}, {"probes": probes})
        )
        assert float(default) == float(given)


def test_gradient_where_the_jacobian_is_rank_deficient(x64):
    """Three columns of S for a range of two dimensions: the factor Q has no derivative there; the trace has,
    and is exact.
    """
    density = lambda x, **how: log_prob(coupled(rank=2), x, steps=4, **how)
    x = 0.3 * jnp.arange(9.0)
    got = jax.grad(lambda x: density(x, trace="hutch++", probes=9, key=jax.random.key(0)))(x)
    np.testing.assert_allclose(got, jax.grad(density)(x), atol=1e-8)


@pytest.mark.parametrize("how", [{}, {"trace": "hutchinson", "probes": 2}])
def test_gradients_are_those_of_the_value(x64, how):
    """With respect to x, weights and mu, against central differences."""
    A = 0.3 * jax.random.normal(jax.random.key(1), (3, 3), jnp.float64)

    def value(x, A, mu):
        den = js.Denoiser(
            jax.tree_util.Partial(lambda A, x, t: jnp.tanh(A @ x), A), js.MeanReverting(mu), "noise"
        )
        return log_prob(den, x, steps=12, key=jax.random.key(4), **how)

    at = (jnp.asarray(X), A, jnp.asarray(M))
    gradients = jax.grad(value, (0, 1, 2))(*at)
    value = jax.jit(value)
    for i, g in enumerate(gradients):
        direction = jax.random.normal(jax.random.key(i), g.shape, jnp.float64)
        shifted = [
            value(*(a + h * direction if j == i else a for j, a in enumerate(at))) for h in (-1e-5, 1e-5)
        ]
        assert float((g * direction).sum()) == pytest.approx(float(shifted[1] - shifted[0]) / 2e-5, rel=1e-6)


def test_score(x64):
    """grad log p is the score of the closed form: by tables and by diffrax."""
    path = js.VP()
    den, _ = correlated(path)
    a, s = path.alpha(path.t_min), path.sigma(path.t_min)
    exact = -np.linalg.solve(a**2 * S + s**2 * np.eye(3), X - a * M)
    for how in ({"steps": 128}, {"controller": diffrax.PIDController(rtol=1e-8, atol=1e-8)}):
        got = jax.grad(lambda x, how=how: log_prob(den, x, **how))(jnp.asarray(X))
        np.testing.assert_allclose(got, exact, atol=1e-2)  # the prior's mismatch has a gradient too
        assert np.abs(np.asarray(got) - exact).max() > 1e-6


def test_system(x64):
    """Independent parts: log p is the sum, whatever their paths and clocks."""
    paths = {"a": js.VP(), "b": js.EDM(sigma_max=30.0)}
    parts = {k: mixture(p)[0] for k, p in paths.items()}
    den = js.Denoiser(lambda x, t: {k: parts[k].net(x[k], t[k]) for k in x}, paths, "data")
    x = {"a": jnp.asarray([0.3, -0.5]), "b": jnp.asarray([0.9])}
    each = [float(log_prob(parts[k], x[k], steps=200)) for k in x]
    assert float(log_prob(den, x, steps=200)) == pytest.approx(sum(each), abs=1e-5)


def test_bits_of_a_uniform_density():
    """A density that is uniform over the range spends 8 bits whatever the range; pixels lie in their own cell
    of it.
    """
    images = jnp.asarray(np.arange(12).reshape(3, 2, 2) * 20, jnp.uint8)
    for low, high in ((-1.0, 1.0), (0.0, 1.0)):
        seen = []

        def density(den, x, key, low=low, high=high, seen=seen):
            jax.debug.callback(lambda x: seen.append(np.asarray(x)), x)
            return jnp.asarray(-4 * np.log(high - low), x.dtype)

        bits = bits_per_dim(
            correlated(js.VP())[0],
            images,
            jax.random.key(0),
            low=low,
            high=high,
            density=density,
            batch_size=1,
        )
        jax.effects_barrier()
        np.testing.assert_allclose(bits, 8.0, rtol=1e-6)
        found = np.stack(sorted(seen, key=lambda a: a.sum()))
        cells = (found - low) / (high - low) * 256
        np.testing.assert_array_equal(np.floor(cells), np.asarray(images))
        assert len(np.unique(np.round(cells % 1, 6))) == 12, "every pixel has a draw of its own"


def test_bits_of_a_gaussian():
    path = js.EDM(sigma_max=20.0)
    std = 0.4
    den = js.Denoiser(lambda x, t: x * std**2 / (std**2 + t**2), path, "data")
    images = jax.random.randint(jax.random.key(1), (5, 3, 3), 90, 166).astype(jnp.uint8)
    var = std**2 + path.t_min**2
    closed = lambda den, x, key: -(x**2).sum() / (2 * var) - x.size / 2 * np.log(2 * np.pi * var)
    exact = bits_per_dim(den, images, jax.random.key(0), density=closed)
    got = bits_per_dim(
        den, images, jax.random.key(0), batch_size=2
    )  # J is a multiple of the identity: one sign vector is exact
    np.testing.assert_allclose(got, exact, atol=2e-3)
    assert np.ptp(np.asarray(exact)) > 0.01


def test_errors():
    den, x, key = correlated(js.VP())[0], jnp.asarray(X, jnp.float32), jax.random.key(0)
    for solver in (
        js.solvers.euler_ancestral,
        js.solvers.dpmpp_sde,
        js.solvers.edm(s_churn=5.0),
        diffrax.ShARK(),
    ):
        with pytest.raises(ValueError, match="stochastic"):
            log_prob(den, x, solver=solver)
    with pytest.raises(ValueError, match="works on 'data'.*rk_rho"):
        log_prob(den, x, solver=js.solvers.dpmpp_2m)
    with pytest.raises(TypeError, match="noise-kind step"):
        log_prob(den, x, solver="heun")
    with pytest.raises(TypeError, match="js.Denoiser"):
        log_prob(lambda x, t: x, x)
    with pytest.raises(ValueError, match="key="):
        log_prob(den, x, trace="hutchinson")
    with pytest.raises(ValueError, match="unknown trace 'trace'; valid: exact, hutchinson"):
        log_prob(den, x, trace="trace")
    with pytest.raises(ValueError, match="unknown noise"):
        log_prob(den, x, trace="hutchinson", noise="uniform", key=key)
    with pytest.raises(ValueError, match="3, 6"):
        log_prob(den, x, trace="hutch++", probes=4, key=key)
    with pytest.raises(ValueError, match="leading axis"):
        log_prob(den, x, trace="hutchinson", noise=jnp.ones((2, 5)))
    with pytest.raises(ValueError, match="sigma = 0"):
        log_prob(den, x, t_min=0.0)
    with pytest.raises(ValueError, match="prior"):
        log_prob(den, x, prior="normal")
    with pytest.raises(ValueError, match="its own ends"):
        log_prob(den, x, grid=[1.0, 0.5], t_min=0.1)
    with pytest.raises(ValueError, match="uint8"):
        bits_per_dim(den, jnp.zeros((2, 3)), key)


def test_a_batch_of_densities():
    """One number for each sample, along any axis; a whole array is one sample."""
    denoiser, x = (
        js.models.gaussian_mixture(np.zeros((1, 3)), 0.5, js.VP()),
        jax.random.normal(jax.random.key(3), (4, 3)),
    )
    alone = jnp.stack([log_prob(denoiser, a) for a in x])
    np.testing.assert_allclose(log_prob(denoiser, x, batch_axis=0), alone, rtol=1e-5)
    np.testing.assert_allclose(log_prob(denoiser, x.T, batch_axis=-1), alone, rtol=1e-5)
    np.testing.assert_allclose(log_prob(denoiser, x), alone.sum(), rtol=1e-5)
    probes = {"trace": "hutchinson", "key": jax.random.key(1)}
    again = [
        log_prob(denoiser, a, trace="hutchinson", key=k)
        for a, k in zip(x, jax.random.split(probes["key"], 4))
    ]
    np.testing.assert_allclose(log_prob(denoiser, x, batch_axis=0, **probes), jnp.stack(again), rtol=1e-5)
    with pytest.raises(ValueError, match="batch_axis=2 must be an axis of every leaf of x"):
        log_prob(denoiser, x, batch_axis=2)
