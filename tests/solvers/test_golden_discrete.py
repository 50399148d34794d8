"""Every case of golden/diffusion_solvers.npz that steps by training indices: PNDM's own code and diffusers'
DDIM, DDPM and PNDM.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import CASES, GOLDEN, PATHS, cases, close, finish

import jaxsampler as js

pytestmark = pytest.mark.usefixtures("x64")
S = js.solvers
PATH, N = PATHS["discrete"], 1000
REPO, DDIM, DDPM, PNDM = (
    cases(p) for p in ("pndm_repo/", "diffusers/ddim/", "diffusers/ddpm/", "diffusers/pndm/")
)


@pytest.mark.parametrize("name", REPO)
def test_pndm_repository(name):
    """Its index k stands for noise level k + 1 and its last one, -1, for level 0: a shift of the grid."""
    _, method, steps = name.split("/")
    solver = {"ddim": S.ddim, "s-pndm": S.pndm(order=2), "f-pndm": S.pndm}[method]
    table = js.tabulate(PATH, (GOLDEN[f"grid/pndm_repo/{steps}/t"] + 2) / N, solver)
    assert table.nfe == CASES[name]["nfe"]
    close(finish("discrete", table), name)


def ddim_grid(spacing, n):
    """The grid of a diffusers spacing by this library's name."""
    final = "first" if spacing.endswith("finalalpha0") else "zero"
    spacing = spacing.removesuffix("_finalalpha0")
    if spacing.startswith("leading"):
        return js.grids.leading(PATH, n, offset=int(spacing[-1]), final=final)
    return {"trailing": js.grids.trailing, "linspace": js.grids.linspace}[spacing](PATH, n, final=final)


