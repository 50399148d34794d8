"""DPM-Solver-v3 against the golden vectors: `published=True` on their statistics and their snapped grids."""

import functools
import re

import jax
import numpy as np
import pytest
from golden_cases import CASES, CONFIG, GOLDEN, PATHS, close, denoiser, start

import jaxsampler as js
from jaxsampler.scan.driver import drive
from jaxsampler.scan.protocol import Watch

NAMES = CONFIG["v3_sched"]
FITTED = [c for c in CASES if c.startswith("v3/")]
DEGENERATE = [c for c in GOLDEN.files if re.match(r"v3/\w+/degenerate_", c)]


@functools.cache
def statistics(name, which="fitted"):
    """The stored tables; "data" is (1, 0, 0), "noise" (0, -1, 0)."""
    lam = GOLDEN[f"v3/{name}/lambda"]
    if which == "fitted":
        return js.solvers.Statistics.of(PATHS[name], lam, *(GOLDEN[f"v3/{name}/{k}"] for k in "lsb"))
    l, s = {"data": (1.0, 0.0), "noise": (0.0, -1.0)}[which]
    return js.solvers.Statistics.of(
        PATHS[name], lam, np.full_like(lam, l), np.full_like(lam, s), np.zeros_like(lam)
    )


@functools.cache
def compiled(name, registers):
    """Rows are an argument: cases of one length share a compilation."""
    solver = js.solvers.dpm_v3(statistics(name))
    return jax.jit(lambda rows, x: drive(solver, rows, denoiser(PATHS[name]), x, watch=Watch(js.Direct())))


def run(name, n, solver):
    """x at the end from the golden x_T, on the grid from which the golden one was snapped."""
    grid = js.grids.log_snr if name == "vp_linear" else js.grids.karras
    rows = solver.rows(PATHS[name], grid(PATHS[name], n))
    np.testing.assert_allclose([*rows.t, rows.end[-1]], GOLDEN[f"v3/{name}/n{n}/t"], rtol=1e-10)
    rows = rows._replace(W=np.pad(rows.W, [(0, 0), (0, 4 - rows.W.shape[1]), *[(0, 0)] * (rows.W.ndim - 2)]))
    return compiled(name, 4)(rows, start(name))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", FITTED)
def test_fitted(case):
    name, order, pp, uc, cp, lof, n = re.fullmatch(
        r"v3/(\w+)/o(\d)/pp(\d)_uc(\d)_cp(\d)_lof(\d)/n(\d+)", case
    ).groups()
    solver = js.solvers.dpm_v3(
        statistics(name),
        order=int(order),
        corrector=uc == "1",
        pseudo_predictor=pp == "1",
        pseudo_corrector=cp == "1",
        lower_order_final=lof == "1",
        published=True,
    )
    assert CASES[case]["nfe"] == int(n)
    close(run(name, int(n), solver), case)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate(case):
    name, which, order, n = re.fullmatch(r"v3/(\w+)/degenerate_(\w+)/o(\d)/n(\d+)", case).groups()
    solver = js.solvers.dpm_v3(statistics(name, which), order=int(order), corrector=False, published=True)
    close(run(name, int(n), solver), case)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", NAMES)
def test_through_the_front_door(name):
    """js.sample gives what the shared compilation above gives."""
    solver = js.solvers.dpm_v3(statistics(name), published=True)
    x, path = start(name), PATHS[name]
    grid = GOLDEN[f"v3/{name}/n10/t"].tolist()
    got = js.sample(denoiser(path), x, key=None, x=x, solver=solver, grid=grid, adjoint=js.Direct())
    close(got, f"v3/{name}/o3/pp0_uc1_cp0_lof1/n10")


def test_no_case_is_left_out():
    inputs = {f"v3/{n}/{k}" for n in NAMES for k in ("lambda", "l", "s", "b")}
    grids = {f"v3/{n}/n{k}/{v}" for n in NAMES for k in CONFIG["nfe"] for v in ("index", "t")}
    stored = {k for k in GOLDEN.files if k.startswith("v3/")}
    assert stored == inputs | grids | set(FITTED) | set(DEGENERATE)
    assert (len(FITTED), len(DEGENERATE)) == (72, 36)
