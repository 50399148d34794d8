"""USF: golden vectors, the samplers it contains, and schedules as data: mixed at random, stacked, searched,
differentiated.
"""

import functools
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import CASES, GOLDEN, cases, close, finish
from golden_cases import PATHS as GOLDEN_PATHS
from oracle import mixture, random_net

import jaxsampler as js
from jaxsampler.solvers import Decision, FittedKind, usf
from jaxsampler.solvers.unified_framework import RELAXATIONS

pytestmark = pytest.mark.usefixtures("x64")
S = js.solvers
VP = js.VP()
KEY = jax.random.key(2)
X = jax.random.normal(jax.random.key(3), (4, 3), jnp.float32)


LAM = np.linspace(-8.0, 8.0, 41)


def statistics(l, s):
    """What `ems` makes, on LAM; two dimensions whose mean is (l, s)."""
    both = np.array([0.9, 1.1])
    return types.SimpleNamespace(lam=LAM, l=(l + 0 * LAM)[:, None] * both, s=(s + 0 * LAM)[:, None] * both)


G = FittedKind(statistics(1 / (1 + np.exp(-1.3 * LAM)), 0.3 * np.cos(LAM)), slope=True)


# golden vectors


def golden_decisions(case):
    c = CASES[case]["decisions"]
    out = []
    for order, kind, start, der, corrector in zip(
        c["orders"], c["pt"], c["sp"], c["der"], c["cor"], strict=True
    ):
        relaxation = der[0][1] if der else None
        relaxation = ("linear", der[0][2]) if relaxation == "linear" else relaxation
        nodes = tuple(m for m, *_ in der)
        out.append(Decision(order, {"n": "noise", "d": "data"}[kind], start, nodes, relaxation, corrector))
    return out, c["afs"]


@pytest.mark.parametrize("case", cases("usf/"))
def test_golden(case):
    decisions, afs = golden_decisions(case)
    steps = usf(decisions) if afs == "no_afs" else usf(decisions, first=afs, published=True)
    table = js.tabulate(GOLDEN_PATHS["vp_linear"], GOLDEN[f"{case}/t"], steps)
    assert table.nfe == CASES[case]["nfe"]
    close(finish("vp_linear", table), case)


def test_no_case_is_left_out():
    assert cases("usf/") == [f"usf/vp_linear/case{i}" for i in range(3)]


# the samplers that it contains


@functools.cache
def runner(net):
    """One compilation for all tables of up to 12 rows."""
    return jax.jit(lambda table, x: js.run(net, table, x, adjoint=js.Direct()))


@functools.cache
def on_random_net(path, seed=4, kind="data"):
    return js.Denoiser(jax.jit(random_net(seed)), path, kind)


def run_of(net, table, x=X):
    return runner(net)(js.pad(table, nfe=12, regs=12), np.asarray(x, np.float64))


def sampled(solver, path=VP, grid=None, net=None):
    grid = js.grids.karras(path, 6) if grid is None else grid
    return np.asarray(run_of(on_random_net(path) if net is None else net, js.tabulate(path, grid, solver)))


def ramp(order, n=6, **choices):
    return [Decision(order=min(i + 1, order), **choices) for i in range(n)]


def second(relaxation, kind):
    return [Decision(kind=kind), *[Decision(order=2, kind=kind, relaxation=relaxation)] * 5]


def corrected(order, n=6):
    return [Decision(order=min(i + 1, order), corrector=min(i + 1, order) + 1) for i in range(n)]


