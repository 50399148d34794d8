"""Every solver has its order: slopes of the error on closed-form problems, by exact means.

Deterministic solvers: global error at a fixed end time against the exact probability flow (Gaussian) or an
independent 8th-order integration (mixture). Stochastic solvers: for Gaussian data every prediction is affine
in x, so the mean and variance of the sample given x_T follow an exact linear recursion through the table; no
Monte Carlo. `js.solvers.order` and `weak_order` measure in their own way; the last tests hold them against
this one.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import Cubic, gaussian, mixture, recurrence

import jaxsampler as js

pytestmark = pytest.mark.usefixtures("x64")
S = js.solvers
X = np.array([0.9, -0.3, 0.2])
RHO = {"midpoint": 2, "2heun": 2, "3kutta": 3, "3heun": 3, "3ralston": 3, "3vdh": 3, "3ssprk": 3, "4rk": 4}

DETERMINISTIC = {
    "dpmpp_1": (S.dpmpp_1, 1),
    "dpm_1": (S.dpm_1, 1),
    "ddim": (S.ddim, 1),
    "euler": (S.euler, 1),
    "heun": (S.heun, 2),
    "rf_solver": (S.rf_solver, 2),
    "dpmpp_2m": (S.dpmpp_2m, 2),
    "dpmpp_2m taylor": (S.dpmpp_2m(form="taylor"), 2),
    "dpm_2m": (S.dpm_2m, 2),
    "dpm_2m taylor": (S.dpm_2m(form="taylor"), 2),
    "dpmpp_2s": (S.dpmpp_2s, 2),
    "dpm_2": (S.dpm_2, 2),
    "dpm_2 taylor": (S.dpm_2(form="taylor"), 2),
    "mr_ode 1": (S.mr_ode(order=1), 1),
    "mr_ode 2": (S.mr_ode(order=2), 2),
    "mr_ode 2 noise": (S.mr_ode(order=2, kind="noise"), 2),
    "heun a=1/2": (S.heun(a=0.5), 2),
    "edm": (S.edm, 2),
    "edm 1": (S.edm(order=1), 1),
    **{f"rk_rho {name}": (S.rk_rho(tableau=name), order) for name, order in RHO.items()},
    "dpmpp_3s": (S.dpmpp_3s, 3),
    "dpmpp_3s taylor": (S.dpmpp_3s(form="taylor"), 3),
    "dpm_3": (S.dpm_3, 3),
    "dpm_3 taylor": (S.dpm_3(form="taylor"), 3),
    # a single Euler step costs h^2 once, which caps a third-order multistep method at 2 ..
    "dpmpp_3m": (S.dpmpp_3m, 2),
    "dpm_3m": (S.dpm_3m, 2),
    # .. and third-order single steps at the start uncap it; half of F'' (as published) loses the third order
    "dpmpp_3m started by 3S": ((S.dpmpp_3s, S.dpmpp_3m), 3),
    "dpm_3m started by 3": ((S.dpm_3, S.dpm_3m), 3),
    "mr_ode 3 started by 3S": ((S.dpmpp_3s, S.mr_ode(order=3)), 3),
    "mr_ode 3 noise started by 3": ((S.dpm_3, S.mr_ode(order=3, kind="noise")), 3),
    "dpmpp_3m published, started by 3S": ((S.dpmpp_3s, S.dpmpp_3m(published=True)), 2),
    "dpm_3m published, started by 3": ((S.dpm_3, S.dpm_3m(published=True)), 2),
    # Adams-Bashforth in rho (deis_rho, lms), with polynomials in t (deis), with the weights of equal steps in
    # rho
    "deis 1": (S.deis(order=1), 1),
    "deis 2": (S.deis(order=2), 2),
    "deis 3 started by 3": ((S.dpm_3, S.deis(order=3)), 3),
    "deis started by 3": ((S.dpm_3, S.deis), 4),
    "deis_rho 1": (S.deis_rho(order=1), 1),
    "deis_rho 2": (S.deis_rho(order=2), 2),
    "deis_rho 3 started by 3": ((S.dpm_3, S.deis_rho(order=3)), 3),
    "lms started by 3": ((S.dpm_3, S.lms), 4),
    "ipndm 2": (S.ipndm(order=2), 2),
    "ipndm": (S.ipndm, 2),
    "plms": (S.plms, 2),
    "pndm": (S.pndm, 2),
    "pndm 2": (S.pndm(order=2), 2),
    # as published the corrector of "vary" is of order 1
    "unipc 1": (S.unipc(order=1, lower_order_final=False), 2),
    "unipc 1 noise, bh1": (S.unipc(order=1, variant="bh1", kind="noise", lower_order_final=False), 2),
    "unipc 2, corrector off": (S.unipc(order=2, corrector=False, lower_order_final=False), 2),
    "unipc 2": (S.unipc(order=2), 2),  # the final first-order step costs h^2 once
    "unipc 2 vary published": (S.unipc(order=2, variant="vary", published=True, lower_order_final=False), 1),
    "unipc 3 vary published": (S.unipc(order=3, variant="vary", published=True, lower_order_final=False), 1),
}
PATHS = {"vp": js.VP(), "mr": js.MeanReverting(0.3), "cubic": Cubic()}


@functools.cache
def problem(name, law):
    """Path, end times (lam from -1 to 1.2), exact end point, and a jitted run that takes the table as an
    argument.
    """
    path = PATHS[name]
    start, end = float(path.time(-1.0)), float(path.time(1.2))
    denoiser, flow = mixture(path) if law == "mixture" else gaussian(path)[:2]
    return (
        path,
        (start, end),
        flow(X, start, end),
        jax.jit(lambda table: js.run(denoiser, table, jnp.asarray(X), adjoint=js.Direct())),
    )


def steps_of(solver, n):
    """What `js.tabulate` takes for n intervals: a pair starts with its first solver."""
    if not isinstance(solver, tuple):
        return solver
    first = max(2, solver[1].past)
    return [solver[0]] * first + [solver[1]] * (n - first)


def fall(counts, errors):
    """How fast errors fall: the slope of log error against log steps, turned round."""
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


def slope(solver, name, law, counts):
    path, (start, end), truth, run = problem(name, law)
    errors = []
    for n in counts:
        grid = js.grids.log_snr(path, n, t_max=start, t_min=end)
        table = js.tabulate(path, grid, steps_of(solver, n))
        nfe = next(
            size for size in (170, 350, 700) if size >= table.nfe
        )  # tables of three shapes for all solvers
        errors.append(np.abs(np.asarray(run(js.pad(table, nfe=nfe, regs=10))) - truth).max())
    return fall(counts, errors)


def counts_for(order):
    return (80, 160, 320) if order < 3 else (40, 80, 160)  # stop before round-off


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_order_on_a_mixture(name):
    solver, order = DETERMINISTIC[name]
    counts = counts_for(order)
    if isinstance(solver, tuple):
        counts = (160, 320, 640) if order > 3 else (80, 160, 320)
    assert abs(slope(solver, "vp", "mixture", counts) - order) < 0.2


@pytest.mark.parametrize(
    "options",
    [{"variant": "vary"}, {"variant": "bh1"}, {"kind": "noise"}, {"order": 3, "variant": "vary"}],
    ids=str,
)
def test_the_corrector_of_unipc_adds_an_order(options):
    """UniPC-1, of local error h^3, starts UniPC-2 well enough for order 3; UniPC-3 is still falling faster
    here.
    """
    solver = S.unipc(**{"order": 2, "lower_order_final": False} | options)
    assert slope(solver, "vp", "mixture", (80, 160, 320)) > 2.8 + 0.1 * (solver.order == 3)


# one of each derivation; those that use lam only are told apart by nothing else (test_identities.py: they do
# not see the schedule)
ON_MEAN_REVERTING = [
    "dpmpp_1",
    "dpm_1",
    "dpmpp_2m",
    "dpm_2m taylor",
    "dpmpp_2s",
    "dpm_3",
    "edm",
    "rk_rho 4rk",
    "unipc 2",
    "pndm",
]
ON_MEAN_REVERTING += [n for n in DETERMINISTIC if n.startswith(("mr_ode", "deis_rho 3"))]


@pytest.mark.parametrize("name", ON_MEAN_REVERTING)
def test_order_on_mean_reverting_gaussian(name):
    """The schedule is piecewise (its speed jumps at the training indices), which methods in lam do not
    see.
    """
    solver, order = DETERMINISTIC[name]
    if name == "rk_rho midpoint":
        order = 3  # y = sqrt(v + rho^2): its h^3 error, y'''/24 + (deps/dy) y''/8, vanishes on Gaussian data
    assert abs(slope(solver, "mr", "gaussian", counts_for(order)) - order) < (0.2 if order < 3 else 0.4)


def in_pieces(path, start, end, k):
    """Every piece of the schedule between two times in k equal intervals; the knots are grid points."""
    edges = np.array([end, *(t for t in sorted(path.knots) if end < t < start), start])
    inner = edges[:-1, None] + np.diff(edges)[:, None] * np.arange(k) / k
    return np.append(inner.ravel(), start)[::-1]


IN_TIME = {"euler": 1, "heun": 1, "deis 3 started by 3": 2}  # orders that are left across the knots


@pytest.mark.parametrize("name", IN_TIME)
def test_methods_in_time_on_a_piecewise_schedule(name):
    """Within a piece they have their order; across the knots one that reads the slope there keeps less."""
    solver, order = DETERMINISTIC[name]
    path = PATHS["mr"]
    denoiser, flow, _ = gaussian(path)
    whole = float(path.time(-1.0)), float(path.time(1.2))
    for (start, end), counts, want in (
        ((60.9, 60.1), (10, 20, 40), order),
        (whole, (2, 4, 8), IN_TIME[name]),
    ):
        errors = []
        for k in counts:
            grid = in_pieces(path, start, end, k)
            table = js.tabulate(path, grid, steps_of(solver, len(grid) - 1))
            errors.append(np.abs(recurrence(denoiser.net, path, table, X)[0][-1] - flow(X, start, end)).max())
        assert abs(fall(counts, errors) - want) < 0.2, (start, end)


@pytest.mark.parametrize("name", ["dpmpp_2m", "heun", "dpmpp_3s"])
def test_order_on_a_path_of_ones_own(name):
    solver, order = DETERMINISTIC[name]
    assert abs(slope(solver, "cubic", "mixture", counts_for(order)) - order) < 0.2


STOCHASTIC = {  # weak orders of the mean and of the variance of x_0 given x_T; None: exact
    "dpmpp_sde_1": (S.dpmpp_sde_1, None, 1),
    "posterior": (S.posterior, None, 1),
    "ddpm": (S.ddpm, None, 1),
    "ddim eta=1": (S.ddim(eta=1.0), None, 1),
    "mr_sde 1": (S.mr_sde(order=1), None, 1),
    "mr_sde 1 noise": (S.mr_sde(order=1, kind="noise"), 1, 1),
    "mr_sde 2": (S.mr_sde(order=2), None, 2),
    "mr_sde 2 noise": (S.mr_sde(order=2, kind="noise"), 2, 2),
    "dpmpp_2m_sde": (S.dpmpp_2m_sde, None, 2),
    "dpmpp_3m_sde": (S.dpmpp_3m_sde, None, 2.3),  # capped at 2 by its first-order start, still falling faster
    "euler_maruyama": (S.euler_maruyama, 1, 1),
    "euler_ancestral": (S.euler_ancestral, None, 1),
    "dpmpp_2s_ancestral": (
        S.dpmpp_2s_ancestral,
        1,
        1,
    ),  # given x_T; its marginals have 2: test_ancestral_split.py
    "dpmpp_sde": (S.dpmpp_sde, None, 1),
    "ddpm fixed_large": (S.ddpm(variance_type="fixed_large"), None, 1),
}


def recursion(table, path, mean, std, x0):
    """Mean and covariance of (x - mu, registers) through the table's rows, for data N(mean, std^2)."""
    mu = 0.0 if path.centre is None else path.centre
    regs = table.regs
    m, P = np.zeros(1 + regs), np.zeros((1 + regs, 1 + regs))
    m[0] = x0 - mu
    for n in range(table.nfe):
        t = table.t[n]
        a, s = path.alpha(t), path.sigma(t)
        V = a**2 * std**2 + s**2
        # E[x0 - mu | y] and E[eps | y] are affine in y = x - mu, whose mean is a (mean - mu)
        data = np.array([a * std**2 / V, (mean - mu) - a * std**2 / V * a * (mean - mu)])
        noise = np.array([s / V, -s / V * a * (mean - mu)])
        gain, offset = table.form[n] @ np.stack([data, noise])
        J, c = np.eye(1 + regs), np.zeros(1 + regs)
        for slot, row, const in (
            (table.keep[n], np.eye(1 + regs)[0], 0.0),
            (table.slot[n], gain * np.eye(1 + regs)[0], offset),
        ):
            J[1 + slot], c[1 + slot] = row, const
        m, P = J @ m + c, J @ P @ J.T
        U = np.eye(1 + regs)
        U[0, 0], U[0, 1:] = table.A[n], table.B[n]
        m, P = U @ m, U @ P @ U.T
        P[0, 0] += table.C[n] ** 2
    return m[0] + mu, P[0, 0]


