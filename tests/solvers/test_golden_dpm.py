"""Every case `dpm/*` of the golden vectors: DPM-Solver and DPM-Solver++, multistep, single-step and adaptive,
as published.

A case is dpm/<algorithm>/<method>/o<order>/<variant>/<path>/<grid>/n<NFE>. `lower_order_final` acts below ten
steps, as released.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import CASES, GOLDEN, PATHS, cases, close, denoiser, finish, start

import jaxsampler as js
from jaxsampler.tables.scheduling import schedule

pytestmark = pytest.mark.usefixtures("x64")
S = js.solvers
KIND = {"dpmsolver": "noise", "dpmsolver++": "data"}
MULTISTEP = {"noise": (S.dpm_1, S.dpm_2m, S.dpm_3m), "data": (S.dpmpp_1, S.dpmpp_2m, S.dpmpp_3m)}
GRIDS = {
    "logSNR": js.grids.log_snr,
    "time_uniform": js.grids.uniform,
    "time_quadratic": js.grids.quadratic,
    "edm": js.grids.karras,
}
FIXED = [c for c in cases("dpm/") if "/adaptive/" not in c]
ADAPTIVE = [c for c in cases("dpm/") if "/adaptive/" in c]


def parsed(case):
    """(kind, method, order, variant, path's name, grid's name, NFE)."""
    _, algorithm, method, order, variant, path, grid, n = case.split("/")
    return KIND[algorithm], method, int(order[1:]), variant, path, grid, int(n[1:])


def multistep(kind, order, variant, n):
    """The released multistep driver: orders 1, 2, 3, 3, .., half of F''."""
    options = {} if order == 1 else {"form": "taylor" if variant == "taylor" else "dpmsolver"}
    options |= {"published": True} if order == 3 else {}
    return MULTISTEP[kind][order - 1](lower_order_final=n < 10 and variant != "nolof", **options)


def table_of(case):
    kind, method, order, variant, path, grid, n = parsed(case)
    if method == "multistep":
        times, solver = GOLDEN[f"grid/{path}/{grid}/n{n}/t"], multistep(kind, order, variant, n)
        if variant.endswith("+denoise"):  # one more call, to t = 0: the prediction at the end of the grid
            times, solver = (
                js.grids.append_zero(times),
                [*schedule(solver, n, to_zero=False, from_noise=False), S.dpmpp_1],
            )
        return js.tabulate(PATHS[path], times, solver)
    driver = {"singlestep": S.singlestep, "singlestep_fixed": S.singlestep_fixed}[method]
    form = "taylor" if variant == "taylor" else "dpmsolver"
    return js.tabulate(
        PATHS[path], *driver(PATHS[path], n, order, kind=kind, grid=GRIDS[grid], form=form, published=True)
    )


@pytest.mark.parametrize("case", [c for c in FIXED if "dynthresh" not in c])
def test_fixed_grid(case):
    table = table_of(case)
    assert table.nfe == CASES[case]["nfe"]
    close(finish(parsed(case)[4], table), case)


@pytest.mark.parametrize("case", [c for c in FIXED if "dynthresh" in c])
def test_dynamic_thresholding(case):
    """It acts per row of [B, D]."""
    path = parsed(case)[4]
    model = js.guidance.dynamic_threshold(denoiser(PATHS[path]), ratio=0.995, max_value=1.0, axes=-1)
    table = table_of(case)
    assert table.nfe == CASES[case]["nfe"]
    close(js.run(model, table, start(path), adjoint=js.Direct()), case)


@pytest.mark.parametrize("case", [c for c in FIXED if f"traj/{c}" in GOLDEN and "multistep" in c])
def test_states_along_the_way(case):
    """The whole trajectory, where it is stored."""
    path = parsed(case)[4]
    got = trajectory(path)(js.pad(table_of(case), regs=3), start(path))
    np.testing.assert_allclose(got, GOLDEN[f"traj/{case}"], rtol=1e-8, atol=1e-9)


@functools.cache
def trajectory(path):
    at = list(range(11))
    return jax.jit(lambda table, x: js.run(denoiser(PATHS[path]), table, x, save=at, adjoint=js.Direct()).xs)


@functools.cache
def adaptive_run(kind, order, path):
    """One compilation for both tolerances, which are arguments."""
    grid = GOLDEN[f"grid/{path}/logSNR/n5/t"][[0, -1]]

    def run(tolerance, x):
        solver = S.dpm_adaptive(
            order=order,
            kind=kind,
            atol=tolerance[0],
            rtol=tolerance[1],
            t_err=1e-5,
            batch_axis=0,
            published=True,
        )
        return js.sample(
            denoiser(PATHS[path]), x, key=None, solver=solver, grid=grid, x=x, adjoint=js.Direct()
        )

    return jax.jit(run)


@pytest.mark.parametrize("case", ADAPTIVE)
def test_adaptive(case):
    _, algorithm, _, order, variant, path = case.split("/")
    tolerance = jnp.asarray({"dpmsolver": (0.0078, 0.05), "tight": (1e-4, 1e-3)}[variant])
    out = adaptive_run(KIND[algorithm], int(order[1:]), path)(tolerance, start(path))
    assert out.reached
    assert int(out.nfe) == CASES[case]["nfe"] == int(order[1:]) * int(out.accepted + out.rejected)
    close(out.x, case, rtol=1e-6, atol=1e-6)


def test_no_case_is_left_out():
    """Fixed grids (thresholded or not) and adaptive ones are all there is."""
    assert len(FIXED) == 494
    assert len(ADAPTIVE) == 32
    assert {parsed(c)[1] for c in FIXED} == {"multistep", "singlestep", "singlestep_fixed"}
    assert {parsed(c)[3] for c in FIXED} == {"dpmsolver", "taylor", "nolof", "dpmsolver+denoise", "dynthresh"}
    assert sorted(FIXED + ADAPTIVE) == sorted(cases("dpm/"))
