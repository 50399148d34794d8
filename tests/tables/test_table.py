"""A table is the textbook step: it equals the plain loop, refuses what is not linear, pads, stacks and
follows a
traced grid.
"""

import functools

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Cubic, random_net
from safetensors import numpy

import jaxsampler as js

pytestmark = pytest.mark.usefixtures("x64")
SOLVERS = js.solvers.catalogue()
PATHS = {
    "vp": js.VP(),
    "edm": js.EDM(sigma_min=0.01, sigma_max=20.0),
    "mr": js.MeanReverting(0.4),
    "cubic": Cubic(),
}
VARIANTS = {
    "ddim_eta": js.solvers.ddim(eta=0.6),
    "ddpm_large": js.solvers.ddpm(variance_type="fixed_large"),
    "2m_taylor": js.solvers.dpmpp_2m(form="taylor"),
    "3m_published": js.solvers.dpmpp_3m(published=True),
    "2m_final": js.solvers.dpm_2m(lower_order_final=True),
    "2s_r": js.solvers.dpmpp_2s(r=0.3, form="taylor"),
    "3s_taylor": js.solvers.dpm_3(form="taylor"),
    "2m_sde_half": js.solvers.dpmpp_2m_sde(eta=0.5, form="taylor"),
    "mr_ode_3n": js.solvers.mr_ode(order=3, kind="noise"),
    "edm_churn": js.solvers.edm(s_churn=0.8, s_noise=1.1),
    "churn_dpm_2": js.solvers.churn(js.solvers.dpm_2, 0.5),
    "rk_rho_3": js.solvers.rk_rho(tableau="3ralston"),
    "heun_a": js.solvers.heun(a=0.5),
    "mr_sde_2n": js.solvers.mr_sde(order=2, kind="noise"),
}


@js.step(kind="velocity", order=2, noises=1, churn=True)
def churned(path, ts, x, past, model, z):
    """Noise before the first call, then a Heun step."""
    t, s = ts[-2:]
    x = x + 0.3 * path.sigma(t) * z
    slope = model(x, t)
    return x + (s - t) / 2 * (slope + model(x + (s - t) * slope, s))


@js.step(kind="score", order=1, noises=2)
def corrected(path, ts, x, past, model, z):
    """A Langevin correction and a noisy prediction: two draws, the second call continues from the noisy
    state.
    """
    t, s = ts[-2:]
    x = x + 0.1 * model(x, t) + 0.2 * z[0]
    return x + (t - s) * model(x, t) + 0.4 * z[1]


@js.step(kind="data", order=1, noises=2)
def two_stage(path, ts, x, past, model, z):
    """Two draws, but the second stage starts again from the state of the step (as dpmpp_sde does)."""
    t, s = ts[-2:]
    u = 0.7 * x + 0.3 * model(x, t) + 0.2 * z[0]
    return 0.5 * x + 0.5 * model(u, (t + s) / 2) + 0.4 * z[1]


@js.step(kind="data", order=1, noises=1)
def jump(path, ts, x, past, model, z):
    """No call at all: noise is added, as in time travel."""
    return 0.9 * x + 0.1 * z


@functools.cache
def shared_run(path):
    """One compilation per path: tables of one padded shape are arguments."""
    net = js.Denoiser(jax.jit(random_net(1)), path, "data")  # the loop calls it without the scan
    return net, jax.jit(lambda table, x: js.run(net, table, x, key=jax.random.key(5), adjoint=js.Direct()))


def agree(solver, path, grid, rtol=1e-12):
    net, run = shared_run(path)
    x = jax.random.normal(jax.random.key(3), (4, 3), jnp.float64)
    table = js.tabulate(path, grid, solver)
    got = run(js.pad(table, nfe=18, regs=10), x)
    want = js.loop(net, path, grid, solver, x, key=jax.random.key(5))
    np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol * float(jnp.abs(want).max()))
    return table


@pytest.mark.parametrize("name", [*SOLVERS, *VARIANTS])
@pytest.mark.parametrize("path", PATHS)
def test_table_equals_plain_loop(name, path):
    solver = (SOLVERS | VARIANTS)[name]
    path = PATHS[path]
    grid = js.grids.uniform(path, 6, t_max=0.9 * path.t_max, t_min=0.1 * path.t_max)
    agree(solver, path, grid)


@pytest.mark.parametrize("name", [n for n in [*SOLVERS, *VARIANTS] if not n.endswith("2n")])
def test_table_equals_plain_loop_into_clean_data(name):
    grid = [*js.grids.log_snr(js.VP(), 5), 0.0]
    agree((SOLVERS | VARIANTS)[name], js.VP(), grid)


