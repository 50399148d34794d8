"""What callers can do with any solver: trace its numbers, batch step counts, fix the noise whatever the grid,
and run systems.
"""

import functools
import itertools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import gaussian, mixture, random_net

import jaxsampler as js
from jaxsampler import guidance
from jaxsampler.scan.brownian import Brownian

S, VP = js.solvers, js.VP()
X = np.random.default_rng(0).standard_normal((2, 3))
KEY = jax.random.key(5)


# --- numbers of a sampler as traced arrays


class Counted:
    """A mixture's denoiser that counts its traces; a third argument pulls the prediction."""

    def __init__(self):
        self.traces, self.net = 0, mixture(VP)[0].net

    def __call__(self, x, t, pull=0.0):
        self.traces += 1
        return self.net(x, t) + pull * jnp.cos(x)


class Case(NamedTuple):
    """sample: (network, value) -> a sample; values: what it is called with, one compilation for all; bump: a
    direction.
    """

    sample: object
    values: tuple
    bump: object


def case(function, first, second):
    """Two values and the direction between them, made unequal in its entries."""
    first, second = np.asarray(first, float), np.asarray(second, float)
    return Case(
        function,
        (first, second),
        (second - first) * (1 + 0.3 * np.cos(np.arange(first.size).reshape(first.shape))),
    )


def run(net, solver, grid=None, **options):
    grid = js.grids.log_snr(VP, 5) if grid is None else grid
    return js.sample(
        js.Denoiser(net, VP, "data"),
        X,
        key=KEY,
        x=jnp.asarray(X),
        solver=solver,
        grid=grid,
        adjoint=js.Direct(),
        **options,
    )


def with_eta(name):
    return case(lambda net, eta: run(net, S.by_name(name)(eta=eta)), 0.4, 0.9)


GRIDS = js.grids.uniform(VP, 5, t_max=0.9, t_min=0.1), js.grids.uniform(VP, 5, t_max=0.95, t_min=0.05) ** 1.1
CASES = {
    "grid, multistep and stochastic": case(lambda net, grid: run(net, S.dpmpp_2m_sde, grid), *GRIDS),
    "grid, two stages": case(lambda net, grid: run(net, S.dpmpp_2s, grid), *GRIDS),
    "guidance per step": case(
        lambda net, w: run(net, S.dpmpp_2s, per_step=w), [0.0, 0.1, 0.2, 0.1, 0.3], [0.4, 0.0, -0.1, 0.2, 0.1]
    ),
    "classifier-free weight per step": case(
        lambda net, w: run(
            guidance.classifier_free(net, lambda x, t: 0.3 * jnp.sin(x)), S.dpmpp_2m, per_step=w
        ),
        [0.0, 0.5, 1.2, 1.0, 2.0],
        [1.4, 0.0, 0.8, 1.5, 0.2],
    ),
    "threshold": case(
        lambda net, q: run(
            guidance.dynamic_threshold(js.Denoiser(net, VP, "data"), q[0], q[1], axes=-1).net, S.dpmpp_2m
        ),
        [0.6, 0.4],  # away from 0.5, where the quantile of three values has a kink
        [0.7, 0.5],
    ),
    "eta per step": case(
        lambda net, etas: run(net, [S.ddim(eta=e) for e in etas]),
        [0.1, 0.9, 0.5, 0.2, 0.7],
        [0.3, 0.2, 0.6, 1.0, 0.4],
    ),
    **{
        f"eta of {name}": with_eta(name)
        for name in ("ddim", "dpmpp_sde_1", "euler_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde")
    },
}


@pytest.mark.parametrize("name", CASES)
def test_a_traced_number_is_one_compilation_and_has_a_gradient(name, x64):
    """Several values share one trace of the network; the sample equals the one made from the concrete value;
    slopes are differences.
    """
    sample, values, bump = CASES[name]
    net = Counted()

    def total(value):
        out = sample(net, value)
        return jnp.sum(jnp.sin(2 * out)), out

    traced = jax.jit(jax.value_and_grad(total, has_aux=True))
    ((_, first), slope), ((_, second), _) = (traced(jnp.asarray(v)) for v in values)
    ahead, behind = (traced(jnp.asarray(values[0] + h * bump))[0][0] for h in (1e-5, -1e-5))
    assert (net.traces, traced._cache_size()) == (1, 1)
    np.testing.assert_allclose(second, sample(Counted(), values[1]), rtol=1e-9, atol=1e-9)
    assert float(jnp.abs(first - second).max()) > 1e-3
    np.testing.assert_allclose((np.asarray(slope) * bump).sum(), (ahead - behind) / 2e-5, rtol=1e-5)
    assert np.all(np.asarray(slope) != 0)


