"""DPM-Solver-v3 beyond its golden vectors: an oracle in the paper's integrals, exactness, orders, ends; and
its statistics.
"""

import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import Cubic, gaussian, mixture, random_net

import jaxsampler as js
from jaxsampler.scan.driver import drive
from jaxsampler.scan.protocol import Watch

VP = js.VP()
Statistics, dpm_v3, ems = js.solvers.Statistics, js.solvers.dpm_v3, js.solvers.ems


def tables(lam, shape=(3,)):
    """Smooth l, s, b with nothing special about them: any such functions give a consistent solver."""
    lam = np.asarray(lam).reshape(-1, *[1] * len(shape))
    k = np.arange(1, 1 + int(np.prod(shape))).reshape(shape)
    return 0.5 + 0.4 * np.sin(0.3 * lam + k), 0.6 * np.cos(0.4 * lam * k / 2), 0.3 * np.sin(lam / 2 - k)


def smooth(path=VP, n=240, shape=(3,), t=(1.0, 1e-3)):
    lam = np.linspace(path.lam(t[0]), path.lam(t[1]), n + 1)
    return Statistics.of(path, lam, *tables(lam, shape))


def constant(path, n, l, s, t=(1.0, 1e-3)):
    lam = np.linspace(path.lam(t[0]), path.lam(t[1]), n + 1)
    return Statistics.of(path, lam, np.full_like(lam, l), np.full_like(lam, s), np.zeros_like(lam))


@functools.cache
def compiled(denoiser):
    """Rows are an argument, and all that differs between the solvers of this file."""
    solver = dpm_v3(smooth())
    return jax.jit(lambda rows, x: drive(solver, rows, denoiser, x, watch=Watch(js.Direct())))


@functools.cache
def compiled_tables(denoiser):
    return jax.jit(lambda table, x: js.run(denoiser, table, x, adjoint=js.Direct()))


def run(denoiser, x, solver, grid):
    """What `js.sample` returns (test_batches_vmap_precision_and_hooks), with rows padded to few lengths."""
    size = lambda n: next(m for m in (10, 30, 60, 130) if m >= n)
    if isinstance(solver, js.Step):
        table = js.tabulate(denoiser.path, grid, solver)
        return np.asarray(compiled_tables(denoiser)(js.pad(table, nfe=size(table.nfe), regs=3), x))
    rows = solver.rows(denoiser.path, grid)
    more = [(0, size(len(rows.t)) - len(rows.t))]
    dims = [(0, 0)] * (rows.A.ndim - 1)
    rows = rows._replace(  # rows that change nothing
        t=np.pad(rows.t, more, "edge"),
        keep=np.pad(rows.keep, more + dims),
        A=np.pad(rows.A, more + dims, constant_values=1.0),
        W=np.pad(rows.W, [*more, (0, 4 - rows.W.shape[1]), *dims]),
        O=np.pad(rows.O, more + dims),
        end=np.pad(rows.end, more, constant_values=np.nan),
    )
    return np.asarray(compiled(denoiser)(rows, x))


