"""The three uses of gradients through sampling [Pan et al. 2024], each to a stated goal, on every route and in memory that does not grow.

The data are three Gaussians at 120 degrees, their denoiser is exact, and a linear classifier tells them apart by their direction. Audit:
which small change of x_T makes the classifier say another class? Conditioning: which vector (here the logits of the mixture's weights) asks
for what a metric rewards, on noise not trained on? Style: which weights (the means) give all samples the norm of one reference, and keep
their classes?
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from descent import descend

import jaxsampler as js

PATH = js.VP()
ANGLES = np.asarray([0.0, 2.0, 4.0]) * np.pi / 3
DIRECTIONS = np.stack([np.cos(ANGLES), np.sin(ANGLES)], 1)
REFERENCE = np.asarray([[0.3, -2.4]])
ROUTES = {
    "direct": (js.solvers.dpmpp_2m, js.Direct()),
    "remat": (js.solvers.dpmpp_2m, js.Direct(remat=True)),
    "checkpoint": (js.solvers.dpmpp_2m, js.RecursiveCheckpoint()),
    "adjoint_dpm": (js.solvers.dpmpp_2m, js.AdjointDPM()),
    "reversible_edict": (js.solvers.edict(), js.Reversible()),
    "reversible_bdia": (js.solvers.bdia(), js.Reversible()),
    "reversible_obelm": (js.solvers.obelm(), js.Reversible()),
    "reversible_heun": (js.solvers.reversible_heun(), js.Reversible()),
    "reversible_mccallum_foster": (js.solvers.mccallum_foster(), js.Reversible()),
}


def logits(x):
    return 3 * x @ DIRECTIONS.T


def gram(x):
    """The Gram matrix of one feature, one per sample."""
    return jnp.einsum("nd,nd->n", x, x)


def noise(seed, n=32):
    return jax.random.normal(jax.random.key(seed), (n, 2))


def draw(x, route, means=1.2 * DIRECTIONS, asked=(0.0, 0.0, 0.0), steps=16):
    solver, adjoint = ROUTES[route]
    denoiser = js.models.gaussian_mixture(means, 0.3, PATH, jax.nn.softmax(jnp.asarray(asked)))
    grid = js.grids.log_snr(PATH, steps, t_max=0.9, t_min=0.02)
    return js.sample(denoiser, x, x=x, key=None, solver=solver, grid=grid, adjoint=adjoint)


def margin(x, own):
    """By how much the class `own` leads the best of the others."""
    z, mine = logits(x), jax.nn.one_hot(own, 3, dtype=x.dtype)
    return (z * mine).sum(1) - jnp.where(mine == 1, -jnp.inf, z).max(1)


def audit(change, own, route, steps=16):
    return (
        jnp.maximum(margin(draw(noise(0) + change, route, steps=steps), own) + 0.1, 0.0).mean()
        + 0.3 * (change**2).mean()
    )


def wish(asked, route, steps=16):
    return -jax.nn.log_softmax(logits(draw(noise(0), route, asked=asked, steps=steps)))[:, 1].mean()


def style(means, route, steps=16):
    return ((gram(draw(noise(0), route, means, steps=steps)) / gram(REFERENCE) - 1) ** 2).mean()


@cache
def found(route):
    """What each use ends with, on a route."""

    @jax.jit
    def all_three():
        own = logits(draw(noise(0), route)).argmax(1)
        return (
            descend(lambda change: audit(change, own, route), jnp.zeros((32, 2)), optax.adam(0.1), 30)[0],
            descend(lambda asked: wish(asked, route), jnp.zeros(3), optax.adam(0.5), 15)[0],
            descend(lambda means: style(means, route), jnp.asarray(1.2 * DIRECTIONS), optax.adam(0.1), 25)[0],
        )

    return all_three()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("route", ROUTES)
def test_security_audit(route):
    """Nine samples in ten change class, by changes of x_T near the least possible.

    By symmetry the flow keeps the three wedges of x_T apart, so the least change is the distance to the wedge's border.
    """
    x_T, change = noise(0), found(route)[0]
    before, after, chance = (
        logits(draw(x_T + c, route)).argmax(1)
        for c in (0.0, change, jax.random.permutation(jax.random.key(1), change))
    )
    length = jnp.linalg.norm(x_T, axis=1)
    ahead = jnp.arccos((x_T * jnp.asarray(DIRECTIONS)[before]).sum(1) / length)
    least = length * jnp.sin(jnp.pi / 3 - ahead)
    size = jnp.linalg.norm(change, axis=1)
    assert (before != after).mean() > 0.9
    assert (before != chance).mean() < 0.5, "the same changes, given to other samples, are no attack"
    assert bool(jnp.all((size > 0.99 * least) | (before == after)))
    assert (size**2).mean() < 2**2 * (least**2).mean()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("route", ROUTES)
def test_conditioning(route):
    """A vector learned from the classifier alone asks for its second class, on fresh noise too."""
    asked, fresh = found(route)[1], noise(2, 64)
    before, after = (
        (logits(draw(fresh, route, asked=a)).argmax(1) == 1).mean() for a in (jnp.zeros(3), asked)
    )
    assert before < 0.5
    assert after > 0.95


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("route", ROUTES)
def test_style(route):
    """On fresh noise the distance to the reference's Gram matrix falls by five, and nine samples in ten keep their class.

    By half at least for edict and mccallum_foster, whose own errors in 16 steps scatter the norms.
    """
    fresh = noise(2, 64)
    before, after = draw(fresh, route), draw(fresh, route, found(route)[2])
    distance = lambda x: ((gram(x) / gram(REFERENCE) - 1) ** 2).mean()
    assert distance(after) < distance(before) / (
        2 if route in ("reversible_edict", "reversible_mccallum_foster") else 5
    )
    assert (logits(before).argmax(1) == logits(after).argmax(1)).mean() > 0.9


@pytest.mark.usefixtures("x64")
def test_exact_routes_agree():
    """Routes with the gradient of one discrete sampler end alike to rounding; AdjointDPM's gradient is another, and ends nearby."""
    far = lambda route: max(
        float(jnp.abs(a - b).max()) for a, b in zip(found(route), found("direct"), strict=True)
    )
    assert far("remat") < 1e-10
    assert far("checkpoint") < 1e-10
    assert 1e-4 < far("adjoint_dpm") < 1


def temporaries(route, steps):
    """Compiled bytes of the gradients of all three uses."""
    own = jnp.zeros(32, int)
    total = lambda change, asked, means: (
        audit(change, own, route, steps) + wish(asked, route, steps) + style(means, route, steps)
    )
    gradient = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
    return (
        gradient.lower(jnp.zeros((32, 2)), jnp.zeros(3), jnp.asarray(1.2 * DIRECTIONS))
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
    )


@pytest.mark.usefixtures("x64")
def test_memory():
    """Four times the steps take no byte more by AdjointDPM and Reversible; a tape of 16 steps takes ten times as many."""
    tape = temporaries("direct", 16)
    for route in ("adjoint_dpm", "reversible_obelm"):
        few, many = (temporaries(route, n) for n in (16, 64))
        assert many < 1.05 * few
        assert tape > 10 * few
