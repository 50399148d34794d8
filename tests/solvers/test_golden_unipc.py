"""UniPC against every `unipc/` case of the golden vectors; the variant vary_coeff as published, with its
defective corrector.
"""

import dataclasses

import numpy as np
import pytest
from golden_cases import GOLDEN, PATHS, cases, close, finish

import jaxsampler as js

pytestmark = pytest.mark.usefixtures("x64")
CASES = cases("unipc/")


def setting(case):
    """Solver, name of the path and stored grid of a case."""
    _, kind, variant, order, path, skip, n = case.split("/")
    variant = variant.removesuffix("_coeff")
    solver = js.solvers.unipc(
        order=int(order[1:]),
        variant=variant,
        kind=kind.removesuffix("_prediction"),
        published=variant == "vary",
    )
    return solver, path, GOLDEN[f"grid/{path}/{skip}/{n}/t"]


@pytest.mark.parametrize("case", CASES)
def test_final_sample(case):
    solver, path, grid = setting(case)
    table = js.tabulate(PATHS[path], grid, solver)
    assert table.nfe == len(grid) - 1
    close(finish(path, table), case)


@pytest.mark.parametrize("case", [c for c in CASES if f"traj/{c}" in GOLDEN and "/o3/" in c])
def test_corrected_states(case):
    """The stored states are the corrected ones: the step that corrects, made to return the corrected state
    and stop,
    is the last row.
    """
    solver, path, grid = setting(case)
    steps = solver.rule(len(grid) - 1, solver.lower_order_final)
    for i in (1, 2, 3, 6, 9):
        corrects = dataclasses.replace(
            steps[i], formula=lambda *args, whole=steps[i].formula: whole(*args)[1]
        )
        table = js.tabulate(PATHS[path], grid[: i + 2], [*steps[:i], corrects])
        np.testing.assert_allclose(finish(path, table), GOLDEN[f"traj/{case}"][i], rtol=1e-8, atol=1e-9)


def test_no_case_is_left_out():
    assert len(CASES) == 168
    assert {case.split("/")[2] for case in CASES} == {"bh1", "bh2", "vary_coeff"}