def paper(net, path, lam, index, x, order, corrector, pseudo_predictor, pseudo_corrector, lower_order_final):
    """The method in the paper's own terms, noise prediction: integrals from lam_T over the whole table `lam`
    by the
    trapezoid rule, states corrected explicitly. net(x, t) predicts the noise; the grid points are lam[index].
    """

    def cumulative(y):
        return np.concatenate([0 * y[:1], np.cumsum((y[1:] + y[:-1]) / 2 * np.diff(lam)[:, None], 0)])

    l, s, b = tables(lam)
    L, S = cumulative(l), cumulative(s)
    I, B = cumulative(np.exp(L + S)), cumulative(np.exp(-S) * b)
    C = cumulative(np.exp(L + S) * B)
    t = path.time(lam)
    a, sg = path.alpha(t), path.sigma(t)
    n = len(index) - 1

    def divided(nodes, values):
        return (
            values[0]
            if len(nodes) == 1
            else (divided(nodes[1:], values[1:]) - divided(nodes[:-1], values[:-1])) / (nodes[-1] - nodes[0])
        )

    def advance(x, i, nodes, f, pseudo):
        """From index[i] to index[i+1], g known at the grid points `nodes`, i first."""
        here, there = index[i], index[i + 1]
        at = [index[j] for j in nodes]
        g = [
            np.exp(S[here] - S[j]) * fj - np.exp(S[here]) * (B[j] - B[here])
            for j, fj in zip(at, f, strict=True)
        ]
        d = lam[at] - lam[here]
        m = len(nodes) - 1
        if pseudo:
            ders = [np.prod(range(1, k + 1)) * divided(d[: k + 1], g[: k + 1]) for k in range(1, m + 1)]
        else:
            ders = np.linalg.solve(
                np.array(
                    [[dj**k / np.prod(range(1, k + 1)) for k in range(1, m + 1)] for dj in d[1:]]
                ).reshape(m, m),
                np.array([gj - g[0] for gj in g[1:]]).reshape(m, x.size),
            ).reshape(m, *x.shape)
        out = a[there] / a[here] * np.exp(L[here] - L[there]) * x
        out = out - a[there] * np.exp(-L[there] - S[here]) * (I[there] - I[here]) * g[0]
        out = out - a[there] * np.exp(-L[there]) * (C[there] - C[here] - B[here] * (I[there] - I[here]))
        for k, der in enumerate(ders, 1):
            kernel = (
                np.exp(L + S - L[here] - S[here])
                * ((lam - lam[here]) ** k / np.prod(range(1, k + 1)))[:, None]
            )
            E = cumulative(kernel)
            out = out - a[there] * np.exp(L[here] - L[there]) * (E[there] - E[here]) * der
        return out

    def eps_at(x, j):
        return np.asarray(net(jnp.asarray(x), jnp.asarray(t[index[j]])))

    f = {}  # by grid point
    eps = eps_at(x, 0)
    for i in range(n):
        f[i] = (sg[index[i]] * eps - l[index[i]] * x) / a[index[i]]
        p = min(order, i + 1)
        p = min(p, n - i) if lower_order_final else p
        nodes = [i - j for j in range(p)]
        x_next = advance(x, i, nodes, [f[j] for j in nodes], pseudo_predictor)
        if i < n - 1:
            eps = eps_at(x_next, i + 1)
            q = p + 1 if pseudo_corrector else p
            here = index[i + 1]
            if q > 1 and (corrector is True or (corrector == "half" and t[here] <= 0.5)):
                f_next = (sg[here] * eps - l[here] * x_next) / a[here]
                nodes = [i, i + 1, *(i - j for j in range(1, p))][:q]
                corrected = advance(
                    x, i, nodes, [f_next if j == i + 1 else f[j] for j in nodes], pseudo_corrector
                )
                eps = eps + l[here] * (corrected - x_next) / sg[here]
                x_next = corrected
        x = x_next
    return x


RULES = [
    dict(order=1, corrector=False),
    dict(order=1, corrector=True, pseudo_corrector=True),
    dict(order=2, corrector=True, lower_order_final=False),
    dict(order=2, corrector="half"),
    dict(order=3, corrector=False, pseudo_predictor=True),
    dict(order=3, corrector=True, lower_order_final=False),
    dict(order=3, corrector="half", pseudo_corrector=True),
    dict(order=3, corrector=True, pseudo_predictor=True, pseudo_corrector=True, lower_order_final=False),
]
DEFAULTS = dict(
    order=3, corrector=True, pseudo_predictor=False, pseudo_corrector=False, lower_order_final=True
)


@functools.cache
def on_random_net(seed=0):
    return js.Denoiser(jax.jit(random_net(seed)), VP, "noise")


@functools.cache
def on_mixture():
    return mixture(VP)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("rules", RULES, ids=str)
