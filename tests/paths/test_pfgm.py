"""PFGM++: the law of its noise, the exact flow on points, the diffusion limit, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxsampler as js
from jaxsampler.training import losses

POINTS, WEIGHTS = np.array([[1.0, 0.0], [-1.0, 0.0]]), np.array([0.7, 0.3])


def two_points(path, D):
    """E[x_0 | x] of two points under the kernel (|x - x_0|^2 + D sigma^2)^(-(N + D)/2), or the Gaussian
    one.
    """

    def net(x, t):
        t = jnp.asarray(t, x.dtype)
        squared = jnp.stack(
            [((x - jnp.broadcast_to(p.astype(x.dtype), x.shape)) ** 2).sum(-1) for p in POINTS], -1
        )
        ratio = squared / t.reshape(*t.shape, *[1] * (squared.ndim - t.ndim)) ** 2
        log_kernel = -ratio / 2 if np.isinf(D) else -(2 + D) / 2 * jnp.log1p(ratio / D)
        r = jax.nn.softmax(
            log_kernel + jnp.broadcast_to(np.log(WEIGHTS).astype(x.dtype), log_kernel.shape), -1
        )
        return r @ POINTS.astype(x.dtype)

    return js.Denoiser(net, path, "data")


@pytest.mark.parametrize(("N", "D"), [(2, 8.0), (3, 1.0), (40, 128.0)])
def test_radius_and_direction(N, D):
    """R^2/(R^2 + r^2) ~ Beta(N/2, D/2) with r = sigma sqrt(D), and the direction is uniform."""
    n, path = 20_000, js.PFGMpp(sigma_max=3.0, D=D, batch_axes=1)
    x = np.asarray(path.prior(jax.random.key(0), jnp.zeros((n, N))), np.float64)
    squared = (x**2).sum(1)
    assert stats.kstest(squared / (squared + 9 * D), stats.beta(N / 2, D / 2).cdf).pvalue > 1e-3
    u = x / np.sqrt(squared)[:, None]
    outer = np.einsum("ni,nj->nij", u, u)
    error = 4 * outer.std(0) / np.sqrt(n) + 1e-12
    assert np.all(np.abs(u.mean(0)) < 4 / np.sqrt(n * N))
    assert np.mean(np.abs(outer.mean(0) - np.eye(N) / N) < error) > 0.99


def test_quantiles_of_the_radius():
    """N = 2, D = 8, sigma = 3: 10, 50 and 90 % of R^2 lie below 1.92, 13.6 and 56; its mean is 24."""
    path = js.PFGMpp(sigma_max=3.0, D=8, batch_axes=1)
    squared = np.asarray((path.prior(jax.random.key(1), jnp.zeros((100_000, 2))) ** 2).sum(1))
    np.testing.assert_allclose(np.quantile(squared, [0.1, 0.5, 0.9]), [1.92, 13.6, 56.0], rtol=0.03)
    assert abs(squared.mean() - 24.0) < 4 * squared.std() / np.sqrt(1e5)


def test_batch_axes():
    """Samples of a batch have radii of their own, the same whatever the batch size; all leaves of one sample
    share theirs.
    """
    path, key = js.PFGMpp(D=1.0, batch_axes=1), jax.random.key(2)
    like = {"a": jnp.zeros((6, 5_000)), "b": jnp.zeros((6, 100, 50))}
    x = path.noise(key, like)
    radii = [np.sqrt(np.mean(np.square(v.reshape(6, -1)), axis=1)) for v in (x["a"], x["b"])]
    np.testing.assert_allclose(radii[0], radii[1], rtol=0.06)
    assert np.ptp(np.log(radii[0])) > 0.5
    fewer = path.noise(key, {"a": jnp.zeros((3, 5_000)), "b": jnp.zeros((3, 100, 50))})
    np.testing.assert_allclose(fewer["a"], x["a"][:3], rtol=1e-6)
    one = np.asarray(js.PFGMpp(D=1.0).noise(key, like)["a"])  # all of it one sample
    np.testing.assert_allclose(one.std(1), one.std(), rtol=0.06)


def test_points_are_reached_with_their_weights():
    """From the prior at sigma = 80 to 0 by 18 steps: every sample lies on a point, 70 % on the first."""
    n, path = 20_000, js.PFGMpp(D=6, batch_axes=1)
    x = js.sample(
        two_points(path, 6),
        jnp.zeros((n, 2)),
        key=jax.random.key(3),
        solver=js.solvers.edm,
        steps=18,
        adjoint=js.Direct(),
    )
    assert float(jnp.abs(jnp.abs(x[:, 0]) - 1).max()) < 1e-5
    assert float(jnp.abs(x[:, 1]).max()) < 1e-5
    assert abs(float((x[:, 0] > 0).mean()) - 0.7) < 4 * np.sqrt(0.21 / n)


@pytest.mark.parametrize(("law", "right"), [(6.0, True), (np.inf, False)])
def test_flow_keeps_the_marginals(law, right):
    """From the exact law at sigma = 3 to that at 0.3: mean, second moment, the law across; a Gaussian start
    misses them.
    """
    n, D = 40_000, 6.0
    path, start = js.PFGMpp(D=D, batch_axes=1), js.PFGMpp(D=law, batch_axes=1)
    k1, k2 = jax.random.split(jax.random.key(4))
    x0 = jnp.asarray(POINTS)[jax.random.choice(k1, 2, (n,), p=jnp.asarray(WEIGHTS))]
    x = path.perturb(x0, 3.0, start.noise(k2, x0))
    grid = np.linspace(3 ** (1 / 7), 0.3 ** (1 / 7), 33) ** 7
    out = np.asarray(
        js.sample(
            two_points(path, D), x0, key=None, x=x, solver=js.solvers.edm, grid=grid, adjoint=js.Direct()
        )
    )
    squared = (out**2).sum(1)
    close = [
        abs(out[:, 0].mean() - 0.4) < 4 * out[:, 0].std() / np.sqrt(n),
        abs(squared.mean() - (1 + 0.09 * D * 2 / (D - 2))) < 4 * squared.std() / np.sqrt(n),
        stats.kstest(out[:, 1] / 0.3, stats.t(D).cdf).pvalue
        > 1e-3,  # across the line of the points the kernel is all there is
    ]
    assert all(close) == right


def test_infinite_d_is_edm():
    key, like = jax.random.key(5), jnp.zeros((4, 2))
    infinite, edm = js.PFGMpp(D=np.inf), js.EDM()
    np.testing.assert_array_equal(infinite.prior(key, like), edm.prior(key, like))
    assert infinite.gaussian
    np.testing.assert_array_equal(js.grids.default(infinite, 7), js.grids.default(edm, 7))
    solver = js.solvers.edm(s_churn=3.0)
    samples = [
        js.sample(two_points(p, np.inf), like, key=key, solver=solver, steps=7) for p in (infinite, edm)
    ]
    np.testing.assert_array_equal(*samples)


@pytest.mark.usefixtures("x64")
def test_large_d_approaches_edm():
    """Samples differ by O(D^-1/2), through the radius of each; denoisers by O(1/D)."""
    key, like = jax.random.key(5), jnp.zeros((50, 2))
    differences, denoisers = [], []
    for D in (1e4, 1e6, 1e8):
        path = js.PFGMpp(D=D, batch_axes=1)
        differences.append(float(jnp.abs(path.prior(key, like) / js.EDM().prior(key, like) - 1).mean()))
        x = jax.random.normal(key, (50, 2))
        denoisers.append(
            float(jnp.abs(two_points(path, D)(x, 0.8) - two_points(js.EDM(), np.inf)(x, 0.8)).max())
        )
    np.testing.assert_allclose(np.diff(np.log10(differences)), -1, atol=0.2)
    np.testing.assert_allclose(np.diff(np.log10(denoisers)), -2, atol=0.2)


def test_training_loss_is_least_at_the_exact_posterior_mean():
    """The losses draw the path's own noise: with D = 3 the Gaussian posterior mean is a worse predictor, with
    D = inf a better one.
    """
    x0 = jnp.asarray(POINTS, jnp.float32)[
        jax.random.choice(jax.random.key(6), 2, (20_000,), p=jnp.asarray(WEIGHTS))
    ]
    times = lambda path, u: 0.3 + 2.0 * u
    for D, other in ((3.0, np.inf), (np.inf, 3.0)):
        path = js.PFGMpp(D=D, batch_axes=1)

        def loss(assumed, key, path=path):
            return losses.data_matching(two_points(path, assumed).net, path, key, x0, times=times)

        excess = np.array([loss(other, k) - loss(D, k) for k in jax.random.split(jax.random.key(7), 8)])
        assert excess.mean() > 4 * excess.std() / np.sqrt(8)


BAD = {
    "D": (lambda: js.PFGMpp(D=0), "positive"),
    "axes": (lambda: js.PFGMpp(batch_axes=-1), "0 or more"),
    "leaves": (
        lambda: js.PFGMpp(batch_axes=1).prior(jax.random.key(0), [jnp.zeros((2, 3)), jnp.zeros((3, 3))]),
        "must be alike",
    ),
    "scalar": (lambda: js.PFGMpp(batch_axes=2).prior(jax.random.key(0), jnp.zeros(3)), "must be alike"),
    "score": (lambda: two_points(js.PFGMpp(D=6), 6)(jnp.zeros(2), 1.0, "score"), "score"),
    "churn": (
        lambda: js.tabulate(js.PFGMpp(D=6), [2.0, 1.0], js.solvers.edm(s_churn=1.0)),
        "edm draws Gaussian noise",
    ),
    "sde": (lambda: js.tabulate(js.PFGMpp(D=6), [2.0, 1.0], js.solvers.dpmpp_2m_sde), "Gaussian"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors(case):
    make, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        make()
