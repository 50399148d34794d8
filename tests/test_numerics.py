"""phi against exact rational series and quadrature; trees in the dtype of the state; noise that knows nothing
of the batch.
"""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from jaxsampler.numerics import axpy, cast, is_traced, namespace, normal, on_host, phi

pytestmark = pytest.mark.usefixtures("x64")
AROUND = [
    -40.0,
    -3.0,
    -0.75,
    -0.5 - 1e-12,
    -0.5,
    -0.5 + 1e-12,
    -0.1,
    -1e-9,
    0.0,
    1e-300,
    1e-5,
    0.3,
    0.5 - 1e-12,
    0.5,
    0.5 + 1e-12,
    0.9,
    4.0,
    25.0,
]


def exact_phi(k, z):
    """sum_j z^j/(j+k)! in rational arithmetic: no rounding until the end."""
    z, term, total, j = Fraction(z), Fraction(1, math.factorial(k)), Fraction(0), 0
    while j < 2 * abs(z) + 4 or abs(term) > Fraction(1, 10**30) * abs(total):
        total, j = total + term, j + 1
        term = term * z / (j + k)
    return float(total)


@pytest.mark.parametrize("k", range(5))
def test_phi_is_the_exponential_series(k):
    """To rounding on both sides of the switch between series and recursion."""
    want = [exact_phi(k, z) for z in AROUND]
    np.testing.assert_allclose([phi(k, z) for z in AROUND], want, rtol=1e-13)
    np.testing.assert_allclose(phi(k, np.array(AROUND)), want, rtol=1e-13)
    np.testing.assert_allclose(jax.jit(jax.vmap(lambda z: phi(k, z)))(jnp.array(AROUND)), want, rtol=1e-13)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(k=st.integers(1, 4), z=st.floats(-8, 8))
def test_phi_is_its_integral(k, z):
    """The definition, by adaptive quadrature."""
    want = quad(
        lambda u: math.exp((1 - u) * z) * u ** (k - 1) / math.factorial(k - 1), 0, 1, epsabs=0, epsrel=1e-13
    )[0]
    np.testing.assert_allclose(phi(k, z), want, rtol=1e-12)


@pytest.mark.parametrize("k", range(1, 5))
def test_phi_derivative(k):
    """phi_k' = sum_j j z^(j-1)/(j+k)!, finite and continuous through 0 and the switch, also where the other
    branch would overflow.
    """

    def slope(z):
        return float(sum(Fraction(j) * Fraction(z) ** (j - 1) / math.factorial(j + k) for j in range(1, 90)))

    points = [z for z in AROUND if abs(z) < 5]
    got = jax.vmap(jax.grad(lambda z: phi(k, z)))(jnp.array(points))
    np.testing.assert_allclose(got, [slope(z) for z in points], rtol=2e-12)


def test_phi_at_minus_infinity():
    """A step into sigma = 0 has h = inf: phi_k(-inf) = 0, value and gradient."""
    for k in range(5):
        assert phi(k, -np.inf) == 0.0
        assert float(phi(k, jnp.array(-jnp.inf))) == 0.0
        assert float(jax.grad(lambda z, k=k: phi(k, z))(-jnp.inf)) == 0.0


def test_phi_float32():
    """Single precision keeps five digits for the orders in use and stays float32."""
    for k, rtol in ((1, 2e-7), (2, 5e-7), (3, 3e-6)):
        got = phi(k, jnp.array(AROUND, jnp.float32))
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, [exact_phi(k, float(np.float32(z))) for z in AROUND], rtol=rtol)


def test_phi_float32_without_x64():
    """The factorials of the series do not fit an int32."""
    with jax.enable_x64(False):
        np.testing.assert_allclose(phi(3, jnp.float32(0.25)), exact_phi(3, 0.25), rtol=1e-6)


def test_namespace_follows_the_arguments():
    """Numbers and numpy arrays stay on the host; one jax array or tracer stages the formula."""
    assert namespace(1, 2.0, np.float64(3), np.ones(2)) is np
    assert namespace(1.0, jnp.ones(2)) is jnp
    assert jax.jit(lambda t: float(namespace(0.5, t) is jnp))(1.0) == 1.0


def test_is_traced_looks_into_trees():
    """Concrete jax arrays can be looked at; tracers anywhere in a tree cannot."""
    assert not is_traced(1.0, np.ones(2), {"a": jnp.ones(2)}, None)
    seen = []
    jax.jit(lambda t: seen.append(is_traced([1.0, {"a": t}])) or t)(1.0)
    assert seen == [True]


def test_on_host_evaluates_at_once_under_jit():
    """jax.numpy inside a jitted function gives concrete float64 numbers, even where float32 is the
    default.
    """
    seen = []

    def traced(x):
        with on_host():
            seen.append(np.asarray(jnp.exp(0.1)))
        return x

    with jax.enable_x64(False):
        jax.jit(traced)(jnp.float32(1))
    assert seen[0].dtype == np.float64
    assert seen[0] == pytest.approx(math.exp(0.1), rel=1e-15)


def test_axpy_keeps_the_dtype_of_x():
    """float64 coefficients on bfloat16 and float32 leaves, under strict promotion."""
    x = {"a": jnp.array([1.0, 2.0], jnp.float32), "b": jnp.array(3.0, jnp.bfloat16)}
    y = {"a": jnp.array([10.0, 20.0], jnp.bfloat16), "b": jnp.array(5.0, jnp.float64)}
    out = axpy(np.float64(2.0), x, jnp.float64(-0.5), y)
    assert (out["a"].dtype, out["b"].dtype) == (jnp.float32, jnp.bfloat16)
    np.testing.assert_array_equal(out["a"], [-3.0, -6.0])
    assert float(out["b"]) == 3.5
    assert cast(np.float64(0.1), x["b"]).dtype == jnp.bfloat16


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey])
def test_noise_of_a_sample_ignores_the_batch(make):
    """Sample i is bit-identical in batches of 1, 7 and 64, for typed and legacy keys."""
    batches = {n: normal(make(3), jax.ShapeDtypeStruct((n, 5, 2), jnp.float32)) for n in (1, 7, 64)}
    for n in (1, 7):
        np.testing.assert_array_equal(batches[n], batches[64][:n])


def test_noise_is_standard_normal_and_differs_between_leaves_and_keys():
    """Moments within 4 standard errors; leaves of one tree and draws of two keys are uncorrelated."""
    n = 200_000
    like = [jax.ShapeDtypeStruct((n,), jnp.float64)] * 2
    (a, b), (c, _) = normal(jax.random.key(0), like), normal(jax.random.key(1), like)
    for z in (a, b, c):
        assert abs(z.mean()) < 4 / n**0.5
        assert abs((z**2).mean() - 1) < 4 * (2 / n) ** 0.5
        assert abs((z**4).mean() - 3) < 4 * (96 / n) ** 0.5
    for u, v in ((a, b), (a, c)):
        assert abs((u * v).mean()) < 4 / n**0.5


def test_noise_follows_shape_and_dtype():
    """One call serves arrays and shapes, in any tree."""
    like = {"image": jax.ShapeDtypeStruct((2, 3), jnp.bfloat16), "flag": jnp.zeros((), jnp.float32)}
    z = normal(jax.random.key(0), like)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), z) == {
        "image": ((2, 3), jnp.bfloat16),
        "flag": ((), jnp.float32),
    }
