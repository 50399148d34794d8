"""Every case `kdiff/*` of the golden vectors: the samplers of k-diffusion, on its Karras grid with a last
step to 0.
"""

import numpy as np
import pytest
from golden_cases import CASES, GOLDEN, PATHS, cases, close, denoiser, finish, start

import jaxsampler as js

pytestmark = pytest.mark.usefixtures("x64")
S = js.solvers
PATH = PATHS["ve"]
SAMPLERS = {
    "euler": S.euler,
    "heun": S.heun,
    "dpm_2": S.dpm_2,
    "lms": S.lms,
    "euler_ancestral": S.euler_ancestral,
    "dpm_2_ancestral": S.dpm_2_ancestral,
    "dpmpp_2s_ancestral": S.dpmpp_2s_ancestral,
    "dpmpp_2s_ancestral_eta0": S.dpmpp_2s_ancestral(eta=0.0),
    "dpmpp_sde": S.dpmpp_sde,
    "dpmpp_2m": S.dpmpp_2m,
    "dpmpp_2m_expgrid": S.dpmpp_2m,
    "dpmpp_2m_sde_midpoint": S.dpmpp_2m_sde(form="dpmsolver"),
    "dpmpp_2m_sde_heun": S.dpmpp_2m_sde(form="taylor"),
    "dpmpp_2m_sde_eta0.5": S.dpmpp_2m_sde(eta=0.5),
    "dpmpp_2m_sde_eta0": S.dpmpp_2m_sde(eta=0.0),
    "dpmpp_3m_sde": S.dpmpp_3m_sde(published=True),
    "dpmpp_3m_sde_eta0.5": S.dpmpp_3m_sde(eta=0.5, published=True),
    "dpmpp_3m_sde_eta0": S.dpmpp_3m_sde(eta=0.0, published=True),
}
TABLES = [c for c in cases("kdiff/") if "dpm_fast" not in c and "dpm_adaptive" not in c]
FAST = cases("kdiff/dpm_fast/")
ADAPTIVE = cases("kdiff/dpm_adaptive/")


def noise_of(case):
    return GOLDEN.get(f"noise/{case}")


@pytest.mark.parametrize("case", TABLES)
def test_sampler(case):
    _, sampler, n = case.split("/")
    grid = "exponential" if sampler.endswith("expgrid") else "karras"
    table = js.tabulate(PATH, GOLDEN[f"grid/kdiff/{grid}/{n}/sigma"], SAMPLERS[sampler])
    assert table.nfe == CASES[case]["nfe"]
    close(finish("ve", table, noise_of(case)), case)


@pytest.mark.parametrize("case", [c for c in TABLES if c.split("/")[1] in ("euler", "heun")])
def test_the_same_in_rho(case):
    """On this path t is rho: Euler is DDIM, and Heun is EDM's sampler without churn."""
    _, sampler, n = case.split("/")
    table = js.tabulate(
        PATH, GOLDEN[f"grid/kdiff/karras/{n}/sigma"], {"euler": S.ddim, "heun": S.edm}[sampler]
    )
    close(finish("ve", table), case)


@pytest.mark.parametrize("case", FAST)
def test_fast_is_the_singlestep_driver(case):
    table = js.tabulate(PATH, *S.singlestep(PATH, int(case.split("/n")[1]), order=3, kind="noise"))
    assert table.nfe == CASES[case]["nfe"]
    close(finish("ve", table), case)


@pytest.mark.parametrize("case", [c for c in TABLES if "/dpmpp_2m/" in c])
def test_karras_grid(case):
    """The grid of the vectors is the library's own."""
    n = int(case.split("/n")[1])
    np.testing.assert_allclose(
        js.grids.append_zero(js.grids.karras(PATH, n - 1)),
        GOLDEN[f"grid/kdiff/karras/n{n}/sigma"],
        rtol=1e-12,
    )


@pytest.mark.parametrize("case", ADAPTIVE)
def test_adaptive(case):
    """Its error is the norm over everything, its control a PID, its state the one of the variance-exploding
    path.
    """
    x = start("ve")
    solver = S.dpm_adaptive(order=int(case[-1]), pid=S.PID(), published=True)
    grid = np.array([PATH.sigma_max, PATH.sigma_min])
    out = js.sample(denoiser(PATH), x, key=None, solver=solver, grid=grid, x=x, adjoint=js.Direct())
    assert out.reached
    assert int(out.nfe) == CASES[case]["nfe"]
    close(out.x, case, rtol=1e-6, atol=1e-6)


def test_no_case_is_left_out():
    """Every case is a table's, the fast one's or the adaptive one's; every sampler has its cases."""
    assert sorted(TABLES + FAST + ADAPTIVE) == sorted(cases("kdiff/"))
    assert {c.split("/")[1] for c in TABLES} == set(SAMPLERS)
    assert [len(TABLES), len(FAST), len(ADAPTIVE)] == [54, 1, 2]
