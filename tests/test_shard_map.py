"""Everything that samples runs inside `jax.shard_map`, to the numbers that it has outside.

One device makes the types of a mapped program (what differs between devices, what does not) as many do.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxsampler as js

S = js.solvers
MESH = jax.make_mesh((1,), ("i",), axis_types=(AxisType.Auto,))
DENOISER = js.models.gaussian_mixture(jnp.array([[1.0, 0.0], [-1.0, 1.0]]), 0.3, js.VP())
X, KEY = jax.random.normal(jax.random.key(0), (4, 2)), jax.random.key(1)


def sample(x, **options):
    return js.sample(DENOISER, x=x, **({"steps": 4} | options))


def slope(**options):
    return jax.grad(lambda x: sample(x, **options).sum())


CALLS = {
    "table": sample,
    "check": lambda x: sample(x, check=True),
    "saved": lambda x: sample(x, save=[2]).xs[0],
    "previews": lambda x: sample(x, save="data").xs[1],
    "noise": lambda x: sample(x, key=KEY, solver=S.dpmpp_2m_sde),
    "edict": lambda x: sample(x, solver=S.edict()),
    "stopped": lambda x: js.resume(sample(x, stop=2)),
    "chunks": lambda x: sample(x, batch_size=2),
    "density": lambda x: js.likelihood.log_prob(DENOISER, x, batch_axis=0, steps=4),
    "gradient": slope(),
    "reversible": slope(solver=S.bdia(), adjoint=js.Reversible()),
    "adjoint DPM": slope(adjoint=js.AdjointDPM()),
    "last": slope(adjoint=js.LastK(2)),
}
LOOPS_OF_OTHERS = {
    "adaptive": lambda x: sample(x, steps=2, solver=S.dpm_adaptive()).x,
    "diffrax": lambda x: js.bridge.solve(DENOISER, x).x,
}


def mapped(call, **options):
    return jax.jit(jax.shard_map(call, mesh=MESH, in_specs=P("i"), out_specs=P("i"), **options))(X)


@pytest.mark.parametrize("name", CALLS)
def test_inside_a_shard_map(name):
    np.testing.assert_allclose(mapped(CALLS[name]), CALLS[name](X), atol=2e-4)


@pytest.mark.parametrize("name", LOOPS_OF_OTHERS)
def test_loops_of_others_need_check_vma_false(name):
    """Equinox's and diffrax's adaptive loops do not say what differs between devices."""
    call = LOOPS_OF_OTHERS[name]
    with pytest.raises(TypeError, match="manual axis types do not match|varying manual axes do not match"):
        mapped(call)
    np.testing.assert_allclose(mapped(call, check_vma=False), call(X), atol=2e-4)


def test_a_fault_is_told_inside_a_shard_map():
    wrong = js.Denoiser(lambda x, t: jnp.where(t < 0.5, jnp.nan, x), js.VP(), "data")
    with pytest.raises(RuntimeError, match="row 2 of 4.*the network returned a non-finite value"):
        mapped(lambda x: js.sample(wrong, x=x, steps=4, grid=None, check=True)).block_until_ready()


def test_gradients_of_shared_weights_are_summed():
    def loss(w, x):
        scaled = js.Denoiser(lambda x, t: w * DENOISER(x, t), js.VP(), "data")
        return js.sample(scaled, x=x, steps=4, adjoint=js.AdjointDPM()).sum()

    slopes = lambda x: jax.grad(loss)(jnp.float32(0.9), x)[None]
    got = jax.jit(jax.shard_map(slopes, mesh=MESH, in_specs=P("i"), out_specs=P()))(X)
    np.testing.assert_allclose(got, slopes(X), rtol=1e-4)
