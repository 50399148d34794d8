"""Runge-Kutta in (y, rho) and churn: order conditions, the identities of section 13, what churn keeps and
where it
acts.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import gaussian, random_net

import jaxsampler as js
from jaxsampler.solvers.edm_heun import TABLEAUS, tableau_order

pytestmark = pytest.mark.usefixtures("x64")
S = js.solvers
KUTTA_NYSTROM = (  # six stages, order 5 [Butcher 2016, eq. 236a]
    [
        [],
        [1 / 4],
        [1 / 8, 1 / 8],
        [0, 0, 1 / 2],
        [3 / 16, -3 / 8, 3 / 8, 9 / 16],
        [-3 / 7, 8 / 7, 6 / 7, -12 / 7, 8 / 7],
    ],
    [7 / 90, 0, 32 / 90, 12 / 90, 32 / 90, 7 / 90],
    [0, 1 / 4, 1 / 4, 1 / 2, 3 / 4, 1],
)


@pytest.mark.parametrize("name", TABLEAUS)
def test_order_conditions_agree_with_the_name(name):
    assert tableau_order(name) == {"euler": 1, "midpoint": 2}.get(name) or int(name[0])
    assert S.rk_rho(tableau=name).order == tableau_order(name)


def test_order_conditions_see_every_tree():
    """A tableau with the right quadrature but wrong inner stages loses the orders that only the taller trees
    see.
    """
    assert tableau_order(KUTTA_NYSTROM) == 5
    A, b, c = KUTTA_NYSTROM
    swapped = [[0, 0.25][: len(row)] if i == 2 else row for i, row in enumerate(A)]
    assert tableau_order((swapped, b, c)) < 5
    assert (
        tableau_order(
            ([[], [1 / 2], [0, 1 / 2], [0, 1, 0]], [1 / 6, 1 / 3, 1 / 3, 1 / 6], [0, 1 / 2, 1 / 2, 1])
        )
        == 3
    )
    assert tableau_order(([[], [1]], [0.5, 0.4], [0, 1])) == 0


def test_a_tableau_of_ones_own_has_its_order():
    """Fifth order on one Gaussian, against the exact flow; the tableau needs no other word."""
    path = js.EDM(0.01, 20.0)
    denoiser, flow, _ = gaussian(path)
    x, errors, counts = jnp.array([0.9, -0.3, 0.2]), [], (10, 20, 40)
    run = jax.jit(lambda table: js.run(denoiser, table, x, adjoint=js.Direct()))
    for n in counts:
        grid = np.geomspace(3.0, 0.3, n + 1)
        got = run(js.pad(js.tabulate(path, grid, S.rk_rho(tableau=KUTTA_NYSTROM)), nfe=240))
        errors.append(np.abs(np.asarray(got) - flow(x, 3.0, 0.3)).max())
    assert np.polyfit(np.log(counts), -np.log(errors), 1)[0] > 4.7


BAD = {
    "name": (lambda: S.rk_rho(tableau="3kuta"), ValueError, "did you mean '3kutta'"),
    "triple": (lambda: S.rk_rho(tableau=[0.5, 0.5]), TypeError, "a tuple"),
    "implicit": (lambda: S.rk_rho(tableau=([[0.5]], [1.0], [0.5])), ValueError, "explicit"),
    "nodes": (lambda: S.rk_rho(tableau=([[], [1.0]], [0.5, 0.5], [0, 0.5])), ValueError, "row sums"),
    "stages": (lambda: S.rk_rho(tableau=([[], [1.0]], [0.5, 0.25, 0.25], [0, 1.0])), ValueError, "3 stages"),
    "order": (lambda: S.rk_rho(tableau="midpoint", order=3), ValueError, "to order 2 only, not 3"),
    "consistency": (
        lambda: S.rk_rho(tableau=([[], [1.0]], [0.5, 0.4], [0, 1.0])),
        ValueError,
        "to order 0 only",
    ),
    "edm": (lambda: S.edm(order=3), ValueError, "rk_rho has more"),
    "multistep": (lambda: S.churn(S.dpmpp_2m, 1.0), ValueError, "not dpmpp_2m"),
    "noisy": (lambda: S.churn(S.ddpm, 1.0), ValueError, "not ddpm"),
    "list": (lambda: js.tabulate(js.EDM(), [2.0, 1.0], [S.edm(s_churn=1.0)]), ValueError, "n=..."),
}


@pytest.mark.parametrize("case", BAD)
def test_errors(case):
    make, error, message = BAD[case]
    with pytest.raises(error, match=message):
        make()


def test_a_midpoint_in_lam_or_in_rho():
    """dpm_2 calls at the geometric mean of the levels, the midpoint tableau at their arithmetic mean; both
    step y with
    that slope only.
    """
    path, grid = js.EDM(), np.array([3.0, 1.0])
    net, x = js.Denoiser(random_net(2), path, "noise"), jnp.array([[0.4, -1.0, 2.0]])
    run = jax.jit(lambda table: js.run(net, table, x, adjoint=js.Direct()))
    for solver, level in ((S.dpm_2, np.sqrt(3.0)), (S.rk_rho(tableau="midpoint"), 2.0)):
        table = js.tabulate(path, grid, solver)
        np.testing.assert_allclose(table.t, [3.0, level], rtol=1e-12)
        middle = x + (level - 3.0) * net.net(x, jnp.float64(3.0))
        np.testing.assert_allclose(run(table), x - 2.0 * net.net(middle, jnp.float64(level)), rtol=1e-12)


def test_heun_in_rho_is_edm_but_for_its_last_step():
    path = js.VP()
    grid = js.grids.log_snr(path, 6)
    a, b = (js.tabulate(path, grid, s) for s in (S.rk_rho(tableau="2heun"), S.edm))
    np.testing.assert_array_equal(a.B, b.B)
    into_zero = js.tabulate(path, [*grid, 0.0], S.edm)
    assert into_zero.nfe == b.nfe + 1  # Euler there
    np.testing.assert_allclose(into_zero.B[:-2, :2], b.B[:-1, :2], rtol=1e-12)


@pytest.mark.parametrize("path", [js.VP(), js.EDM(0.01, 20.0)], ids=["vp", "edm"])
def test_churn_keeps_the_law_to_second_order(path):
    """Exact x_T in, exact variance out up to n^-2, though a third or more of it is made of fresh noise.

    For Gaussian data the sample is affine in (x_T, z_1, ..): its coefficients are read off unit inputs, one
    sample each.
    """
    net, _, law = gaussian(path)
    counts, errors = (20, 40, 80), []
    start, end = float(path.time(-1.0)), float(path.time(1.2))
    x = jnp.zeros(82).at[1].set(1.0)  # nothing, x_T, z_1, .., z_80
    noise = jnp.concatenate([jnp.zeros((80, 2)), jnp.eye(80)], axis=1)
    run = jax.jit(lambda table: js.run(net, table, x, noise=noise, adjoint=js.Direct()))
    for n in counts:
        table = js.tabulate(path, js.grids.log_snr(path, n, t_max=start, t_min=end), S.edm(s_churn=2.0))
        out = np.asarray(run(js.pad(table, nfe=160)))
        fresh, total = ((out[2:] - out[0]) ** 2).sum(), (out[1] - out[0]) ** 2 * law(start)[1]
        total += fresh
        errors.append(abs(total - law(end)[1]))
        assert 0.3 < fresh / total < 1.0
    assert abs(np.polyfit(np.log(counts), -np.log(errors), 1)[0] - 2) < 0.25


def test_churn_acts_in_its_range_and_draws_everywhere():
    path, grid = js.EDM(), np.array([10.0, 5.0, 2.0, 1.0, 0.5])
    table = js.tabulate(path, grid, S.edm(s_churn=0.8, s_min=1.0, s_max=5.0))
    np.testing.assert_allclose(table.t[::2], [10.0, 6.0, 2.4, 1.2], rtol=1e-12)  # gamma = 0.8/4
    np.testing.assert_allclose(
        table.C[1::2], [np.sqrt(6.0**2 - 25), np.sqrt(2.4**2 - 4), np.sqrt(1.2**2 - 1), 0.0], rtol=1e-12
    )
    np.testing.assert_array_equal(
        table.draw[1:-1:2], [1, 2, 3]
    )  # draw 0 is there, unused, before the first call
    assert tuple(table.start) == (1.0, 0.0)
    strong = js.tabulate(path, grid, S.edm(s_churn=100.0))
    np.testing.assert_allclose(strong.t[::2], np.sqrt(2) * grid[:-1], rtol=1e-12)  # never more than sqrt(2)
    louder = js.tabulate(path, grid, S.edm(s_churn=100.0, s_noise=1.01))
    np.testing.assert_allclose(louder.C[1::2], 1.01 * strong.C[1::2], rtol=1e-12)
    np.testing.assert_allclose(louder.start[1], 1.01 * 10.0, rtol=1e-12)


def test_churn_stops_at_the_end_of_a_path_but_not_of_edm():
    vp = js.VP()
    grid = np.array([vp.t_max, 0.999 * vp.t_max, 0.5, 0.2])
    table = js.tabulate(vp, grid, S.edm(s_churn=100.0))
    assert table.start[1] == 0.0
    np.testing.assert_allclose(
        table.t[:4:2], 1.0, rtol=1e-9
    )  # the second level is raised to the end, not past it
    assert table.C[1] > 0
    edm = js.EDM()
    assert js.tabulate(edm, js.grids.default(edm, 4), S.edm(s_churn=100.0)).t[0] == pytest.approx(
        80 * np.sqrt(2)
    )


def test_churn_says_its_number_of_intervals():
    path = js.EDM()
    grid = js.grids.default(path, 5)
    a = js.tabulate(path, grid, S.edm(s_churn=2.0))
    euler = S.edm(order=1, s_churn=2.0, n=5)
    b = js.tabulate(path, grid, [*[S.edm(s_churn=2.0, n=5)] * 4, euler])
    chex.assert_trees_all_equal(a, b)


def test_churned_dpm_2():
    """k-diffusion's dpm_2 with churn, in its own variables."""
    path, grid = js.EDM(), np.array([8.0, 3.0, 1.0, 0.2])
    net, x = js.Denoiser(random_net(3), path, "data"), jnp.array([[0.4, -1.0, 2.0]])
    noise = jax.random.normal(jax.random.key(0), (3, 1, 3))
    table = js.tabulate(path, grid, S.churn(S.dpm_2, 0.6, s_noise=1.1))
    got = js.run(net, table, x, noise=noise, adjoint=js.Direct())
    for sigma, after, z in zip(grid[:-1], grid[1:], noise, strict=True):
        raised = 1.2 * sigma
        x = x + 1.1 * np.sqrt(raised**2 - sigma**2) * z
        middle = np.exp((np.log(raised) + np.log(after)) / 2)
        slope = (x - net.net(x, raised)) / raised
        inner = x + (middle - raised) * slope
        x = x + (after - raised) * (inner - net.net(inner, middle)) / middle
    np.testing.assert_allclose(got, x, rtol=1e-12)


