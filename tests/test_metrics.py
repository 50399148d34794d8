"""Distances against closed forms, other algorithms, and simulation."""

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
from scipy.stats import wasserstein_distance

from jaxsampler import metrics


def with_moments(mean, cov, n=50, seed=0):
    """n samples whose mean and unbiased covariance are exactly these."""
    x = np.random.default_rng(seed).standard_normal((n, len(mean)))
    x -= x.mean(0)
    white = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    values, vectors = np.linalg.eigh(cov)
    return np.asarray(mean) + white @ (vectors * np.sqrt(np.maximum(values, 0))).T


def test_frechet_of_commuting_covariances():
    """Diagonal in one basis: |m|^2 + sum (s_a - s_b)^2."""
    a, b = (
        with_moments([0, 1, 2], np.diag([1.0, 4, 9])),
        with_moments([1, 1, 0], np.diag([4.0, 4, 1]), n=80, seed=1),
    )
    assert metrics.frechet(a, b) == pytest.approx(5 + 1 + 0 + 4, rel=1e-12)
    assert metrics.frechet(a, metrics.gaussian(b)) == metrics.frechet(a, b)
    assert metrics.frechet(a, a) == pytest.approx(0, abs=1e-12)


def test_frechet_of_any_covariances():
    """Against scipy's square root of the product of covariances."""
    rng = np.random.default_rng(2)
    a, b = (
        rng.standard_normal((40, 5)) @ rng.standard_normal((5, 5)),
        1 + rng.standard_normal((60, 5)) @ rng.standard_normal((5, 5)),
    )
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T))
    want = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root.real)
    assert metrics.frechet(a, b) == pytest.approx(want, rel=1e-10)


def test_frechet_of_singular_covariances():
    """Fewer samples than dimensions: two lines at an angle have tr (S_a S_b)^(1/2) = s_a s_b |cos|."""
    u, v = np.eye(100)[0], np.cos(0.7) * np.eye(100)[0] + np.sin(0.7) * np.eye(100)[1]
    steps = np.array([-1.0, 0, 1])[:, None]  # variance 1
    assert metrics.frechet(2 * steps * u, 3 * steps * v) == pytest.approx(4 + 9 - 12 * np.cos(0.7), rel=1e-12)


def test_wasserstein_of_unequal_numbers():
    """Two against three points, by hand: quantiles differ by 0 up to 1/3, 1 up to 1/2, then 2."""
    a, b = np.array([[3.0], [0]]), np.array([[0.0], [1], [5]])
    assert metrics.wasserstein(a, b) == pytest.approx(np.sqrt(1 / 6 + 4 / 6 + 4 / 3), rel=1e-12)
    assert metrics.wasserstein(b, a) == pytest.approx(metrics.wasserstein(a, b), rel=1e-12)


def test_wasserstein_against_an_assignment():
    """Each of 4 points repeated 3 times, each of 6 twice: the best matching of 12 to 12 by the Hungarian
    method.
    """
    rng = np.random.default_rng(6)
    a, b = rng.standard_normal(4), rng.standard_normal(6)
    cost = np.square(np.repeat(a, 3)[:, None] - np.repeat(b, 2))
    want = np.sqrt(cost[scipy.optimize.linear_sum_assignment(cost)].mean())
    assert metrics.wasserstein(a[:, None], b[:, None]) == pytest.approx(want, rel=1e-9)
    known = metrics.quantiles(b[:, None], 4)
    assert metrics.wasserstein(a[:, None], known) == metrics.wasserstein(a[:, None], b[:, None])
    with pytest.raises(ValueError, match="cannot be compared"):
        metrics.wasserstein(np.zeros((5, 1)), known)


def test_sliced_wasserstein_of_a_shift():
    """A shift by m in d dimensions moves a projection by m . u, whose mean square is |m|^2/d."""
    x = np.random.default_rng(3).standard_normal((300, 4, 4))
    shift = np.full((4, 4), 0.5)
    got = metrics.sliced_wasserstein(x, (x + shift)[::-1], directions=20_000, seed=1)
    assert got == pytest.approx(np.sqrt(4 / 16), rel=0.02)
    assert metrics.sliced_wasserstein(x, x) == pytest.approx(0, abs=1e-6)


def test_one_dimension_is_not_sliced():
    """In one dimension every direction is +-1; points on integers make W1 = W2^2 when all moves are 0 or
    1.
    """
    a = np.repeat([0.0, 1.0], [30, 70])[:, None]
    b = np.repeat([0.0, 1.0], [55, 45])[:, None]
    assert metrics.sliced_wasserstein(a, b) ** 2 == pytest.approx(
        wasserstein_distance(a[:, 0], b[:, 0]), rel=1e-9
    )


def test_rmse():
    a, b = np.zeros((2, 2, 2)), np.stack([np.full((2, 2), 3.0), np.full((2, 2), -4.0)])
    np.testing.assert_allclose(metrics.squares(a, b), [9, 16])
    assert metrics.rmse(a, b) == pytest.approx(np.sqrt(12.5))


def test_interval_covers():
    """Nineteen times in twenty the interval of a biased distance holds its mean over sets of that size; it
    narrows as 1/sqrt(n).
    """
    rng = np.random.default_rng(4)
    real = metrics.gaussian(rng.standard_normal((20_000, 10)))
    draw = lambda n: 0.5 + rng.standard_normal((n, 10))
    distance = lambda x: metrics.frechet(x, real)
    mean = np.mean([distance(draw(60)) for _ in range(400)])
    found = np.array([metrics.interval(distance, draw(60), resamples=80, seed=i) for i in range(100)])
    assert 86 <= ((found[:, 0] < mean) & (mean < found[:, 1])).sum() <= 99
    wide, narrow = (np.diff(metrics.interval(distance, draw(n), resamples=100))[0] for n in (60, 6000))
    assert 6 < wide / narrow < 17


def test_interval_resamples_every_set():
    """The difference of two means has the variance of both, (1 + 4)/100."""
    rng = np.random.default_rng(5)
    a, b = rng.standard_normal(100), 2 * rng.standard_normal(100)
    low, high = metrics.interval(lambda x, y: float(x.mean() - y.mean()), a, b, resamples=4000)
    assert (high - low) / (2 * 1.96) == pytest.approx(np.sqrt(a.var() / 100 + b.var() / 100), rel=0.05)
    assert (low + high) / 2 == pytest.approx(a.mean() - b.mean(), abs=0.02)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros((1, 2)), np.zeros((5, 2)), r"\[n, d\] of at least two samples; got shape \(1, 2\)"),
        (np.zeros((5, 3)), np.zeros((5, 2)), "3 and 2 dimensions"),
        (np.full((5, 2), np.nan), np.zeros((5, 2)), "not finite in 5 of 5 samples"),
    ],
)
def test_refused(a, b, message):
    with pytest.raises(ValueError, match=message):
        metrics.frechet(a, b)
    with pytest.raises(ValueError, match="one shape"):
        metrics.rmse(np.zeros((3, 2)), np.zeros((2, 2)))
