"""Calls outside jit: the second one compiles nothing, nothing stale is used, and nothing is kept for ever."""

import functools
import gc
import weakref

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsampler as js
from jaxsampler import eager
from jaxsampler.paths import exact

S, PATH = js.solvers, js.VP()
KEY = jax.random.key(0)
LIKE = jnp.zeros((8, 2))
X = jax.random.normal(KEY, LIKE.shape)
DENOISER = exact.gaussian_mixture(jnp.array([[1.0, 0.0], [-1.0, 0.0]]), 0.3, PATH)
STEPWISE = js.Denoiser(lambda x, t, w: w * DENOISER(x, t), PATH, "data")


class Compilations:
    """Counts what XLA compiles."""

    def __init__(self):
        self.n = 0
        jax.monitoring.register_event_duration_secs_listener(self._hear)

    def _hear(self, event, seconds, **about):
        self.n += event == "/jax/core/compile/backend_compile_duration"


COMPILATIONS = Compilations()


def hook(end):
    return jnp.clip(end.x, -3, 3)


def sample(**options):
    return js.sample(DENOISER, LIKE, **({"key": KEY, "steps": 6} | options))


def slope(**options):
    run = lambda x: jnp.sum(js.sample(DENOISER, LIKE, x=x, steps=6, **({"key": None} | options)))
    return jax.grad(run)(X)


def table():
    return js.tabulate(PATH, js.grids.log_snr(PATH, 6), S.dpmpp_2m)


def same(x, t):
    return x


def half(x, t):
    return 0.5 * x


def system():
    both = js.Denoiser(same, {"a": js.VP(), "b": js.CondOT()}, "velocity")
    return js.sample(both, {"a": LIKE, "b": LIKE}, key=KEY, steps=4)


CALLS = {
    "sample": sample,
    "a start": lambda: sample(key=None, x=X),
    "run": lambda: js.run(DENOISER, table(), X),
    "run of a callable": lambda: js.run(hook_free, table(), X),
    "noise": lambda: sample(solver=S.dpmpp_2m_sde),
    "options": lambda: sample(solver=S.ddim(eta=0.3)),
    "brownian": lambda: sample(solver=S.dpmpp_2m_sde, noise="brownian"),
    "save": lambda: sample(save="all"),
    "saved points": lambda: sample(save=[0, -1]),
    "check": lambda: sample(check=True),
    "progress": lambda: sample(progress=True),
    "hook": lambda: sample(hook=hook),
    "per_step": lambda: js.sample(STEPWISE, LIKE, key=KEY, steps=6, per_step=jnp.ones(6)),
    "mean reverting": lambda: js.sample(
        js.Denoiser(DENOISER.net, js.MeanReverting(0 * LIKE), "noise"), LIKE, key=KEY, steps=6
    ),
    "system": system,
    "edict": lambda: sample(solver=S.edict()),
    "adaptive": lambda: sample(solver=S.dpm_adaptive()),
    "langevin": lambda: sample(solver=S.score_sde()),
    "log_prob": lambda: js.likelihood.log_prob(DENOISER, X[0], steps=4),
    "invert": lambda: js.inversion.invert(DENOISER, X, steps=6),
    "gradient": slope,
    "gradient, direct": lambda: slope(adjoint=js.Direct()),
    "gradient, last": lambda: slope(adjoint=js.LastK(2)),
    "gradient, renoised": lambda: slope(adjoint=js.LastK(1, variance_reduction=2), key=KEY),
    "gradient, adjoint": lambda: slope(adjoint=js.AdjointDPM()),
    "gradient, reversible": lambda: slope(solver=S.obelm(), adjoint=js.Reversible()),
    "gradient of log_prob": lambda: jax.grad(lambda x: js.likelihood.log_prob(DENOISER, x, steps=4))(X[0]),
    "gradient of invert": lambda: jax.grad(lambda x: jnp.sum(js.inversion.invert(DENOISER, x, steps=4).x))(X),
    "tangent": lambda: jax.jvp(lambda x: sample(key=None, x=x), (X,), (X,)),
    "vmap": lambda: jax.vmap(lambda x: js.sample(DENOISER, X[0], x=x, key=None, steps=6))(X),
}


def hook_free(x, t, *form):
    return 0.9 * x


@pytest.mark.parametrize("name", CALLS)
def test_the_second_call_compiles_nothing(name):
    """And gives the same arrays."""
    call = CALLS[name]
    first, before = call(), COMPILATIONS.n
    second = call()
    assert COMPILATIONS.n == before
    chex.assert_trees_all_equal(first, second)