def test_published_equals_the_papers_formulas(rules):
    statistics, denoiser = smooth(), on_random_net()
    index = np.array([0, 20, 55, 90, 117, 160, 201, 240])
    lam = np.linspace(VP.lam(1.0), VP.lam(1e-3), 241)
    x = np.random.default_rng(0).standard_normal((4, 3))
    want = paper(denoiser.net, VP, lam, index, x, **{**DEFAULTS, **rules})
    off = VP.time(
        lam[index] + 0.4 * np.diff(lam)[0] * np.array([0, 1, -1, 1, 1, -1, 1, 0])
    )  # nearest table points are those
    got = run(denoiser, x, dpm_v3(statistics, published=True, **rules), off)
    np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("rules", RULES[1::2], ids=str)
def test_default_equals_the_papers_formulas_with_dense_integrals(rules):
    """Grid points between those of the table; the oracle's trapezoid rule is extrapolated from tables 75 and
    150
    times as fine.
    """
    net = on_random_net(1)
    x = np.random.default_rng(1).standard_normal((4, 3))
    want = {}
    for m in (1280, 2560):
        lam = np.linspace(VP.lam(1.0), VP.lam(1e-3), 7 * m + 1)
        want[m] = paper(net.net, VP, lam, m * np.arange(8), x, **{**DEFAULTS, **rules})
    want = (4 * want[2560] - want[1280]) / 3
    grid = VP.time(lam[2560 * np.arange(8)])
    coarse, fine = (
        np.abs(run(net, x, dpm_v3(smooth(n=n), **rules), grid) - want).max() / np.abs(want).max()
        for n in (120, 240)
    )
    assert fine < 1e-7
    assert coarse / fine > 10  # fourth order in the spacing of the table


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("kind", ["data", "noise"])
def test_constant_statistics_are_dpm_solver(kind, order):
    """(1, 0, 0) and (0, -1, 0): the multistep Taylor solvers, up to the quadrature: second order as
    published, fourth
    by default.
    """
    S = js.solvers
    same = {
        "data": [S.dpmpp_1, S.dpmpp_2m(form="taylor"), S.dpmpp_3m(form="taylor")],
        "noise": [S.dpm_1, S.dpm_2m(form="taylor"), S.dpm_3m(form="taylor")],
    }[kind][order - 1]
    l, s = {"data": (1.0, 0.0), "noise": (0.0, -1.0)}[kind]
    denoiser = on_mixture()[0]
    x, grid = jnp.asarray([0.3, -1.2, 0.8]), js.grids.log_snr(VP, 8)
    want = run(denoiser, x, same(lower_order_final=True), grid)
    for published, ratio, limit in ((True, 3.8, 1e-2), (False, 14.0, 1e-5)):
        solvers = [
            dpm_v3(constant(VP, n, l, s), order=order, corrector=False, published=published)
            for n in (80, 160)
        ]
        coarse, fine = (np.abs(run(denoiser, x, solver, grid) - want).max() for solver in solvers)
        assert coarse / fine > ratio
        assert 0 < fine < limit


MEAN, VAR = np.array([0.7, -0.4, 0.1]), np.array([0.16, 0.01, 1.5])


