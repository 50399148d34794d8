"""The contracts of `run` and `sample`: traces, compilations, calls, noise, saving, hooks, checks, pytrees and
errors.
"""

import functools
import time

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import gaussian, random_net

import jaxsampler as js

S = js.solvers.catalogue()
VP = js.VP()
KEY = jax.random.key(0)


class Counted:
    """A network that counts its traces."""

    def __init__(self):
        self.traces = 0

    def __call__(self, x, t):
        self.traces += 1
        return 0.5 * jnp.tanh(x) * jnp.cos(t).astype(x.dtype)


@pytest.mark.parametrize("name", S)
def test_one_trace_per_sample(name):
    for adjoint in (None, js.Direct(), js.RecursiveCheckpoint(3)):
        net = Counted()
        draw = functools.partial(js.sample, solver=S[name], steps=7, adjoint=adjoint)
        jax.eval_shape(
            lambda key, net=net, draw=draw: draw(js.Denoiser(net, VP, "noise"), jnp.zeros(3), key=key), KEY
        )
        assert net.traces == 1
        if adjoint is None and name not in ("dpmpp_3m", "dpmpp_3s", "dpmpp_2m_sde"):
            break  # the adjoint does not know the solver: three of them stand for all


def test_gradients_trace_once_too():
    net = Counted()
    table = js.tabulate(VP, js.grids.log_snr(VP, 11), S["dpmpp_2m"])
    jax.eval_shape(jax.grad(lambda x: js.run(js.Denoiser(net, VP, "noise"), table, x).sum()), jnp.ones(3))
    assert net.traces == 1


def test_no_recompilation_when_solver_grid_or_order_changes():
    net = Counted()
    once = chex.assert_max_traces(
        lambda table, x, key: js.run(js.Denoiser(net, VP, "v"), table, x, key=key), 1
    )
    run, outs = jax.jit(once), []
    for i, name in enumerate(S):
        grid = js.grids.karras(VP, 3 + i % 3, rho=2.0 + i)
        table = js.pad(js.tabulate(VP, grid, S[name]), nfe=20, regs=10)
        outs.append(run(table, jnp.ones(3), jax.random.key(0)))
    assert net.traces == 1
    assert run._cache_size() == 1
    assert len({tuple(np.asarray(o).tolist()) for o in outs}) > len(S) // 2


