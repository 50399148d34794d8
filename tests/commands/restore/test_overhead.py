"""What the sampler costs beside its network calls; run on purpose: pytest -m bench
tests/commands/restore/test_overhead.py -s -n 0.
"""

import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsampler import data, pretrained, solvers
from jaxsampler.commands.bench.timing import fastest
from jaxsampler.commands.restore import Restorer, Tiled, comparison, photo, restore, table


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


@pytest.mark.bench
def test_a_photo_of_1024_by_768():
    """A whole call of the network for each row, and no more memory than windows in one program once took."""
    net, image = pretrained.load("restore"), np.random.default_rng(0).random((768, 1024, 3), np.float32)
    restorer, mu, task = Restorer(net, steps=4), jnp.asarray(image[None]), jnp.array([2])
    assert restorer.net.windows(768, 1024) == []
    seen = (restorer.net, mu, np.float32(50), mu, task, None)
    about = photo._look.lower(seen, None).compile().compiled.memory_analysis()
    megabytes = (about.temp_size_in_bytes + (restorer.table.regs + 5) * mu.nbytes) / 1e6
    call = eqx.filter_jit(lambda net, x, mu: net(x, jnp.asarray(50.0), mu, task))
    runs = {
        "calls": lambda: [call(net, mu, mu).block_until_ready() for _ in range(restorer.table.nfe)],
        "restored": lambda: restorer(image, "dejpeg"),
    }
    seconds = []
    for _ in range(3):
        seconds.append([])
        for run in runs.values():
            began = time.process_time()
            run()
            seconds[-1].append(time.process_time() - began)
    ratio = np.median([b / a for a, b in seconds[1:]])
    tiled = Restorer(Tiled(net, 768), steps=4)(image, "dejpeg")
    apart = 255 * np.abs(tiled - restorer(image, "dejpeg"))
    print(
        f"\n1024 x 768: CPU time/(NFE x network) = {ratio:.3f}, {megabytes:.0f} MB; through two windows "
        f"{apart.mean():.4f} grey levels apart, at most {apart.max():.2f}"
    )
    assert megabytes < 188.8
    assert apart.max() < 1