@functools.cache
def diagonal(path):
    """N(mean, diag var): its data prediction, its flow, and the exact l = sigma^2/(alpha^2 var + sigma^2), s
    = 0,
    b = -l' mean.
    """
    mean, var = MEAN, VAR

    def net(x, t):
        a, s = path.alpha(t), path.sigma(t)
        fit = lambda v: jnp.broadcast_to(jnp.asarray(v, x.dtype), x.shape)
        return fit(mean) + (x - a * fit(mean)) * a * fit(var) / (a**2 * fit(var) + s**2)

    def flow(x, t, u):
        scale = np.sqrt(
            (path.alpha(u) ** 2 * var + path.sigma(u) ** 2) / (path.alpha(t) ** 2 * var + path.sigma(t) ** 2)
        )
        return path.alpha(u) * mean + scale * (np.asarray(x) - path.alpha(t) * mean)

    def exact(lam):
        q = np.exp(2 * lam)[:, None] * var  # l = 1/(1 + V e^{2 lam})
        return 1 / (1 + q), np.zeros((len(lam), len(var))), 2 * q / (1 + q) ** 2 * mean

    return js.Denoiser(net, path, "data"), flow, exact


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("path", "ends"),
    [(VP, (1.0, 1e-3)), (js.EDM(), (80.0, 2e-3)), (js.CondOT(), (0.99, 1e-3))],
    ids=["vp", "edm", "condot"],
)
def test_first_order_is_exact_for_a_gaussian(path, ends):
    """f does not depend on x then; what is left is the quadrature."""
    denoiser, flow, exact = diagonal(path)
    x = path.sigma(ends[0]) * jnp.asarray([[0.3, -1.0, 0.5], [1.0, 2.0, -0.2]])
    grid = js.grids.log_snr(path, 5, t_max=ends[0], t_min=ends[1])
    error = lambda solver: np.abs(run(denoiser, x, solver, grid) - flow(x, *ends)).max()
    errors = {}
    for n in (240, 480):
        lam = np.linspace(path.lam(ends[0]), path.lam(ends[1]), n + 1)
        statistics = Statistics.of(path, lam, *exact(lam))
        for published in (True, False):
            errors[n, published] = error(dpm_v3(statistics, order=1, corrector=False, published=published))
    assert errors[480, False] < 1e-7
    assert errors[240, False] / errors[480, False] > 12
    assert 3.8 < errors[240, True] / errors[480, True] < 4.2
    assert error(js.solvers.ddim) > 0.05 > 1e3 * errors[480, True]


@pytest.mark.usefixtures("x64")
def test_estimated_statistics_of_a_gaussian():
    """dD/dx is constant and f does not depend on x: no sampling error, only that of l' by differences."""
    denoiser, flow, exact = diagonal(VP)
    data = MEAN + np.sqrt(VAR) * np.random.default_rng(0).standard_normal((300, 3))
    errors = []
    for n in (60, 120):
        got = ems(denoiser, data, key=jax.random.key(0), n=n, samples=200, batch=64, progress=False)
        l, s, b = exact(got.lam)
        np.testing.assert_allclose(got.l, l, rtol=0, atol=1e-12)
        np.testing.assert_array_equal(got.s, s)
        errors.append(np.abs(got.b - b)[5:-5].max())
    assert errors[1] < 2e-3
    assert errors[0] / errors[1] > 3.5
    x = jnp.asarray([[0.3, -1.0, 0.5], [1.0, 2.0, -0.2]])
    error = lambda solver: np.abs(
        run(denoiser, x, solver, js.grids.log_snr(VP, 5)) - flow(x, 1.0, 1e-3)
    ).max()
    assert error(dpm_v3(got, order=1, corrector=False)) < 1e-3 < 0.05 < error(js.solvers.ddim)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("path", [VP, js.EDM()], ids=["vp", "edm"])
