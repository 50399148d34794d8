"""Intervals run together give the rows that each gives alone, and whatever cannot be run together is run
alone.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from oracle import Cubic

import jaxsampler as js
from jaxsampler.numerics import on_host
from jaxsampler.tables import intervals

pytestmark = pytest.mark.usefixtures("x64")
SOLVERS = js.solvers.catalogue()
PATHS = {
    "vp": js.VP(),
    "edm": js.EDM(),
    "ot": js.CondOT(),
    "mr": js.MeanReverting(0.4),
    "discrete": js.DiscreteVP.linear(),
    "cubic": Cubic(),
}


def alone(monkeypatch, *args):
    """The table, made interval by interval."""
    with monkeypatch.context() as patch:
        patch.setattr(intervals, "runs", lambda *_: {})
        return js.tabulate(*args)


def same(table, other):
    for name in ("t", "A", "B", "C", "form", "end", "start"):
        a, b = getattr(table, name), getattr(other, name)
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13 * np.nanmax(np.abs(b), initial=1.0))
    for name in ("slot", "keep", "draw"):
        np.testing.assert_array_equal(getattr(table, name), getattr(other, name))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", SOLVERS)
def test_together_and_alone_are_the_same_table(name, path, monkeypatch):
    path, solver = PATHS[path], SOLVERS[name]
    grid = js.grids.uniform(path, 13, t_max=0.95 * path.t_max, t_min=0.05 * path.t_max)
    same(js.tabulate(path, grid, solver), alone(monkeypatch, path, grid, solver))


@pytest.mark.parametrize("name", SOLVERS)
def test_no_solver_of_the_library_is_run_alone(name):
    path, solver = js.VP(), SOLVERS[name]
    grid = js.grids.log_snr(path, 40)
    steps = solver.rule(40, False) if solver.rule else [*solver.start, *[solver] * 40][:40]
    large = [s for s in {id(s): s for s in steps}.values() if sum(s is o for o in steps) >= intervals.FEWEST]
    assert large
    with on_host():
        found = intervals.runs(path, grid, steps)
    alone = [i for i, s in enumerate(steps) if i not in found and any(s is o for o in large)]
    assert not alone, f"{name} branches on times or counts them: intervals {alone} are tabulated one by one"


@js.step(kind="data", order=1)
def branching(path, ts, x, past, model, z):
    t, _ = ts[-2:]
    return (0.5 if float(t) > 0.3 else 0.25) * x + model(x, t)


@js.step(kind="data", order=1)
def counting(path, ts, x, past, model, z):
    return x / len(ts) + model(x, ts[-2])


@js.step(kind="data", order=1)
def beginning(path, ts, x, past, model, z):
    return ts[0] * x + model(x, ts[-2])


@js.step(kind="data", order=1)
def averaging(path, ts, x, past, model, z):
    """A mean over the intervals where there should be none: wrong together, right alone."""
    return np.mean(ts[-1]) * x + model(x, ts[-2])


@js.step(kind="data", order=1)
def history(path, ts, x, past, model, z):
    return sum(t for t in ts[::-1]) * x + model(x, ts[-2])


@pytest.mark.parametrize("solver", [branching, counting, beginning, averaging, history])
def test_a_step_that_cannot_be_run_together_is_run_alone(solver):
    grid = np.linspace(0.9, 0.1, 12)
    A = js.tabulate(js.VP(), grid, solver).A
    want = {
        "branching": np.where(grid[:-1] > 0.3, 0.5, 0.25),
        "counting": 1 / np.arange(2, 13),
        "beginning": np.full(11, 0.9),
        "averaging": grid[1:],
        "history": np.cumsum(grid)[1:],
    }[solver.name]
    np.testing.assert_allclose(A, want, rtol=1e-14)


@js.step(kind="data", order=1)
def clipped(path, ts, x, past, model, z):
    return jnp.clip(x, -1, 1) + ts[-1] * model(x, ts[-2])


def test_what_is_not_linear_is_refused_at_any_length():
    for n in (2, 40):
        with pytest.raises(ValueError, match="clipped is not linear"):
            js.tabulate(js.VP(), np.linspace(0.9, 0.1, n + 1), clipped)


class Counted(js.Path):
    """A path that counts how often it is asked."""

    asked = 0

    def alpha(self, t):
        Counted.asked += 1
        return 1 - t

    def sigma(self, t):
        Counted.asked += 1
        return 1.0 * t


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpm_3", "dpmpp_2m_sde", "heun"])
def test_a_path_is_asked_as_often_for_a_thousand_steps_as_for_twenty(name):
    asked = []
    for n in (20, 1000):
        Counted.asked = 0
        js.tabulate(Counted(), np.linspace(0.9, 0.1, n + 1), SOLVERS[name])
        asked.append(Counted.asked)
    assert asked[1] < 4.5 * asked[0]  # 256 intervals at a time
