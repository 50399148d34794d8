"""What the sampler costs beside its network calls; run on purpose: pytest -m bench
tests/restore/test_overhead.py -s -n 0.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from jaxsampler import data, pretrained, solvers
from jaxsampler.commands.bench.timing import fastest
from jaxsampler.commands.restore import comparison, restore, table


@pytest.mark.bench
@pytest.mark.parametrize("size", [64, 128])
def test_overhead_of_ten_calls_on_the_restoration_network(size):
    net = pretrained.load("restore")
    mu, task, t = jnp.asarray(comparison.shown(size).degraded), jnp.arange(len(data.TASKS)), jnp.asarray(50.0)
    rows = table(net, solvers.mr_sde(), 10)
    call = eqx.filter_jit(lambda net, x, t, mu, task: net(x, t, mu, task))
    one, ten = fastest(
        [
            lambda: [call(net, mu, t, mu, task).block_until_ready() for _ in range(10)],
            lambda: restore(net, rows, mu, task, jax.random.key(0)),
        ],
        rounds=7,
    )
    one /= 10
    print(f"\n{size} pixels: time/(NFE x network) = {ten / (10 * one):.3f}, one call {1e3 * one:.0f} ms")
    assert ten / (10 * one) < 1.15