def test_estimated_statistics_of_a_mixture(path):
    """Against the definitions by quadrature over x, with f' a difference quotient along the flow, at a few
    lam.
    """
    means, stds, weights = np.array([-0.8, 0.5, 1.1]), np.array([0.3, 0.2, 0.4]), np.array([0.3, 0.5, 0.2])
    denoiser, flow = mixture(path, means, stds, weights)
    data = lambda key: (
        jnp.asarray(means)[(k := jax.random.choice(key, 3, p=jnp.asarray(weights)))]
        + jnp.asarray(stds)[k] * jax.random.normal(jax.random.fold_in(key, 1), ())
    )
    got = ems(
        denoiser,
        lambda key: data(key)[None],
        key=jax.random.key(3),
        n=60,
        samples=8000,
        batch=2000,
        progress=False,
        t_max=path.time(-2.5),
        t_min=path.time(2.5),
    )
    node, w = np.polynomial.hermite_e.hermegauss(60)

    def D(x, lam):
        return np.asarray(denoiser.net(jnp.asarray(x)[:, None], jnp.asarray(path.time(lam))))[:, 0]

    def points(lam):
        """x and its probabilities under the noisy mixture."""
        t = path.time(lam)
        a, s = path.alpha(t), path.sigma(t)
        x = a * means[:, None] + np.sqrt(a**2 * stds[:, None] ** 2 + s**2) * node
        return x.ravel(), (weights[:, None] * w / w.sum()).ravel()

    def l_at(lam):
        x, p = points(lam)
        step = 1e-5
        return 1 - path.alpha(path.time(lam)) * p @ ((D(x + step, lam) - D(x - step, lam)) / (2 * step))

    def f_at(x, lam):
        y = x / path.alpha(path.time(lam))
        return (1 - l_at(lam)) * y - D(x, lam)

    for i in (6, 24, 33, 48):
        lam, h = got.lam[i], 1e-3
        x, p = points(lam)
        keep = p > 1e-6  # the tails say nothing and cost as much
        x, p = x[keep], p[keep] / p[keep].sum()
        ahead, behind = (flow(x, path.time(lam), path.time(to)) for to in (lam + h, lam - h))
        f, df = f_at(x, lam), (f_at(ahead, lam + h) - f_at(behind, lam - h)) / (2 * h)
        slope = (p @ (f * df) - p @ f * (p @ df)) / (p @ f**2 - (p @ f) ** 2)
        want = l_at(lam), slope, p @ df - slope * (p @ f)
        off = np.abs(np.subtract([got.l[i, 0], got.s[i, 0], got.b[i, 0]], want))
        assert np.all(off < 4 * np.array([0.003, 0.02, 0.004])), (
            f"{off}; the bounds are four standard errors over keys"
        )


def test_samples_are_weighed_alike_whatever_the_batch():
    denoiser, data = mixture(VP)[0], np.random.default_rng(0).standard_normal((50, 2)).astype(np.float32)
    one, other = (ems(denoiser, data, key=jax.random.key(0), n=8, batch=b, progress=False) for b in (50, 7))
    for name in "lsb":
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=2e-3, atol=2e-4)
    assert one.l.dtype == np.float32
    assert dict(one.about)["samples"] == 50


@pytest.mark.usefixtures("x64")
def test_statistics_do_not_depend_on_the_kind_of_network():
    net = random_net()
    data = np.random.default_rng(0).standard_normal((40, 3))
    as_data = js.Denoiser(lambda x, t: js.Denoiser(net, VP, "noise")(x, t, "data"), VP, "data")
    one, other = (
        ems(d, data, key=jax.random.key(0), n=8, progress=False)
        for d in (js.Denoiser(net, VP, "noise"), as_data)
    )
    for name in "lsb":
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-9, atol=1e-9)


def test_progress(capfd):
    ems(
        mixture(VP)[0],
        np.ones((4, 1), np.float32) * np.arange(4, dtype=np.float32)[:, None],
        key=jax.random.key(0),
        n=5,
    )
    jax.effects_barrier()
    assert "statistics |##############################| 6/6" in capfd.readouterr().err


# Orders


