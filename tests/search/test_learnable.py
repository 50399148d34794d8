"""Learnable tables: zero corrections are the parent to rounding; what is free counts and acts as the
literature says; consistency.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsampler as js
from jaxsampler.search.parametrisation import learnable, replaced
from jaxsampler.search.unrolled import interpolation, unrolled
from jaxsampler.search.vary import METHODS, VARY

VP, EDM, OT = js.VP(), js.EDM(), js.CondOT()
S = js.solvers
PARENTS = {
    "2m": S.dpmpp_2m,
    "3m": S.dpmpp_3m,
    "3m noise": S.dpm_3m,
    "unipc": S.unipc(order=3),
    "unipc noise": S.unipc(order=2, kind="noise", lower_order_final=False),
    "2s": S.dpmpp_2s,
    "edm": S.edm,
    "deis": S.deis(order=3),
}
RELAXABLE = ("2m", "3m", "3m noise", "unipc", "unipc noise")
GRIDS = {
    "inner": (VP, js.grids.uniform(VP, 5)),
    "to 0": (EDM, js.grids.append_zero(js.grids.karras(EDM, 5))),
    "all": (OT, js.grids.uniform(OT, 6, t_min=0.0)),
}


def test_unrolled_2m_by_hand():
    """Coefficients of 2M and of 2M on noise on lam = (0, 1, 2, 3), from the difference quotients on paper (y
    = x/alpha).
    """
    for solver, second_row in (
        (S.dpmpp_2m, (-0.030724, 0.032756, 0.948181)),
        (S.dpm_2m, (0.069170, -0.067138, 0.948181)),
    ):
        grid = VP.time(np.array([0.0, 1.0, 2.0, 3.0]))
        A, B = unrolled(js.tabulate(VP, grid, solver), VP)
        alpha = VP.alpha(grid)
        np.testing.assert_allclose(A * alpha[0] / alpha, np.exp([0.0, -1, -2, -3]), rtol=1e-12)
        np.testing.assert_allclose(B[2, :2] / alpha[2], (-0.083516, 0.948181), atol=1e-6)
        np.testing.assert_allclose(B[3] / alpha[3], second_row, atol=1e-6)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", PARENTS)
def test_the_start_is_the_parent(name, grid):
    """Zero corrections: the parent's network times and unrolled coefficients, which are consistent; one
    register for each row.
    """
    (path, times), solver = GRIDS[grid], PARENTS[name]
    if grid == "all" and solver.kind == "noise":
        pytest.skip("noise says nothing of the data where alpha = 0")
    vary = (
        "nodes+shifts+weights+scale"
        + ("+relaxation" if name in RELAXABLE else "")
        + ("+compensation" if name != "edm" else "")
    )
    model = learnable(path, solver, times, vary=vary)
    table, base = model.table(), js.tabulate(path, times, solver)
    assert (
        isinstance(table.B, np.ndarray)
        and table.B.dtype == np.float64
        and table.B.shape == (base.nfe, base.nfe)
    )
    np.testing.assert_allclose(table.t, base.t, rtol=1e-12)
    (A, B), (want_A, want_B) = unrolled(table, path), unrolled(base, path)
    np.testing.assert_allclose(A, want_A, atol=1e-12)
    np.testing.assert_allclose(B, want_B, atol=1e-12)
    at = np.append(base.t[1:], times[-1])
    ratio = path.sigma(at) / path.sigma(times[0])
    np.testing.assert_allclose(A[1:], ratio, atol=1e-12)
    np.testing.assert_allclose(B[1:].sum(1), path.alpha(at) - ratio * path.alpha(times[0]), atol=1e-12)


def test_the_start_runs_like_the_parent():
    """On a network: registers, decoupled times and forms fit together."""
    net = js.models.gaussian_mixture(np.array([[-1.0, 0.4], [0.8, 0.1]]), 0.3, VP)
    x = jax.random.normal(jax.random.key(0), (16, 2))
    for name in ("3m noise", "2s", "unipc"):
        times = GRIDS["inner"][1]
        table = learnable(VP, PARENTS[name], times).table()
        want = js.run(net, js.tabulate(VP, times, PARENTS[name]), x)
        np.testing.assert_allclose(js.run(net, table, x), want, atol=2e-5)


def counted(n, name, **options):
    made = METHODS.get(name, {"vary": name}) | options
    made.pop("loss", None)
    return learnable(
        VP, S.dpmpp_3m if made["vary"] != "compensation" else S.unipc, js.grids.log_snr(VP, n), **made
    ).count()


def test_numbers_of_published_methods():
    """How much each method learns with 5 and 10 calls: nodes, shifts and all that comes to them."""
    for name, numbers in {
        "grid": (9, 19),
        "ld3": (8, 18),
        "relaxation": (19, 39),
        "s4s": (21, 46),
        "gs": (29, 84),
        "bns": (30, 85),
        "dc": (4, 9),  # the first output has none before it to interpolate with
    }.items():
        assert tuple(counted(n, name) for n in (5, 10)) == numbers, name
    assert counted(5, "table") == 4 + 5 + 10  # consistent: A is tied, and a number less in each row
    at_zero = learnable(
        EDM, S.dpmpp_2m, GRIDS["to 0"][1], vary="nodes"
    )  # the last finite node moves where the end is sigma = 0
    assert at_zero.count() == np.size(at_zero.free["nodes"]) == 5


@pytest.mark.parametrize(
    ("vary", "consistent"),
    [
        *itertools.product(["shifts", "weights", "shifts+scale", "compensation"], [True, False]),
        ("amplitude", False),
    ],
)
@pytest.mark.parametrize("grid", GRIDS)
def test_counted_numbers_do_something(grid, vary, consistent, x64):
    """As many directions as the table moves in, at some point; ends of no noise or no signal have fewer."""
    path, times = GRIDS[grid]
    model = moved(learnable(path, S.dpmpp_2m, times, vary=vary, consistent=consistent))

    def numbers(free):
        table = replaced(model, free).table()
        return jnp.concatenate([table.t, table.start, *(a.ravel() for a in unrolled(table, path))])

    slopes = jax.jacobian(numbers)(jax.tree.map(jnp.asarray, model.free))
    columns = np.concatenate(
        [np.asarray(slopes[name]).reshape(len(slopes[name]), -1) for name in model.free], 1
    )
    assert model.count() == np.linalg.matrix_rank(columns, tol=1e-9)


@pytest.mark.parametrize(
    "path", [VP, EDM, js.EDM(sigma_max=60.0), js.EDM(sigma_max=100.0), js.VE(), js.CosineVP()], ids=repr
)
def test_the_first_time_can_leave_the_highest(path):
    """A shift of zero is no trap: float32 rounding of t_max decides the side, not whether there is a
    slope.
    """
    model = learnable(path, S.dpmpp_2m, js.grids.uniform(path, 3), vary="shifts")
    time = lambda shift, free=model.free: (
        replaced(model, free | {"shifts": jnp.zeros(3).at[0].set(shift)}).table().t[0]
    )
    here, down, up = (jax.value_and_grad(time)(s) for s in (0.0, 0.1, -0.1))
    assert abs(float(here[1])) == pytest.approx((path.t_max - float(time(0.001))) / 0.001, rel=0.1)
    assert down[1] < 0 < up[1] and max(float(down[0]), float(up[0])) < path.t_max


def moved(model, seed=0, size=0.2):
    rng = np.random.default_rng(seed)
    return replaced(model, {k: size * rng.standard_normal(np.shape(v)) for k, v in model.free.items()})


@pytest.mark.parametrize("grid", GRIDS)
def test_corrections_move_what_they_should(grid):
    """The grid keeps its ends and its order; consistent tables stay exact for a constant prediction, others
    do not; A follows sigma.
    """
    path, times = GRIDS[grid]
    model = moved(learnable(path, S.dpmpp_2m, times, vary="nodes+shifts+relaxation+weights"))
    new = model.times()
    assert (
        new[0] == times[0]
        and new[-1] == times[-1]
        and np.all(np.diff(new) < 0)
        and np.all(np.abs(new - times)[1:-1] > 1e-6)
    )
    finite = path.lam(times[np.isfinite(path.lam(times))])  # only those at infinite ends move
    for end, fixed in ((0, grid != "all"), (-1, grid == "inner")):
        assert (abs(model.nodes()[end] - finite[end]) < 1e-12) == fixed
    A, B = unrolled(model.table(), path)
    ratio = path.sigma(new[1:]) / path.sigma(new[0])
    np.testing.assert_allclose(A[1:], ratio, atol=1e-12)
    np.testing.assert_allclose(B[1:].sum(1), path.alpha(new[1:]) - ratio * path.alpha(new[0]), atol=1e-12)
    change = (
        B[1:]
        - unrolled(
            js.tabulate(
                path, new, S.relax(S.dpmpp_2m, 1 + model.free["relaxation"], to_zero=grid != "inner")
            ),
            path,
        )[1][1:]
    )
    assert np.all(np.abs(np.triu(change, 1)) < 1e-12) and all(
        np.abs(row[: n + 1]).min() > 1e-4 for n, row in enumerate(change[1:-1], 1)
    )
    if grid == "inner":
        bound = (
            np.abs(model.free["weights"]).max(1) * 2 * path.sigma(new[1:])
        )  # corrections shrink with the noise
        assert np.all(np.abs(change).max(1) <= bound)
        free = moved(learnable(path, S.dpmpp_2m, times, vary="table", consistent=False))
        A, B = unrolled(free.table(), path)
        np.testing.assert_allclose(
            A[1:] / (path.sigma(free.times()[1:]) / path.sigma(new[0])),
            1 + free.free["amplitude"],
            rtol=1e-12,
        )
        assert np.abs(B[1:].sum(1) - path.alpha(free.times()[1:])).max() > 0.05


@pytest.mark.parametrize("solver", [S.dpmpp_2m, S.heun], ids=lambda s: s.name)
@pytest.mark.parametrize("grid", [*GRIDS, "ve"])
def test_scale_takes_x_T_to_less_noise(grid, solver):
    """The first call sees x_T at a time between the first two, with the noise that belongs there; what
    follows stays consistent.
    """
    path, times = (GRIDS | {"ve": (js.VE(), js.grids.uniform(js.VE(), 4))})[grid]
    model = learnable(path, solver, times, vary="weights+scale")
    tables = [replaced(model, model.free | {"scale": np.array([c])}).table() for c in (0.5, -0.5, 1.0)]
    np.testing.assert_array_equal(tables[0].start, tables[1].start)
    np.testing.assert_allclose(
        [t.t[0] for t in tables],
        [np.sqrt(times[0] * times[1]), np.sqrt(times[0] * times[1]), times[1]],
        rtol=1e-12,
    )
    for table in tables:
        first = table.start[0]
        np.testing.assert_allclose(first * path.sigma(times[0]), path.sigma(table.t[0]), rtol=1e-12)
        np.testing.assert_array_equal(table.t[1:], model.table().t[1:])
        (A, B), (want_A, want_B) = unrolled(table, path), unrolled(model.table(), path)
        np.testing.assert_allclose(A[1:] * first, want_A[1:], atol=1e-12)
        np.testing.assert_allclose(B[1:], want_B[1:], atol=1e-12)
    for path, grid, solver in (
        (VP, [1.0, 0.1], S.dpmpp_1),
        (js.VE(), [1.0, 0.0], S.heun),
    ):  # no second time, or t = 0
        assert "scale" not in learnable(path, solver, grid, vary="weights+scale", consistent=False).free


def test_band_is_that_of_the_update():
    """With a band of 2 each row of the new table reads the last two outputs, though the unrolled one reads
    all.
    """
    times = GRIDS["inner"][1]
    table = moved(learnable(VP, S.dpmpp_1, times, vary="weights", band=2, consistent=False)).table()
    assert np.all(np.abs(np.tril(table.B, -2)) < 1e-12) and np.all(np.abs(np.diag(table.B, -1)) > 1e-4)


def test_compensation_reads_the_interpolant():
    """A quadratic through three outputs is read at the shifted time exactly; q = 1 changes nothing."""
    t, q = np.array([1.0, 0.7, 0.5, 0.2]), np.array([1.0, 0.8, 1.3, 0.6])
    np.testing.assert_array_equal(interpolation(t, np.ones(4)), np.eye(4))
    at = np.append(t[0], t[:-1] + q[1:] * np.diff(t))
    got = interpolation(t, q) @ (3 - t + 2 * t**2)
    np.testing.assert_allclose(got[2:], (3 - at + 2 * at**2)[2:], rtol=1e-13)
    np.testing.assert_allclose((interpolation(t, q) @ (3 - t))[:2], (3 - at)[:2], rtol=1e-13)


@pytest.mark.parametrize(
    ("path", "times", "solver"),
    [
        (VP, js.grids.uniform(VP, 3), S.dpmpp_2m),
        (OT, js.grids.uniform(OT, 4, t_min=0.0), S.dpmpp_2m),
        (OT, js.grids.uniform(OT, 3), S.unipc(order=2, lower_order_final=False)),
    ],
    ids=["inner", "all", "unipc"],
)
def test_traced_equals_concrete_and_has_a_finite_gradient(path, times, solver, x64):
    """One formula for both: the traced table is the float64 one, its gradient that of finite differences, at
    the singular ends too.
    """
    still = learnable(path, solver, times, vary="nodes+shifts+relaxation+weights+scale")
    model = moved(still, size=0.1)
    weight = np.random.default_rng(1).standard_normal(model.table().B.shape)

    def functional(free):
        table = replaced(model, free).table()
        return (weight * table.B).sum() + table.A.sum() + table.t.sum() + 3 * table.start[0]

    free = jax.tree.map(jnp.asarray, model.free)
    value, slope = jax.jit(jax.value_and_grad(functional))(free)
    np.testing.assert_allclose(float(value), functional(model.free), rtol=1e-10)
    for name, g in slope.items():
        assert np.all(np.isfinite(g)), name
        bump = np.random.default_rng(2).standard_normal(g.shape)
        ahead, behind = (functional(model.free | {name: model.free[name] + h * bump}) for h in (1e-5, -1e-5))
        assert abs(float((g * bump).sum()) - (ahead - behind) / 2e-5) < 1e-6 * max(1, abs(ahead)), name
    first = jax.jit(jax.grad(functional))(jax.tree.map(jnp.asarray, still.free))
    assert (
        all(np.all(np.isfinite(g)) for g in first.values()) and first["scale"] != 0
    )  # |scale| has a slope at the parent


def test_bad_inputs():
    """One line, in the user's words."""
    times = GRIDS["inner"][1]
    for message, call in (
        ("did you mean 'relaxation'", lambda: learnable(VP, S.dpmpp_2m, times, vary="relaxaton")),
        (
            "deis has no derivative estimates to relax",
            lambda: learnable(VP, S.deis, times, vary="relaxation"),
        ),
        ("calls the network twice", lambda: learnable(VP, S.heun, times, vary="compensation")),
        ("draws noise", lambda: learnable(VP, S.ddpm, times)),
        ("nothing to learn", lambda: learnable(OT, S.dpmpp_1, np.array([1.0, 0.0]))),
        ("count from 1", lambda: learnable(VP, S.dpmpp_2m, times, band=0)),
        (
            "leave one of them out",
            lambda: learnable(VP, S.dpmpp_2m, times, vary="table", consistent=False, band=2),
        ),
        (
            "the scale for two calls",
            lambda: learnable(VP, S.dpmpp_2m, times[-2:], vary="scale", consistent=False),
        ),
        ("intervals, derivatives", lambda: S.relax(S.dpmpp_2m, np.ones(3))),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="parent of a learned table is a step"):
        learnable(VP, S.PID(), times)
    assert set(VARY) == {"grid", "relaxation", "table"}