PAIRS = {
    "1": (ramp(1), S.dpmpp_1),
    "dpmsolver-2 is 2M": (second("dpmsolver-2", "data"), S.dpmpp_2m),
    "dpmsolver-2 is 2M, noise": (second("dpmsolver-2", "noise"), S.dpm_2m),
    "unrelaxed is 2M taylor": (second(None, "data"), S.dpmpp_2m(form="taylor")),
    "unrelaxed is 2M taylor, noise": (second(None, "noise"), S.dpm_2m(form="taylor")),
    "bh1 is UniP-2": (
        second("unipc-bh1", "data"),
        S.unipc(order=2, variant="bh1", corrector=False, lower_order_final=False),
    ),
    "full order 3 is 3M": (ramp(3), S.dpmpp_3m(form="taylor")),
    "full order 3 is 3M, noise": (ramp(3, kind="noise"), S.dpm_3m(form="taylor")),
    "corrected is UniPC vary 1": (corrected(1), S.unipc(order=1, variant="vary", lower_order_final=False)),
    "corrected is UniPC vary 3": (corrected(3), S.unipc(order=3, variant="vary", lower_order_final=False)),
    "corrected is UniPC vary 4": (corrected(4), S.unipc(order=4, variant="vary", lower_order_final=False)),
    "g of (1, 0) is data": (
        ramp(3, kind=FittedKind(statistics(1.0, 0.0), slope=True)),
        S.dpmpp_3m(form="taylor"),
    ),
    "g of (0, -1) is noise": (
        ramp(3, kind=FittedKind(statistics(0.0, -1.0), slope=True)),
        S.dpm_3m(form="taylor"),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("path", [VP, js.EDM(0.01, 20.0), js.MeanReverting(0.3)], ids=["vp", "edm", "mr"])
def test_contains(name, path):
    decisions, solver = PAIRS[name]
    grid = js.grids.log_snr(path, 6)
    np.testing.assert_allclose(
        sampled(usf(decisions), path, grid), sampled(solver, path, grid), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("kind", ["data", "noise"])
def test_going_back_after_a_half_step_is_single_step(kind):
    half, whole = Decision(kind=kind), Decision(order=2, kind=kind, start=-2)
    grid = js.grids.log_snr(VP, 6)
    single = {"data": S.dpmpp_2s, "noise": S.dpm_2}[kind](form="taylor")
    np.testing.assert_allclose(
        sampled(usf([half, whole] * 3), grid=grid), sampled(single, grid=grid[::2]), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("corrector", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_fitted_kind_is_dpm_v3_without_constants(order, corrector):
    """The same statistics for all dimensions and b = 0; the two interpolate their tables differently, by
    lines and by cubics.
    """
    lam = np.linspace(VP.lam(1.0) - 0.1, VP.lam(1e-3) + 0.1, 1601)
    l, s = 1 / (1 + np.exp(1.3 * lam)), 0.5 * np.cos(lam)
    fitted = S.Statistics.of(VP, lam, l, s, 0 * s)
    v3 = S.dpm_v3(fitted, order=order, corrector=corrector, lower_order_final=False)
    net, grid = on_random_net(VP), js.grids.log_snr(VP, 6)
    want = js.sample(net, X, key=KEY, x=X.astype(float), solver=v3, grid=grid, adjoint=js.Direct())
    orders = [min(i + 1, order) for i in range(6)]
    kind = FittedKind(fitted, slope=True)
    decisions = [Decision(p, kind, corrector=p if corrector and p > 1 else None) for p in orders]
    np.testing.assert_allclose(sampled(usf(decisions), grid=grid, net=net), want, rtol=1e-4, atol=1e-4)
    without = [Decision(p, FittedKind(fitted)) for p in orders]
    assert np.abs(sampled(usf(without), grid=grid, net=net) - np.asarray(want)).max() > 1e-2


def test_going_back_twice_is_single_step_of_order_3():
    grid = js.grids.log_snr(VP, 6)
    decisions = [Decision(), Decision(2, start=-2), Decision(3, start=-3)] * 2
    np.testing.assert_allclose(
        sampled(usf(decisions), grid=grid),
        sampled(S.dpmpp_3s(form="taylor"), grid=grid[::3]),
        rtol=1e-10,
        atol=1e-10,
    )


def test_nodes_are_newer_ones_nearest_first_then_older_ones():
    """As numbers of points back, the start first."""
    assert Decision(3).points == [0, 1, 2]
    assert Decision(2, start=-3).points == [2, 1]
    assert Decision(3, start=-3, nodes=(1, 2)).points == [2, 1, 0]
    assert Decision(4, start=-2).points == [1, 0, 2, 3]
    assert Decision(2, nodes=(3,)).points == [0, 1, 2, 3]


def test_a_corrector_of_another_kind_by_hand():
    """Outputs of another kind are those at the states that were called, not at the corrected ones; written
    out from the exact solution.
    """
    path, grid = VP, np.array([0.9, 0.6, 0.45, 0.3])
    a, s = path.alpha(grid), path.sigma(grid)
    lam = np.log(a / s)
    net = random_net(4)

    def data(x, i):
        return np.asarray(net(jnp.asarray(x), grid[i]))

    def eps(x, i):
        return (x - a[i] * data(x, i)) / s[i]

    x0 = np.asarray(X, float)
    h = np.diff(lam)
    e0 = eps(x0, 0)
    x1 = a[1] / a[0] * x0 - s[1] * np.expm1(h[0]) * e0
    rise = (eps(x1, 1) - e0) / h[0]
    x1c = x1 - s[1] * (np.expm1(h[0]) - h[0]) * rise  # int e^(h-u) u du
    D0, D1 = data(x0, 0), data(x1, 1)
    slope = (D1 - D0) / h[0]
    x2 = s[2] / s[1] * x1c - a[2] * np.expm1(-h[1]) * D1 + a[2] * (np.expm1(-h[1]) + h[1]) * slope
    # then a corrector of order 3 on data for the interval just done, with the noise output at x1 as the node:
    # noise kind, from point 1
    e1, e2 = eps(x1, 1), eps(x2, 2)
    D2 = data(x2, 2)
    u = np.array([-h[0], 0.0, h[1]])
    quadratic = np.linalg.solve(np.vander(u, increasing=True), np.stack([D0, D1, D2]).reshape(3, -1)).reshape(
        3, *x0.shape
    )
    p = np.polynomial.legendre.leggauss(20)
    v, w = (p[0] + 1) / 2 * h[1], p[1] / 2 * h[1]
    integral = sum(
        wj * np.exp(vj - h[1]) * (quadratic[0] + quadratic[1] * vj + quadratic[2] * vj**2)
        for vj, wj in zip(v, w, strict=True)
    )
    x2c = s[2] / s[1] * x1c + a[2] * integral
    x3 = a[3] / a[2] * x2c - s[3] * np.expm1(h[2]) * e2 - s[3] * (np.expm1(h[2]) - h[2]) * (e2 - e1) / h[1]
    decisions = [
        Decision(kind="noise", corrector=2),
        Decision(order=2, corrector=3),
        Decision(order=2, kind="noise"),
    ]
    np.testing.assert_allclose(sampled(usf(decisions), grid=grid), x3, rtol=1e-11, atol=1e-11)


# schedules as data


def random_schedule(rng, n, kinds=("data", "noise", G)):
    """A legal schedule of n decisions, every choice drawn."""
    out = []
    for i in range(n):
        start = -int(rng.integers(1, min(i, 2) + 2))
        order = int(rng.integers(1, min(i, 3) + 2))
        kind = kinds[rng.integers(len(kinds))]
        nodes = tuple(
            int(rng.integers(k, i + 1)) if start == -1 else max(k, -start - 1) for k in range(1, order)
        )
        names = [None, ("linear", float(rng.normal(0, 0.03))), *([] if kind is G else RELAXATIONS)]
        relaxation = names[rng.integers(len(names))] if order > 1 else None
        corrector = [None, *range(2, min(i, 2) + 3)][rng.integers(min(i, 2) + 2)]
        out.append(Decision(order, kind, start, nodes, relaxation, corrector))
    return out


@pytest.mark.parametrize("seed", range(12))
def test_random_schedules_equal_the_plain_loop(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 7))
    grid = np.sort(rng.uniform(0.1, 0.8, n + 1))[::-1]
    steps = usf(random_schedule(rng, n), first="zero_x0" if seed % 2 else "none", published=seed % 4 == 1)
    net = on_random_net(VP, 1, "v")
    table = js.tabulate(VP, grid, steps)
    assert table.nfe == n - seed % 2
    got, want = run_of(net, table), js.loop(net, VP, grid, steps, X.astype(float))
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9 * float(jnp.abs(want).max()))


ON_ONE_POINT = js.Denoiser(lambda x, t: jnp.broadcast_to(jnp.asarray([0.3, -1.0, 0.5]), x.shape), VP, "data")


@pytest.mark.parametrize("seed", range(8))
def test_every_schedule_is_exact_on_one_point(seed):
    """With one point as data, x0 and eps are constant along the flow: all choices on them integrate it
    exactly, relaxed or not.
    """
    rng = np.random.default_rng(seed)
    steps = usf(random_schedule(rng, 6, kinds=("data", "noise")))
    point, grid = np.array([0.3, -1.0, 0.5]), js.grids.log_snr(VP, 6, t_max=0.8, t_min=0.2)
    eps = (np.asarray(X) - VP.alpha(0.8) * point) / VP.sigma(0.8)
    want = VP.alpha(0.2) * point + VP.sigma(0.2) * eps
    np.testing.assert_allclose(sampled(steps, grid=grid, net=ON_ONE_POINT), want, rtol=1e-9, atol=1e-9)


def test_sixteen_schedules_in_one_vmap_with_one_compilation():
    base, rng = on_random_net(VP, 1, "noise"), np.random.default_rng(0)
    x, grid = X.astype(float), js.grids.log_snr(VP, 6)
    denoiser = js.Denoiser(chex.assert_max_traces(base.net.__wrapped__, 1), VP, "noise")
    many = jax.jit(jax.vmap(lambda table: js.run(denoiser, table, x, adjoint=js.Direct())))
    for _ in range(2):
        schedules = [usf(random_schedule(rng, 6)) for _ in range(16)]
        tables = [js.pad(js.tabulate(VP, grid, steps), regs=12) for steps in schedules]
        got = many(js.stack(tables))
        for steps, sample in zip(schedules[:4], got, strict=False):
            want = js.loop(base, VP, grid, steps, x)
            np.testing.assert_allclose(sample, want, rtol=1e-9, atol=1e-9 * float(jnp.abs(want).max()))
        assert len({np.asarray(sample).tobytes() for sample in got}) == 16
    assert many._cache_size() == 1


def decisions_with(c):
    return [
        Decision(corrector=2),
        Decision(order=2, relaxation=("linear", c), corrector=3),
        Decision(order=2, kind=G, relaxation=("linear", 2 * c)),
        Decision(order=3, kind="noise", nodes=(1, 3), relaxation=("linear", c), corrector=4),
        Decision(order=2, kind="data", start=-2, relaxation=("linear", c), corrector=2),
        Decision(order=2),
    ]


def test_a_relaxation_may_be_learned():
    path, grid, net = VP, js.grids.log_snr(VP, 6, t_max=0.8, t_min=0.1), on_random_net(VP, 1)

    def loss(c):
        table = js.tabulate(path, grid, usf(decisions_with(c)))
        return (js.run(net, table, X.astype(float), adjoint=js.Direct()) ** 2).sum()

    concrete = lambda c: (sampled(usf(decisions_with(c)), path, grid, net) ** 2).sum()
    h = 1e-5
    value, slope = jax.jit(jax.value_and_grad(loss))(jnp.float64(0.07))
    np.testing.assert_allclose(value, concrete(0.07), rtol=1e-12)
    np.testing.assert_allclose(slope, (concrete(0.07 + h) - concrete(0.07 - h)) / (2 * h), rtol=1e-6)
    with jax.enable_x64(False):
        single = js.run(
            net, js.tabulate(path, grid, usf(decisions_with(jnp.float32(0.07)))), X, adjoint=js.Direct()
        )
    np.testing.assert_allclose(
        single, sampled(usf(decisions_with(0.07)), path, grid, net), rtol=2e-4, atol=2e-5
    )


def test_a_traced_grid_gives_the_same_table_and_its_derivative():
    """Slow because a traced grid is tabulated inside the program, which then is large."""
    steps = usf(
        [
            Decision(),
            Decision(2, "noise", relaxation="0.5exp", corrector=3),
            Decision(2, G),
            Decision(2, "noise", -2),
        ]
    )
    grid = np.array([0.83, 0.7, 0.55, 0.42, 0.31])

    def total(table):
        rows = np.arange(1.0, table.nfe + 1)
        xp = jnp if isinstance(table.A, jax.Array) else np
        return (
            (table.A * rows).sum()
            + (xp.sin(table.B) * rows[:, None]).sum()
            + (xp.tanh(table.form) * rows[:, None]).sum()
        )

    def along(e):
        table = js.tabulate(VP, jnp.asarray(grid) + e * direction, steps)
        return total(table), table

    direction, host = np.array([0.0, 1.0, -0.5, 0.3, 0.0]), js.tabulate(VP, grid, steps)
    slope, traced = jax.jit(jax.grad(along, has_aux=True))(0.0)
    for a, b in zip(jax.tree.leaves(host), jax.tree.leaves(traced), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-11)
    above, below = (total(js.tabulate(VP, grid + e * direction, steps)) for e in (1e-5, -1e-5))
    np.testing.assert_allclose(slope, (above - below) / 2e-5, rtol=1e-5)


# analytic first step


@functools.cache
def first_is_zero():
    net, start = random_net(1), js.grids.log_snr(VP, 5, t_max=0.8, t_min=0.1)[0]
    return js.Denoiser(lambda x, t: jnp.where(t == start, 0.0, net(x, t)), VP, "data")


@pytest.mark.parametrize("seed", range(4))
def test_zero_x0_is_a_network_that_answers_zero_at_the_start(seed):
    rng = np.random.default_rng(seed)
    decisions, grid = random_schedule(rng, 5), js.grids.log_snr(VP, 5, t_max=0.8, t_min=0.1)
    want = sampled(usf(decisions), grid=grid, net=first_is_zero())
    got = sampled(usf(decisions, first="zero_x0"), grid=grid, net=on_random_net(VP, 1))
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["data", "noise", "v"])
def test_average_x0_by_a_shift(kind):
    """zero_x0 on shifted data is a network that answers the mean at the start, on any path and for any kind
    of network.
    """
    path = js.MeanReverting(0.4)
    mean, grid = jnp.asarray([0.5, -0.3, 0.8]), np.array([90.0, 60.0, 30.0, 10.0, 0.0])
    decisions = [
        Decision(kind="noise"),
        Decision(order=2, corrector=3),
        Decision(order=2, kind="noise"),
        Decision(),
    ]
    base = random_net(1)
    plain = js.Denoiser(base, path, "data")
    of_kind = js.Denoiser(lambda x, t: plain(x, t, kind=kind), path, kind)
    first_is_mean = js.Denoiser(
        lambda x, t: jnp.where(t == grid[0], jnp.broadcast_to(mean, x.shape), base(x, t)), path, "data"
    )
    want = sampled(usf(decisions), path, grid, first_is_mean)
    by, x = np.asarray(mean) - 0.4, np.asarray(X, float)  # zero_x0 stands for x0 = mu of the path
    table = js.tabulate(path, grid, usf(decisions, first="zero_x0"))
    got = js.run(S.shift_data(of_kind, jnp.asarray(by)), table, jnp.asarray(x - path.alpha(90.0) * by))
    np.testing.assert_allclose(np.asarray(got) + path.alpha(0.0) * by, want, rtol=1e-9, atol=1e-9)


def test_saved_states_begin_after_an_analytic_first_step():
    grid = js.grids.log_snr(VP, 4, t_max=0.8, t_min=0.1)
    net = js.Denoiser(random_net(1), VP, "data")
    out = js.sample(
        net,
        X,
        key=KEY,
        x=X.astype(float),
        grid=grid,
        solver=usf([Decision()] * 4, first="zero_x0"),
        save="all",
        adjoint=js.Direct(),
    )
    np.testing.assert_allclose(out.t, grid[1:])
    np.testing.assert_allclose(out.xs[0], np.asarray(X) * VP.sigma(grid[1]) / VP.sigma(grid[0]), rtol=1e-12)


# accuracy and ends

ORDERS = {
    "g 1": (lambda n: ramp(1, n, kind=G), 1),
    "g 2": (lambda n: ramp(2, n, kind=G), 2),
    "g 2 relaxed": (lambda n: [Decision(kind=G), *[Decision(2, G, relaxation=("linear", 0.3))] * (n - 1)], 2),
    "g 3 started by a corrected step": (
        lambda n: [Decision(kind=G, corrector=3 - (i == 0)) for i in range(1)] + ramp(3, n, kind=G)[1:],
        3,
    ),
    "kinds in turn": (lambda n: [Decision(min(i, 1) + 1, ("data", G, "noise")[i % 3]) for i in range(n)], 2),
    "kinds and starts in turn, low order": (
        lambda n: [
            Decision(
                min(i, 2) + 1, ("data", G, "noise")[i % 3], -1 - i % 2, (min(i, 1 + i % 2), 2)[: min(i, 2)]
            )
            for i in range(n)
        ],
        2,
    ),
    "order 1 of any kind corrected to 2": (
        lambda n: [Decision(kind=("data", G, "noise")[i % 3], corrector=2) for i in range(n)],
        2,
    ),
}


on_mixture = functools.cache(lambda: mixture(VP))


@pytest.mark.parametrize("name", ORDERS)
def test_order(name):
    make, order = ORDERS[name]
    start, end = float(VP.time(-1.0)), float(VP.time(1.2))
    x, (net, flow), counts = np.array([0.9, -0.3, 0.2]), on_mixture(), (40, 80, 160)
    truth = flow(x, start, end)
    errors = []
    for n in counts:
        table = js.tabulate(VP, js.grids.log_snr(VP, n, t_max=start, t_min=end), usf(make(n)))
        errors.append(np.abs(np.asarray(runner(net)(js.pad(table, nfe=160, regs=8), x)) - truth).max())
    slope = np.polyfit(np.log(counts), -np.log(errors), 1)[0]
    assert order - 0.2 < slope < order + 0.4


def test_both_ends():
    """Out of alpha = 0 and into sigma = 0 the terms beyond the first drop out; the last state is the
    network's own prediction.
    """
    path, grid = js.CondOT(), np.linspace(1, 0, 5)
    decisions = [
        Decision(corrector=2),
        Decision(2, corrector=3, relaxation="unipc-bh1"),
        Decision(2, start=-3),
        Decision(3),
    ]
    net = js.Denoiser(random_net(1), path, "data")
    table = js.tabulate(path, grid, usf(decisions))
    np.testing.assert_allclose(table.B[-1].sum(), 1.0, rtol=1e-12)
    sample = lambda x: ((out := js.run(net, table, x)).sum(), out)
    (_, got), slope = jax.jit(jax.value_and_grad(sample, has_aux=True))(X.astype(float))
    chex.assert_tree_all_finite((got, slope))
    np.testing.assert_allclose(got, js.loop(net, path, grid, usf(decisions), X.astype(float)), rtol=1e-12)


# what is refused

BAD = {
    "order >= 1": lambda: Decision(order=0),
    "start <= -1": lambda: Decision(start=0),
    "FittedKind, got 'score'": lambda: Decision(kind="score"),
    "2 derivatives, m_k >= k; got \\(1, 1\\)": lambda: Decision(order=3, nodes=(1, 1)),
    "corrector is of order 2": lambda: Decision(corrector=1),
    "did you mean 'dpmsolver-2'": lambda: Decision(order=2, relaxation="dpmsolver"),
    "which a decision of order 1 does not use": lambda: Decision(relaxation="0.5exp"),
    "a FittedKind takes": lambda: Decision(order=2, kind=G, relaxation="0.5exp"),
    "decision 1 wants 2 points back": lambda: usf([Decision(), Decision(order=3)]),
    "decision 0 wants a corrector of order 3": lambda: usf([Decision(corrector=3), Decision()]),
    "shift_data": lambda: usf([Decision()], first="average_x0"),
    "first must be": lambda: usf([Decision()], first="afs"),
    "published=True is about": lambda: usf([Decision()], published=True),
    "rising lam": lambda: FittedKind(types.SimpleNamespace(lam=[1.0, 0.0], l=[0, 0], s=[0, 0])),
    "one entry for each of the 2 lam": lambda: FittedKind(
        types.SimpleNamespace(lam=[0.0, 1.0], l=[0, 0, 0], s=[0, 0])
    ),
    "2 steps for 1 intervals": lambda: js.tabulate(VP, [0.5, 0.2], usf([Decision(), Decision()])),
    "only the first interval may": lambda: js.tabulate(
        VP, [0.9, 0.5, 0.2], [S.dpmpp_1, *usf([Decision()], first="zero_x0")]
    ),
    "makes no model call": lambda: js.tabulate(VP, [0.5, 0.2], usf([Decision()], first="zero_x0")),
}


@pytest.mark.parametrize("message", BAD)
def test_refused(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()