@settings(max_examples=60, deadline=None)
@given(
    gaps=st.lists(st.floats(1e-3, 1.0), min_size=4, max_size=6),
    names=st.lists(st.sampled_from(sorted(SOLVERS)), min_size=6, max_size=6),
    end=st.floats(0.02, 0.5),
)
def test_random_grids_and_random_schedules(gaps, names, end):
    """Any decreasing grid, any solver per interval that has its history: mixed kinds, orders and calls."""
    times = np.concatenate([[0.0], np.cumsum(gaps)])
    grid = 0.97 - (0.97 - end) * times / times[-1]
    steps = [
        SOLVERS[name] if SOLVERS[name].past <= i else js.solvers.ddim
        for i, name in enumerate(names[: len(gaps)])
    ]
    agree(steps, js.VP(), grid, rtol=1e-9)  # long noise-kind steps at low alpha amplify rounding


@pytest.mark.parametrize("solver", [churned, corrected, two_stage])
def test_churn_and_several_draws_per_step(solver):
    table = agree(solver, js.VP(), np.linspace(0.9, 0.2, 6))
    assert table.nfe == 10
    assert table.draws == 5 * solver.noises


def test_steps_without_calls_fold_into_the_row_before():
    grid = np.linspace(0.9, 0.2, 6)
    table = agree([js.solvers.dpmpp_1, jump, js.solvers.ddim, jump, js.solvers.dpm_1], js.VP(), grid)
    assert table.nfe == 3
    assert table.draws == 2
    np.testing.assert_array_equal(table.end, [grid[2], grid[4], grid[5]])


def test_schedule_may_mix_orders_calls_and_kinds():
    s = js.solvers
    schedule = [s.dpmpp_3s, s.dpm_2m, s.dpmpp_3m, s.heun, s.dpm_2m(form="taylor"), s.dpmpp_2m_sde, s.dpm_3m]
    table = agree(schedule, js.VP(), js.grids.log_snr(js.VP(), 7))
    assert table.nfe == 3 + 1 + 1 + 2 + 1 + 1 + 1


def test_two_draws_in_one_row_are_refused():
    with pytest.raises(ValueError, match="a row can add one draw"):
        js.tabulate(js.VP(), [0.9, 0.5, 0.2], [js.solvers.dpmpp_sde_1, churned])


def test_noise_used_twice_is_refused():
    @js.step(kind="data", order=1, noises=1)
    def twice(path, ts, x, past, model, z):
        u = x + z
        return model(u, ts[-2]) + 2 * u + model(x + 3 * z, ts[-2])

    with pytest.raises(ValueError, match="each draw may enter one update only"):
        js.tabulate(js.VP(), [0.9, 0.5], twice)


def test_nonlinear_and_affine_steps_are_refused():
    @js.step(kind="data", order=1)
    def clipped(path, ts, x, past, model, z):
        return np.clip(model(x, ts[-2]), -1, 1)

    @js.step(kind="data", order=1)
    def shifted(path, ts, x, past, model, z):
        return model(x, ts[-2]) + 1.0

    for bad in (clipped, shifted):
        with pytest.raises(ValueError, match="not linear"):
            js.tabulate(js.VP(), [0.9, 0.5], bad)


def test_list_is_taken_literally():
    with pytest.raises(ValueError, match="2 steps for 3 intervals"):
        js.tabulate(js.VP(), [0.9, 0.6, 0.3, 0.1], [js.solvers.dpmpp_1] * 2)
    with pytest.raises(ValueError, match="reads 1 past outputs but only 0"):
        js.tabulate(js.VP(), [0.9, 0.6], [js.solvers.dpmpp_2m])


def test_rules_of_a_step():
    grid = js.grids.log_snr(js.VP(), 6)
    up = [js.solvers.dpmpp_1, js.solvers.dpmpp_2m, *[js.solvers.dpmpp_3m] * 4]
    down = [*up[:4], js.solvers.dpmpp_2m, js.solvers.dpmpp_1]
    for solver, spelled in ((js.solvers.dpmpp_3m, up), (js.solvers.dpmpp_3m(lower_order_final=True), down)):
        a, b = js.tabulate(js.VP(), grid, solver), js.tabulate(js.VP(), grid, spelled)
        np.testing.assert_array_equal(a.B, b.B)
    zero = np.append(grid, 0.0)
    a, b = (
        js.tabulate(js.VP(), zero, js.solvers.dpmpp_3m),
        js.tabulate(js.VP(), zero, [*up, js.solvers.dpmpp_1]),
    )
    np.testing.assert_array_equal(a.B, b.B)


@pytest.mark.parametrize("name", ["dpm_2m", "dpm_2", "euler_maruyama"])
def test_unusable_end_is_named(name):
    with pytest.raises(ValueError, match=r"row 0 .*alpha=0.*not finite"):
        js.tabulate(js.CondOT(), [1.0, 0.5, 0.1], SOLVERS[name])


