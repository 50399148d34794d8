"""The three uses of gradients through sampling on the shipped Fashion-MNIST networks: every route reaches the
goals.

One program per route serves all three: `on` says which part of the parameters moves, and which loss counts.
    Tiny budgets: four pictures,
eight steps, as many iterations as `RATES` say.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from descent import descend
from jax.flatten_util import ravel_pytree

import jaxsampler as js
from jaxsampler.data import fashion
from jaxsampler.nn.unet import fold

pytestmark = (
    pytest.mark.bench
)  # it compiles a dozen gradients of a U-Net in a sampler; CI sees AdjointDPM's in notebooks/04_optimise
S = js.solvers
ROUTES = {  # edict, bdia and reversible_heun take more than 32 steps to draw pictures with this network
    "direct": (S.dpmpp_2m, js.Direct()),
    "remat": (S.dpmpp_2m, js.Direct(remat=True)),
    "checkpoint": (S.dpmpp_2m, js.RecursiveCheckpoint()),
    "adjoint_dpm": (S.dpmpp_2m, js.AdjointDPM()),
    "obelm": (S.obelm(), js.Reversible()),
}
ANY, BAG, TOPS, TEN = jnp.full(4, 10), fashion.label("bag"), jnp.array([0, 2, 4, 6]), jnp.arange(20) % 10
RATES = {"audit": 0.02, "word": 0.2, "style": 0.002}
LABELS = {"audit": TOPS, "word": ANY, "style": TOPS}
ITERATIONS = 8


def noise(seed, n=4):
    return jax.random.normal(jax.random.key(seed), (n, 32, 32, 1))


def lined():
    """A bag with every second line dark."""
    photos = fashion.some()
    bag = photos.images[photos.labels == BAG][:1]
    return (bag + 1) * jnp.where(jnp.arange(32) % 2, 0.25, 1.0)[None, :, None, None] - 1


def gram(x):
    """Of the 2 x 2 pixels, whatever the brightness."""
    return (
        jnp.einsum("nhwc,nhwd->ncd", fold(x + 1), fold(x + 1)) / ((x + 1) ** 2).sum((1, 2, 3))[:, None, None]
    )


def far(x):
    return ((gram(x) - gram(lined())) ** 2).mean()


class Uses:
    """The networks, and what a route does with them."""

    def __init__(self):
        self.shipped, self.judge = js.pretrained.load("fashion_edm"), js.pretrained.load("fashion_classifier")
        net = self.shipped.net
        self.start = {"audit": 0 * noise(0), "word": net.unet.labels[10], "style": net.unet.unet.head}
        self.plain = jax.jit(lambda p, z, label: self.sample(p, z, label, ROUTES["direct"]))

    def name(self, x):
        return self.judge(x).argmax(1)

    def sample(self, p, z, label, route, steps=8):
        net, path = self.shipped.net, self.shipped.path
        net = eqx.tree_at(
            lambda n: (n.unet.labels, n.unet.unet.head),
            net,
            (net.unet.labels.at[10].set(p["word"]), p["style"]),
        )
        denoiser = js.Denoiser(net, path, "data").bind(label=label)
        grid = js.grids.karras(path, steps, t_min=0.05)
        return js.sample(denoiser, z, x=80 * z, key=None, solver=route[0], grid=grid, adjoint=route[1])

    def loss(self, p, on, label, before, route, steps=8):
        p = {
            k: jax.tree.map(lambda a, k=k: on[k] * a + jax.lax.stop_gradient((1 - on[k]) * a), v)
            for k, v in p.items()
        }
        x = self.sample(p, noise(0) + p["audit"], label, route, steps)
        logits, own = self.judge(x), jax.nn.one_hot(self.name(before), 10)
        lead = (logits * own).sum(1) - jnp.where(own == 1, -jnp.inf, logits).max(1)
        return (
            on["audit"] * (jax.nn.relu(1 + lead).mean() + 30 * (p["audit"] ** 2).mean())
            - on["word"] * jax.nn.log_softmax(logits)[:, BAG].mean()
            + on["style"] * (100 * far(x) + 3 * ((fold(x) - fold(before)).mean(-1) ** 2).mean())
        )

    def on(self, use):
        return {k: jnp.float32(k == use) for k in self.start}

    def found(self, route):
        """What each use ends with."""

        @jax.jit
        def learn(on, rate, label, before):
            return descend(
                lambda p: self.loss(p, on, label, before, route),
                self.start,
                optax.adam(rate, b1=0.5),
                ITERATIONS,
            )[0]

        return {
            use: learn(
                self.on(use), jnp.float32(rate), LABELS[use], self.plain(self.start, noise(0), LABELS[use])
            )
            for use, rate in RATES.items()
        }


@pytest.fixture(scope="module")
def uses():
    return Uses()


@pytest.mark.parametrize("route", ROUTES)
def test_goals(uses, route):
    """Three of four tops attacked by less than a tenth of their noise; bags from fresh noise; the style on
    ten classes, which stay.
    """
    found, plain = uses.found(ROUTES[route]), uses.plain
    draw = lambda p, z, label: uses.sample(
        p, z, label, ROUTES[route]
    )  # the route's own sampler: an attack is on it
    before = jax.jit(draw)(uses.start, noise(0), TOPS)
    change = found["audit"]["audit"]
    size = float(jnp.sqrt((change**2).mean()))
    after, chance = (jax.jit(draw)(uses.start, noise(0) + c, TOPS) for c in (change, size * noise(3)))
    assert (uses.name(after) != uses.name(before)).mean() > 0.7
    assert (uses.name(chance) == uses.name(before)).mean() > 0.7, "a random change of this size is no attack"
    assert size < 0.1

    fresh = noise(1, 20)
    bags = [
        float((uses.name(plain(p, fresh, jnp.full(20, 10))) == BAG).mean())
        for p in (uses.start, found["word"])
    ]
    assert bags[0] < 0.3
    assert bags[1] > 0.8

    old, new = (plain(p, fresh, TEN) for p in (uses.start, found["style"]))
    assert far(new) < far(old) / 3
    assert (uses.name(new) == uses.name(old)).mean() > 0.6


def test_memory_does_not_grow(uses):
    """8 and 32 steps: temporaries of the gradient of all three uses."""

    def temporaries(route, steps):
        gradient = jax.jit(
            jax.grad(lambda p: uses.loss(p, dict.fromkeys(p, 1.0), TOPS, noise(2), ROUTES[route], steps))
        )
        return gradient.lower(uses.start).compile().memory_analysis().temp_size_in_bytes

    for route in ("adjoint_dpm", "obelm"):
        few, many = (temporaries(route, n) for n in (8, 32))
        assert many < 1.05 * few
    assert temporaries("direct", 8) > 3 * many


def test_the_continuous_gradient_needs_steps(uses):
    """Cosine of AdjointDPM's gradient of the style in the weights with the exact one: useless at 4 steps,
    right at 12.
    """
    before = uses.plain(uses.start, noise(0), TOPS)

    def gradient(route, steps):
        return ravel_pytree(
            jax.jit(jax.grad(lambda p: uses.loss(p, uses.on("style"), TOPS, before, ROUTES[route], steps)))(
                uses.start
            )
        )[0]

    cosines = []
    for steps in (4, 8, 12):
        a, b = (gradient(route, steps) for route in ("direct", "adjoint_dpm"))
        cosines.append(float(a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b)))
    print("cosines at 4, 8, 12 steps:", cosines)
    assert cosines[0] < 0.5
    assert cosines[1] > 0.9
    assert cosines[2] > 0.98
