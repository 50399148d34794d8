"""Relaxation factors on derivative estimates: 1 is the solver, 0 is DDIM, and a row is affine in its own
factor.
"""

import numpy as np
import pytest

import jaxsampler as js
from jaxsampler.search.unrolled import unrolled

VP, S = js.VP(), js.solvers
GRID = js.grids.uniform(VP, 5)
RELAXED = {
    "2m": S.dpmpp_2m,
    "3m": S.dpmpp_3m(lower_order_final=True),
    "2m noise": S.dpm_2m(form="taylor"),
    "3m noise": S.dpm_3m,
    "mr": S.mr_ode(order=3),
    "unipc": S.unipc(order=3),
    "unipc noise": S.unipc(order=2, kind="noise", variant="vary"),
}


def rows(solver, factors):
    """Unrolled weights of the data predictions."""
    return unrolled(js.tabulate(VP, GRID, S.relax(solver, factors)), VP)[1]


@pytest.mark.parametrize("name", RELAXED)
def test_from_ddim_to_the_solver(name):
    """All factors 0: first order, the corrector too. All 1: the solver. One factor moves the end of its
    interval on a line.
    """
    solver = RELAXED[name]
    ddim = S.dpmpp_1 if solver.kind == "data" else S.dpm_1
    np.testing.assert_allclose(
        rows(solver, np.zeros((5, 3))), unrolled(js.tabulate(VP, GRID, ddim), VP)[1], atol=1e-12
    )
    np.testing.assert_array_equal(
        rows(solver, np.ones((5, 2))), unrolled(js.tabulate(VP, GRID, solver), VP)[1]
    )
    values = []
    for r in (0.0, 0.7, 1.0):
        factors = np.ones((5, 2))
        factors[2, 0] = r
        values.append(rows(solver, factors))
    np.testing.assert_allclose(values[1][3], 0.3 * values[0][3] + 0.7 * values[2][3], atol=1e-10)
    assert np.abs((values[2] - values[0])[3]).max() > 1e-2 and not np.any((values[2] - values[0])[:3])


def test_refusals():
    """What has no derivatives to relax, and factors of a wrong shape."""
    with pytest.raises(
        ValueError, match="deis has no derivative estimates to relax; solvers that have: dpm_2m"
    ):
        S.relax(S.deis, np.ones((5, 2)))
    with pytest.raises(ValueError, match=r"\[intervals, derivatives\], got shape \(5,\)"):
        S.relax(S.dpmpp_2m, np.ones(5))