def test_options_add_up():
    solver = js.solvers.mr_ode(order=3)(kind="noise")
    assert (solver.order, solver.kind) == (3, "noise")
    assert js.solvers.dpmpp_2s(r=0.3)(form="taylor").formula(
        js.VP(), np.array([0.9, 0.5]), 1.0, (), lambda x, t: x * t, ()
    ) == (
        js.solvers.dpmpp_2s(r=0.3, form="taylor").formula(
            js.VP(), np.array([0.9, 0.5]), 1.0, (), lambda x, t: x * t, ()
        )
    )


class InJax(js.Path):
    """A user's path written in jax.numpy, with a parameter."""

    power: float = 3.0

    def alpha(self, t):
        return 1 - jnp.asarray(t) ** self.power

    def sigma(self, t):
        return jnp.asarray(t)


@pytest.mark.parametrize("name", ["dpmpp_2s", "dpm_3", "dpmpp_2m_sde", "heun"])
def test_a_path_written_in_jax_gives_the_same_table(name):
    grid = np.linspace(0.9, 0.1, 5)
    want = js.tabulate(Cubic(), grid, SOLVERS[name])
    with jax.enable_x64(False):
        got = js.tabulate(InJax(), grid, SOLVERS[name])
    chex.assert_trees_all_close(got, want, rtol=1e-9, atol=1e-12)


def test_a_traced_grid_may_be_told_of_its_ends():
    path, grid = js.CondOT(), np.linspace(1, 0, 6)
    want = js.tabulate(path, grid, js.solvers.dpmpp_2s)
    got = jax.jit(lambda g: js.tabulate(path, g, js.solvers.dpmpp_2s, to_zero=True, from_noise=True))(
        jnp.asarray(grid)
    )
    chex.assert_trees_all_close(got, want, rtol=1e-9, atol=1e-12)


def test_unknown_solver_object():
    with pytest.raises(TypeError, match="by_name"):
        js.tabulate(js.VP(), [0.9, 0.5], "dpmpp_2m")


TRACED = [
    "dpmpp_3m",
    "dpm_3",
    "heun",
    "edm",
    "dpmpp_2m_sde",
    "ddim",
    "euler_maruyama",
    "deis",
    "lms",
    "plms",
    "unipc",
]
ELSEWHERE = [
    ("dpmpp_3m", "mr"),
    ("heun", "mr"),
    ("deis", "mr"),
    ("unipc", "mr"),
    ("dpm_3", "cubic"),
    ("dpmpp_2m_sde", "cubic"),
    ("ddim", "cubic"),
]


@pytest.mark.parametrize(("name", "path"), [*((name, "vp") for name in TRACED), *ELSEWHERE])
def test_traced_grid_gives_the_same_table_and_its_derivative(name, path):
    path, solver = PATHS[path], SOLVERS[name]
    n = max(2, solver.past + 1)  # intervals: as few as show all of its orders, because all are compiled
    grid = js.grids.uniform(path, n, t_max=0.8737 * path.t_max, t_min=0.1319 * path.t_max)
    direction = np.array([0.4, 1.0, -0.5, 0.3, 0.2, 0.1])[: n + 1]

    def total(table, xp=np):
        rows = np.arange(1.0, table.nfe + 1)
        return (table.A * rows).sum() + (xp.sin(table.B) * rows[:, None] ** 2).sum() + (table.C**2).sum()

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def slope_and_table(e):
        table = js.tabulate(path, jnp.asarray(grid) + e * direction, solver)
        return total(table, jnp), table

    slope, traced = slope_and_table(0.0)
    chex.assert_trees_all_close(traced, js.tabulate(path, grid, solver), rtol=1e-9, atol=1e-11)
    h = 1e-5 * path.t_max  # MeanReverting is piecewise: its knots are at least 0.13 away from these points
    above, below = (total(js.tabulate(path, grid + e * direction, solver)) for e in (h, -h))
    np.testing.assert_allclose(slope, (above - below) / (2 * h), rtol=1e-5)


def test_padding_changes_nothing():
    path, net = js.VP(), js.Denoiser(random_net(), js.VP(), "noise")
    x = jax.random.normal(jax.random.key(0), (2, 3))
    run = jax.jit(lambda table: js.run(net, table, x, key=jax.random.key(1), adjoint=js.Direct()))
    for name in ("dpmpp_3m", "heun", "dpmpp_2m_sde"):
        table = js.tabulate(path, js.grids.log_snr(path, 5), SOLVERS[name])
        big = js.pad(table, nfe=14, regs=table.regs + 2)
        assert (big.nfe, big.regs) == (14, table.regs + 2)
        assert big.nfe >= table.nfe + 4
        np.testing.assert_array_equal(run(big), run(table))
    with pytest.raises(ValueError, match="smaller"):
        js.pad(table, nfe=1)