# --- different step counts in one batch


def test_samples_with_different_step_counts_share_a_batch():
    """Each sample has its own table, key and start; it is what it would be alone, to float32 rounding."""
    net = js.Denoiser(mixture(VP)[0].net, VP, "data")
    plans = [(S.dpmpp_2m, 3), (S.dpmpp_2m_sde, 12), (S.dpmpp_2s, 7), (S.dpmpp_sde, 4), (S.ddim, 9)]
    tables = [js.tabulate(VP, js.grids.log_snr(VP, n), solver) for solver, n in plans]
    x = jax.random.normal(jax.random.key(1), (len(plans), 3), jnp.float32)
    keys = jax.random.split(KEY, len(plans))
    run = lambda table, x, key: js.run(net, table, x, key=key, adjoint=js.Direct())
    batch = jax.jit(jax.vmap(run))(js.stack(tables), x, keys)
    assert batch.dtype == jnp.float32
    for i, table in enumerate(tables):
        np.testing.assert_allclose(batch[i], run(table, x[i], keys[i]), atol=1e-6, err_msg=plans[i][0].name)


def test_entries_per_step_follow_each_sample_of_such_a_batch(x64):
    """Entries are counted in grid intervals, also where a sample's steps have several calls and its table is
    padded.
    """
    net = js.Denoiser(Counted(), VP, "data")
    plans = [(S.dpmpp_2s, 4), (S.dpmpp_2m, 6)]
    tables = [js.tabulate(VP, js.grids.log_snr(VP, n), solver) for solver, n in plans]
    pulls = [jnp.linspace(-0.5, 0.5, n) for _, n in plans]
    padded = jnp.stack([jnp.pad(p, (0, 6 - len(p))) for p in pulls])
    x = jnp.asarray(X)
    run = lambda table, x, p: js.run(net, table, x, per_step=p, adjoint=js.Direct())
    batch = jax.vmap(run)(js.stack(tables), x, padded)
    for i, table in enumerate(tables):
        np.testing.assert_allclose(batch[i], run(table, x[i], pulls[i]), rtol=1e-12)
        assert float(jnp.abs(batch[i] - run(table, x[i], None)).max()) > 1e-3


# --- noise that does not depend on the grid

# thousands of rows with a Brownian tree in each: here optimised machine code pays
FAST = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
DRAW = jax.jit(lambda key, low, high, like: Brownian(key).draw((low, high), like))
ANGLES = [0.0, 0.001, 0.3, 0.30001, 0.9, 1.2, 1.57]
COUNT = 20_000


def test_increments_of_a_path_add_up(x64):
    """W(a, b) + W(b, c) = W(a, c) for all a < b < c."""
    W = {
        (a, b): DRAW(KEY, a, b, jnp.zeros(50)) * jnp.sqrt(b - a) for a, b in itertools.combinations(ANGLES, 2)
    }
    for a, b, c in itertools.combinations(ANGLES, 3):
        np.testing.assert_allclose(W[a, b] + W[b, c], W[a, c], atol=1e-12)


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 0.001), (0.3, 0.30001), (0.3, 0.9), (1.2, 1.57), (0.0, 1.57)]
)
def test_each_draw_is_standard_normal(low, high):
    """Moments 1 to 4 within 4 standard errors, in float32 as samplers draw it."""
    z = np.asarray(DRAW(KEY, low, high, jnp.zeros(COUNT, jnp.float32)), np.float64)
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - moment) < 4 * np.sqrt(variance / COUNT), power


def test_draws_of_disjoint_intervals_are_independent():
    z = [
        np.asarray(DRAW(KEY, a, b, jnp.zeros(COUNT)))
        for a, b in ((0.0, 0.001), (0.001, 0.3), (0.3, 0.9), (0.9, 1.57))
    ]
    for a, b in itertools.combinations(z, 2):
        for u, v in ((a, b), (a**2, b), (a, b**2), (a**2, b**2)):
            assert abs(np.corrcoef(u, v)[0, 1]) < 4 / np.sqrt(COUNT)


