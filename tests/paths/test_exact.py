"""The exact mixture denoiser against direct numerical integration of Bayes' rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import Cubic
from scipy.integrate import quad

import jaxsampler as js
from jaxsampler.data import fashion

pytestmark = pytest.mark.usefixtures("x64")
MEANS, STDS, WEIGHTS = [[-0.8], [0.5], [1.1]], [0.3, 0.2, 0.4], [0.3, 0.5, 0.2]
PATHS = {
    "vp": js.VP(),
    "sub_vp": js.SubVP(),
    "edm": js.EDM(),
    "cond_ot": js.CondOT(),
    "mr": js.MeanReverting(0.9, std=0.4),
    "irsde": js.MeanReverting(-0.5, variant="irsde", schedule="linear"),
    "cubic": Cubic(),
}
each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


def density(x0):
    """p(x_0), by its definition."""
    return sum(
        w * np.exp(-((x0 - m[0]) ** 2) / (2 * s**2)) / (s * np.sqrt(2 * np.pi))
        for m, s, w in zip(MEANS, STDS, WEIGHTS, strict=True)
    )


def expectation(path, x, t):
    """E[x_0 | x_t = x] = int x_0 p(x | x_0) p(x_0) dx_0 / int p(x | x_0) p(x_0) dx_0."""
    mu = 0.0 if path.centre is None else path.centre
    a, s = float(path.alpha(t)), float(path.sigma(t))

    def joint(x0):
        return np.exp(-((x - mu - a * (x0 - mu)) ** 2) / (2 * s**2)) * density(x0)

    peak = mu + (x - mu) / max(a, 0.2)
    points = sorted(
        {float(np.clip(p, -3.9, 3.9)) for p in (peak, peak - 5 * s, peak + 5 * s, -0.8, 0.5, 1.1)}
    )
    top = quad(lambda u: u * joint(u), -4, 4, points=points, epsabs=1e-14, epsrel=1e-11, limit=300)[0]
    return top / quad(joint, -4, 4, points=points, epsabs=1e-14, epsrel=1e-11, limit=300)[0]


@each_path
def test_against_numerical_integration(path):
    """The posterior mean in one dimension, at early, middle and late times, in and between the modes."""
    denoiser = js.models.gaussian_mixture(MEANS, jnp.array(STDS), path, WEIGHTS)
    mu = 0.0 if path.centre is None else path.centre
    for u in (0.1, 0.35, 0.8):
        t = u * path.t_max
        a, s = float(path.alpha(t)), float(path.sigma(t))
        x = [mu + a * (x0 - mu) + s * e for x0, e in ((-0.8, 0.5), (0.2, -0.4), (1.3, 1.0))]
        want = [expectation(path, v, t) for v in x]
        got = denoiser(jnp.array(x)[:, None], t)[:, 0]
        np.testing.assert_allclose(got, want, rtol=1e-7, atol=1e-8)


@each_path
def test_score_is_the_gradient_of_the_log_density(path):
    """In three dimensions: the score of the mixture of N(mu + alpha (m_k - mu), alpha^2 s_k^2 + sigma^2), by
    autodiff.
    """
    rng = np.random.default_rng(0)
    means, stds, weights = rng.normal(size=(4, 3)), rng.uniform(0.2, 0.6, 4), np.array([0.1, 0.2, 0.3, 0.4])
    mu = 0.0 if path.centre is None else path.centre
    t = 0.3 * path.t_max
    a, s = float(path.alpha(t)), float(path.sigma(t))

    def log_density(x):
        parts = []
        for m, sd, w in zip(means, stds, weights, strict=True):
            var = a**2 * sd**2 + s**2
            parts.append(
                jnp.log(w)
                - ((x - (mu + a * (m - mu))) ** 2).sum() / (2 * var)
                - 1.5 * jnp.log(2 * jnp.pi * var)
            )
        return jax.nn.logsumexp(jnp.stack(parts))

    x = jnp.asarray(mu + a * (means[1] - mu) + s * rng.normal(size=3))
    denoiser = js.models.gaussian_mixture(means, stds, path, weights)
    np.testing.assert_allclose(denoiser(x, t, "score"), jax.grad(log_density)(x), rtol=1e-9)


@each_path
def test_stds_of_each_axis(path):
    """Axis by axis: the score by autodiff of the density written with scipy's words, covariance matrices and
    determinants.
    """
    rng = np.random.default_rng(7)
    means, stds, weights = rng.normal(size=(3, 4)), rng.uniform(0.2, 0.9, (3, 4)), np.array([0.5, 0.3, 0.2])
    mu = 0.0 if path.centre is None else path.centre
    t = 0.3 * path.t_max
    a, s = float(path.alpha(t)), float(path.sigma(t))

    def log_density(x):
        parts = []
        for m, sd, w in zip(means, stds, weights, strict=True):
            cov = jnp.diag(a**2 * sd**2) + s**2 * jnp.eye(4)
            parts.append(jnp.log(w) + jax.scipy.stats.multivariate_normal.logpdf(x, mu + a * (m - mu), cov))
        return jax.nn.logsumexp(jnp.stack(parts))

    x = jnp.asarray(mu + a * (means[:2] - mu) + s * rng.normal(size=(2, 4)))
    denoiser = js.models.gaussian_mixture(means, stds, path, weights)
    np.testing.assert_allclose(
        denoiser(x, t, "score"), jax.vmap(jax.grad(log_density))(x), rtol=1e-9, atol=1e-12
    )


def test_equal_stds_in_every_form():
    """A number, one each, and one for each axis are the same mixture."""
    x = jnp.array([0.3, -0.2])
    means = [[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]]
    forms = (0.4, [0.4] * 3, [[0.4] * 2] * 3)
    first, *others = (js.models.gaussian_mixture(means, stds, js.VP())(x, 0.3) for stds in forms)
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-14)


@each_path
def test_smoothed_images_are_a_mixture(path):
    """Images with std are the mixture of equal Gaussians around them, at every time; sigma = 0 gives the
    state itself.
    """
    images = np.random.default_rng(8).normal(size=(5, 6))
    smooth, mixture = js.models.empirical(images, path, 0.3), js.models.gaussian_mixture(images, 0.3, path)
    x = jnp.asarray(images[:2] + 0.2)
    for u in (0.0, 0.05, 0.4, 0.9):
        np.testing.assert_allclose(
            smooth(x, u * path.t_max), mixture(x, u * path.t_max), rtol=1e-8, atol=1e-9
        )


def test_one_gaussian_is_linear():
    """A single component: E[x_0 | x] by the textbook formula for jointly Gaussian variables; weights drop
    out.
    """
    path, t = js.CondOT(), 0.6
    denoiser = js.models.gaussian_mixture([[1.0, -2.0]], 0.5, path)
    x = jnp.array([0.3, 0.8])
    gain = 0.4 * 0.25 / (0.16 * 0.25 + 0.36)  # cov(x_0, x)/var(x)
    np.testing.assert_allclose(
        denoiser(x, t), np.array([1.0, -2.0]) + gain * (x - 0.4 * np.array([1.0, -2.0])), rtol=1e-12
    )


def test_batch_is_single():
    """Any leading axes: the same as one state at a time; scalar and equal weights are the defaults."""
    rng = np.random.default_rng(1)
    means, path = rng.normal(size=(3, 2)), js.MeanReverting(jnp.array([0.2, -0.4]))
    denoiser = js.models.gaussian_mixture(means, 0.3, path)
    x = jnp.asarray(rng.normal(size=(4, 5, 2)))
    whole = denoiser(x, 30.0, "noise")
    alone = jax.jit(lambda x: denoiser(x, 30.0, "noise"))
    single = jnp.stack([alone(y) for y in x.reshape(20, 2)]).reshape(4, 5, 2)
    np.testing.assert_allclose(whole, single, rtol=1e-12, atol=1e-14)
    unequal = js.models.gaussian_mixture(means, [0.3, 0.3, 0.3], path, [2.0, 2.0, 2.0])
    np.testing.assert_allclose(unequal(x, 30.0, "noise"), whole, rtol=1e-12, atol=1e-14)


def test_ends():
    """Without noise the data are the state; from pure noise the data are the mean of the mixture; gradients
    finite at both.
    """
    denoiser = js.models.gaussian_mixture(MEANS, STDS, js.CondOT(), WEIGHTS)
    x = jnp.array([0.37])
    np.testing.assert_allclose(denoiser(x, 0.0), x, rtol=1e-14)
    np.testing.assert_allclose(denoiser(x, 1.0), np.dot(WEIGHTS, np.ravel(MEANS)), rtol=1e-14)
    assert jax.grad(lambda x: denoiser(x, 0.0)[0])(x) == pytest.approx(1.0)
    assert jax.grad(lambda x: denoiser(x, 1.0)[0])(x) == pytest.approx(0.0)


def test_dtype_and_integers():
    """The state decides the dtype; integer means do not round the standard deviations to 0."""
    denoiser = js.models.gaussian_mixture([[0], [1]], 0.5, js.VP())
    want = js.models.gaussian_mixture([[0.0], [1.0]], [0.5, 0.5], js.VP(), [0.5, 0.5])(jnp.array([0.4]), 0.3)
    assert 0 < float(want[0]) < 1
    np.testing.assert_allclose(denoiser(jnp.array([0.4]), 0.3), want, rtol=1e-14)
    single = denoiser(jnp.array([0.4], jnp.float32), 0.3)
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, want, rtol=1e-6)


def test_means_and_weights_can_be_learned():
    """The mixture's parameters are leaves: the gradient of the prediction with respect to a mean, against
    finite differences.
    """
    x, t = jnp.array([0.2]), 0.4

    def data(shift):
        return js.models.gaussian_mixture(jnp.array(MEANS) + shift, STDS, js.VP(), WEIGHTS)(x, t)[0]

    np.testing.assert_allclose(jax.grad(data)(0.1), (data(0.1 + 1e-5) - data(0.1 - 1e-5)) / 2e-5, rtol=1e-7)


@pytest.mark.parametrize(
    ("stds", "weights", "message"),
    [
        ([0.1, 0.2], None, r"stds must have one entry for each of the 3 means; got shape \(2,\)"),
        (0.1, [0.5, 0.5], r"weights must have one entry for each of the 3 means; got shape \(2,\)"),
        (0.1, 1.0, r"weights must have one entry for each of the 3 means; got shape \(\)"),
    ],
)
def test_shape_errors(stds, weights, message):
    """One standard deviation and one weight per mean."""
    with pytest.raises(ValueError, match=message):
        js.models.gaussian_mixture(MEANS, stds, js.VP(), weights)


def brute_force(images, path, x, t):
    """E[x_0 | x_t = x] of equally likely images, in float64, one by one."""
    mu = 0.0 if path.centre is None else np.asarray(path.centre, np.float64)
    a, s = float(path.alpha(t)), float(path.sigma(t))
    away = np.asarray(x, np.float64) - mu - a * (np.asarray(images, np.float64) - mu)
    log_w = -np.square(away).reshape(len(images), -1).sum(1) / (2 * s**2)
    w = np.exp(log_w - log_w.max())
    return np.tensordot(w / w.sum(), np.asarray(images, np.float64), 1)


@each_path
def test_empirical_against_brute_force_in_single_precision(path, monkeypatch):
    """Ragged chunks, at all noise levels, from nearly clean to nearly pure noise; images near each other
    among them.
    """
    monkeypatch.setattr(js.models, "CHUNK", 7)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(23, 4, 4, 1)).astype(np.float32)
    images[5] = images[4] + 0.01 * rng.normal(size=(4, 4, 1))
    images[9] = images[20]  # far apart, in other chunks
    denoiser = js.models.empirical(images, path)
    call = jax.jit(lambda x, t: denoiser(x, t))
    for lam in (4.0, 1.5, 0.3, -0.5, -2.0):
        t = float(path.time(np.float64(lam)))
        eps = rng.normal(size=(3, 4, 4, 1))
        x = np.asarray(path.perturb(jnp.asarray(images[[4, 9, 22]]), t, jnp.asarray(eps.astype(np.float32))))
        want = np.stack([brute_force(images, path, y, t) for y in x])
        got = call(jnp.asarray(x, jnp.float32), jnp.float32(t))
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, want, atol=2e-4 if lam < 4 else 2e-3, err_msg=str(lam))


def test_empirical_of_photographs_in_single_precision():
    """512 photos with many pixels, noise levels of EDM from 0.002 to 80: a product of float32 alone is off by
    units in the logits.
    """
    photos = fashion.some().images
    rng, path = np.random.default_rng(1), js.EDM()
    denoiser = js.models.empirical(photos, path)
    call = jax.jit(lambda x, t: denoiser(x, t))
    for s in (0.002, 0.05, 0.5, 2.0, 10.0, 80.0):
        x = (photos[[3, 77]] + s * rng.normal(size=(2, 32, 32, 1))).astype(np.float32)
        want = np.stack([brute_force(photos, path, y, s) for y in x])
        np.testing.assert_allclose(call(jnp.asarray(x), jnp.float32(s)), want, atol=1e-3, err_msg=str(s))


def test_empirical_near_twins_are_told_apart():
    """Two images 0.03 apart of norm 30, noise 0.02: which is meant is a matter of a difference of 1e-6 in the
    squared distance.
    """
    rng = np.random.default_rng(2)
    first = rng.uniform(-1, 1, (1000,)).astype(np.float32)
    twins = np.stack(
        [first, first + np.float32(0.03 / 1000**0.5) * rng.choice([-1, 1], 1000).astype(np.float32)]
    )
    denoiser = js.models.empirical(twins, js.EDM())
    x = (twins.mean(0) + 0.02 * rng.normal(size=1000)).astype(np.float32)
    got = np.asarray(denoiser(jnp.asarray(x), 0.02), np.float64)
    part = lambda m: (m - twins[0]) @ (twins[1] - twins[0]) / np.square(twins[1] - twins[0]).sum()
    assert 0.02 < part(got) < 0.98
    assert part(got) == pytest.approx(part(brute_force(twins, js.EDM(), x, 0.02)), abs=2e-3)


def test_empirical_ends_and_score():
    """sigma = 0: the nearest image; alpha = 0: their mean; gradients finite; the score is that of the mixture
    of Gaussians.
    """
    images = np.random.default_rng(3).normal(size=(5, 6))
    denoiser = js.models.empirical(images, js.CondOT())
    x = jnp.asarray(images[2] + 0.1)
    np.testing.assert_allclose(denoiser(x, 0.0), images[2], rtol=1e-12)
    np.testing.assert_allclose(denoiser(x, 1.0), images.mean(0), rtol=1e-12)
    for t in (0.0, 1.0):
        assert np.all(np.isfinite(jax.jacobian(lambda x, t=t: denoiser(x, t))(x)))
    mixture = js.models.gaussian_mixture(images, 1e-9, js.CondOT())
    np.testing.assert_allclose(denoiser(x, 0.6, "score"), mixture(x, 0.6, "score"), rtol=1e-8)
    np.testing.assert_allclose(
        jax.jacobian(lambda x: denoiser(x, 0.6))(x),
        jax.jacobian(lambda x: mixture(x, 0.6))(x),
        rtol=1e-6,
        atol=1e-9,
    )


@pytest.mark.parametrize(
    ("images", "x"), [((0, 4), None), ((4,), None), ((5, 4), (3,)), ((5, 4, 4), (2, 3, 4))]
)
def test_empirical_refuses_what_is_no_image(images, x):
    with pytest.raises(ValueError, match=r"images must be an array|must be an image of shape"):
        js.models.empirical(jnp.zeros(images), js.VP())(jnp.zeros(x or (4,)), 0.5)


@pytest.mark.parametrize(
    ("what", "value"),
    [
        ("weights", [0.5, np.nan]),
        ("weights", [1.5, -0.5]),
        ("weights", [1.0, 0.0]),
        ("stds", [0.1, -0.1]),
        ("stds", [0.1, np.inf]),
        ("means", [[0.0], [np.nan]]),
    ],
)
def test_numbers_that_are_no_mixture_are_refused(what, value):
    """They gave samples of another law, or NaN, without a word."""
    given = {"means": [[0.0], [1.0]], "stds": 0.1, "weights": None} | {what: value}
    with pytest.raises(ValueError, match=f"{what} must be (finite|positive)"):
        js.models.gaussian_mixture(given["means"], given["stds"], js.VP(), given["weights"])
