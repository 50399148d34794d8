"""Distillation: rows that are least squares to a fine trajectory, as tables that `learn` can begin from."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsampler as js
from jaxsampler.search.distillation import between, distill, waypoints
from jaxsampler.search.initial import at_table
from jaxsampler.search.learning import begin, learn
from jaxsampler.search.parametrisation import learnable
from jaxsampler.search.unrolled import unrolled

PATH = js.VP()
NET = js.models.gaussian_mixture(
    np.array([[-1.2, 0.5], [0.9, 1.0], [0.3, -1.1]]), np.array([0.63, 0.84, 0.7]), PATH
)
GRID = js.grids.uniform(PATH, 4)
KEY = jax.random.key(3)
SMALL: dict[str, Any] = {
    "key": KEY,
    "like": jnp.zeros(2),
    "noises": 512,
    "held_out": 512,
    "batch": 256,
    "teacher": 60,
    "progress": False,
}


MEAN = js.MeanReverting(np.array([0.4, -0.2], np.float32), T=100)
ENDS = {
    "inner": (PATH, GRID),
    "to 0": (js.EDM(), js.grids.append_zero(js.grids.karras(js.EDM(), 3))),
    "all": (js.CondOT(), js.grids.uniform(js.CondOT(), 4)),
    "around a mean": (MEAN, js.grids.uniform(MEAN, 4)),
}


@functools.cache
def mixture(name: str) -> js.Denoiser:
    """The exact denoiser of two Gaussians on a path of `ENDS`."""
    return js.models.gaussian_mixture(
        np.array([[-1.2, 0.5], [0.9, 1.0]]), np.array([0.3, 0.3]), ENDS[name][0]
    )


@functools.cache
def made(consistent: bool):
    """What is distilled from NET on GRID."""
    return distill(NET, PATH, GRID, consistent=consistent, **SMALL)


@pytest.fixture(scope="module")
def noise():
    """Noise that no distillation sees, and where the teacher is at the grid times."""
    x = np.asarray(jax.random.normal(jax.random.key(99), (1024, 2)))
    return x, waypoints(NET, PATH, GRID, x, rows=60)


@pytest.fixture(scope="module", params=[True, False], ids=["consistent", "inconsistent"])
def distilled(request):
    return *made(request.param), request.param


@jax.jit
def _states(table, x):
    return js.run(NET, table, x, save=range(1, table.nfe + 1), adjoint=js.Direct()).xs


def states(table: js.Table, x: Any) -> np.ndarray:
    return np.asarray(_states(table, jnp.asarray(x)))


def test_errors_are_those_of_the_table(distilled, noise):
    """On other noise than its own the table errs, at every grid time, as was said; and far less than solvers
    on its grid.
    """
    table, errors, _ = distilled
    x, teacher = noise
    off = states(table, x) - np.moveaxis(teacher, 1, 0)
    np.testing.assert_allclose(np.sqrt((off**2).mean((1, 2))), errors[:, 1], rtol=0.15)
    for solver in (js.solvers.ddim, js.solvers.dpmpp_2m):
        by_hand = states(js.tabulate(PATH, GRID, solver), x)[-1] - teacher[:, -1]
        assert errors[-1, 1] < 0.5 * np.sqrt((by_hand**2).mean())


def test_consistent(distilled):
    """A_n are the ratios of sigma, and constant data are reproduced exactly; only if asked for."""
    table, _, consistent = distilled
    A, B = unrolled(table, PATH)
    alpha, sigma = PATH.alpha(GRID), PATH.sigma(GRID)
    exact = np.allclose(A, sigma / sigma[0], rtol=1e-10) and np.allclose(
        B.sum(1), alpha - A * alpha[0], atol=1e-10
    )
    assert exact == consistent


def test_least_squares(distilled):
    """No other weights of the last row bring its own noises nearer to the teacher."""
    table, errors, consistent = distilled
    x = np.asarray(NET.prior(KEY, jax.ShapeDtypeStruct((1024, 2), np.float32)))[:512]
    target = waypoints(NET, PATH, GRID, x, rows=60)[:, -1].astype(np.float64)
    rmse = lambda t: float(np.sqrt(np.mean((states(t, x)[-1].astype(np.float64) - target) ** 2)))
    assert rmse(table) == pytest.approx(errors[-1, 0], rel=1e-4)
    rng = np.random.default_rng(0)
    for _ in range(8):
        change = rng.normal(size=4)
        change = 0.01 * (change - change.mean() if consistent else change)
        B = np.array(table.B)
        B[-1] += change
        other = js.Table(
            **{
                name: getattr(table, name)
                for name in ("t", "A", "C", "form", "end", "slot", "keep", "draw", "start")
            },
            B=B,
        )
        assert rmse(other) > rmse(table)


def test_gaussian_data_in_two_rows():
    """Of one Gaussian every trajectory is a multiple of its x_T: free amplitudes reproduce the teacher,
    consistent weights do not.
    """
    net = js.models.gaussian_mixture(np.zeros((1, 2)), np.array([0.5]), PATH)
    grid = js.grids.uniform(PATH, 2)
    free, tied = (distill(net, PATH, grid, consistent=c, **SMALL)[1] for c in (False, True))
    assert free.max() < 1e-5 and tied[0].min() > 1e-3


def test_between():
    """Grid times stay where they are; equal steps in log-SNR between them, in t out of alpha = 0 and into
    sigma = 0.
    """
    path, grid = js.CondOT(), np.array([1.0, 0.6, 0.2, 0.0])
    fine = between(path, grid, 4)
    np.testing.assert_array_equal(fine[::4], grid)
    for k, steps in ((0, np.diff(fine[:5])), (1, np.diff(path.lam(fine[4:9]))), (2, np.diff(fine[8:]))):
        np.testing.assert_allclose(steps, steps[0], rtol=1e-6, err_msg=str(k))


def test_paths_with_ends():
    """From alpha = 0 to sigma = 0, and around a mean: finite, and nearer than the first-order solver."""
    for name in ("all", "around a mean"):
        net, (path, grid) = mixture(name), ENDS[name]
        table, errors = distill(net, path, grid, consistent=False, **SMALL)
        x = np.asarray(net.prior(jax.random.key(5), jax.ShapeDtypeStruct((512, 2), np.float32)))
        target = waypoints(net, path, grid, x, rows=60)[:, -1]
        rmse = lambda t, net=net, x=x, target=target: float(
            np.sqrt(np.mean((np.asarray(js.run(net, t, jnp.asarray(x))) - target) ** 2))
        )
        assert rmse(table) == pytest.approx(errors[-1, 1], rel=0.3)
        assert rmse(table) < 0.6 * rmse(js.tabulate(path, grid, js.solvers.dpmpp_1))


def test_the_network_is_told_the_times_of_the_table():
    """Not those times in the precision of x, which the table does not run at."""
    told = []
    net = js.Denoiser(lambda x, t: told.append(t) or 0.5 * x, PATH, "data")
    distill(net, PATH, GRID, **SMALL | {"like": jnp.zeros(2, jnp.bfloat16), "noises": 4, "held_out": 0})
    assert told and {t.dtype for t in told} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("consistent", [True, False], ids=["consistent", "inconsistent"])
@pytest.mark.parametrize("ends", ["inner", "to 0", "all"])
def test_the_start_is_found_at_all_ends(ends, consistent):
    """The parent's own table has no corrections; the distilled one on its grid has some, and is met."""
    path, grid = ENDS[ends]
    model = learnable(path, js.solvers.dpmpp_2m, grid, vary="table+scale", consistent=consistent)
    for value in at_table(model, js.tabulate(path, grid, js.solvers.dpmpp_2m)).free.values():
        np.testing.assert_allclose(value, 0, atol=1e-9)
    net = mixture(ends)
    table, _ = distill(net, path, grid, consistent=consistent, **SMALL)
    found = at_table(model, table)
    assert np.abs(found.free["weights"]).max() > 0.01
    x = np.asarray(net.prior(jax.random.key(5), jax.ShapeDtypeStruct((64, 2), np.float32)))
    np.testing.assert_allclose(js.run(net, found.table(), x), js.run(net, table, x), atol=2e-5)