def test_the_path_of_a_sample_does_not_depend_on_the_batch():
    blind = js.Denoiser(lambda x, t: jnp.zeros_like(x), VP, "data")
    table = js.tabulate(VP, js.grids.log_snr(VP, 4), S.dpmpp_sde_1)
    few, many = (js.run(blind, table, jnp.zeros((b, 3)), key=KEY, noise="brownian") for b in (2, 9))
    np.testing.assert_array_equal(many[:2], few)
    assert len(np.unique(many)) == many.size


@functools.cache
def strong(noise):
    """A jitted run of a table: padded to one shape, all solvers share its compilation."""
    net = gaussian(VP)[0]
    run = lambda table, x, key: js.run(net, table, x, key=key, noise=noise, adjoint=js.Direct())
    return jax.jit(run, compiler_options=FAST)


@pytest.mark.parametrize("name", ["dpmpp_sde_1", "mr_sde", "dpmpp_2s_ancestral", "dpmpp_sde"])
def test_refining_the_grid_refines_the_same_sample(name, x64):
    """Strong order 1 on Gaussian data: halving the steps halves the distance between samples of one key, in
    the root mean square.

    With draws per step, not per path, samples of different grids would be unrelated.
    """
    sizes, x = (16, 32, 64, 128, 256), VP.prior(jax.random.key(1), jnp.zeros(128))
    tables = [
        js.pad(js.tabulate(VP, js.grids.log_snr(VP, n), S.by_name(name)), nfe=512, regs=3) for n in sizes
    ]
    outs = [strong("brownian")(table, x, KEY) for table in tables]
    gaps = [float(jnp.sqrt(jnp.mean((a - b) ** 2))) for a, b in itertools.pairwise(outs)]
    order = -np.polyfit(np.log(sizes[1:-1]), np.log(gaps[1:]), 1)[0]
    assert 0.8 < order < 1.3, (order, gaps)
    assert gaps[-1] < 0.02
    unrelated = [strong(None)(table, x, KEY) for table in tables[:2]]
    assert float(jnp.sqrt(jnp.mean((unrelated[0] - unrelated[1]) ** 2))) > 2 * gaps[0]


def test_ten_and_a_thousand_steps_see_the_same_noise(x64):
    """A network that ignores x: the sample is the noise. Ten steps of it are within the strong error of a
    thousand.
    """
    blind = js.Denoiser(lambda x, t: jnp.zeros_like(x), VP, "data")
    grids = [js.grids.log_snr(VP, n, t_max=0.6, t_min=0.2) for n in (10, 1000)]
    x = jnp.zeros(256)
    tables = [js.pad(js.tabulate(VP, grid, S.dpmpp_sde_1), nfe=1000) for grid in grids]
    run = jax.jit(
        lambda table, noise: js.run(blind, table, x, key=KEY, noise=noise, adjoint=js.Direct()),
        static_argnums=1,
        compiler_options=FAST,
    )
    few, many = (run(table, "brownian") for table in tables)
    assert np.corrcoef(few, many)[0, 1] > 0.99
    few, many = (run(table, None) for table in tables)
    assert abs(np.corrcoef(few, many)[0, 1]) < 4 / np.sqrt(256)


def test_a_batch_of_step_counts_follows_the_path_too(x64):
    """Angles of a traced table are those of a concrete one."""
    net = gaussian(VP)[0]
    tables = [
        js.tabulate(VP, js.grids.log_snr(VP, n), solver)
        for n, solver in ((5, S.dpmpp_sde_1), (3, S.dpmpp_sde))
    ]
    run = lambda table: js.run(net, table, jnp.asarray(X), key=KEY, noise="brownian", adjoint=js.Direct())
    for table, got in zip(tables, jax.vmap(run)(js.stack(tables)), strict=True):
        np.testing.assert_allclose(got, run(table), rtol=1e-7)