def started(n, order):
    """lam from -1 to 1.2 in steps h behind first steps so short that the low orders at the start do not
    count.
    """
    h = 2.2 / n
    first = [0.0, h**2 / 2, h**2 / 2 + h ** (4 / 3)][:order]
    return VP.time(-1.0 + np.append(first, np.linspace(first[-1], 2.2, n + 1)[1:]))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("corrector", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_order(order, corrector):
    """Any smooth l, s, b: they change the error, not its order. The corrector reuses its predictor's
    order.
    """
    denoiser, flow = on_mixture()
    x = jnp.asarray([0.3, -1.2, 0.8])
    table = smooth(n=400, t=(VP.time(-1.0), VP.time(1.3)))
    solver = dpm_v3(table, order=order, corrector=corrector, lower_order_final=False)
    n = np.array([30, 60, 120])
    grids = [started(k, order) for k in n]
    errors = [np.abs(run(denoiser, x, solver, g) - flow(x, g[0], g[-1])).max() for g in grids]
    slope = -np.polyfit(np.log(n), np.log(errors), 1)[0]
    assert order - 0.2 < slope < order + 0.6, f"order {slope:.2f}: {errors}"


@pytest.mark.usefixtures("x64")
def test_published_error_does_not_fall_with_steps():
    """With exact statistics nothing is left but the trapezoid rule on the table, whatever the number of
    steps.
    """
    denoiser, flow, exact = diagonal(VP)
    x, lam = jnp.asarray([0.3, -1.0, 0.5]), np.linspace(VP.lam(1.0), VP.lam(1e-3), 61)
    statistics = Statistics.of(VP, lam, *exact(lam))
    errors = {}
    for published in (True, False):
        solver = dpm_v3(statistics, order=1, corrector=False, published=published)
        errors[published] = [
            np.abs(run(denoiser, x, solver, js.grids.log_snr(VP, n)) - flow(x, 1.0, 1e-3)).max()
            for n in (5, 15, 60)
        ]
    np.testing.assert_allclose(errors[True], errors[True][0], rtol=0.2)
    assert min(errors[True]) > 10 * max(errors[False])


@pytest.mark.usefixtures("x64")
def test_fitted_statistics_help():
    """Ten steps on a mixture: an estimate from 500 samples beats constant statistics."""
    denoiser, flow = mixture(VP)
    data = np.random.default_rng(0)
    means, stds = np.array([-0.8, 0.5, 1.1]), np.array([0.3, 0.2, 0.4])
    k = data.choice(3, 500, p=[0.3, 0.5, 0.2])
    fitted = ems(
        denoiser,
        (means[k] + stds[k] * data.standard_normal(500))[:, None],
        key=jax.random.key(0),
        progress=False,
    )
    x, grid = jnp.asarray(data.standard_normal((200, 1))), js.grids.log_snr(VP, 8)
    want = flow(x[:, 0], 1.0, 1e-3)[:, None]
    error = lambda statistics: np.abs(run(denoiser, x, dpm_v3(statistics, order=2), grid) - want).mean()
    assert error(fitted) < 0.7 * min(error(constant(VP, 120, 1.0, 0.0)), error(constant(VP, 120, 0.0, -1.0)))


# The ends, and every path


PATHS = [
    VP,
    js.CosineVP(),
    js.DiscreteVP.linear(),
    js.SubVP(),
    js.VE(),
    js.EDM(),
    js.CondOT(),
    js.MeanReverting(0.4),
    js.MeanReverting(0.4, variant="irsde"),
    Cubic(),
]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__ + getattr(p, "variant", ""))
def test_every_path_on_its_default_grid(path):
    """Estimated on and run over default ranges, pure noise and clean data included: close to the exact flow,
    closer
    with more steps.
    """
    denoiser, flow, _ = gaussian(path)
    data = 0.7 + 0.4 * np.random.default_rng(0).standard_normal((100, 2))
    t_max = {"Cubic": 0.99}.get(type(path).__name__)
    statistics = ems(denoiser, data, key=jax.random.key(0), progress=False, t_max=t_max)
    x = path.prior(jax.random.key(1), jnp.zeros((3, 2)))
    end = js.grids.default(path, 10)[-1]
    begin = js.grids.default(path, 10)[0]
    want = flow(x, begin, end)
    errors = [
        np.abs(run(denoiser, x, dpm_v3(statistics, order=2), js.grids.default(path, n)) - want).max()
        for n in (6, 24)
    ]
    assert errors[1] < 0.01
    assert errors[1] < errors[0] or errors[1] < 1e-3