def test_another_solver_of_the_same_shape_compiles_nothing():
    sample(key=None, x=X, solver=S.ddim), sample(key=None, x=X, solver=S.dpmpp_2m)
    before = COMPILATIONS.n
    for solver in (S.dpmpp_2m(form="taylor"), S.dpm_2m, S.euler):
        sample(key=None, x=X, solver=solver)
    assert COMPILATIONS.n == before


def test_eager_and_jitted_are_one():
    """Under jit nothing is cached: the call is a part of that program."""
    before = len(eager._programs)
    jitted = jax.jit(lambda x: js.sample(DENOISER, LIKE, x=x, key=None, steps=6))(X)
    assert len(eager._programs) == before
    np.testing.assert_allclose(jitted, sample(key=None, x=X), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(sample(key=None, x=X), sample(key=None, x=X, jit=False))


@pytest.mark.parametrize(
    "call",
    [
        lambda **o: js.likelihood.log_prob(DENOISER, X[0], steps=4, **o),
        lambda **o: js.inversion.invert(DENOISER, X, steps=4, **o).x,
        lambda **o: js.run(DENOISER, table(), X, **o),
    ],
    ids=["log_prob", "invert", "run"],
)
def test_uncached_calls_give_the_same(call):
    before = len(eager._programs)
    uncached = call(jit=False)
    assert len(eager._programs) == before
    np.testing.assert_allclose(uncached, call(), rtol=1e-5, atol=1e-6)


def test_a_changed_python_value_is_seen_without_the_cache():
    """As under jax.jit, the program keeps what it saw; jit=False does not."""
    scale = [1.0]
    denoiser = js.Denoiser(lambda x, t: scale[0] * x, js.CondOT(), "data")
    draw = lambda **o: float(js.sample(denoiser, 1.0, x=1.0, key=None, grid=[1.0, 0.5, 0.0], **o))
    first = draw()
    scale[0] = 0.0
    assert draw() == first
    assert draw(jit=False) == 0.0


class Scaled(eqx.Module):
    weight: jax.Array
    power: float = eqx.field(static=True, default=1.0)

    def __call__(self, x, t):
        return self.weight * x * t**self.power


def test_weights_are_arguments():
    """New weights, and an equal module, use the program; another static field does not."""
    draw = lambda net: js.sample(js.Denoiser(net, js.CondOT(), "data"), X, x=X, key=None, steps=3)
    one = draw(Scaled(jnp.asarray(1.0)))
    before = COMPILATIONS.n
    two = draw(Scaled(jnp.asarray(2.0)))
    assert COMPILATIONS.n == before
    assert not np.allclose(one, two)
    other = draw(Scaled(jnp.asarray(1.0), power=2.0))
    assert COMPILATIONS.n > before
    assert not np.allclose(one, other)


class Holder:
    """A network that is no module, as stateful libraries have them."""

    def __init__(self, weight):
        self.weight = weight

    def apply(self, x, t):
        return self.weight * x


def test_methods_are_known_again():
    """Each access makes a new bound method; it is the same network, but only of the same object."""
    one, two = Holder(1.0), Holder(0.0)
    draw = lambda net: js.sample(js.Denoiser(net, js.CondOT(), "data"), X, x=X, key=None, steps=3)
    first, before = draw(one.apply), COMPILATIONS.n
    chex.assert_trees_all_equal(draw(one.apply), first)
    assert COMPILATIONS.n == before
    assert not np.allclose(draw(two.apply), first)


@pytest.mark.parametrize("kind", ["function", "partial", "method", "object"])
def test_a_program_dies_with_its_network(kind):
    """Networks made for one call fill no memory."""

    class Network:
        def __call__(self, x, t):
            return 0.5 * x

        def apply(self, x, t):
            return 0.5 * x

    def fresh():
        big = jnp.ones(1000)
        owner = Network()
        net = {
            "function": lambda x, t: x * big[0],
            "partial": functools.partial(lambda x, t, c: x * c[0], c=big),
            "method": owner.apply,
            "object": owner,
        }[kind]
        js.sample(js.Denoiser(net, js.CondOT(), "data"), X, key=KEY, steps=3)
        return weakref.ref(owner if kind == "method" else net)

    fresh()  # the start's program, which knows no network, stays
    gc.collect()
    before = len(eager._programs)
    dead = [fresh() for _ in range(3)]
    gc.collect()
    assert [ref() for ref in dead] == [None] * 3
    assert len(eager._programs) == before


def test_a_network_over_traced_values_leaves_nothing_behind():
    """A lambda over a tracer of `grad` is another network each time."""

    def loss(w):
        net = lambda x, t: w * x
        return js.sample(js.Denoiser(net, js.CondOT(), "data"), X, x=X, key=None, steps=3).sum()

    slopes = [float(jax.grad(loss)(w)) for w in (0.5, 1.0, 0.5)]
    eps = 1e-2
    for w, slope in zip((0.5, 1.0), slopes, strict=False):
        np.testing.assert_allclose(slope, (loss(w + eps) - loss(w - eps)) / (2 * eps), rtol=1e-2)
    assert slopes[0] == slopes[2]


def test_what_has_no_hash_runs_uncompiled():
    """A static field that holds a list cannot be compared safely: as before, no program is kept."""

    class Listed(eqx.Module):
        factors: list = eqx.field(static=True)

        def __call__(self, x, t):
            return self.factors[0] * x

    before = len(eager._programs)
    x = js.sample(js.Denoiser(Listed([0.5]), js.CondOT(), "data"), X, x=X, key=None, steps=3)
    assert np.isfinite(x).all()
    assert len(eager._programs) <= before + 1  # the start, which does not look at the network, may be kept


def test_the_number_of_programs_is_bounded():
    latest = eager.Latest(3)
    for n in range(10):
        assert latest.made(n, lambda n=n: -n) == -n
    assert list(latest) == [7, 8, 9]
    assert latest.made([1], lambda: 5) == 5
    assert len(latest) == 3


def test_a_table_from_the_cache_is_the_callers_own():
    one = table()
    one.B[:] = 0
    two = table()
    assert np.any(two.B)
    np.testing.assert_array_equal(
        js.run(DENOISER, two, X), sample(key=None, x=X, steps=None, grid=js.grids.log_snr(PATH, 6))
    )


def test_paths_that_differ_have_tables_of_their_own():
    grid = [0.9, 0.5, 0.1]
    paths = js.VP(), js.VP(0.1, 19.0), js.CondOT(), js.CosineVP()
    tables = [js.tabulate(path, grid, S.dpmpp_2m) for path in paths]
    for i, a in enumerate(tables):
        for b in tables[:i]:
            assert not np.allclose(a.A, b.A)

    class Mine(js.Path):
        k: float  # not declared static

        def alpha(self, t):
            return 1 - t**self.k

        def sigma(self, t):
            return t

    one, two = (js.tabulate(Mine(k), grid, S.ddim).B for k in (1.0, 2.0))
    assert not np.allclose(one, two)


def test_what_a_users_formulas_read_may_change():
    """Their tables are made anew: a notebook's constant is seen by the next call."""
    weight = [1.0]

    @js.step(kind="velocity", order=1)
    def mine(path, ts, x, past, model, z):
        return x + weight[0] * (ts[-1] - ts[-2]) * model(x, ts[-2])

    class Own(js.Path):
        def alpha(self, t):
            return 1 - weight[0] * t

        def sigma(self, t):
            return t

    grid = [0.4, 0.2, 0.1]
    draw = lambda path, step: js.sample(
        js.Denoiser(half, path, "noise"), X, x=X, key=None, grid=grid, solver=step
    )
    cases = [(js.CondOT(), mine), (js.CondOT(), [mine, S.euler]), (Own(), S.ddim)]
    before = [draw(*case) for case in cases]
    weight[0] = 0.5
    for case, old in zip(cases, before, strict=True):
        assert not np.allclose(draw(*case), old)


def test_paths_have_a_law_without_mu():
    assert js.MeanReverting(0.0).law == js.MeanReverting(jnp.ones(3)).law
    assert js.MeanReverting(0.0).law != js.MeanReverting(0.0, std=0.3).law


def test_what_is_staged():
    """A program is staged under jit and inside a scan, not in a derivative or a map of plain calls."""
    seen = {}
    note = lambda name: lambda x: (seen.update({name: eager.staged()}), x)[1]
    x = jnp.ones(2)
    note("plain")(x)
    jax.jit(note("jit"))(x)
    jax.lax.scan(lambda c, a: (note("scan")(c), None), 0.0, x)
    jax.vmap(note("vmap"))(x)
    jax.grad(note("grad"))(1.0)
    jax.jit(jax.grad(note("grad in jit")))(1.0)
    with jax.ensure_compile_time_eval():
        note("at compile time")(x)
    assert {name for name, is_staged in seen.items() if is_staged} == {"jit", "scan", "grad in jit"}