def test_gradients_with_respect_to_a_grid_hold_the_draws_fixed(x64):
    """A path has no derivative in time: the slope is that of a run with these draws given as an array."""
    net, x, grid = gaussian(VP)[0], jnp.asarray(X), jnp.asarray(GRIDS[0])

    def loss(grid, **noise):
        table = js.tabulate(VP, grid, S.dpmpp_sde_1)
        return jnp.sum(jnp.sin(js.run(net, table, x, adjoint=js.Direct(), **noise)))

    angles = np.arctan2(VP.alpha(GRIDS[0]), VP.sigma(GRIDS[0]))
    draws = jnp.stack(
        [Brownian(jax.random.fold_in(KEY, 0)).draw(span, x) for span in itertools.pairwise(angles)]
    )
    value, slope = jax.value_and_grad(lambda g: loss(g, key=KEY, noise="brownian"))(grid)
    want, slope_at_draws = jax.value_and_grad(lambda g: loss(g, noise=draws))(grid)
    np.testing.assert_allclose(value, want, rtol=1e-6)
    np.testing.assert_allclose(slope, slope_at_draws, rtol=1e-5)
    assert float(jnp.abs(slope).min()) > 1e-4


def test_what_a_path_cannot_serve_is_refused():
    net, x = gaussian(VP)[0], jnp.asarray(X)
    grid = js.grids.default(js.EDM(), 5)
    churned = [
        js.tabulate(js.EDM(), grid, S.edm(s_churn=10.0, **only))
        for only in ({"s_min": 50.0}, {"s_max": 50.0})
    ]
    still = js.tabulate(js.EDM(), grid, S.edm)
    edm = gaussian(js.EDM())[0]
    for table in churned:  # before the first call only, and after it only
        with pytest.raises(ValueError, match="churn adds noise backwards in time.*s_churn=0"):
            js.run(edm, table, x, key=KEY, noise="brownian")
    table = js.tabulate(VP, [0.9, 0.5, 0.1], S.dpmpp_sde_1)
    np.testing.assert_array_equal(
        js.run(edm, still, x, key=KEY, noise="brownian"), js.run(edm, still, x, key=KEY)
    )
    with pytest.raises(ValueError, match="a Denoiser: its path tells"):
        js.run(net.net, table, x, key=KEY, noise="brownian")
    with pytest.raises(ValueError, match="pass key="):
        js.run(net, table, x, noise="brownian")
    with pytest.raises(ValueError, match="draws noise over no time"):
        js.run(net, js.tabulate(VP, [0.9, 0.5, 0.5 - 1e-8], S.dpmpp_sde_1), x, key=KEY, noise="brownian")
    quiet = js.tabulate(VP, [0.9, 0.5, 0.5 - 1e-8], [S.dpmpp_sde_1, S.ddim])  # the short step draws nothing
    np.testing.assert_allclose(
        js.run(net, quiet, x, key=KEY, noise="brownian"),
        js.run(net, js.tabulate(VP, [0.9, 0.5], S.dpmpp_sde_1), x, key=KEY, noise="brownian"),
        atol=1e-5,
    )


# --- systems: a path and a table for each part

PATHS = {"a": js.VP(), "b": js.VE(sigma_max=5.0), "c": js.MeanReverting(0.4)}
SOLVERS = {"a": S.dpmpp_2m, "b": S.dpmpp_2m_sde, "c": S.mr_sde(order=1)}


def alone(name):
    """The network of one part."""
    return random_net("abc".index(name))


