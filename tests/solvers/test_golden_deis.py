"""Every DEIS case of golden/diffusion_solvers.npz, exact and as published; the quadrature against adaptive
integration in t.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import CASES, GOLDEN, PATHS, denoiser
from oracle import Cubic
from scipy.integrate import quad

import jaxsampler as js
from jaxsampler.numerics import namespace

pytestmark = pytest.mark.usefixtures("x64")
S = js.solvers


class UnnormalisedCosine(js.Path):
    """The published DEIS cosine schedule: alpha(0) is not quite 1, and the grid starts at 0.99."""

    t_max = 0.99

    def alpha(self, t):
        return namespace(t).cos(math.pi / 2 * (t + 0.008) / 1.008)

    def sigma(self, t):
        return namespace(t).sin(math.pi / 2 * (t + 0.008) / 1.008)


SCHEDULES = {"vp_linear": PATHS["vp_linear"], "vp_cosine": UnnormalisedCosine()}
RUNS = {
    name: jax.jit(
        lambda table, path=path: js.run(denoiser(path), table, jnp.asarray(GOLDEN["z"]), adjoint=js.Direct())
    )
    for name, path in SCHEDULES.items()
}
PUBLISHED = [name for name in CASES if name.startswith("deis/")]
EXACT = [name for name in GOLDEN.files if name.startswith("exact/deis/")]
COEFFICIENTS = [name for name in GOLDEN.files if name.startswith(("coef/deis/", "exact/coef/deis/"))]


def problem(name):
    """Path and grid of a case ".../deis/<method>/<schedule>/<grid>/n<N>", and its method."""
    method, schedule, phase, n = name.split("/")[-4:]
    return schedule, GOLDEN[f"grid/deis/{schedule}/{phase}/{n}/t"], method


def solver_of(method, published=False):
    if method == "ipndm":
        return S.ipndm
    if method.startswith("rhork_"):
        return S.rk_rho(tableau=method.removeprefix("rhork_"))
    family = S.deis if method.startswith("tab") else S.deis_rho
    return family(order=int(method[-1]) + 1, published=published)


def sample(name, published=False):
    schedule, grid, method = problem(name)
    table = js.tabulate(SCHEDULES[schedule], grid, solver_of(method, published))
    return table, RUNS[schedule](js.pad(table, nfe=20 if table.nfe <= 20 else 80, regs=6))


@pytest.mark.parametrize("name", PUBLISHED)
def test_as_published(name):
    """`published=True` sums the code's 10^4 rectangles and agrees to 1e-10; so do the methods that need no
    quadrature.
    """
    table, got = sample(name, published=True)
    assert table.nfe == CASES[name]["nfe"]
    np.testing.assert_allclose(got, GOLDEN[name], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", EXACT)
def test_exact_quadrature(name):
    """The same loop with extrapolated coefficients; the published samples are up to 0.25 away."""
    got = sample(name)[1]
    np.testing.assert_allclose(got, GOLDEN[name], rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(got, GOLDEN[name.removeprefix("exact/")], atol=0.25)


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_coefficients(name):
    """The table's own numbers: Psi and C_0..C_3, newest first. rhoAB's are stored for y = x/alpha."""
    schedule, grid, method = problem(name)
    path, published = SCHEDULES[schedule], name.startswith("coef/")
    table = js.tabulate(path, grid, solver_of(method, published))
    got = np.zeros((table.nfe, 5))
    got[:, 0] = table.A
    for i in range(table.nfe):
        for j in range(min(i, 3) + 1):
            got[i, 1 + j] = table.B[i, table.slot[i - j]]
    if method.startswith("rhoab"):
        got[:, 1:] /= path.alpha(grid[1:])[:, None]
    want = GOLDEN[name]
    np.testing.assert_allclose(
        got if published else got[:, 1:], want, rtol=1e-10, atol=1e-10 * np.abs(want).max()
    )


def test_no_case_is_left_out():
    """Methods with a name here, each on every grid; what has an exact counterpart is compared with both."""
    methods = {f"{family}{r}" for family in ("tab", "rhoab") for r in range(4)}
    methods |= {"ipndm", *(f"rhork_{t}" for t in ("2heun", "3kutta", "4rk", "3heun"))}
    assert {problem(name)[2] for name in PUBLISHED} == methods
    assert len(PUBLISHED) == len([n for n in GOLDEN.files if n.startswith("deis/")]) == 222
    assert {n.removeprefix("exact/") for n in EXACT} <= set(PUBLISHED)
    stored = [n for n in GOLDEN.files if "deis/" in n and not n.startswith("grid/")]
    assert len(stored) == len(PUBLISHED) + len(EXACT) + len(COEFFICIENTS)


QUADRATURE = {
    "vp": (js.VP(), [0.97, 0.6, 0.35, 0.1, 0.002]),
    "edm": (js.EDM(), [80.0, 30.0, 4.0, 0.7, 0.01]),
    "cond_ot": (js.CondOT(), [0.99, 0.7, 0.4, 0.2, 0.01]),
    "cubic": (Cubic(), [0.95, 0.7, 0.4, 0.2, 0.05]),
    "mean_reverting": (js.MeanReverting(0.4), [97.3, 60.0, 35.5, 10.2, 0.4]),
    "discrete": (js.DiscreteVP.scaled_linear(60), [0.97, 0.5, 0.3, 0.1, 0.02]),
}


@pytest.mark.parametrize("name", QUADRATURE)
def test_tab_weights_by_adaptive_quadrature(name):
    """C_j = int alpha_s/alpha_tau g^2/(2 sigma) L_j(tau) dtau, straight from the paper, panel by panel on
    tabulated schedules.
    """
    path, grid = QUADRATURE[name]
    grid = np.array(grid)
    t, s, nodes = grid[-2], grid[-1], grid[-2:0:-1][:3]

    def integrand(tau, j):
        alpha, sigma = path.alpha(tau), path.sigma(tau)
        f, variance = path.alpha_dot(tau) / alpha, 2 * sigma * path.sigma_dot(tau)
        basis = np.prod([(tau - v) / (nodes[j] - v) for i, v in enumerate(nodes) if i != j])
        return float(path.alpha(s) / alpha * (variance - 2 * f * sigma**2) / (2 * sigma) * basis)

    inner = [k for k in path.knots if s < k < t]
    edges = [s, *inner, t]
    table = js.tabulate(path, grid, S.deis(order=3))
    for j in range(3):
        want = -sum(
            quad(integrand, a, b, (j,), epsabs=1e-13, epsrel=1e-12)[0] for a, b in itertools.pairwise(edges)
        )
        np.testing.assert_allclose(table.B[-1, table.slot[-1 - j]], want, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", ["vp", "mean_reverting", "discrete"])
def test_traced_grid_in_single_precision(name):
    """Inside jit, with strict promotion, at the dtype of the grid."""
    path, grid = QUADRATURE[name]
    with jax.enable_x64(False):
        got = jax.jit(lambda g: js.tabulate(path, g, S.deis))(jnp.asarray(grid, jnp.float32))
    want = js.tabulate(path, np.float32(grid), S.deis)
    assert got.B.dtype == jnp.float32
    np.testing.assert_allclose(got.B, want.B, rtol=2e-3, atol=2e-3 * np.abs(want.B).max())


def test_published_rectangles_cost_the_order():
    """Left rectangles leave an error of 1e-4 of a step: first order in the end, whatever the degree; ours
    keeps the fourth.
    """
    path, denoise, x = js.VP(), denoiser(js.VP()), jnp.asarray(GOLDEN["z"]) * 0.5
    start, end = float(path.time(-1.0)), float(path.time(-0.2))
    run = jax.jit(lambda table: js.run(denoise, table, x, adjoint=js.Direct()))

    def ends(n, solver):
        steps = [S.rk_rho(tableau="4rk")] * 3 + [solver] * (n - 3)
        table = js.tabulate(path, js.grids.log_snr(path, n, t_max=start, t_min=end), steps)
        return np.asarray(run(js.pad(table, nfe=800, regs=8)))

    truth = ends(200, S.rk_rho(tableau="4rk"))
    errors = np.array(
        [[np.abs(ends(n, S.deis(published=p)) - truth).max() for n in (40, 80)] for p in (False, True)]
    )
    ours, published = np.log2(errors[:, 0] / errors[:, 1])
    assert abs(ours - 4) < 0.2
    assert abs(published - 1) < 0.2
    assert errors[1, 1] > 20 * errors[0, 1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: S.deis(order=5), "deis has orders 1 to 4, got 5"),
        (lambda: S.deis_rho(order=0), "deis_rho has orders 1 to 4, got 0"),
        (lambda: S.lms(order=2.5), r"orders 1 to 4, got 2\.5|parameter"),
        (lambda: S.ipndm(order=9), "ipndm has orders 1 to 4, got 9"),
        (
            lambda: js.tabulate(js.CondOT(), [1.0, 0.5], S.deis),
            "not finite: this solver cannot use that end of the path",
        ),
    ],
)
def test_errors(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()