def equations(jaxpr):
    """All equations of a jaxpr, inner ones included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.tree.leaves(eqn.params, is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield from equations(getattr(inner, "jaxpr", inner))


def test_program_does_not_grow_with_steps():
    def size(n):
        net = js.Denoiser(Counted(), VP, "noise")
        table = js.tabulate(VP, js.grids.log_snr(VP, n), S["dpmpp_3m"])
        jaxpr = jax.make_jaxpr(lambda table, x: js.run(net, table, x))(table, jnp.ones(3))
        return sum(1 for _ in equations(jaxpr.jaxpr)), jax.jit(lambda table, x: js.run(net, table, x)).lower(
            table, jnp.ones(3)
        )

    (few, a), (many, b) = size(10), size(1000)
    assert many <= few * 1.1
    compiled = [len(low.compile().as_text()) for low in (a, b)]
    assert compiled[1] <= compiled[0] * 1.15


CALLS = []


@functools.cache
def noting_run():
    """Tables of one shape share a compilation; the network notes the time of each of its calls."""

    def net(x, t):
        jax.debug.callback(lambda t: CALLS.append(float(t)), t)
        return 0.5 * x

    denoiser = js.Denoiser(net, VP, "noise")
    return jax.jit(lambda table, key: js.run(denoiser, table, jnp.ones(3), key=key))


@pytest.mark.parametrize("name", S)
def test_nfe_is_the_length_of_the_table(name):
    CALLS.clear()
    table = js.pad(js.tabulate(VP, js.grids.log_snr(VP, 6), S[name]), regs=8)
    jax.block_until_ready(noting_run()(table, KEY))
    jax.effects_barrier()
    assert len(CALLS) == table.nfe
    np.testing.assert_allclose(sorted(CALLS), sorted(table.t), rtol=1e-5)


def test_noise_of_a_sample_does_not_depend_on_the_batch():
    """Noise bits are equal; values agree to float32 rounding of the matmuls."""
    net = js.Denoiser(random_net(0, 5), VP, "data")
    # a network that ignores x shows the noise itself, bit for bit
    blind = js.Denoiser(lambda x, t: jnp.zeros_like(x), VP, "noise")
    draw = functools.partial(js.sample, solver=S["dpmpp_2m_sde"], steps=5, adjoint=js.Direct())
    both = jax.jit(lambda like: [draw(model, like, key=jax.random.key(3)) for model in (net, blind)])
    seen, draws = {}, {}
    for batch in (1, 7, 64):
        seen[batch], draws[batch] = both(jnp.zeros((batch, 5)))
    np.testing.assert_allclose(seen[7][:1], seen[1], atol=1e-5)
    np.testing.assert_allclose(seen[64][:7], seen[7], atol=1e-5)
    np.testing.assert_array_equal(draws[7][:1], draws[1])
    np.testing.assert_array_equal(draws[64][:7], draws[7])


def test_legacy_keys_are_keys():
    net = js.Denoiser(Counted(), VP, "noise")
    run = lambda key: js.sample(
        net, jnp.zeros(3), key=key, solver=S["dpmpp_sde_1"], steps=4, adjoint=js.Direct()
    )
    np.testing.assert_array_equal(run(jax.random.PRNGKey(3)), run(jax.random.key(3)))


def test_given_noise_is_used_in_order():
    net = js.Denoiser(Counted(), VP, "noise")
    table = js.tabulate(VP, js.grids.log_snr(VP, 4), S["dpmpp_2m_sde"])
    key = jax.random.key(5)
    noise = jnp.stack(
        [jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, i), 0), (3,)) for i in range(4)]
    )
    run = functools.partial(js.run, net, table, jnp.ones(3), adjoint=js.Direct())
    drawn = run(key=key)
    np.testing.assert_array_equal(run(noise=noise), drawn)
    assert float(jnp.abs(run(noise=noise[::-1]) - drawn).max()) > 0.01


def test_unused_last_draws_may_be_missing():
    table = js.tabulate(VP, [0.9, 0.5, 0.1, 0.0], S["dpmpp_2m_sde"])
    noise = jax.random.normal(jax.random.key(0), (3, 2))
    net = js.Denoiser(Counted(), VP, "data")
    np.testing.assert_array_equal(
        js.run(net, table, jnp.ones(2), noise=noise[:2]), js.run(net, table, jnp.ones(2), noise=noise)
    )
    with pytest.raises(ValueError, match=r"\[2 or more, 2\]"):
        js.run(net, table, jnp.ones(2), noise=noise[:1])


def test_save_all_and_some():
    net = js.Denoiser(Counted(), VP, "noise")
    grid = js.grids.log_snr(VP, 6)
    table, x = js.tabulate(VP, grid, S["heun"]), jnp.asarray([1.0, 2.0])
    run = functools.partial(js.run, adjoint=js.Direct())
    every = run(net, table, x, save="all")
    np.testing.assert_allclose(every.t, grid, rtol=1e-6)
    np.testing.assert_array_equal(every.xs[0], x)
    np.testing.assert_array_equal(every.xs[-1], every.x)
    # each saved state is the end of the run on the shorter grid
    short = run(net, js.tabulate(VP, grid[:4], S["heun"]), x)
    np.testing.assert_allclose(every.xs[3], short, rtol=1e-5)
    some = run(net, table, x, save=[-1, 2, 0])
    np.testing.assert_array_equal(some.xs, every.xs[jnp.asarray([6, 2, 0])])
    np.testing.assert_allclose(some.t, grid[[6, 2, 0]], rtol=1e-6)
    inside = jax.jit(lambda table: run(net, table, x, save=[2, 6]))(table)
    np.testing.assert_allclose(inside.xs, every.xs[jnp.asarray([2, 6])], rtol=1e-6)
    for bad, message in (([7], "grid has 7 points"), ("some", "'all'"), ([1, 1], "repeat")):
        with pytest.raises(ValueError, match=message):
            js.run(net, table, x, save=bad)


def test_saved_memory_is_what_was_asked_for():
    net, x = js.Denoiser(Counted(), VP, "noise"), jnp.zeros(4096)
    table = js.tabulate(VP, js.grids.log_snr(VP, 256), S["dpmpp_1"])

    memory = jax.jit(lambda x: js.run(net, table, x, save=[-1, 0])).lower(x).compile().memory_analysis()
    assert memory.output_size_in_bytes < 4 * x.nbytes
    assert memory.temp_size_in_bytes < 20 * x.nbytes


def test_hook_sees_the_end_of_every_interval():
    seen = []

    def hook(end):
        jax.debug.callback(lambda t: seen.append(float(t)), end.t)
        return jax.tree.map(lambda a: jnp.clip(a, -0.5, 0.5), end.x)

    path = js.MeanReverting(jnp.asarray([0.2, 0.3]))
    grid = np.linspace(100, 0, 5)
    net = js.Denoiser(lambda x, t: 3.0 * jnp.ones_like(x), path, "data")
    out = js.sample(net, jnp.zeros(2), key=jax.random.key(0), solver=S["dpmpp_2s"], grid=grid, hook=hook)
    jax.effects_barrier()
    np.testing.assert_allclose(sorted(seen), sorted(grid[1:]), atol=1e-4)
    np.testing.assert_array_equal(out, [0.5, 0.5])  # the hook clips x itself, not x - mu


def test_check_names_the_first_bad_row_and_its_time():
    grid = js.grids.log_snr(VP, 8)
    table = js.tabulate(VP, grid, S["dpmpp_2m"])

    def net(x, t):
        return jnp.where(t < grid[4] * 1.001, jnp.nan, 0.5 * x)

    with pytest.raises(
        Exception, match=rf"row 4 of 8 \(model call at t={grid[4]:.4g}.*network returned a non-finite"
    ):
        jax.block_until_ready(js.run(js.Denoiser(net, VP, "data"), table, jnp.ones(3), check=True))
    fine = js.Denoiser(Counted(), VP, "data")
    np.testing.assert_array_equal(
        js.run(fine, table, jnp.ones(3), check=True), js.run(fine, table, jnp.ones(3))
    )

    def overflow(x, t):
        return jnp.full_like(x, 3e38)

    with pytest.raises(Exception, match=r"row \d of 8.*the state became non-finite"):
        jax.block_until_ready(
            js.run(
                js.Denoiser(overflow, VP, "noise"), js.tabulate(VP, grid, S["dpm_1"]), jnp.ones(3), check=True
            )
        )


def test_check_is_free_when_off():
    net = js.Denoiser(Counted(), VP, "data")
    table = js.tabulate(VP, js.grids.log_snr(VP, 8), S["dpmpp_2m"])

    def text(check):
        return str(jax.make_jaxpr(lambda x: js.run(net, table, x, check=check))(jnp.ones(3)))

    assert "is_finite" in text(True)
    assert "is_finite" not in text(False)
    assert "callback" not in text(False)


def test_progress_survives_jit_vmap_and_grad(capfd):
    net = js.Denoiser(Counted(), VP, "noise")
    table = js.tabulate(VP, js.grids.log_snr(VP, 9), S["dpmpp_2m"])
    run = lambda x: js.run(net, table, x, progress=True)
    for f in (jax.jit(run), jax.vmap(run), jax.grad(lambda x: run(x).sum())):
        jax.block_until_ready(f(jnp.ones((4,))))
        jax.effects_barrier()
        err = capfd.readouterr().err
        assert err.endswith("\n")
        assert err.count("9/9") == 1
        assert err.count("\r") == 9  # one tick a row, however many samples


def test_pytree_states_and_a_leafwise_network():
    x = {"a": jnp.ones((2, 3)), "b": [jnp.zeros(4)]}
    net = js.Denoiser(lambda x, t: jax.tree.map(lambda a: 0.3 * jnp.sin(a), x), VP, "data")
    out = js.sample(net, x, key=jax.random.key(0), solver=S["dpmpp_2m_sde"], steps=5, save=[0, -1])
    assert jax.tree.structure(out.x) == jax.tree.structure(x)
    assert out.xs["a"].shape == (2, 2, 3)
    noise = {"a": jnp.ones((5, 2, 3)), "b": [jnp.ones((5, 4))]}
    table = js.tabulate(VP, js.grids.log_snr(VP, 5), S["dpmpp_2m_sde"])
    alone = js.run(
        js.Denoiser(lambda x, t: 0.3 * jnp.sin(x), VP, "data"), table, x["b"][0], noise=noise["b"][0]
    )
    np.testing.assert_allclose(js.run(net, table, x, noise=noise)["b"][0], alone, rtol=1e-6)


def test_bfloat16_and_float64_states():
    table = js.tabulate(VP, js.grids.log_snr(VP, 5), S["dpmpp_2m"])
    net = js.Denoiser(Counted(), VP, "noise")
    assert js.run(net, table, jnp.ones(3, jnp.bfloat16)).dtype == jnp.bfloat16
    assert js.run(net, table, jnp.ones(3)).dtype == jnp.float32
    with jax.enable_x64(True):
        assert js.run(net, table, jnp.ones(3, jnp.float64)).dtype == jnp.float64
        assert js.run(net, table, jnp.ones(3, jnp.float32)).dtype == jnp.float32


def test_gradients_reach_weights_conditioning_start_grid_and_table():
    class Net(eqx.Module):
        w: jax.Array

        def __call__(self, x, t):
            return jnp.tanh(self.w * x + 0.01 * jnp.asarray(t).astype(x.dtype))

    def loss(net, mu, x, grid):
        path = js.MeanReverting(mu)
        table = js.tabulate(path, grid, S["dpmpp_2m"])
        return js.run(js.Denoiser(net, path, "data"), table, x).sum()

    args = [Net(jnp.float32(0.7)), jnp.float32(0.3), jnp.ones(3), jnp.asarray([83.4, 61.5, 33.2, 7.7])]
    grads = jax.jit(jax.grad(lambda a: loss(*a)))(args)
    chex.assert_tree_all_finite(grads)
    for i, leaf in enumerate(jax.tree.leaves(grads)):
        assert float(jnp.abs(leaf).max()) > 1e-4, i
    with jax.enable_x64(True):
        args = jax.tree.map(lambda a: a.astype(jnp.float64), args)
        leaves, structure = jax.tree.flatten(args)
        value = jax.jit(lambda leaves: loss(*jax.tree.unflatten(structure, leaves)))
        for i, g in enumerate(jax.grad(value)(leaves)):
            above, below = (value([a + h * (j == i) for j, a in enumerate(leaves)]) for h in (1e-5, -1e-5))
            np.testing.assert_allclose(g.sum(), (above - below) / 2e-5, rtol=2e-5)


def test_plain_callable_has_no_path():
    """A callable returns the kind itself; on a mean-reverting path its mu is 0."""
    table = js.tabulate(VP, js.grids.log_snr(VP, 5), S["dpmpp_2m"])
    net = Counted()
    np.testing.assert_array_equal(
        js.run(net, table, jnp.ones(3)), js.run(js.Denoiser(net, VP, "data"), table, jnp.ones(3))
    )


def test_a_traced_stochastic_table_without_noise_is_nan():
    net = js.Denoiser(Counted(), VP, "noise")
    run = jax.jit(lambda table: js.run(net, table, jnp.ones(2)))
    assert jnp.isnan(run(js.tabulate(VP, [0.9, 0.5, 0.1], S["dpmpp_sde_1"]))).all()
    assert jnp.isfinite(run(js.tabulate(VP, [0.9, 0.5, 0.1], S["dpmpp_1"]))).all()


class Langevin(eqx.Module):
    """A js.Solver whose step depends on a norm: no table can hold it."""

    def rows(self, path, grid):
        return Rows(grid[:-1], grid[1:])

    def init(self, x, rows):
        return (x,)

    def step(self, model, state, row, key):
        (x,) = state
        score = model(x, row.t, "score")
        z = jax.random.normal(key, x.shape, x.dtype)
        size = 0.1 * (jnp.linalg.norm(z) / jnp.linalg.norm(score)) ** 2
        return (x + size * score + jnp.sqrt(2 * size) * z,)

    def final(self, state):
        return state[0]


class Rows(eqx.Module):
    t: np.ndarray
    end: np.ndarray


def test_other_solvers_share_the_driver():
    denoiser, _, _ = gaussian(VP)
    out = js.sample(
        denoiser,
        jnp.zeros(4000),
        key=jax.random.key(0),
        solver=Langevin(),
        grid=np.linspace(0.2, 0.1, 60),
        save=[0, -1],
        check=True,
    )
    assert isinstance(Langevin(), js.Solver)
    assert abs(float(out.x.mean()) - 0.7 * float(VP.alpha(0.1))) < 0.05
    np.testing.assert_allclose(out.t, [0.2, 0.1], rtol=1e-6)


def test_sample_is_prior_then_run():
    path = js.MeanReverting(jnp.full((2,), 0.4))
    net = js.Denoiser(Counted(), path, "noise")
    key = jax.random.key(9)
    a, b = jax.random.split(key)
    x = path.prior(a, jnp.zeros((3, 2)))
    want = js.run(net, js.tabulate(path, js.grids.log_snr(path, 6), S["mr_sde"]), x, key=b)
    got = js.sample(net, jax.ShapeDtypeStruct((3, 2), jnp.float32), key=key, solver=S["mr_sde"], steps=6)
    np.testing.assert_allclose(got, want, rtol=1e-6)  # the prior is compiled as one, and rounds so
    like = jax.ShapeDtypeStruct((3, 2), jnp.float32)
    uncompiled = js.sample(net, like, key=key, solver=S["mr_sde"], steps=6, jit=False)
    np.testing.assert_array_equal(uncompiled, want)
    same = js.sample(
        net, jnp.zeros((3, 2)), key=key, solver=js.tabulate(path, js.grids.log_snr(path, 6), S["mr_sde"])
    )
    np.testing.assert_array_equal(same, got)


@pytest.mark.parametrize("kind", ["data", "noise", "score", "velocity", "v"])
@pytest.mark.parametrize("name", ["dpmpp_2m", "dpm_2m", "euler"])
def test_any_prediction_serves_any_solver(x64, kind, name):
    """What a row wants is weighed before the loop: it is what the loop in plain Python converts."""
    grid, x = js.grids.log_snr(VP, 5, t_min=0.05), jnp.array([0.7, -1.2])
    net = js.Denoiser(lambda x, t: jnp.tanh(x + t), VP, kind)
    want = js.loop(net, VP, grid, S[name], x)
    np.testing.assert_allclose(js.run(net, js.tabulate(VP, grid, S[name]), x), want, rtol=1e-12)
    traced = jax.jit(lambda table: js.run(net, table, x))(js.tabulate(VP, grid, S[name]))
    np.testing.assert_allclose(traced, want, rtol=1e-11)


def test_an_undetermined_conversion_is_named_not_nan():
    """A noise network says nothing about the data where alpha = 0."""
    net = js.Denoiser(Counted(), js.CondOT(), "noise")
    message = r"'noise' prediction does not determine 'data' at t=1 \(alpha=0, sigma=1\): .*start the grid at"
    with pytest.raises(ValueError, match=message):
        js.sample(net, jnp.zeros(2), key=jax.random.key(0))
    grid = [0.999, 0.5, 0.0]  # as the error says
    assert np.isfinite(js.sample(net, x=jnp.zeros(2), grid=grid)).all()
    clean = js.Denoiser(Counted(), js.CondOT(), "data")
    with pytest.raises(
        ValueError, match=r"'data' prediction does not determine 'noise' at t=0 .*end the grid at"
    ):
        clean(jnp.zeros(2), 0.0, "noise")


def test_a_deterministic_sample_draws_nothing():
    net = js.Denoiser(Counted(), VP, "noise")
    table, x, key = small(), jnp.ones(2), jax.random.key(0)
    for model in (net, net.net):
        assert "random_bits" not in str(
            jax.make_jaxpr(lambda x, model=model: js.run(model, table, x, key=key))(x)
        )
    noisy = js.tabulate(VP, [0.9, 0.5, 0.1], S["dpmpp_sde_1"])
    assert "random_bits" in str(jax.make_jaxpr(lambda x: js.run(net, noisy, x, key=key))(x))


def test_missing_draws_of_a_traced_table_are_nan():
    net, noise = js.Denoiser(Counted(), VP, "noise"), jnp.ones((1, 2))
    run = jax.jit(lambda table: js.run(net, table, jnp.ones(2), noise=noise))
    assert jnp.isnan(run(js.tabulate(VP, [0.9, 0.5, 0.1], S["dpmpp_sde_1"]))).all()
    assert jnp.isfinite(run(js.tabulate(VP, [0.9, 0.5, 0.0], S["dpmpp_2m_sde"]))).all()


def test_hooks_and_solver_draw_from_different_keys():
    x = [jnp.zeros(3), jnp.zeros(3)]
    keys = []
    blind = js.Denoiser(lambda x, t: jax.tree.map(jnp.zeros_like, x), VP, "noise")

    def hook(end):
        keys.append(1)
        return jax.tree.map(lambda a: jax.random.normal(end.key, a.shape), end.x)

    table = js.tabulate(VP, [0.9, 0.5, 0.1], S["dpmpp_sde_1"])
    hooked = js.run(blind, table, x, key=jax.random.key(1), hook=hook)
    plain = js.run(blind, js.tabulate(VP, [0.9, 0.1], S["dpmpp_sde_1"]), x, key=jax.random.key(1))
    scale = float(js.tabulate(VP, [0.9, 0.1], S["dpmpp_sde_1"]).C[0])
    for leaf in plain:
        assert float(jnp.abs(leaf / scale - hooked[0]).max()) > 0.1
    assert len(keys) == 1


@functools.cache
def small():
    return js.tabulate(VP, [0.9, 0.5, 0.1], S["dpmpp_2m"])


def test_errors_say_what_to_do():
    net = js.Denoiser(Counted(), VP, "noise")
    x, key = jnp.ones(3), jax.random.key(0)
    cases = [
        (TypeError, "js.Denoiser", lambda: js.sample(lambda x, t: x, x, key=key)),
        (ValueError, "pass x, the starting state", lambda: js.sample(net, x, key=None)),
        (ValueError, "pass key=", lambda: js.run(net, js.tabulate(VP, [0.9, 0.1], S["dpmpp_sde_1"]), x)),
        (TypeError, "cast x", lambda: js.run(net, small(), jnp.ones(3, jnp.int32))),
        (TypeError, "dtype int32", lambda: js.sample(net, jnp.ones(3, jnp.int32), key=key)),
        (TypeError, "empty", lambda: js.run(net, small(), {})),
        (
            ValueError,
            r"returned shape \(2,\).*\(3,\)",
            lambda: js.run(js.Denoiser(lambda x, t: x[:2], VP, "data"), small(), x),
        ),
        (TypeError, "returned dtype int32", lambda: js.run(lambda x, t: x.astype(jnp.int32), small(), x)),
        (TypeError, "the state is a", lambda: js.run(lambda x, t: (x, x), small(), x)),
        (ValueError, "under vmap", lambda: js.run(net, js.stack([small(), small()]), x)),
        (ValueError, "Did you mean grid", lambda: js.sample(net, x, key=key, grid=[0.1, 0.9])),
        (ValueError, "did you mean 'dpmpp_2m'", lambda: js.solvers.by_name("dpmp_2m")),
        (TypeError, "did you mean 'form'", lambda: js.solvers.dpmpp_2m(from_="taylor")),
        (
            ValueError,
            "valid: dpmsolver",
            lambda: js.tabulate(VP, [0.9, 0.5, 0.1], js.solvers.dpmpp_2m(form="heun")),
        ),
        (ValueError, "mr_ode has no order=4", lambda: js.solvers.mr_ode(order=4)),
        (
            ValueError,
            "at least 3 steps",
            lambda: js.tabulate(VP, [0.9, 0.5, 0.1], js.solvers.mr_ode(order=3, published=True)),
        ),
        (ValueError, "at least 2", lambda: js.RecursiveCheckpoint(1)),
        (ValueError, "they must be equal", lambda: js.sample(net, jnp.zeros((4, 2)), key=key, x=x)),
        (TypeError, r"mr_published\(\)", lambda: js.sample(net, x, key=key, solver=js.solvers.mr_published)),
        (
            ValueError,
            "give it to this solver itself",
            lambda: js.sample(net, x, key=key, solver=Langevin(), noise=x[None]),
        ),
        (
            ValueError,
            "has its grid already",
            lambda: js.sample(net, x, key=key, solver=small(), grid=[0.9, 0.1]),
        ),
        (ValueError, "arrays like the state", lambda: js.run(net, small(), x, noise="brown")),
        (ValueError, "needs key=", lambda: js.run(net, small(), x, noise="brownian")),
        (ValueError, "list of indices", lambda: js.run(net, small(), x, save=3)),
        (ValueError, "before stacking", lambda: js.pad(js.stack([small(), small()]), nfe=9)),
        (ValueError, "eta scales", lambda: js.solvers.ddim(eta=5.0)),
        (
            ValueError,
            "MeanReverting path",
            lambda: js.tabulate(VP, [0.9, 0.5], js.solvers.euler(published=True)),
        ),
    ]
    for kind, message, call in cases:
        with pytest.raises(kind, match=message):
            call()


@pytest.mark.bench
def test_overhead_of_the_scan(capsys):
    """time(sample)/(NFE x jitted network) on a network that does nothing to hide behind."""
    k = jax.random.split(jax.random.key(0), 3)
    w = [jax.random.normal(a, (512, 512)) / 22 for a in k]

    def net(x, t):
        for a in w:
            x = jnp.tanh(x @ a)
        return x

    x = jnp.ones((256, 512))
    table = js.tabulate(VP, js.grids.log_snr(VP, 50), S["dpmpp_2m"])
    one = jax.jit(lambda x: net(x, 0.5))
    many = jax.jit(lambda table, x: js.run(js.Denoiser(net, VP, "data"), table, x))
    timings = []
    for f in (lambda: one(x), lambda: many(table, x)):
        jax.block_until_ready(f())
        best = min(_timed(f) for _ in range(5))
        timings.append(best)
    with capsys.disabled():
        print(f"\noverhead ratio {timings[1] / (50 * timings[0]):.3f}")


def _timed(f):
    began = time.perf_counter()
    jax.block_until_ready(f())
    return time.perf_counter() - began
