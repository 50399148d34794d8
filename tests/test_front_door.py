"""What a user may say to `js.sample`: each way of saying it gives the numbers of the plain one."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsampler as js

S, PATH, KEY = js.solvers, js.VP(), jax.random.key(0)
TWO = js.tabulate(PATH, [1.0, 0.1], S.ddim)
MEANS = jnp.array([[1.0, 0.0], [-1.0, 0.5]])
DENOISER = js.models.gaussian_mixture(MEANS, 0.3, PATH)
KEYS = jax.random.split(KEY, 5)


def sample(*args, **options):
    return js.sample(DENOISER, *args, **({"key": KEY, "steps": 6} | options))


@pytest.mark.parametrize(
    "like", [(5, 2), jnp.zeros((5, 2)), jax.ShapeDtypeStruct((5, 2), jnp.float32), (np.int64(5), 2)], ids=str
)
def test_like_is_an_array_or_a_shape(like):
    np.testing.assert_array_equal(sample(like), sample(np.zeros((5, 2), np.float32)))


def test_like_may_be_missing_beside_x_and_the_key_if_nothing_is_drawn():
    x = jax.random.normal(KEY, (5, 2))
    whole = js.sample(DENOISER, x, key=None, x=x, steps=6)
    np.testing.assert_array_equal(js.sample(DENOISER, x=x, steps=6), whole)
    with pytest.raises(TypeError, match="missing like: give the shape of the samples"):
        js.sample(DENOISER, key=KEY)
    with pytest.raises(ValueError, match="drawing x_T needs key="):
        js.sample(DENOISER, (5, 2))


def test_shapes_of_the_parts_of_a_system():
    parts = js.Denoiser(
        lambda x, t: jax.tree.map(lambda a: 0.3 * a, x), {"a": PATH, "b": js.CondOT()}, "data"
    )
    like = {"a": jnp.zeros((3, 2)), "b": jnp.zeros(4)}
    one = js.sample(parts, {"a": (3, 2), "b": (4,)}, key=KEY, steps=4)
    jax.tree.map(np.testing.assert_array_equal, one, js.sample(parts, like, key=KEY, steps=4))


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("DPMPP_2M", S.dpmpp_2m),
        (("ddim", {"eta": 0.3}), S.ddim(eta=0.3)),
        (("UniPC", {"order": 2}), S.unipc(order=2)),
        (["ddim"] * 3 + ["dpmpp_2m"] * 3, [S.ddim] * 3 + [S.dpmpp_2m] * 3),
    ],
    ids=str,
)
def test_solvers_by_name(said, meant):
    steps = None if isinstance(meant, list) else 6  # a list says how many intervals there are
    np.testing.assert_array_equal(
        sample((5, 2), solver=said, steps=steps), sample((5, 2), solver=meant, steps=steps)
    )


@pytest.mark.parametrize(
    ("kind", "alias"),
    [
        ("noise", "eps"),
        ("noise", "epsilon"),
        ("data", "x0"),
        ("data", "sample"),
        ("v", "v_prediction"),
        ("velocity", "flow"),
    ],
)
def test_words_of_other_libraries_for_a_prediction(kind, alias):
    net = lambda x, t: DENOISER(x, t, kind)
    said, meant = js.Denoiser(net, PATH, alias), js.Denoiser(net, PATH, kind)
    assert said.kind == kind
    x = jnp.ones((2, 2))
    np.testing.assert_array_equal(said(x, 0.5, "score"), meant(x, 0.5, "score"))
    np.testing.assert_array_equal(DENOISER(x, 0.5, alias), DENOISER(x, 0.5, kind))
    back = [js.convert(x, x, 0.5, PATH, source=name, target="score") for name in (kind, alias)]
    np.testing.assert_array_equal(*back)


# a key for each sample, and chunks


@pytest.mark.parametrize("solver", [S.dpmpp_2m, S.dpmpp_2m_sde, S.edict()], ids=repr)
def test_a_key_for_each_sample_is_a_call_for_each(solver):
    """As a vector, a list or raw keys; whole, in chunks, and in chunks of a compiled program."""
    with jax.enable_x64(True):
        like = jax.ShapeDtypeStruct((5, 2), float)
        draw = lambda key, **options: sample(like, key=key, solver=solver, **options)
        one = [sample(jax.ShapeDtypeStruct((2,), float), key=k, solver=solver) for k in KEYS]
        for given in (KEYS, list(KEYS), jax.random.key_data(KEYS)):
            np.testing.assert_allclose(draw(given), jnp.stack(one), rtol=1e-9)
        np.testing.assert_allclose(draw(KEYS, batch_size=2), jnp.stack(one), rtol=1e-9)
        staged = jax.jit(lambda keys: draw(keys, batch_size=2))(KEYS)
        np.testing.assert_allclose(staged, jnp.stack(one), rtol=1e-9)


def test_saved_states_of_many_keys_have_the_samples_second():
    together = sample((5, 2), key=KEYS, save=[0, 3, 6])
    alone = sample((2,), key=KEYS[3], save=[0, 3, 6])
    np.testing.assert_allclose(together.xs[:, 3], alone.xs, atol=1e-6)
    np.testing.assert_array_equal(together.t, alone.t)
    chunks = sample((5, 2), key=KEYS, save=[0, 3, 6], batch_size=2)
    np.testing.assert_allclose(chunks.xs, together.xs, atol=1e-6)
    np.testing.assert_array_equal(chunks.t, together.t)


def test_chunks_of_one_key():
    """The prior is that of one draw; chunks are independent; the network sees `batch_size` at a time."""
    seen = []
    net = lambda x, t: (seen.append(x.shape), DENOISER(x, t))[1]
    denoiser = js.Denoiser(net, PATH, "data")
    whole, cut = (js.sample(denoiser, (7, 2), key=KEY, steps=6, batch_size=b) for b in (None, 3))
    np.testing.assert_allclose(cut, whole, atol=1e-6)
    assert set(seen) == {(7, 2), (3, 2)}
    x = jnp.zeros((6, 2))
    noisy = sample(x=x, solver=S.ddpm, batch_size=3)
    assert not np.allclose(noisy[:3], noisy[3:])  # chunks of equal x draw noise of their own


# a start in the middle


@pytest.mark.parametrize(
    "path",
    [js.VP(), js.EDM(), js.CondOT(), js.VE(), js.MeanReverting(jnp.array([0.5, -1.0])), js.PFGMpp(D=128.0)],
    ids=repr,
)
def test_the_law_of_a_start_in_the_middle(path):
    """x is mu + alpha (x_0 - mu) + sigma eps of the first grid time kept, and the last intervals are run."""
    denoiser = js.Denoiser(lambda x, t: 0 * x, path, "noise")
    clean, grid = jnp.tile(jnp.array([2.0, 1.0]), (4096, 1)), js.grids.default(path, 8)
    run = dict(x=clean, key=KEY, grid=grid, solver=S.euler if path.gaussian else S.edm, save=[0])
    for options, first in (
        (dict(strength=0.5), 4),
        (dict(strength=0.51), 3),
        (dict(t_start=float(grid[5]) * 1.01), 5),
    ):
        out = js.sample(denoiser, **run, **options)
        np.testing.assert_allclose(float(out.t[0]), grid[first], rtol=1e-6)
        x, mu = np.asarray(out.xs[0], np.float64), 0 if path.centre is None else np.asarray(path.centre)
        alpha, sigma = float(path.alpha(grid[first])), float(path.sigma(grid[first]))
        mean, std = (
            mu + alpha * (np.array([2.0, 1.0]) - mu),
            sigma * (1 if path.gaussian else np.sqrt(128 / 126)),
        )
        np.testing.assert_allclose(x.mean(0), mean, atol=5 * sigma / 64)
        np.testing.assert_allclose(x.std(0), std, rtol=0.06)


def test_a_start_in_the_middle_is_the_rest_of_the_grid():
    x, grid = jax.random.normal(KEY, (5, 2)), js.grids.default(PATH, 10)
    for options, first in ((dict(strength=0.3), 7), (dict(t_start=grid[4]), 4), (dict(strength=1.0), 0)):
        got = js.sample(DENOISER, x=x, key=KEY, grid=grid, save="all", **options)
        rest = js.sample(DENOISER, x=got.xs[0], grid=grid[first:])
        np.testing.assert_allclose(got.x, rest, atol=1e-6)
        assert len(got.t) == 11 - first
    steps = [S.ddim] * 7 + [S.dpmpp_2m] * 3
    got = js.sample(DENOISER, x=x, key=KEY, grid=grid, solver=steps, strength=0.4, save=[0])
    rest = js.sample(DENOISER, x=got.xs[0], grid=grid[6:], solver=steps[6:])
    np.testing.assert_allclose(got.x, rest, atol=1e-6)
    with pytest.raises(ValueError, match="start with lower orders"):  # a list is taken literally
        js.sample(DENOISER, x=x, key=KEY, grid=grid, solver=steps, strength=0.2)


def test_a_system_starts_in_the_middle():
    paths = {"a": PATH, "b": js.EDM()}
    parts = js.Denoiser(lambda x, t: jax.tree.map(lambda a: 0.3 * a, x), paths, "data")
    clean = {"a": jnp.ones((2048,)), "b": 3 * jnp.ones((2048,))}
    out = js.sample(parts, x=clean, key=KEY, steps=6, strength=0.5, save=[0])
    for name, path in paths.items():
        t = js.grids.default(path, 6)[3]
        x = np.asarray(out.xs[name][0])
        np.testing.assert_allclose(x.std(), float(path.sigma(t)), rtol=0.08)
        np.testing.assert_allclose(
            x.mean(), float(path.alpha(t)) * float(clean[name][0]), atol=0.1 * float(path.sigma(t))
        )


# stop and go on

GRID = js.grids.log_snr(PATH, 4)
TABLES = {name: js.tabulate(PATH, GRID, step) for name, step in S.catalogue().items()}
SIZES = {"nfe": max(t.nfe for t in TABLES.values()), "regs": max(t.B.shape[-1] for t in TABLES.values())}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_stops_goes_on_to_the_same_sample(name):
    """Registers and draws travel: to the bit, because it is the same loop. Padded, tables share programs."""
    table, x = js.pad(TABLES[name], **SIZES), jnp.ones(2)
    whole = js.run(DENOISER, table, x, key=KEY)
    half = js.run(DENOISER, table, x, key=KEY, stop=2)
    np.testing.assert_array_equal(js.resume(half), whole)
    np.testing.assert_array_equal(js.resume(js.resume(half, stop=3)), whole)


@pytest.mark.parametrize(
    "name", ["edict", "bdia", "obelm", "reversible_heun", "mccallum_foster", "score_sde", "dpm_adaptive"]
)
def test_other_solvers_stop_and_go_on(name):
    """Second states, their own draws and step sizes travel."""
    with jax.enable_x64(True):
        run = {"x": jnp.ones(2), "key": KEY, "solver": S.by_name(name), "grid": GRID}
        whole, half = js.sample(DENOISER, **run), js.sample(DENOISER, stop=2, **run)
        whole, rest = (getattr(out, "x", out) for out in (whole, js.resume(half)))
        np.testing.assert_allclose(rest, whole, rtol=1e-12)
        assert not np.allclose(half.x, whole)


def test_what_a_stopped_run_knows():
    grid = js.grids.log_snr(PATH, 6)
    run = dict(x=jnp.ones((5, 2)), grid=grid, save=[1, 2, 5])
    whole, half = js.sample(DENOISER, **run), js.sample(DENOISER, stop=2, **run)
    assert isinstance(half, js.Stopped)
    np.testing.assert_allclose(half.t, grid[2])
    np.testing.assert_array_equal(half.x, whole.xs[1])
    rest = js.resume(half)
    np.testing.assert_array_equal(rest.xs, whole.xs)  # also those saved before the stop
    np.testing.assert_array_equal(rest.t, whole.t)
    moved = js.resume(half.replace(half.x + 1))
    euler = dict(x=jnp.ones((5, 2)), grid=grid, solver=S.ddim)
    np.testing.assert_allclose(
        js.resume(js.sample(DENOISER, stop=2, **euler).replace(half.x)),
        js.sample(DENOISER, x=half.x, grid=grid[2:], solver=S.ddim),
        atol=1e-6,
    )
    assert not np.allclose(moved.x, whole.x)
    with pytest.raises(ValueError, match=r"the network returned shape \(3,\) for a state of shape|shape"):
        half.replace(jnp.ones(3))


def test_another_network_goes_on():
    """A refiner: the rest of the run is its own; one of another kind or path is refused."""
    run = dict(x=jnp.ones((5, 2)), steps=6, solver=S.ddim)
    half = js.sample(DENOISER, stop=3, **run)
    refiner = js.Denoiser(lambda x, t: 0.5 * DENOISER(x, t), PATH, "data")
    rest = js.sample(refiner, x=half.x, grid=js.grids.default(PATH, 6)[3:], solver=S.ddim)
    np.testing.assert_allclose(js.resume(half, denoiser=refiner), rest, atol=1e-6)
    edict = js.sample(DENOISER, stop=3, **run | {"solver": S.edict()})
    assert not np.allclose(js.resume(edict, denoiser=refiner), js.resume(edict))
    for other in (js.Denoiser(refiner.net, PATH, "noise"), js.Denoiser(refiner.net, js.CondOT(), "data")):
        with pytest.raises(ValueError, match="the rest of it needs a denoiser with this kind and path"):
            js.resume(half, denoiser=other)
    with pytest.raises(TypeError, match="resume takes what js.sample"):
        js.resume(half.x)


@pytest.mark.parametrize("stop", [0, 6, -1, 2.0, True], ids=str)
def test_stops_that_are_no_grid_points_between(stop):
    with pytest.raises(ValueError, match=r"stop is a grid point between the first \(0\) and the last \(6\)"):
        sample((5, 2), stop=stop)


def test_a_stopped_run_inside_jit_and_its_gradient():
    def halves(x):
        return js.resume(js.sample(DENOISER, x=x, steps=6, stop=3)).sum()

    x = jnp.ones((2, 2))
    whole = jax.grad(lambda x: js.sample(DENOISER, x=x, steps=6).sum())(x)
    np.testing.assert_allclose(jax.jit(jax.grad(halves))(x), whole, rtol=1e-5)
    stopped = eqx.filter_jit(lambda x: js.sample(DENOISER, x=x, steps=6, stop=3))(x)
    np.testing.assert_allclose(js.resume(stopped), js.sample(DENOISER, x=x, steps=6), atol=1e-6)


# previews


@pytest.mark.parametrize("kind", ["data", "velocity"])
@pytest.mark.parametrize("path", [js.CondOT(), js.MeanReverting(jnp.array([0.5, -1.0]))], ids=repr)
def test_previews_are_what_the_network_says_of_x0(path, kind):
    """Of solvers with one and several calls per interval; at the end, the sample; at no further call."""
    with jax.enable_x64(True):
        exact = js.models.gaussian_mixture(MEANS.astype(float), 0.3, path)
        calls = []
        net = lambda x, t: (jax.debug.callback(lambda: calls.append(1)), exact(x, t, kind))[1]
        denoiser = js.Denoiser(net, path, kind)
        for solver, cost in ((S.dpmpp_2m, 6), (S.heun, 11)):
            run = dict(like=jnp.zeros((3, 2)), key=KEY, steps=6, solver=solver)
            states = js.sample(exact, save="all", **run)
            calls.clear()
            seen = js.sample(denoiser, save="data", **run)
            jax.effects_barrier()
            table = js.tabulate(path, js.grids.default(path, 6), solver)
            assert len(calls) == table.nfe >= cost
            np.testing.assert_array_equal(seen.t, states.t)
            said = [exact(x, float(t)) for x, t in zip(states.xs[:-1], states.t[:-1], strict=True)]
            np.testing.assert_allclose(seen.xs[:-1], jnp.stack(said), atol=1e-9)
            np.testing.assert_allclose(seen.xs[-1], seen.x, atol=1e-12)


def test_previews_survive_a_stop():
    run = dict(like=(2,), key=KEY, steps=6, save="data")
    rest = js.resume(js.sample(DENOISER, stop=3, **run))
    np.testing.assert_array_equal(rest.xs, js.sample(DENOISER, **run).xs)
    with pytest.raises(ValueError, match="save='data' takes x_0 from the network calls of a table"):
        sample((2,), solver=S.edict(), save="data")


def test_one_sample_of_a_network_of_batches():
    net = eqx.nn.MLP(2, 2, 8, 1, key=KEY)
    batched = js.Denoiser(eqx.filter_jit(lambda x, t: jax.vmap(net)(x)), PATH, "noise")
    single, x = js.per_sample(batched), jnp.ones((3, 2))
    assert single.kind == "noise" and single.path is PATH
    np.testing.assert_allclose(jax.vmap(single, (0, None))(x, 0.5), batched(x, 0.5), rtol=1e-6)
    slope = eqx.filter_grad(lambda net: js.per_sample(lambda x, t: jax.vmap(net)(x))(x[0], 0.5).sum())(net)
    assert float(jnp.abs(slope.layers[0].weight).sum()) > 0
    parts = js.per_sample(lambda x, t: {"a": x["a"].sum(0, keepdims=True), "b": x["b"]})
    np.testing.assert_array_equal(parts({"a": x[0], "b": jnp.ones(())}, 0.5)["a"], x[0])


# what is not meant


def _wants_a_time_for_each(x, t):
    return x * t[:, None]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sample((5, 2), grid=[1.0, 0.5, 0.1]), ValueError, "steps=6 beside grid="),
        (lambda: sample((5, 2), solver=TWO), ValueError, "steps=6 beside a Table"),
        (lambda: jax.jit(lambda n: sample((5, 2), steps=n))(6), TypeError, "steps is traced, but it decides"),
        (lambda: sample((5, 2), key=0), TypeError, r"key=0 is a number: use key=jax.random.key\(0\)"),
        (lambda: sample((5, 2), key=jnp.zeros(3)), TypeError, r"got an array float32\[3\]"),
        (lambda: sample((5, 2), key=[]), ValueError, "key is an empty list"),
        (lambda: sample((4, 2), key=KEYS), ValueError, "key holds 5 keys for 4 samples"),
        (lambda: sample((), key=KEYS), ValueError, "needs one leading axis of samples"),
        (lambda: sample((5, 2), key=KEYS.reshape(5, 1)), ValueError, r"array of keys of shape \[5, 1\]"),
        (lambda: sample((5, 2), key=KEYS, noise=jnp.zeros((6, 5, 2))), ValueError, "holds the draws of all"),
        (lambda: sample((5, 2), batch_size=2, noise=jnp.zeros((6, 5, 2))), ValueError, "without batch_size="),
        (lambda: sample(jnp.zeros((5, 2), int)), TypeError, "samples are floating point"),
        (lambda: js.sample(jnp.zeros((5, 2)), DENOISER, key=KEY), TypeError, "denoiser and like are swapped"),
        (lambda: js.sample(js.Denoiser, (5, 2), key=KEY), TypeError, "must be a js.Denoiser.*, got Denoiser"),
        (lambda: sample((5, 2), solver=S.edict), TypeError, r"solver is edict itself: call it"),
        (lambda: sample((5, 2), solver="dpmp_2m"), ValueError, "did you mean 'dpmpp_2m'"),
        (lambda: sample((5, 2), solver=("ddim", 0.3)), TypeError, r"a solver with options is \(name"),
        (lambda: sample((5, 2), steps=None, grid=js.grids.karras), TypeError, "the function karras itself"),
        (lambda: sample((5, 2), steps=None, grid="karas"), TypeError, "did you mean 'karras'"),
        (lambda: sample((5, 2), adjoint=js.Direct), TypeError, r"the class Direct: make one, Direct\(\)"),
        (lambda: sample((5, 2), batch_size=0), ValueError, "batch_size is a number of samples, at least 1"),
        (lambda: sample((5, 2), batch_size=2, stop=3), ValueError, "stop= keeps one run"),
        (lambda: sample((5, 2), strength=0.5), ValueError, "start from x, clean data.*: pass x"),
        (lambda: sample(x=jnp.ones(2), strength=0.5, t_start=0.5), ValueError, "both say where to start"),
        (lambda: sample(x=jnp.ones(2), strength=1.5), ValueError, "above 0 and at most 1; got 1.5"),
        (lambda: sample(x=jnp.ones(2), t_start=1e-9), ValueError, "leaves no interval of the grid"),
        (lambda: sample(x=jnp.ones(2), key=None, strength=0.5), ValueError, "add noise to x: pass key="),
        (
            lambda: sample(x=jnp.ones(2), strength=0.5, steps=None, solver=TWO),
            ValueError,
            "give the step that the table was made from",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("jit", [True, False])
def test_an_error_inside_the_network_says_how_it_was_called(jit):
    with pytest.raises(IndexError) as caught:
        js.sample(js.Denoiser(_wants_a_time_for_each, PATH, "noise"), (8, 2), key=KEY, jit=jit)
    assert any(
        note.startswith("called as net(x: f32[8,2], t: f32[]): t is a scalar")
        and "jnp.full(len(x), t)" in note
        for note in caught.value.__notes__
    )
    assert sum("called as" in note for note in caught.value.__notes__) == 1
