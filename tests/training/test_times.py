"""Distributions of times, by their quantile functions: published moments, closed-form distribution functions,
round trips.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxsampler.paths.gaussian import EDM, VP, CondOT
from jaxsampler.training import times

U = jnp.asarray((np.arange(100_000) + 0.5) / 100_000, jnp.float32)
PATH = CondOT()


def draw(distribution, path=PATH):
    return np.asarray(distribution(path, U), np.float64)


def logit(t):
    return np.log(t / (1 - t))


def test_logit_normal_and_its_shift():
    """Shifting by 3 adds log 3 to the mean of the logit and leaves its deviation."""
    t = logit(draw(times.logit_normal(0.3, 1.2)))
    assert (t.mean(), t.std()) == pytest.approx((0.3, 1.2), abs=2e-3)
    t = logit(draw(times.shifted(times.logit_normal(0.3, 1.2), 3.0)))
    assert (t.mean(), t.std()) == pytest.approx((1.3986, 1.2), abs=2e-3)


def test_shifts_compose_and_keep_the_ends():
    twice = draw(times.shifted(times.shifted(times.uniform(), 1.7), 2.0))
    np.testing.assert_allclose(twice, draw(times.shifted(times.uniform(), 3.4)), atol=1e-6)
    ends = np.asarray(times.shifted(times.uniform(), 5.0)(PATH, jnp.array([0.0, 1.0])))
    np.testing.assert_allclose(ends, [0, 1])


def test_u_shape_has_its_variance_and_distribution_function():
    """a = 4: Var = 1/4 + 2/a^2 - coth(a/2)/a = 0.115671, P(t < 0.1) = 0.172503; symmetric."""
    t = draw(times.u_shaped(4.0))
    assert t.mean() == pytest.approx(0.5, abs=1e-4)
    assert t.var() == pytest.approx(0.115671, abs=1e-4)
    assert (t < 0.1).mean() == pytest.approx(0.172503, abs=1e-4)


@pytest.mark.parametrize("s", [-1.0, 0.0, 1.29, 1.75])
def test_mode_is_a_density_with_the_right_height_in_the_middle(s):
    """At t = 1/2 (u = 1/2) the density is 1/|dt/du| = 1/(1 - s (pi/2 - 1)); s = 0 is uniform.

    At s = 1.75 the slope all but vanishes, and |t - 1/2| = s pi^3/12 |u - 1/2|^3 near the middle.
    """
    t = draw(times.mode(s))
    assert (t.min(), t.max()) == pytest.approx((0, 1), abs=1e-3)
    assert np.all(np.diff(t) <= 1e-6)
    near = np.abs(t - 0.5) < 0.01
    if s < 1.7:
        assert near.mean() / 0.02 == pytest.approx(1 / (1 - s * (np.pi / 2 - 1)), rel=0.05)
    else:
        assert near.mean() == pytest.approx(2 * (12 * 0.01 / (s * np.pi**3)) ** (1 / 3), rel=0.02)
    if s == 0:
        np.testing.assert_allclose(np.sort(t), U, atol=1e-5)


@pytest.mark.parametrize("s", [-1.1, 1.8])
def test_mode_refuses_what_is_not_monotone(s):
    with pytest.raises(ValueError, match="between -1 and"):
        times.mode(s)


@pytest.mark.parametrize("path", [EDM(), VP(), CondOT()])
def test_log_normal_levels_on_every_path(path):
    t = times.log_normal(-0.5, 0.8)(path, U)
    level = np.log(np.asarray(path.rho(np.asarray(t, np.float64))))
    assert (level.mean(), level.std()) == pytest.approx((-0.5, 0.8), abs=3e-3)


def test_times_are_of_the_path():
    t = draw(times.uniform(0.25, 0.75), EDM())
    assert (t.min(), t.max()) == pytest.approx((20, 60), rel=1e-3)
