"""Optimised grids against closed forms: Gaussian data, brute force over all grids, the numbers of the
released codes.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import gaussian
from scipy.integrate import quad

import jaxsampler as js
from jaxsampler.search.align import ays, bound, changes, swept
from jaxsampler.search.dmn_grid import LAGRANGE, amplification, contributions, dmn
from jaxsampler.search.gits_grid import COSTS, gits, jump_costs
from jaxsampler.search.nodes import candidates, cheapest, path_of

KEY = jax.random.key(0)
STD = 0.4
PATHS = {"vp": js.VP(), "edm": js.EDM(), "cond_ot": js.CondOT()}
ends = {"vp": (1.0, 1e-3), "edm": (80.0, 0.0), "cond_ot": (1.0, 0.0)}
each_path = pytest.mark.parametrize("name", PATHS)


@functools.cache
def normal(name, mean=0.7):
    """The exact denoiser, its flow and its moments on a path, for Gaussian data; one object, compiled for
    once.
    """
    return gaussian(PATHS[name], mean, STD)


def normal_data(mean=0.7):
    return lambda key: mean + STD * jax.random.normal(key, (2,))


@pytest.mark.parametrize("gamma", [1.0, 3.0])
def test_the_cheapest_grid_is_that_of_brute_force(gamma):
    """All grids of 1 to 6 steps between 7 candidates, each summed by itself; the other half of the costs may
    be anything.
    """
    cost = np.random.default_rng(1).uniform(-1, 1, (7, 7))
    cost[np.tril_indices(7)] = np.nan
    for n in range(1, 7):
        every = [np.array([0, *inner, 6]) for inner in itertools.combinations(range(1, 6), n - 1)]
        total = [
            sum(gamma**k * cost[a, b] for k, (a, b) in enumerate(itertools.pairwise(nodes)))
            for nodes in every
        ]
        np.testing.assert_array_equal(cheapest(cost, n, gamma), every[int(np.argmin(total))])


@each_path
def test_candidates_span_the_default_grid(name):
    times = candidates(PATHS[name], 60)
    assert (times[0], times[-1]) == ends[name]
    js.grids.checked(PATHS[name], times)
    own = np.array([0.9, 0.3, 0.1])
    np.testing.assert_array_equal(candidates(PATHS[name], own), own)
    assert tuple(candidates(PATHS[name], 10, t_max=0.8, t_min=0.1)[[0, -1]]) == (0.8, 0.1)


@each_path
def test_arctan_is_the_best_grid_for_ddim_on_gaussian_data(name):
    """With rho = std tan(theta) a DDIM step falls short by cos(dtheta): on equal angles the spread is
    cos(dtheta)^n of the true one.
    """
    path, n = PATHS[name], 6
    denoiser, flow, moments = normal(name)
    grid = js.grids.arctan(path, n, STD)
    assert (grid[0], grid[-1]) == ends[name]
    angle = np.arctan2(path.sigma(grid), STD * path.alpha(grid))
    np.testing.assert_allclose(np.diff(angle), np.diff(angle).mean(), rtol=1e-9)

    def spread(grid):
        start = moments(grid[0])[0] + np.array([1.0, 2.0])
        got, exact = (
            np.diff(x)[0]
            for x in (js.loop(denoiser, path, grid, js.solvers.ddim, start), flow(start, grid[0], grid[-1]))
        )
        return got / exact

    with jax.enable_x64(True):
        best = spread(grid)
        assert best == pytest.approx(np.cos(angle[0] - angle[1]) ** n, rel=1e-9)
        for i in range(1, n):
            for step in (0.95, 1.05):
                moved = grid.copy()
                moved[i] *= step
                assert spread(moved) < best


@each_path
@pytest.mark.parametrize("cost", COSTS)
def test_gits_on_gaussian_data(name, cost):
    """The flow of N(0, std^2 I) keeps directions, so the costs follow from y = r/cos(theta) and the jump's r
    cos(dtheta)/cos(theta').
    """
    path = PATHS[name]
    denoiser = normal(name, mean=0.0)[0]
    times = candidates(path, 60)
    angle = np.arctan2(path.sigma(times), STD * path.alpha(times))
    with np.errstate(divide="ignore", invalid="ignore"):
        short = (1 - np.cos(angle[:, None] - angle[None, :])) / np.cos(angle)[None, :]
    if cost == "deviation":  # trajectories are straight lines: no step deviates, so any grid will do
        grid = gits(denoiser, 5, jnp.zeros(3), key=KEY, cost=cost, samples=4, batch=2)
        assert (len(grid), grid[0], grid[-1]) == (6, *ends[name])
        return
    for n, gamma in ((5, 1.0), (7, 1.15)):
        exact = times[cheapest(short, n, gamma)]
        grid = gits(denoiser, n, jnp.zeros(3), key=KEY, cost=cost, gamma=gamma, samples=4, batch=2)
        np.testing.assert_allclose(np.searchsorted(-times, -grid), np.searchsorted(-times, -exact), atol=1)


@pytest.mark.parametrize("alpha", [[1.0, 1.0, 1.0], [0.5, 0.8, 1.0]])
def test_cost_of_a_jump_by_hand(alpha):
    """y = (3, 0), (1, 1), (0, 0) at rho 3, 1, 0 and D = 0: from (3, 0) to (1, 0), missing (1, 1) by 1, or to
    (0, 0), missing it by 0.

    Whatever alpha, and all moved by one vector.
    """
    away, alpha = jnp.array([[1.0, 2.0]]), jnp.array(alpha)
    x = alpha[:, None] * (jnp.array([[3.0, 0.0], [1.0, 1.0], [0.0, 0.0]]) + away)
    args = x, 0 * x + away, alpha, alpha * jnp.array([3.0, 1.0, 0.0])
    expected = {
        "l1": [1, 0, 0],
        "l2": [1, 0, 0],
        "deviation": [-1, 0, 0],
    }  # the jump lies on the line through both ends, (1, 1) does not
    for cost, values in expected.items():
        got = jump_costs(*args, cost)
        np.testing.assert_allclose([got[0, 1], got[0, 2], got[1, 2]], values, atol=1e-6)
    wide = jump_costs(x, jnp.array([[0.0, 3.0], [0, 0], [0, 0]]) + away, *args[2:], "l1")
    assert float(wide[0, 2]) == pytest.approx(3.0)  # lands on D = (0, 3)
    assert float(wide[0, 1]) == pytest.approx(1.0)  # lands on (1, 2)


def klub(rho):
    """The bound of Gaussian data in one dimension, by adaptive quadrature of E|D - D_i|^2 = std^4
    (1/(std^2+rho^2) - 1/(std^2+rho_i^2)).
    """
    change = lambda r, start: STD**4 * (1 / (STD**2 + r**2) - 1 / (STD**2 + start**2))
    return sum(quad(lambda r, a=a: change(r, a) / r**3, b, a)[0] for a, b in itertools.pairwise(rho))


def test_klub_of_gaussian_data():
    """Monte Carlo over forward paths and the trapezoidal rule against the integral, step by step."""
    path = js.EDM(sigma_max=10.0, sigma_min=0.02)
    times = np.asarray(js.grids.karras(path, 40))
    x0 = jax.vmap(normal_data())(jax.random.split(KEY, 2000))
    change = (
        np.asarray(changes(gaussian(path, std=STD)[0], x0, KEY, times, 1000), np.float64) / 2
    )  # two dimensions
    cost = bound(change, times**-2.0)
    for i, j in ((0, 40), (0, 20), (15, 25), (30, 40), (20, 21)):
        assert cost[i, j] == pytest.approx(klub(times[[i, j]]), rel=0.08)


@each_path
def test_least_bound_of_gaussian_data(name):
    """Its minimum has log(1 + std^2/rho^2) in equal steps (the bound is a left sum of 1/v over v = 1 +
    std^2/rho^2).
    """
    path = PATHS[name]
    grid = ays(normal(name)[0], 6, normal_data(), key=KEY, sweeps=None, samples=128, among=120)
    assert (grid[0], grid[-1]) == ends[name]
    noisy = grid[path.sigma(grid) > 0]
    rho = path.rho(noisy)
    level = np.log1p((STD / rho) ** 2)
    np.testing.assert_allclose(np.diff(level), np.diff(level).mean(), rtol=0.2)
    if level[0] > 0:
        assert klub(rho) < 1.03 * klub(STD / np.sqrt(np.expm1(np.linspace(level[0], level[-1], len(level)))))


def test_the_bound_bounds():
    """Stochastic DDIM (SDE-DPM-Solver++ 1) makes a Gaussian of Gaussian data; its divergence is below the
    bound, and not far.
    """
    path = js.EDM(sigma_max=10.0, sigma_min=0.05)
    for grid in (
        js.grids.karras(path, 6),
        js.grids.log_snr(path, 4),
        js.grids.arctan(path, 8, STD, t_min=0.05),
    ):
        table = js.tabulate(path, grid, js.solvers.dpmpp_sde_1)
        var = STD**2 + grid[0] ** 2
        for t, A, B, C in zip(grid[:-1], table.A, table.B[:, 0], table.C, strict=True):
            var = (A + B * STD**2 / (STD**2 + t**2)) ** 2 * var + C**2
        ratio = (STD**2 + grid[-1] ** 2) / var
        divergence = (ratio - 1 - np.log(ratio)) / 2
        assert 0.02 * klub(grid) < divergence < klub(grid)


def test_sweeps_go_down_to_a_local_minimum():
    cost = bound(
        np.abs(np.subtract.outer(np.arange(41.0), np.arange(41.0))) ** 1.5, np.linspace(0, 5, 41) ** 3
    )
    start = np.array([0, 10, 20, 30, 40])
    total = lambda nodes: sum(cost[a, b] for a, b in itertools.pairwise(nodes))
    seen = [swept(cost, start, k) for k in (0, 1, 2, 100)]
    np.testing.assert_array_equal(seen[0], start)
    values = [total(nodes) for nodes in seen]
    assert values[0] > values[1] > values[2] > values[3] >= total(cheapest(cost, 4))
    assert values[3] < 1.001 * total(cheapest(cost, 4))
    assert np.abs(seen[1] - start).max() <= 5


def published_objective(lam):
    """Weights of each step by quadrature of Lagrange polynomials against e^l, orders 1, 2, 3, .., 3, 2, 1;
    errors of a VP path.
    """
    n, rho = len(lam) - 1, np.exp(-lam)
    error = rho[:-1] ** 2 / np.sqrt(1 + rho[:-1] ** 2)
    parts = np.zeros((n, n))
    for s in range(n):
        nodes = list(range(s, s - min(s + 1, 3, n - s), -1))
        for j in nodes:
            others = [lam[i] for i in nodes if i != j]
            basis = lambda l, j=j, others=others: (
                np.exp(l) * np.prod([(l - o) / (lam[j] - o) for o in others])
            )
            parts[s, j] = quad(basis, lam[s], lam[s + 1])[0] * error[j]
    apart = np.isin(np.arange(n), [0, 1, 2, n - 1])
    return np.linalg.norm(parts[apart], axis=1).sum() + np.abs(parts[~apart].sum(0)).sum()


@pytest.mark.parametrize("name", ["vp", "edm"])
def test_dmn_objective(name):
    """Against quadrature, and the released code's own values on uniform lam of VP; times sigma at the end of
    the grid, their unit.
    """
    path = PATHS[name]
    released = {3: 447.4127708971462, 5: 231.47846510520728, 8: 52.57300093929214}
    for n, value in released.items():
        grid = js.grids.log_snr(path, n)
        got = float(amplification(js.tabulate(path, grid, LAGRANGE), path)) / path.sigma(grid[-1])
        assert got == pytest.approx(published_objective(path.lam(grid)), rel=1e-8)
        assert name != "vp" or got == pytest.approx(value, rel=1e-9)


def test_an_output_counts_with_its_effect_on_the_data():
    """One DDIM step is the same step whatever it asks the network for."""
    path, grid = js.VP(), [0.7, 0.2]
    values = [
        amplification(js.tabulate(path, grid, solver), path)
        for solver in (js.solvers.dpmpp_1, js.solvers.dpm_1)
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-9)


@pytest.mark.parametrize(
    "solver",
    [
        js.solvers.unipc(order=3),
        [js.solvers.dpm_1, js.solvers.dpm_1, js.solvers.dpm_2, js.solvers.dpmpp_1, js.solvers.dpm_2],
    ],
)
def test_contributions_are_the_derivatives_of_the_sample(solver, x64):
    """Outputs that do not depend on the state: the sample's derivative by each of them."""
    path = js.VP()
    table = js.tabulate(path, js.grids.uniform(path, 5), solver)
    at = jnp.asarray(table.t)
    sample = lambda outputs: js.run(
        lambda x, t: outputs[jnp.argmin(jnp.abs(at - t))] + 0 * x, table, jnp.zeros(())
    )
    exact = jax.jacobian(sample)(jnp.zeros(table.nfe))
    np.testing.assert_allclose(contributions(table).sum(0), exact, rtol=1e-9, atol=1e-12)


def test_dmn_finds_the_released_minimum():
    """Times of the released code (its trust region from uniform lam) for 5 steps on VP from 1 to 1e-3; no
    move of a time improves them.
    """
    grid = dmn(js.VP(), 5)
    np.testing.assert_allclose(grid, [1.0, 0.6582, 0.4978, 0.3095, 0.1014, 0.001], atol=1e-3)
    lam = js.VP().lam(grid)
    best = published_objective(lam)
    assert best == pytest.approx(49.9048, rel=1e-4)
    for i, move in itertools.product(range(1, 5), (-0.02, 0.02)):
        assert published_objective(lam + move * np.eye(6)[i]) > best


def test_dmn_at_the_ends_of_other_paths():
    """A step to sigma = 0 is appended, a start at alpha = 0 is kept; grids too short to have a choice have
    none.
    """
    for name, short in (("edm", [80.0, 0.002, 0.0]), ("cond_ot", [1.0, 0.001, 0.0]), ("vp", [1.0, 0.001])):
        np.testing.assert_allclose(dmn(PATHS[name], len(short) - 1), short)
        np.testing.assert_allclose(dmn(PATHS[name], 1), [short[0], short[-1]])
    grid = js.grids.optimise(js.CondOT(), 3)
    assert (len(grid), grid[0], grid[-1]) == (4, 1.0, 0.0)
    js.grids.checked(js.CondOT(), grid)


MEANS = np.random.default_rng(0).standard_normal((8, 16))


@pytest.mark.parametrize(("name", "ratio"), [("vp", 0.75), ("edm", 0.7)])
def test_optimised_grids_beat_hand_made_ones(name, ratio):
    """Mixture of 8 Gaussians in 16 dimensions, DDIM, 6 and 10 rows: GITS's RMSE to the converged sample
    against the path's default grid.

    On noise that the grid was not made from; the best of uniform, log_snr and karras is beaten too.
    """
    path = PATHS[name]
    denoiser = js.models.gaussian_mixture(MEANS, np.geomspace(0.1, 0.5, 8), path)
    like = jax.ShapeDtypeStruct((16,), jnp.float32)
    x = jax.vmap(lambda k: path.prior(k, like))(jax.random.split(jax.random.key(7), 512))
    run = jax.jit(lambda table, x: js.run(denoiser, table, x))
    exact = run(js.tabulate(path, js.grids.default(path, 100), js.solvers.dpmpp_2m), x)
    rmse = lambda grid: float(
        jnp.sqrt(jnp.square(run(js.tabulate(path, grid, js.solvers.ddim), x) - exact).mean())
    )
    for n in (6, 10):
        other = (
            js.grids.karras(path, n) if name == "vp" else js.grids.append_zero(js.grids.log_snr(path, n - 1))
        )
        hand = [js.grids.default(path, n), js.grids.uniform(path, n), other]
        errors = [rmse(grid) for grid in hand]
        found = rmse(js.grids.optimise(path, n, "gits", denoiser=denoiser, like=like, key=KEY))
        assert found < ratio * errors[0]
        assert found < 0.95 * min(errors)


def test_the_key_decides():
    path = js.VP()
    denoiser = js.models.gaussian_mixture(MEANS, 0.2, path)
    data = MEANS.astype(np.float32)
    for make in (
        lambda key: js.grids.optimise(path, 4, "ays", denoiser=denoiser, data=data, key=key),
        lambda key: gits(denoiser, 4, data[0], key=key, samples=2, among=200),
    ):
        first, again, other = make(KEY), make(KEY), make(jax.random.key(5))
        assert (type(first), first.dtype, len(first)) == (np.ndarray, np.float64, 5)
        np.testing.assert_array_equal(first, again)
        assert np.any(first != other)


DENOISER = gaussian(js.VP())[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: js.grids.optimise(js.VP(), 4, "gitz"), "unknown objective 'gitz'; did you mean 'gits'"),
        (lambda: js.grids.optimise(js.VP(), 0), "at least one; got n=0"),
        (
            lambda: js.grids.optimise(js.VP(), 4, "ays", denoiser=DENOISER),
            "objective='ays' needs data=, key=",
        ),
        (
            lambda: js.grids.optimise(js.EDM(), 4, "gits", denoiser=DENOISER, like=jnp.zeros(2), key=KEY),
            "another path.*path=denoiser.path",
        ),
        (lambda: gits(DENOISER, 4, jnp.zeros(2), key=KEY, cost="l3"), "unknown cost 'l3'; did you mean"),
        (
            lambda: gits(DENOISER, 9, jnp.zeros(2), key=KEY, among=8, samples=2),
            "9 candidate times make grids of 1 to 8 intervals, not 9",
        ),
        (lambda: gits(DENOISER, 2, jnp.zeros(2), key=KEY, among=[0.1, 0.5]), "Did you mean grid"),
        (lambda: candidates(js.VP(), [0.5, 0.1], t_min=0.1), "have their ends already"),
        (lambda: ays(DENOISER, 3, jnp.zeros((1, 2)), key=KEY), "at least two samples"),
        (lambda: ays(DENOISER, 3, jnp.zeros((4, 2)), key=KEY, sweeps=-1), "sweeps must be a whole number"),
        (
            lambda: ays(
                js.Denoiser(lambda x, t: x * jnp.nan, js.VP(), "data"), 3, jnp.zeros((4, 2)), key=KEY
            ),
            "costs NaN",
        ),
        (
            lambda: ays(
                js.Denoiser(lambda x, t: x, js.PFGMpp(D=64.0), "data"), 3, jnp.zeros((4, 2)), key=KEY
            ),
            "bound is that of Gaussian",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_no_denoiser():
    with pytest.raises(TypeError, match=r"denoiser must be a js\.Denoiser\(net, path, kind\), got function"):
        path_of(lambda x, t: x)
    with pytest.raises(TypeError, match="a path per part"):
        ays(js.Denoiser(lambda x, t: x, {"a": js.VP()}, "data"), 4, jnp.zeros((4, 2)), key=KEY)