def test_parts_that_do_not_interact_are_samples_of_their_own(x64):
    """Each with its path, grid, solver and noise; what a part gets is its own time."""
    net = lambda x, t: {name: alone(name)(x[name], t[name]) for name in x}
    grids = {name: js.grids.default(path, 6) for name, path in PATHS.items()}
    tables = {name: js.tabulate(path, grids[name], SOLVERS[name]) for name, path in PATHS.items()}
    x = {
        name: path.prior(jax.random.key(1), jnp.zeros((i + 1, 3)))
        for i, (name, path) in enumerate(PATHS.items())
    }
    noise = jax.tree.map(lambda a: jax.random.normal(jax.random.key(2), (6, *a.shape)), x)
    options = {"save": [0, 3], "adjoint": js.Direct()}
    together = js.run(js.Denoiser(net, PATHS, "noise"), tables, x, noise=noise, **options)
    for name in x:
        one = js.run(
            js.Denoiser(alone(name), PATHS[name], "noise"),
            tables[name],
            x[name],
            noise=noise[name],
            **options,
        )
        np.testing.assert_allclose(together.x[name], one.x, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(together.xs[name], one.xs, rtol=1e-12, atol=1e-12)
    front = js.sample(
        js.Denoiser(net, PATHS, "noise"),
        x,
        key=KEY,
        x=x,
        solver=SOLVERS,
        grid=grids,
        noise=noise,
        adjoint=js.Direct(),
    )
    chex.assert_trees_all_equal(front, together.x)


CORRELATED = np.array([[1.0, 0.42], [0.42, 0.3]])
MEAN = np.array([0.5, -1.0])


def coupled(paths):
    """The exact denoiser of x0 = (a, b) ~ N(MEAN, CORRELATED), each part noised by its own path, and the
    moments at times (t_a, t_b).
    """

    def moments(t):
        scale = jnp.diag(jnp.stack([jnp.asarray(paths[name].alpha(t[name]), float) for name in "ab"]))
        noise = jnp.diag(jnp.stack([jnp.asarray(paths[name].sigma(t[name]) ** 2, float) for name in "ab"]))
        return scale, scale @ CORRELATED @ scale + noise

    def net(x, t):
        scale, covariance = moments(t)
        away = jnp.stack([x["a"], x["b"]]) - scale @ MEAN
        data = MEAN + CORRELATED @ scale @ jnp.linalg.solve(covariance, away)
        return {"a": data[0], "b": data[1]}

    return js.Denoiser(net, paths, "data"), moments


@functools.cache
def linear_law():
    """The paths of two parts, their moments, and mean and covariance of the samples of two tables, as one
    program.
    """
    paths = {"a": js.VP(), "b": js.VE(sigma_max=5.0)}
    denoiser, moments = coupled(paths)

    @jax.jit
    def law(tables, start):
        run = lambda x, noise: js.run(denoiser, tables, x, noise=noise, adjoint=js.Direct())
        scale, covariance = moments(start)
        x = dict(zip("ab", scale @ MEAN, strict=True))
        noise = {name: jnp.zeros(len(table.t)) for name, table in tables.items()}
        mean = run(x, noise)
        matrix = lambda j: jnp.concatenate(
            [jnp.concatenate([j[p][q].reshape(1, -1) for q in "ab"], 1) for p in "ab"]
        )
        by_x, by_noise = (
            matrix(jax.jacobian(lambda x: run(x, noise))(x)),
            matrix(jax.jacobian(lambda z: run(x, z))(noise)),
        )
        return jnp.stack([mean["a"], mean["b"]]), by_x @ covariance @ by_x.T + by_noise @ by_noise.T

    return paths, moments, law


@pytest.mark.parametrize(
    ("solvers", "order"),
    [((S.dpmpp_2m, S.dpmpp_2m), 2), ((S.dpmpp_2m, S.dpmpp_2m_sde), 2), ((S.ddpm, S.euler_ancestral), 1)],
)
def test_a_coupled_gaussian_system_has_its_exact_joint_law(solvers, order, x64):
    """The sampler is linear here: its matrices give the law of the samples, without drawing any. An ODE part
    goes with an SDE part.
    """
    paths, moments, law = linear_law()
    errors = []
    for n in (40, 80):
        grids = {"a": js.grids.uniform(VP, n, t_min=0.05), "b": js.grids.karras(paths["b"], n)}
        tables = {
            name: js.pad(js.tabulate(paths[name], grids[name], solver), nfe=80, regs=3)
            for name, solver in zip("ab", solvers, strict=True)
        }
        mean, covariance = law(tables, {name: g[0] for name, g in grids.items()})
        scale, want = moments({name: g[-1] for name, g in grids.items()})
        errors.append(float(jnp.abs(covariance - want).max()))
        np.testing.assert_allclose(mean, scale @ MEAN, atol=0.3 / n)
    assert errors[1] < (0.01 if order == 2 else 0.1), errors
    assert abs(np.log2(errors[0] / errors[1]) - order) < 0.35, errors


def test_hooks_of_a_system_see_the_whole_state_and_the_time_of_each_part(x64):
    paths = {"a": js.VP(), "c": js.MeanReverting(0.4)}
    net = lambda x, t: jax.tree.map(lambda a: 0.3 * jnp.sin(a), x)
    grids = {name: js.grids.default(path, 5) for name, path in paths.items()}
    seen = []

    def hook(end):
        jax.debug.callback(lambda t: seen.append((float(t["a"]), float(t["c"]))), end.t)
        half = (end.x["a"] - end.x["c"]) / 2  # the parts are held at opposite values
        return {"a": half, "c": -half}

    x = js.sample(
        js.Denoiser(net, paths, "data"),
        {"a": jnp.zeros(3), "c": jnp.zeros(3)},
        key=KEY,
        grid=grids,
        hook=hook,
    )
    jax.effects_barrier()
    np.testing.assert_allclose(
        sorted(seen), sorted(zip(grids["a"][1:], grids["c"][1:], strict=True)), rtol=1e-6
    )  # callbacks run in float32
    np.testing.assert_allclose(x["a"], -x["c"], atol=1e-15)
    assert float(jnp.abs(x["a"]).min()) > 1e-3


@pytest.mark.parametrize("noise", [None, "brownian"])
def test_parts_draw_different_noise(noise):
    blind = js.Denoiser(lambda x, t: jax.tree.map(jnp.zeros_like, x), {"a": VP, "b": VP}, "data")
    like = dict.fromkeys("ab", jnp.zeros(4000))
    table = js.tabulate(VP, js.grids.log_snr(VP, 3), S.dpmpp_sde_1)
    out = js.run(blind, dict.fromkeys("ab", table), like, key=KEY, noise=noise)
    start = js.sample(blind, like, key=KEY, steps=3, save=[0]).xs
    for parts in (out, start):
        assert float(jnp.std(parts["a"])) > 1e-3
        assert abs(np.corrcoef(np.ravel(parts["a"]), np.ravel(parts["b"]))[0, 1]) < 4 / np.sqrt(4000)


def test_errors_of_systems_say_what_to_do():
    x = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    net = js.Denoiser(lambda x, t: x, {"a": VP, "b": js.EDM()}, "data")
    tables = {
        "a": js.tabulate(VP, [0.9, 0.5, 0.1], S.dpmpp_2m),
        "b": js.tabulate(js.EDM(), [5.0, 1.0, 0.1], S.dpmpp_2m),
    }
    longer = js.tabulate(js.EDM(), [5.0, 1.0, 0.5, 0.1], S.dpmpp_2m)
    staged = js.tabulate(js.EDM(), [5.0, 0.1], S.dpmpp_2s)
    cases = [
        (
            ValueError,
            r"paths for \['a', 'b'\]: give a dict with these names, not \['a'\]",
            lambda: js.run(net, tables, {"a": x["a"]}),
        ),
        (ValueError, r"not \['a', 'c'\]", lambda: js.run(net, {"a": tables["a"], "c": tables["b"]}, x)),
        (ValueError, "not an array", lambda: js.sample(net, x["a"], key=KEY)),
        (ValueError, r"not \['a'\]", lambda: js.sample(net, x, key=KEY, solver={"a": S.ddim})),
        (
            ValueError,
            r"tables of \[2, 3\] rows cannot run together",
            lambda: js.run(net, tables | {"b": longer}, x),
        ),
        (ValueError, "end their intervals in the same rows", lambda: js.run(net, tables | {"b": staged}, x)),
        (
            ValueError,
            "give js.Denoiser a dict of paths",
            lambda: js.run(js.Denoiser(net.net, VP, "data"), tables, x),
        ),
        (TypeError, "or a dict of them", lambda: js.Denoiser(net.net, {"a": VP, "b": "edm"}, "data")),
        (ValueError, "not Table", lambda: js.run(net, tables["a"], x)),
        (
            TypeError,
            "the network returned a",
            lambda: js.run(js.Denoiser(lambda x, t: x["a"], net.path, "data"), tables, x),
        ),
        (
            ValueError,
            "must be 'brownian', or arrays like the state",
            lambda: js.run(net, tables, x, noise=jnp.zeros((2, 2))),
        ),
    ]
    for kind, message, call in cases:
        with pytest.raises(kind, match=message):
            call()
