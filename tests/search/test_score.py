"""Scores of stacked tables: right, one number each, compiled once."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import jaxsampler as js
from jaxsampler.search.score import each, frechet, rmse
from jaxsampler.search.space import Space

VP = js.VP()
MEANS = np.array([[1.0, 0.5], [-0.8, -0.3]])
DENOISER = js.models.gaussian_mixture(MEANS, 0.3, VP)
X = jax.random.normal(jax.random.key(0), (12, 2))
TABLES = Space(VP, 3).tables(Space(VP, 3).sample(np.random.default_rng(0), 5))


def samples():
    return [
        np.asarray(js.run(DENOISER, jax.tree.map(lambda a, i=i: a[i], TABLES), X), np.float64)
        for i in range(5)
    ]


@pytest.mark.parametrize("together", [False, True])
def test_rmse(together):
    reference = np.asarray(jax.random.normal(jax.random.key(1), (12, 2)), np.float64)
    got = rmse(DENOISER, X, reference, chunk=3, together=together)(
        TABLES
    )  # 3 and 2: the last chunk is filled up
    want = [np.linalg.norm(out - reference) / np.sqrt(24) for out in samples()]
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("d", [3, 20])
def test_frechet(d):
    """More and fewer samples than features, against a general matrix square root of the published form C
    C_s.
    """
    rng = np.random.default_rng(0)
    mix, real = rng.standard_normal((2, d)), rng.standard_normal((500, d)) @ rng.standard_normal((d, d))
    mean, cov = real.mean(0), np.cov(real.T)
    got = frechet(DENOISER, X, lambda x: jnp.tanh(x @ jnp.asarray(mix, x.dtype)), mean, cov, chunk=2)(TABLES)
    for value, out in zip(got, samples(), strict=True):
        f = np.tanh(out @ mix)
        root = np.real(scipy.linalg.sqrtm(cov @ np.cov(f.T)))
        want = np.sum((f.mean(0) - mean) ** 2) + np.trace(cov) + np.trace(np.cov(f.T)) - 2 * np.trace(root)
        np.testing.assert_allclose(value, want, rtol=1e-4)


def test_a_function_of_one_table_is_traced_once():
    @chex.assert_max_traces(n=1)
    def last(table, shift):
        return table.B[-1].sum() + shift

    score = each(last, jnp.asarray(2.0), chunk=2)
    for b in (5, 4, 1):
        part = jax.tree.map(lambda a, b=b: a[:b], TABLES)
        np.testing.assert_allclose(score(part), part.B[:, -1].sum(1) + 2, rtol=1e-5)


def test_what_is_no_score_says_so():
    with pytest.raises(ValueError, match=r"must return one number, got shape \(3, 4\)"):
        each(lambda table: table.B)(TABLES)
    with pytest.raises(ValueError, match="takes stacked tables"):
        each(lambda table: table.t[0])(
            Space(VP, 3).table(Space(VP, 3).sample(np.random.default_rng(0), 1)[0])
        )
    with pytest.raises(ValueError, match="chunk is a number of tables"):
        each(lambda table: table.t[0], chunk=0)
    with pytest.raises(ValueError, match=r"x \(12, 2\) and reference \(12,\) must be alike"):
        rmse(DENOISER, X, X[:, 0])
    with pytest.raises(ValueError, match=r"mean must be \[d\] and cov \[d, d\]"):
        frechet(DENOISER, X, lambda x: x, np.zeros(2), np.zeros((2, 3)))