def test_into_clean_data_and_gradients():
    """The last step returns the network's own data prediction; gradients in x_T and in the network are
    finite.
    """
    statistics, base = smooth(shape=(2,)), mixture(VP)[0].net
    grid = js.grids.append_zero(js.grids.log_snr(VP, 4))
    solver = dpm_v3(statistics, corrector=False)
    x = jnp.asarray([[0.3, -1.2], [0.8, 0.1]])
    whole = js.sample(
        mixture(VP)[0], x, key=None, x=x, solver=solver, grid=grid, save="all", adjoint=js.Direct()
    )
    np.testing.assert_allclose(whole.x, base(whole.xs[-2], jnp.float32(grid[-2])), rtol=1e-4, atol=1e-5)
    assert whole.xs.dtype == jnp.float32
    np.testing.assert_allclose(whole.t, grid, rtol=1e-6)

    @jax.jit
    def total(x, scale):
        denoiser = js.Denoiser(lambda x, t: scale * base(x, t), VP, "data")
        return js.sample(denoiser, x, key=None, x=x, solver=dpm_v3(statistics), grid=grid).sum()

    slopes = jax.jit(jax.grad(total, (0, 1)))
    chex.assert_tree_all_finite(slopes(x, jnp.float32(1.0)))
    # the state grows on made-up tables, where float32 loses the mixture's logits
    with jax.enable_x64(True):
        x, one, h = x.astype(jnp.float64), jnp.float64(1.0), 1e-6
        want = (total(x, one + h) - total(x, one - h)) / (2 * h)
        np.testing.assert_allclose(slopes(x, one)[1], want, rtol=1e-3)


@pytest.mark.usefixtures("x64")
def test_out_of_pure_noise():
    """alpha = 0 at the start: the same samples as from just after it."""
    path = js.CondOT()
    denoiser, _, exact = diagonal(path)
    lam = np.linspace(path.lam(0.999), path.lam(1e-3), 401)
    solver = dpm_v3(Statistics.of(path, lam, *exact(lam)), order=1, corrector=False)
    x = jnp.asarray([[0.3, -1.0, 0.5]])
    grid = np.append(1.0, js.grids.append_zero(js.grids.log_snr(path, 8, t_max=0.999)))
    got, later = run(denoiser, x, solver, grid), run(denoiser, x, solver, grid[1:])
    np.testing.assert_allclose(got, later, atol=3e-3)
    np.testing.assert_allclose(got, MEAN + np.sqrt(VAR) * np.asarray(x), atol=3e-3)


# How it runs


@pytest.mark.usefixtures("x64")
def test_batches_vmap_precision_and_hooks():
    denoiser, statistics = js.Denoiser(random_net(), VP, "data"), smooth()
    solver, grid = dpm_v3(statistics), js.grids.log_snr(VP, 6)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 3)))
    whole = run(denoiser, x, solver, grid)
    sample = lambda x, **how: js.sample(
        denoiser, x, key=None, x=x, solver=solver, grid=grid, adjoint=js.Direct(), **how
    )
    np.testing.assert_allclose(jax.vmap(sample)(x), whole, rtol=1e-12, atol=1e-13)
    single = run(denoiser, x.astype(jnp.float32), solver, grid)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, whole, atol=3e-4)
    half = js.Denoiser(lambda x, t: denoiser.net(x.astype(jnp.bfloat16), t.astype(jnp.bfloat16)), VP, "data")
    rough = run(half, x.astype(jnp.float32), solver, grid)
    np.testing.assert_allclose(rough, whole, atol=0.3)
    seen = sample(x, save="all", hook=lambda e: jnp.where(e.t > 0.5, e.x, e.x + 1))
    plain = sample(x, save="all")
    np.testing.assert_allclose(plain.x, whole, rtol=1e-12, atol=1e-13)
    k = int(np.argmax(grid <= 0.5))
    np.testing.assert_allclose(seen.xs[:k], plain.xs[:k], rtol=1e-12)
    np.testing.assert_allclose(seen.xs[k], plain.xs[k] + 1, rtol=1e-12)


def test_one_trace_for_any_number_of_steps():
    net = js.Denoiser(chex.assert_max_traces(lambda x, t: 0.3 * x, 1), VP, "noise")
    jax.eval_shape(lambda x: js.sample(net, x, key=None, x=x, solver=dpm_v3(smooth()), steps=17), jnp.ones(3))


