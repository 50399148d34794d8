"""Minibatch optimal transport: cheaper pairs, the same noise, labels in place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsampler.paths.gaussian import CondOT
from jaxsampler.training import losses, times
from jaxsampler.training.couplings import independent, minibatch_ot

pytest.importorskip("ott")


@pytest.mark.parametrize(("d", "limit"), [(1, 1.6), (8, 2.2)])
def test_pairs_are_near_and_the_noise_is_all_used(d, limit):
    """Data 2 N(0, I), noise N(0, I): 5 per dimension if independent, at best 1. Each image draws its noise,
    each noise once on average.
    """
    k1, k2, k3 = jax.random.split(jax.random.key(0), 3)
    x0, eps = 2 * jax.random.normal(k1, (256, d)), jax.random.normal(k2, (256, d))
    paired = minibatch_ot()(k3, x0, eps)
    cost = lambda e: float(jnp.square(x0 - e).mean())
    assert cost(independent(k3, x0, eps)) > 4
    assert cost(paired) < limit
    rows = {row.tobytes(): i for i, row in enumerate(np.asarray(eps))}
    used = np.bincount(
        [rows[row.tobytes()] for row in np.asarray(paired)], minlength=256
    )  # a KeyError if noise were changed
    assert used.max() <= 8
    assert (used > 0).mean() > 0.5
    if d == 1:  # the optimal assignment is monotone
        order = np.argsort(np.asarray(x0)[:, 0])
        assert np.corrcoef(np.asarray(paired)[order, 0], np.sort(np.asarray(eps)[:, 0]))[0, 1] > 0.98


def test_flow_matching_trains_on_the_pairs():
    """On the true pairs eps = x0/2 in one dimension the flow is v = -x0 + x0/2, known from x_t alone: no loss
    is left.
    """
    x0 = 2 * jax.random.normal(jax.random.key(0), (512, 1))
    straight = lambda x, t: -0.5 * x / (1 - t / 2)[:, None]
    pairs = lambda key, x0, eps: x0 / 2
    when = times.uniform(0.0, 0.9)
    left = {
        name: float(losses.flow_matching(straight, CondOT(), jax.random.key(1), x0, times=when, coupling=c))
        for name, c in {"pairs": pairs, "ot": minibatch_ot(), "independent": independent}.items()
    }
    assert left["pairs"] < 1e-10
    assert left["ot"] < 0.1 * left["independent"]