@pytest.mark.parametrize("name", STOCHASTIC)
@pytest.mark.parametrize("path_name", ["vp", "mr"])
def test_weak_order(name, path_name):
    solver, *orders = STOCHASTIC[name]
    path, mean, std, x_T = PATHS[path_name], 0.7, 0.4, 1.3
    mu = 0.0 if path.centre is None else path.centre
    counts, start, end = (40, 80, 160), float(path.time(-1.0)), float(path.time(1.2))
    grids = [js.grids.log_snr(path, n, t_max=start, t_min=end) for n in counts]
    if name == "euler_maruyama" and path_name == "mr":  # steps in t, which see the pieces of the schedule
        counts, start, end = (10, 20, 40), 60.9, 60.1
        grids = [in_pieces(path, start, end, n) for n in counts]
    (a0, s0), (a1, s1) = ((path.alpha(t), path.sigma(t)) for t in (start, end))
    V0, V1 = a0**2 * std**2 + s0**2, a1**2 * std**2 + s1**2
    c0, c1 = mu + a0 * (mean - mu), mu + a1 * (mean - mu)
    truth = c1 + a0 / a1 * V1 / V0 * (x_T - c0), V1 - (a0 / a1) ** 2 * V1**2 / V0
    tables = [js.tabulate(path, grid, solver) for grid in grids]
    errors = np.abs(np.array([recursion(table, path, mean, std, x_T) for table in tables]) - truth)
    for column, order in enumerate(orders):
        if order is None:
            assert errors[:, column].max() < 1e-10
        else:
            assert abs(fall(counts, errors[:, column]) - order) < 0.25


