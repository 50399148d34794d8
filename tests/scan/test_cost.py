"""What a program of a table costs beside its network: memory and arithmetic, as XLA counts them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsampler as js
from jaxsampler import solvers

PATH, SHAPE = js.VP(), (256, 256)
KINDS = {name: step.kind for name, step in solvers.catalogue().items()}


def table(name):
    return js.tabulate(PATH, js.grids.log_snr(PATH, 8), js.solvers.by_name(name))


def compiled(name, kind, **options):
    """The program that samples in place of x."""
    rows = table(name)
    denoiser = js.Denoiser(lambda x, t: x * (1 - t), PATH, kind)
    run = lambda x, key: js.run(denoiser, rows, x, key=key if rows.draws else None, **options)
    x = jax.ShapeDtypeStruct(SHAPE, jnp.float32)
    return jax.jit(run, donate_argnums=0).lower(x, jax.random.key(0)).compile()


@pytest.mark.parametrize(
    ("name", "states"),
    [("ddim", 0), ("dpmpp_2m", 2), ("unipc", 4), ("ddpm", 1), ("dpmpp_2m_sde", 3), ("dpmpp_3m_sde", 4)],
)
def test_temporaries(name, states):
    """A table holds its registers, in place, and a stochastic one one state more: noise is not kept."""
    memory = compiled(name, "data", adjoint=js.Direct()).memory_analysis()
    assert memory.temp_size_in_bytes <= (states + 0.1) * 4 * np.prod(SHAPE)


def test_no_arithmetic_beside_the_recurrence():
    """One operation of the network and A x + B_0 m_0 + B_1 m_1, five: a network of the kind that the solver
    wants is not converted, and x_T is not scaled by one. Small programs stay below the 1000 operations from
    which on JAX's CPU client hands them to another thread.
    """
    flops = {
        kind: compiled("dpmpp_2m", kind, adjoint=js.Direct()).cost_analysis()["flops"]
        for kind in ("data", "noise")
    }
    assert flops["data"] == pytest.approx(6 * np.prod(SHAPE), rel=1e-3)
    assert flops["noise"] == pytest.approx(9 * np.prod(SHAPE), rel=1e-3)


@pytest.mark.parametrize("name", ["dpmpp_2m", "edm"])
def test_a_known_conversion_is_left_out_and_changes_nothing(name):
    """The table closed over, where the conversion is known to be none, or an argument, where it is not."""
    rows = table(name)
    denoiser = js.Denoiser(lambda x, t: jnp.tanh(x) * t, PATH, KINDS[name])
    x = jax.random.normal(jax.random.key(0), (5, 3))
    known = jax.jit(lambda x: js.run(denoiser, rows, x))(x)
    unknown = jax.jit(lambda rows, x: js.run(denoiser, rows, x))(rows, x)
    np.testing.assert_allclose(known, unknown, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(known, js.run(denoiser, rows, x), rtol=2e-6, atol=1e-6)