def test_bad_input():
    statistics, x = smooth(), jnp.ones((2, 3))
    net = lambda x, t: x
    go = lambda solver, path=VP, x=x, **k: js.sample(
        js.Denoiser(net, path, "noise"), x, key=None, x=x, solver=solver, **k
    )
    with pytest.raises(ValueError, match=r"belong to the path VP\(\), not to CosineVP"):
        go(dpm_v3(statistics), js.CosineVP())
    with pytest.raises(ValueError, match=r"not to VP\(beta_min=0.1, beta_max=19"):
        go(dpm_v3(statistics), js.VP(0.1, 19.0))
    with pytest.raises(ValueError, match=r"statistics have shape \(3,\), the state \(2, 4\)"):
        go(dpm_v3(statistics), x=jnp.ones((2, 4)))
    with pytest.raises(TypeError, match="one array"):
        go(dpm_v3(statistics), x={"a": jnp.ones(3)})
    with pytest.raises(ValueError, match="at least 3 steps, got 2"):
        go(dpm_v3(statistics), steps=2)
    with pytest.raises(ValueError, match=r"statistics cover t = 1 to 0.001, the grid runs from 1 to 0.0005"):
        go(dpm_v3(statistics), grid=[1.0, 0.5, 0.1, 0.0005])
    with pytest.raises(ValueError, match="fewer steps"):
        go(dpm_v3(smooth(n=10), published=True), steps=20)
    with pytest.raises(ValueError, match="orders 1, 2 and 3; got order=4"):
        dpm_v3(statistics, order=4)
    with pytest.raises(ValueError, match="'half'; got 'quarter'"):
        dpm_v3(statistics, corrector="quarter")
    with pytest.raises(TypeError, match="concrete grid"):
        jax.jit(lambda grid: go(dpm_v3(statistics), grid=grid))(jnp.linspace(1, 0.1, 5))
    lam = np.linspace(-3, 3, 11)
    with pytest.raises(ValueError, match="equal steps"):
        Statistics.of(VP, lam[::-1], lam, lam, lam)
    with pytest.raises(ValueError, match="b has shape"):
        Statistics.of(VP, lam, lam, lam, lam[:-1])
    with pytest.raises(ValueError, match=r"s is not finite at lam = 0"):
        Statistics.of(VP, lam, lam, np.where(np.arange(11) == 5, np.nan, 1.0), lam)
    denoiser = js.Denoiser(net, VP, "noise")
    with pytest.raises(TypeError):
        ems(net, x, key=jax.random.key(0))
    with pytest.raises(ValueError, match="at least two samples"):
        ems(denoiser, jnp.ones((1, 3)), key=jax.random.key(0))
    with pytest.raises(ValueError, match="pass t_max"):
        ems(js.Denoiser(net, js.CondOT(), "noise"), x, key=jax.random.key(0), t_max=1.0)


def test_files(tmp_path):
    """What is saved is loaded, path and origin included; anything else is refused in one line."""
    made = ems(mixture(VP)[0], np.eye(4, 2, dtype=np.float32), key=jax.random.key(7), n=6, progress=False)
    file = tmp_path / "new" / "v3.safetensors"
    made.save(file)
    assert [f.name for f in file.parent.iterdir()] == ["v3.safetensors"]
    back = Statistics.load(file)
    for name in "lsb":
        np.testing.assert_array_equal(getattr(back, name), getattr(made, name))
        assert getattr(back, name).dtype == np.float32
    assert (back.ends, back.mark, back.about) == (made.ends, made.mark, made.about)
    assert dict(back.about) | {"path": "VP()", "kind": "data", "samples": 4, "key": (0, 7)} == dict(
        back.about
    )
    with pytest.raises(ValueError, match="belong to the path VP"):
        back.check(js.EDM())
    from safetensors import safe_open
    from safetensors.numpy import save_file

    with safe_open(file, framework="numpy") as f:
        assert json.loads(f.metadata()["statistics"])["lam"] == list(made.ends)
    with pytest.raises(ValueError, match="cannot read"):
        Statistics.load(tmp_path / "none.safetensors")
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match="is corrupt"):
        Statistics.load(file)
    save_file({"l": made.l}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds no statistics"):
        Statistics.load(tmp_path / "other.safetensors")