def test_vmap_over_64_stacked_tables_equals_64_runs():
    path, net = js.VP(), js.Denoiser(random_net(), js.VP(), "v")
    x = jax.random.normal(jax.random.key(0), (3,))
    names = [n for n in SOLVERS if n not in ("dpmpp_3s", "dpm_3")]
    tables = [
        js.tabulate(path, js.grids.karras(path, 3 + i % 4, rho=1.0 + i % 7), SOLVERS[names[i % len(names)]])
        for i in range(64)
    ]
    run = lambda table: js.run(net, table, x, key=jax.random.key(1), adjoint=js.Direct())
    many, alone = jax.jit(jax.vmap(run))(js.stack(tables)), jax.jit(run)
    nfe, regs = max(t.nfe for t in tables), max(t.regs for t in tables)
    for table, got in zip(tables, many, strict=True):
        np.testing.assert_allclose(got, alone(js.pad(table, nfe=nfe, regs=regs)), rtol=1e-12, atol=1e-12)
    chex.assert_tree_all_finite(many)
    np.testing.assert_allclose(many[5], run(tables[5]), rtol=1e-12)


def test_registers_follow_from_what_steps_declare():
    """The shape of a table must not depend on the numbers: equal steps, a grid whose weights happen to
    vanish.
    """
    path = js.VP()
    a = js.tabulate(path, js.grids.log_snr(path, 6), js.solvers.dpmpp_2m_sde(eta=1.0))
    b = js.tabulate(path, js.grids.uniform(path, 6), js.solvers.dpmpp_2m_sde(eta=0.0))
    for u, v in ((a.slot, b.slot), (a.keep, b.keep), (a.draw, b.draw)):
        np.testing.assert_array_equal(u, v)
    assert a.B.shape == b.B.shape


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    with jax.enable_x64(True):
        tables = [
            js.tabulate(js.VP(), js.grids.log_snr(js.VP(), n), SOLVERS[name])
            for n, name in ((5, "edm"), (7, "dpmpp_2m_sde"))
        ]
    file = tmp_path_factory.mktemp("tables") / "two.safetensors"
    js.stack(tables).save(file, parent="edm", budget=3, score={"rmse": [0.1, 0.2]})
    return file, js.stack(tables)


def test_a_saved_table_comes_back_bit_for_bit(saved):
    file, table = saved
    back = js.Table.load(file)
    assert jax.tree.structure(back) == jax.tree.structure(table)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(table), strict=True):
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()  # NaN too
    assert js.Table.about(file) == {"parent": "edm", "budget": 3, "score": {"rmse": [0.1, 0.2]}}
    one = jax.tree.map(lambda a: a[..., ::-1].T if a.ndim == 3 else a, table).B  # not contiguous
    eqx.tree_at(lambda t: t.B, table, one.T[..., ::-1]).save(file)
    assert js.Table.load(file).B.tobytes() == table.B.tobytes()
    assert js.Table.about(file) == {}


def test_equal_tables_are_equal_files(saved, tmp_path):
    for name in "ab":
        saved[1].save(tmp_path / name, parent="edm", budget=3)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_files_that_are_no_tables_are_one_line(saved, tmp_path):
    file, table = saved
    whole = file.read_bytes()

    def fails(match, path=tmp_path / "bad.safetensors"):
        with pytest.raises(ValueError, match=match) as e:
            js.Table.load(path)
        assert "\n" not in str(e.value)
        assert path.name in str(e.value)

    fails("cannot read the table", tmp_path / "none.safetensors")
    fails("cannot read the table", tmp_path)
    for damaged in (b"", whole[:-8], b"PK" + whole, b"\0" * 100):
        (tmp_path / "bad.safetensors").write_bytes(damaged)
        fails("is corrupt")
    numpy.save_file({"weight": np.ones(3), "bias": np.ones(3)}, tmp_path / "bad.safetensors")
    fails("is not a table: it holds bias, weight")
    arrays = {name: getattr(table, name) for name in numpy.load(whole)}
    for name, wrong in (
        ("A", table.A[:, 1:]),
        ("slot", table.slot.astype(float)),
        ("t", table.t.astype(int)),
        ("start", table.start[0]),
    ):
        numpy.save_file(arrays | {name: np.ascontiguousarray(wrong)}, tmp_path / "bad.safetensors")
        fails("is not a table: its")


def test_what_json_cannot_hold_is_refused_before_anything_is_written(saved, tmp_path):
    with pytest.raises(TypeError, match="cannot save path=VP.* about a table"):
        saved[1].save(tmp_path / "x.safetensors", path=js.VP())
    assert list(tmp_path.iterdir()) == []