@pytest.mark.parametrize(
    "path", [js.VP(), js.EDM(0.01, 20.0), js.MeanReverting(0.4)], ids=["vp", "edm", "mr"]
)
def test_traced_churn_and_grid_differentiate(path):
    grid = js.grids.log_snr(path, 3, t_max=float(path.time(-1.0)), t_min=float(path.time(1.2)))
    base, x = random_net(4), jnp.array([[0.4, -1.0, 2.0]])
    net = js.Denoiser(lambda x, t: base(x, t / path.t_max), path, "data")

    def total(s_churn, s_noise, grid):
        table = js.tabulate(path, grid, S.edm(s_churn=s_churn, s_noise=s_noise, s_min=0.5))
        return js.run(net, table, x, key=jax.random.key(0), adjoint=js.Direct()).sum()

    args = [jnp.asarray(0.4), jnp.asarray(1.0), jnp.asarray(grid)]
    slopes, value = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(*args), jax.jit(total)
    np.testing.assert_allclose(value(*args), total(0.4, 1.0, grid), rtol=1e-10)  # as the concrete table does
    for i, h in ((0, 1e-5), (1, 1e-5), (2, 1e-5 * path.t_max * jnp.eye(4)[1])):
        up, down = (value(*[a + sign * h if i == j else a for j, a in enumerate(args)]) for sign in (1, -1))
        np.testing.assert_allclose((slopes[i] * h).sum(), (up - down) / 2, rtol=1e-5)


@pytest.mark.parametrize(
    "solver", [S.edm, S.edm(s_churn=3.0), S.rk_rho(tableau="4rk")], ids=["edm", "churn", "4rk"]
)
def test_from_pure_noise_to_clean_data(solver):
    """alpha = 0 at the start, sigma = 0 at the end: point data are reached exactly, as every step is
    straight.
    """
    path = js.CondOT()
    net = js.Denoiser(lambda x, t: 0.0 * x + 0.7, path, "data")
    x = jax.random.normal(jax.random.key(0), (5,))
    table = js.tabulate(path, np.linspace(1, 0, 6), solver)
    got = js.run(net, table, x, key=jax.random.key(1), adjoint=js.Direct())
    np.testing.assert_allclose(got, 0.7, rtol=1e-10)
