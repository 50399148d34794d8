"""Single-step drivers: the budget of calls is kept to the call, and where the inner nodes lie decides the
order.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import mixture

import jaxsampler as js

pytestmark = pytest.mark.usefixtures("x64")
S = js.solvers
VP = js.VP()
ENDS = float(VP.time(-1.0)), float(VP.time(1.2))
X = np.array([0.9, -0.3, 0.2])
GRIDS = [js.grids.log_snr, js.grids.uniform, js.grids.karras, functools.partial(js.grids.log_snr, t_max=0.9)]


@functools.cache
def problem():
    """The exact end point from lam = -1 to 1.2, and a jitted run of a table."""
    denoiser, flow = mixture(VP)
    run = jax.jit(lambda table: js.run(denoiser, table, jnp.asarray(X), adjoint=js.Direct()))
    return flow(X, *ENDS), run


def order_of(table):
    """Slope of the error of the tables of n = 48, 96, 192 calls."""
    truth, run = problem()
    counts = (48, 96, 192)
    errors = [np.abs(np.asarray(run(js.pad(table(n), nfe=192, regs=4))) - truth).max() for n in counts]
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


def uniform(path, n, t_max=ENDS[0], t_min=ENDS[1]):
    return js.grids.uniform(path, n, t_max=t_max, t_min=t_min)


@pytest.mark.parametrize("kind", ["noise", "data"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_every_budget_is_kept(order, kind):
    """n calls, counted in the table; steps of full order first, then lower ones; from one end of the grid to
    the other.
    """
    for n, grid in itertools.product(range(1, 14), GRIDS):
        times, steps = S.singlestep(VP, n, order, kind=kind, grid=grid)
        orders = [s.order for s in steps]
        assert js.tabulate(VP, times, steps).nfe == sum(orders) == n
        assert orders == sorted(orders, reverse=True)
        assert all(s.kind == kind for s in steps)
        np.testing.assert_array_equal(times[[0, -1]], np.asarray(grid(VP, 4))[[0, -1]])
        if n >= order:
            times, steps = S.singlestep_fixed(VP, n, order, kind=kind, grid=grid)
            assert {s.order for s in steps} == {order}
            assert js.tabulate(VP, times, steps).nfe == order * (n // order)


def test_orders_at_the_end():
    """As published, by hand."""
    got = {n: [s.order for s in S.singlestep(VP, n)[1]] for n in (6, 7, 8, 9)}
    assert got == {6: [3, 2, 1], 7: [3, 3, 1], 8: [3, 3, 2], 9: [3, 3, 2, 1]}
    assert [s.order for s in S.singlestep(VP, 5, 2)[1]] == [2, 2, 1]


def test_steps_take_their_share_of_the_grid():
    """Off log_snr a step of order k spans k of nfe intervals; on it all steps are equal."""
    times, _ = S.singlestep(VP, 9, 3, grid=js.grids.uniform)
    np.testing.assert_allclose(
        np.diff(times) / (times[-1] - times[0]), np.array([3, 3, 2, 1]) / 9, rtol=1e-12
    )
    times, _ = S.singlestep(VP, 9, 3)
    np.testing.assert_allclose(np.diff(VP.lam(times)), np.diff(VP.lam(times))[0], rtol=1e-9)


@pytest.mark.parametrize("kind", ["noise", "data"])
@pytest.mark.parametrize("form", ["dpmsolver", "taylor"])
@pytest.mark.parametrize("published", [False, True])
def test_order_of_the_drivers(kind, form, published):
    """All steps of third order: 3, ours and published. A first-order step at the end: 2."""
    table = lambda driver: (
        lambda n: js.tabulate(VP, *driver(VP, n, 3, kind=kind, form=form, grid=uniform, published=published))
    )
    assert abs(order_of(table(S.singlestep_fixed)) - 3) < 0.35
    assert abs(order_of(table(S.singlestep)) - 2) < 0.25


def test_published_nodes_are_uniform_in_the_grid():
    """The calls of a step at equal times within it, on a grid uniform in t; ours are uniform in lam."""
    calls = {
        p: js.tabulate(VP, *S.singlestep_fixed(VP, 6, 3, kind="data", grid=js.grids.uniform, published=p)).t
        for p in (False, True)
    }
    np.testing.assert_allclose(np.diff(calls[True]), np.diff(calls[True])[0], rtol=1e-9)
    lam = VP.lam(calls[False])
    np.testing.assert_allclose(
        [lam[2] - lam[1], lam[5] - lam[4]], [lam[1] - lam[0], lam[4] - lam[3]], rtol=1e-9
    )
    assert abs(lam[3] - 2 * lam[2] + lam[1]) < 1e-9


@pytest.mark.parametrize("solver", [S.dpm_3, S.dpmpp_3s], ids=lambda s: s.name)
@pytest.mark.parametrize("form", ["dpmsolver", "taylor"])
def test_inner_nodes_elsewhere(solver, form):
    """Of third order for any r1, but for r2 = 2/3 only."""
    table = lambda **options: (
        lambda n: js.tabulate(
            VP, js.grids.log_snr(VP, n // 3, t_max=ENDS[0], t_min=ENDS[1]), solver(**options)
        )
    )
    assert abs(order_of(table(r1=0.5, r2=2 / 3, form=form)) - 3) < 0.3
    assert abs(order_of(table(r1=0.4, r2=0.9, form=form)) - 2) < 0.3


@pytest.mark.parametrize("solver", [S.dpm_2, S.dpmpp_2s], ids=lambda s: s.name)
@pytest.mark.parametrize("form", ["dpmsolver", "taylor"])
def test_second_order_for_any_node(solver, form):
    table = lambda n: js.tabulate(
        VP, js.grids.log_snr(VP, n // 2, t_max=ENDS[0], t_min=ENDS[1]), solver(r=0.8, form=form)
    )
    assert abs(order_of(table) - 2) < 0.2


def test_user_errors():
    for options, message in (
        ({"nfe": 0}, "at least one"),
        ({"nfe": 6, "order": 4}, "order 1, 2 or 3"),
        ({"nfe": 6, "kind": "v"}, "data or noise"),
        ({"nfe": 6, "form": "midpoint"}, "unknown form"),
    ):
        with pytest.raises(ValueError, match=message):
            S.singlestep(VP, **options)
    with pytest.raises(ValueError, match="more than nfe=2"):
        S.singlestep_fixed(VP, 2, 3)


def test_lists_of_steps_leave_alpha_0():
    """A step in a list takes the way out of pure noise that it takes by itself."""
    path, grid = js.CondOT(), [1.0, 0.7, 0.3, 0.0]
    denoiser = js.models.gaussian_mixture([[1.0], [-1.0]], 0.3, path)
    x = jnp.linspace(-2, 2, 5)[:, None]
    for step in (js.solvers.dpmpp_2s, js.solvers.dpmpp_1):
        alone = js.sample(denoiser, x=x, grid=grid, solver=step)
        listed = js.sample(denoiser, x=x, grid=grid, solver=[step] * 3)
        assert np.isfinite(listed).all()
        np.testing.assert_allclose(listed, alone, atol=1e-6)
    times, steps = js.solvers.singlestep(path, 24, kind="data", grid=js.grids.uniform)
    split = js.sample(denoiser, x=x, grid=times, solver=steps)
    many = js.sample(denoiser, x=x, steps=200, solver=js.solvers.heun)
    np.testing.assert_allclose(split, many, atol=0.02)