@pytest.mark.parametrize("name", DDIM)
def test_diffusers_ddim(name):
    """Steps of N//n indices whatever the spacing; a step that would not move the state has no row."""
    _, _, spacing, eta, n = name.split("/")
    n, final = int(n[1:]), 1 / N if spacing.endswith("finalalpha0") else 0.0
    solver, grid = S.ddim(eta=float(eta[3:])), ddim_grid(spacing, n)
    noise = GOLDEN[f"noise/{name}"] if f"noise/{name}" in GOLDEN.files else None
    table = js.tabulate(PATH, grid, S.strided(solver, (N // n) / N, final))
    assert table.nfe == CASES[name]["nfe"] - (final > 0)
    stored = f"grid/diffusers/{spacing}/n{n}/t"
    labels = PATH.network_time(table.t)
    np.testing.assert_allclose(
        labels, GOLDEN[stored] if stored in GOLDEN.files else np.arange(n - 1, 0, -1) * (N // n), atol=1e-9
    )
    close(finish("discrete", table, noise), name)
    on_the_grid = finish("discrete", js.tabulate(PATH, grid, solver), noise)
    if spacing == "linspace":  # here the published targets are not the next points of the grid
        assert np.abs(on_the_grid - GOLDEN[name]).max() > 1e-2
    else:
        close(on_the_grid, name)


@pytest.mark.parametrize("name", DDPM)
def test_diffusers_ddpm(name):
    _, _, kind, n = name.split("/")
    table = js.tabulate(PATH, js.grids.leading(PATH, int(n[1:])), S.ddpm(variance_type=kind))
    assert table.nfe == CASES[name]["nfe"]
    close(finish("discrete", table, GOLDEN[f"noise/{name}"]), name)


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("name", PNDM)
def test_diffusers_pndm(name, published):
    """Its last call, from level 0 to level 0, moves nothing and has no row. All strides are even here, so
    rounding them changes nothing.
    """
    _, _, mode, n = name.split("/")
    solver = S.pndm(published=published) if mode == "prk+plms" else S.plms
    table = js.tabulate(PATH, js.grids.leading(PATH, int(n[1:]), final="first"), solver)
    calls = GOLDEN[f"grid/diffusers/pndm/{mode}/{n}/t"]
    assert table.nfe == CASES[name]["nfe"] - 1 == len(calls) - 1
    np.testing.assert_allclose(PATH.network_time(table.t), calls[:-1], atol=1e-9)
    close(finish("discrete", table), name)


def test_no_case_is_left_out():
    stored = {n for n in GOLDEN.files if n.startswith(("pndm_repo/", "diffusers/"))}
    assert set(REPO + DDIM + DDPM + PNDM) == stored == set(cases("pndm_repo/") + cases("diffusers/"))
    assert len(stored) == 60


@pytest.mark.parametrize("n", [8, 40])
def test_published_rounding_of_an_odd_stride(n):
    """Diffusers' Runge-Kutta with d = N//n odd, written from its indices: the second call's state and label
    differ by one index.
    """
    d = N // n
    assert d % 2 == 1
    bar, k = np.asarray(PATH.alphas_cumprod), (n - 1) * d
    called = []

    def noise(x, index):
        called.append(index)
        return np.tanh(x * (1 + index / N))

    def move(x, e, a, b):
        return (
            np.sqrt(bar[b] / bar[a]) * x
            + (np.sqrt(1 - bar[b]) - np.sqrt(bar[b] / bar[a]) * np.sqrt(1 - bar[a])) * e
        )

    x = GOLDEN["z"]
    e1 = noise(x, k)
    e2 = noise(move(x, e1, k, k - d // 2), k - d + d // 2)
    e3 = noise(move(x, e2, k, k - d + d // 2), k - d + d // 2)
    e4 = noise(move(x, e3, k, k - d), k - d)
    want = move(x, (e1 + 2 * e2 + 2 * e3 + e4) / 6, k, k - d)

    model = js.discrete(lambda x, index: jnp.tanh(x * (1 + index / N)), PATH, "noise")
    grid = js.grids.leading(PATH, n)[:2]
    table = js.tabulate(PATH, grid, S.pndm(published=True))
    np.testing.assert_allclose(PATH.network_time(table.t), called, atol=1e-9)
    run = jax.jit(lambda table: js.run(model, table, jnp.asarray(x), adjoint=js.Direct()))
    np.testing.assert_allclose(run(table), want, rtol=1e-10, atol=1e-12)
    assert np.abs(run(js.tabulate(PATH, grid, S.pndm)) - want).max() > 1e-6


@pytest.mark.parametrize(
    ("stride", "end", "targets"),
    [(0.35, 0.0, [0.55, 0.15]), (0.35, 0.2, [0.55, 0.2]), (0.5 - 1e-13, 0.0, [0.4, 0.0])],
)
def test_strides_on_any_path(stride, end, targets):
    """DDIM scales the noise by sigma_s/sigma_t: s is t - stride, not below the end, and exactly the end where
    rounding just missed it.
    """
    path, grid = js.VP(), np.array([0.9, 0.5, 0.3])
    table = js.tabulate(path, grid, S.strided(S.ddim, stride, end))
    np.testing.assert_allclose(
        table.A, path.sigma(np.array(targets)) / path.sigma(grid[:-1]), rtol=1e-11, atol=0
    )
    np.testing.assert_array_equal(table.t, grid[:-1])


# (start, solver), order; in equal steps of rho the fixed weights are those of Adams and Bashforth
ON_EQUAL_STEPS = {
    "ipndm 3": ((S.rk_rho(tableau="4rk"), S.ipndm(order=3)), 3),
    "ipndm": ((S.rk_rho(tableau="4rk"), S.ipndm), 4),
    "pndm": (S.pndm, 4),
    "pndm 2": (S.pndm(order=2), 2),
    "plms 2": (S.plms(order=2), 2),
    "plms": (S.plms, 3),  # the single improved Euler step costs h^3
}


@functools.cache
def run_in_rho():
    model = js.Denoiser(lambda y, t: jnp.sin(2 * y + t), js.EDM(sigma_min=0.4, sigma_max=2.0), "noise")
    return jax.jit(lambda table: js.run(model, table, jnp.asarray([0.3, -1.0, 0.8]), adjoint=js.Direct()))


@functools.cache
def end_on_equal_steps(n, solver):
    steps = [solver[0]] * 3 + [solver[1]] * (n - 3) if isinstance(solver, tuple) else solver
    table = js.tabulate(js.EDM(sigma_min=0.4, sigma_max=2.0), np.linspace(2.0, 0.4, n + 1), steps)
    return np.asarray(run_in_rho()(js.pad(table, nfe=1200, regs=8)))


@pytest.mark.parametrize("name", ON_EQUAL_STEPS)
def test_order_on_equal_steps_in_rho(name):
    """EDM's time is rho. (On other grids all are of order 2: test_orders.py.)"""
    solver, order = ON_EQUAL_STEPS[name]
    truth, counts = end_on_equal_steps(300, S.rk_rho(tableau="4rk")), (60, 120, 240)
    errors = [np.abs(end_on_equal_steps(n, solver) - truth).max() for n in counts]
    assert abs(np.polyfit(np.log(counts), -np.log(errors), 1)[0] - order) < 0.25


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: S.pndm(order=3), r"orders 4 \(F-PNDM\) and 2 \(S-PNDM\), got 3"),
        (lambda: S.plms(order=1), "orders 2, 3 and 4, got 1; order 1 is ddim"),
        (lambda: js.tabulate(js.VP(), [0.9, 0.5], S.pndm(published=True)), "needs a DiscreteVP path"),
        (lambda: S.strided(S.ddim, 0.0), r"need stride > 0 and end >= 0, got stride=0\.0"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