def test_learning_begins_there(distilled):
    """The first score is that of the distilled table, and what is learned is better."""
    table, errors, consistent = distilled
    options = SMALL | {
        "vary": "table",
        "consistent": consistent,
        "iterations": 120,
        "initial": table,
        "teacher": 200,
    }
    learned, report = learn(NET, PATH, js.solvers.dpmpp_2m, GRID, **options)
    assert report.start == pytest.approx(errors[-1, 1], rel=0.25) and report.best < 0.95 * report.start
    fit = begin(NET, PATH, js.solvers.dpmpp_2m, GRID, **options)
    for got, wanted in zip(unrolled(fit.exact.table(), PATH), unrolled(table, PATH), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-10)
    np.testing.assert_allclose(fit.exact.table().t, table.t)
    assert learned.nfe == 4


def test_consistent_into_no_noise():
    """The last row is the last output, so that consistent learning can begin there too."""
    net, (path, grid) = mixture("all"), ENDS["all"]
    table, errors = distill(net, path, grid, **SMALL)
    np.testing.assert_allclose(unrolled(table, path)[1][-1], [0, 0, 0, 1], atol=1e-12)
    fit = begin(
        net,
        path,
        js.solvers.unipc(order=2),
        grid,
        **SMALL | {"teacher": 200, "iterations": 12, "vary": "table", "initial": table},
    )
    assert fit.log[0, 2] == pytest.approx(errors[-1, 1], rel=0.25)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vary": "grid"}, "no start of a model of 4 rows with free"),
        ({"consistent": True}, "no corrections lead from dpmpp_2m"),
        ({"grid": js.grids.log_snr(PATH, 4)}, "it must have the grid's times"),
        ({"grid": js.grids.uniform(PATH, 3)}, "of 4 rows is no start of a model of 3 rows"),
    ],
)
def test_no_such_start(change, message):
    table, _ = made(False)
    options = (
        {"grid": GRID, "vary": "table", "consistent": False, "iterations": 12, "initial": table}
        | SMALL
        | change
    )
    with pytest.raises(ValueError, match=message):
        begin(NET, PATH, js.solvers.dpmpp_2m, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": None}, "give key="),
        ({"noises": 0}, "noises and batch count from 1"),
        ({"teacher": 0}, "at least one row"),
        ({"grid": GRID[::-1]}, r"Did you mean grid\[::-1\]"),
        ({"teacher": (np.zeros((8, 2)), np.zeros((8, 4, 2)))}, "needs 1024 samples or more and 4 states"),
        ({"teacher": (np.zeros((1024, 2)), np.full((1024, 4, 2), np.nan))}, "not finite for 1024 of 1024"),
        (
            {
                "denoiser": js.Denoiser(lambda x, t: jnp.where(t < 0.6, jnp.nan, x), PATH, "data"),
                "teacher": "given",
            },
            "not finite in row 2",
        ),
    ],
)
def test_bad_input(change, message):
    options = {"denoiser": NET, "path": PATH, "grid": GRID} | SMALL | change
    if options["teacher"] == "given":
        options["teacher"] = np.ones((1024, 2), np.float32), np.ones((1024, 4, 2), np.float32)
    with pytest.raises(ValueError, match=message):
        distill(**options)