def test_recursion_agrees_with_monte_carlo():
    """Ties the recursion used above to the sampler itself: 4 standard errors."""
    path = js.VP()
    denoiser, _, _ = gaussian(path)
    table = js.tabulate(path, js.grids.log_snr(path, 6), S.dpmpp_2m_sde)
    want_mean, want_variance = recursion(table, path, 0.7, 0.4, 1.3)
    n = 200_000
    x = js.run(denoiser, table, jnp.full((n,), 1.3), key=jax.random.key(0), adjoint=js.Direct())
    assert abs(float(x.mean()) - want_mean) < 4 * np.sqrt(want_variance / n)
    assert abs(float(x.var()) - want_variance) < 4 * want_variance * np.sqrt(2 / n)


@pytest.mark.parametrize(
    ("solver", "order", "line"),
    [
        (S.ddim, 1, "ddim: measured 1.0., declared 1"),
        (S.dpmpp_2m, 2, "dpmpp_2m: measured 2.02, declared 2"),
        (S.dpmpp_3m, 2, "dpmpp_3m: measured 2.0., declared 3"),  # capped by its first-order start ..
        ((S.dpmpp_3s, S.dpmpp_3m), 3, "dpmpp_3m: measured 2.96, declared 3"),  # .. as in the list above
    ],
    ids=["ddim", "dpmpp_2m", "dpmpp_3m", "dpmpp_3m started by 3S"],
)
def test_measured_orders_are_those_measured_here(solver, order, line):
    """`js.solvers.order` on the same problem, by its own recurrence and its own truth; it prints as a
    line.
    """
    counts = (40, 80, 160)
    measured = js.solvers.order(solver, steps=counts)
    np.testing.assert_allclose(measured.measured, slope(solver, "vp", "mixture", counts), rtol=1e-4)
    assert abs(measured.measured - order) < 0.2
    assert re.fullmatch(line, repr(js.solvers.order(solver)))


def test_measured_weak_orders():
    """The lower of the two moments' orders, "exact here" where both are rounding."""
    assert re.fullmatch(
        "dpmpp_2m_sde: measured 2.01, declared 2", repr(js.solvers.weak_order(S.dpmpp_2m_sde))
    )
    for solver in (S.euler_maruyama, S.mr_sde(order=2, kind="noise")):
        measured = js.solvers.weak_order(solver, steps=(40, 80, 160))
        assert abs(measured.measured - solver.order) < 0.25
        assert repr(measured) == f"{solver.name}: measured {measured.measured:.2f}, declared {solver.order}"
    with pytest.raises(ValueError, match="ddpm draws noise: measure it with js.solvers.weak_order"):
        js.solvers.order(S.ddpm)
