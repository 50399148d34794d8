"""Grids: exact ends, equal spacing in their own variable, published values, and the errors of a user's own
grid.
"""

import golden_cases as golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import Cubic

import jaxsampler as js
from jaxsampler.paths import grids

properties = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
CONTINUOUS = (grids.uniform, grids.log_snr, grids.karras, grids.quadratic, grids.cosine)
DISCRETE = (grids.leading, grids.trailing, grids.linspace)
PATHS = {
    "vp": (js.VP(), 1e-3, 1.0),
    "sub_vp": (js.SubVP(), 1e-3, 1.0),
    "cosine": (js.CosineVP(), 1e-3, 0.9946),
    "ve": (js.VE(), 1e-5, 1.0),
    "edm": (js.EDM(), 0.002, 80.0),
    "cond_ot": (js.CondOT(), 1e-3, 0.99),
    "discrete": (js.DiscreteVP.linear(), 1e-3, 1.0),
    "mr": (js.MeanReverting(0.4), 0.0, 100.0),
    "irsde": (js.MeanReverting(0.4, variant="irsde"), 1.0, 100.0),
    "cubic": (Cubic(), 1e-3, 0.95),
}
each_path = pytest.mark.parametrize(("path", "low", "high"), PATHS.values(), ids=PATHS)
counts = st.integers(1, 300)


@properties
@given(
    name=st.sampled_from(sorted(PATHS)),
    grid=st.sampled_from(CONTINUOUS),
    n=counts,
    cut=st.tuples(st.floats(0, 0.4), st.floats(0.6, 1)),
)
def test_every_grid_falls_between_exact_ends(name, grid, n, cut):
    """n + 1 float64 times, strictly decreasing, the ends to the bit, wherever they are put."""
    path, low, high = PATHS[name]
    low, high = low + cut[0] * (high - low), low + cut[1] * (high - low)
    times = grid(path, n, t_max=high, t_min=low)
    assert times.dtype == np.float64
    assert times.shape == (n + 1,)
    assert np.all(np.diff(times) < 0)
    assert (times[0], times[-1]) == (high, low)
    np.testing.assert_array_equal(grids.checked(path, times), times)


@each_path
def test_default_ends_are_those_of_the_path(path, low, high):
    """Without t_max, t_min: the path's own, but CondOT's uniform grid ends at 0."""
    del low, high
    for grid in (grids.uniform, grids.quadratic, grids.cosine):
        times = grid(path, 3)
        assert times[0] == path.t_max
        assert times[-1] == (0.0 if isinstance(path, js.CondOT) and grid is grids.uniform else path.t_min)


def equal(values, rtol=1e-7):
    """Equal spacing."""
    steps = np.diff(values)
    np.testing.assert_allclose(steps, steps.mean(), rtol=rtol)


@each_path
def test_equal_spacing_in_their_own_variable(path, low, high):
    """uniform: t. log_snr: lam. karras: (sigma/alpha)^(1/rho). quadratic: sqrt t. cosine: the angle."""
    ends = {"t_max": high, "t_min": low}
    equal(grids.uniform(path, 17, **ends))
    equal(path.lam(grids.log_snr(path, 17, **ends)))
    equal(np.sqrt(grids.quadratic(path, 17, **ends)))
    equal(
        np.arccos(np.clip((2 * grids.cosine(path, 17, **ends) - high - low) / (high - low), -1, 1)), rtol=1e-5
    )
    for rho in (7.0, 3.0, 1.0):
        times = grids.karras(path, 17, rho, **ends)
        level = np.asarray(path.sigma(times)) / path.alpha(times)
        equal(level ** (1 / rho))


def test_karras_values():
    """Karras et al. 2022, eq. 5, where it gives whole numbers: seventh powers from 5^7 to 1, squares from 100
    to 4.
    """
    sevenths = grids.karras(js.EDM(sigma_min=1.0, sigma_max=78125.0), 4)
    np.testing.assert_allclose(sevenths, [78125, 16384, 2187, 128, 1], rtol=1e-12)
    np.testing.assert_allclose(
        grids.karras(js.EDM(sigma_min=4.0, sigma_max=100.0), 4, rho=2), [100, 64, 36, 16, 4], rtol=1e-12
    )
    np.testing.assert_array_equal(grids.append_zero(sevenths), [*sevenths, 0.0])


def test_karras_on_vp_has_the_levels_of_edm():
    """The grid is defined by sigma/alpha: a VP grid maps onto EDM levels."""
    path = js.VP()
    times = grids.karras(path, 12)
    ends = path.rho(times[0]), path.rho(times[-1])
    edm = grids.karras(js.EDM(sigma_min=ends[1], sigma_max=ends[0]), 12)
    np.testing.assert_allclose(path.sigma(times) / path.alpha(times), edm, rtol=1e-9)


def indices(path, times):
    """Training indices of a discrete grid, without the final 0."""
    assert times[-1] == 0.0
    return np.asarray(path.network_time(times[:-1]))


def test_discrete_grids():
    """n = 10 of N = 1000: leading 900..0, trailing 999, 899..99, linspace 999, 888..0, then t = 0."""
    path = js.DiscreteVP.linear()
    np.testing.assert_allclose(indices(path, grids.leading(path, 10)), np.arange(900, -1, -100), atol=1e-9)
    np.testing.assert_allclose(
        indices(path, grids.leading(path, 10, offset=1)), np.arange(901, 0, -100), atol=1e-9
    )
    np.testing.assert_allclose(indices(path, grids.trailing(path, 10)), np.arange(999, 0, -100), atol=1e-9)
    np.testing.assert_allclose(indices(path, grids.linspace(path, 10)), np.arange(999, -1, -111), atol=1e-9)


def test_discrete_grids_that_do_not_divide():
    """N = 10, n = 4: leading strides by N//n, the others round."""
    path = js.DiscreteVP.linear(10)
    np.testing.assert_allclose(indices(path, grids.leading(path, 4)), [6, 4, 2, 0], atol=1e-12)
    np.testing.assert_allclose(
        indices(path, grids.trailing(path, 4)), [9, 7, 4, 1], atol=1e-12
    )  # round(7.5) = 8, round(2.5) = 2
    np.testing.assert_allclose(indices(path, grids.linspace(path, 4)), [9, 6, 3, 0], atol=1e-12)


@properties
@given(N=st.integers(2, 1200), share=st.floats(0, 1), grid=st.sampled_from(DISCRETE))
def test_discrete_grids_are_legal(N, share, grid):
    """Any n <= N: distinct training indices, falling, ending at t = 0."""
    path = js.DiscreteVP(np.linspace(0.999, 0.01, N))
    n = max(1, round(share * N))
    times = grid(path, n)
    assert len(times) == n + 1
    index = indices(path, times)
    np.testing.assert_allclose(index, np.round(index), atol=1e-6)
    assert np.all(np.diff(np.round(index)) <= -1)
    assert 0 <= np.round(index)[-1] <= np.round(index)[0] <= N - 1
    np.testing.assert_array_equal(grids.checked(path, times), times)


@pytest.mark.parametrize(
    ("path", "same"),
    [
        (js.EDM(), lambda p, n: grids.append_zero(grids.karras(p, n - 1))),
        (
            js.VE(),
            lambda p, n: grids.karras(p, n, t_min=0.0),
        ),  # sigma(0) is sigma_min: a step from 1e-5 to 0 would be wasted
        (js.CondOT(), grids.uniform),
        (Cubic(), grids.uniform),  # alpha(1) = 0: lam has no finite start
        (js.DiscreteVP(np.linspace(0.99, 0.0, 50)), grids.uniform),
        (js.VP(), grids.log_snr),
        (js.SubVP(), grids.log_snr),
        (js.CosineVP(), grids.log_snr),
        (js.DiscreteVP.linear(), grids.log_snr),
        (js.MeanReverting(0.3), grids.log_snr),
        (
            js.MeanReverting(0.3, variant="irsde"),
            lambda p, n: grids.append_zero(grids.log_snr(p, n - 1, t_min=1.0)),
        ),
    ],
    ids=lambda v: type(v).__name__,
)
def test_default(path, same):
    """The grid that each path gets when none is given; n intervals, one included."""
    for n in (2, 9):
        np.testing.assert_array_equal(grids.default(path, n), same(path, n))
    one = grids.default(path, 1)
    assert len(one) == 2
    assert one[0] == path.t_max
    assert one[1] == (0.0 if isinstance(path, js.EDM | js.VE | js.CondOT) else path.t_min)


def test_default_grid_inside_jit():
    """Grids are host numbers: a jitted sampler may ask for one."""
    seen = []
    jax.jit(lambda x: seen.append(grids.default(js.VP(), 4)) or x)(1.0)
    np.testing.assert_array_equal(seen[0], grids.default(js.VP(), 4))


@pytest.mark.parametrize("grid", [*CONTINUOUS, grids.default])
@pytest.mark.parametrize("n", [0, -3, 2.5, float("nan"), float("inf")])
def test_interval_count_errors(grid, n):
    """n must be a positive whole number."""
    with pytest.raises((ValueError, TypeError), match=r"at least one; got n=|parameter 'n'"):
        grid(js.VP(), n)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: grids.uniform(js.VP(), 4, t_max=1.5),
            r"need 0 <= t_min < t_max <= 1\.0; got t_min=0\.001, t_max=1\.5",
        ),
        (lambda: grids.quadratic(js.VP(), 4, t_min=-0.1), r"got t_min=-0\.1"),
        (lambda: grids.cosine(js.VP(), 4, t_min=0.7, t_max=0.3), r"got t_min=0\.7, t_max=0\.3"),
        (lambda: grids.uniform(js.VP(), 4, t_min=float("nan")), "got t_min=nan"),
        (
            lambda: grids.log_snr(js.CondOT(), 4),
            r"log_snr needs finite lam at both ends, got -inf at t=1\.0.*pass t_max, t_min",
        ),
        (lambda: grids.log_snr(js.VP(), 4, t_min=0.0), r"inf at t=0\.0; pass t_max, t_min"),
        (lambda: grids.karras(js.CondOT(), 4), r"karras needs 0 < sigma/alpha < inf at both ends, got .*inf"),
        (lambda: grids.karras(js.EDM(), 4, t_min=0.0), r"karras needs 0 < sigma/alpha"),
        (
            lambda: grids.trailing(js.DiscreteVP.linear(10), 11),
            "11 steps from 10 training indices: at most one step each",
        ),
        (lambda: grids.linspace(js.DiscreteVP.linear(10), 0), "at least one; got n=0"),
    ],
)
def test_grid_errors(make, message):
    """Ends outside the path, infinite ends, too many steps: what is wrong and what to pass."""
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("grid", DISCRETE)
def test_training_index_grids_need_a_discrete_path(grid):
    """There are no training indices on a continuous path."""
    with pytest.raises(TypeError, match="need a DiscreteVP path, not VP"):
        grid(js.VP(), 4)


# --- a user's own grid


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (
            [0.1, 0.5, 1.0],
            r"a grid decreases from noise to data; got grid\[0\]=0\.1 -> grid\[1\]=0\.5\. Did you mean "
            r"grid\[::-1\]\?",
        ),
        ([1.0, 0.5, 0.5, 0.1], r"got grid\[1\]=0\.5 -> grid\[2\]=0\.5\. Remove repeated or rising times"),
        ([1.0, 0.2, 0.3, 0.1], r"got grid\[1\]=0\.2 -> grid\[2\]=0\.3\. Remove repeated or rising"),
        ([1.0, 0.5, np.nan], r"grid\[2\] is not finite"),
        ([np.inf, 0.5, 0.1], r"grid\[0\] is not finite"),
        ([1.01, 0.5], r"grid 1\.01 -> 0\.5 leaves the path, whose times are \[0, 1\] \(VP\)"),
        ([1.0, -0.01], r"grid 1 -> -0\.01 leaves the path"),
        ([1.0], r"a grid is a vector of at least 2 times; got shape \(1,\)"),
        ([], r"at least 2 times; got shape \(0,\)"),
        (0.5, r"got shape \(\)"),
        ([[1.0, 0.5], [0.3, 0.1]], r"got shape \(2, 2\)"),
    ],
)
def test_checked_errors(grid, message):
    """As numpy array, list and jax array."""
    for form in (grid, np.array(grid), jnp.array(grid, jnp.float32)):
        with pytest.raises(ValueError, match=message):
            grids.checked(js.VP(), form)


def test_checked_names_the_path_of_the_leading_offset():
    """An offset beyond the last index is caught where the grid is used."""
    path = js.DiscreteVP.linear()
    with pytest.raises(ValueError, match="leaves the path"):
        grids.checked(path, grids.leading(path, 10, offset=200))


def test_checked_accepts_what_rounds_past_the_ends():
    """float32 grids round past t_max by a part in 10^7: accepted and clipped; any list, array or jax array
    gives host float64.
    """
    path = js.EDM(sigma_min=0.01, sigma_max=0.6)
    single = np.linspace(path.t_max, 0, 5, dtype=np.float32)
    assert float(single[0]) > path.t_max
    for grid in (single, jnp.asarray(single), list(single)):
        out = grids.checked(path, grid)
        assert type(out) is np.ndarray
        assert out.dtype == np.float64
        assert (out[0], out[-1]) == (path.t_max, 0.0)
        np.testing.assert_array_equal(out[1:], single[1:].astype(np.float64))
    np.testing.assert_array_equal(grids.checked(js.VP(), [1, 0]), [1.0, 0.0])


def test_checked_traced_grids_pass_through():
    """Values cannot be looked at under jit: only the shape is checked; a list with traced entries becomes a
    vector.
    """

    @jax.jit
    def through(grid):
        out = grids.checked(js.VP(), grid)
        return out, grids.checked(js.VP(), [grid[0], 0.25, grid[-1]])

    rising = jnp.array([0.1, 0.9])
    whole, mixed = through(rising)
    np.testing.assert_array_equal(whole, rising)
    np.testing.assert_array_equal(mixed, jnp.array([0.1, 0.25, 0.9]))
    for bad in (jnp.zeros((2, 2)), jnp.zeros(1), jnp.zeros(())):
        with pytest.raises(ValueError, match="a grid is a vector of at least 2 times"):
            jax.jit(lambda g: grids.checked(js.VP(), g))(bad)


# --- published grids, levels and index ends


def golden_grids():
    """Name of every stored grid, and its times by this library on the path named with it."""
    vp, edm = golden.PATHS["vp_linear"], golden.PATHS["ve"]
    cosine = js.CosineVP()
    built = {}
    skips = {
        "logSNR": grids.log_snr,
        "time_uniform": grids.uniform,
        "time_quadratic": grids.quadratic,
        "edm": grids.karras,
    }
    for schedule, names in golden.CONFIG["skips"].items():
        for skip in names:
            for n in (5, 10, 20):
                built[f"grid/{schedule}/{skip}/n{n}/t"] = skips[skip](golden.PATHS[schedule], n)
    for n in (5, 10, 20):
        ramps = {
            "karras": grids.karras(edm, n - 1),
            "exponential": grids.log_snr(edm, n - 1),
            "polyexp_rho2": grids.polyexponential(edm, n - 1, 2.0),
            "vp": vp.rho(grids.uniform(vp, n - 1)),  # the levels of another path's grid
        }
        for name, times in ramps.items():
            built[f"grid/kdiff/{name}/n{n}/sigma"] = grids.append_zero(times)
        for phase, grid in {
            "t1": grids.uniform,
            "t2": grids.quadratic,
            "log1": grids.log_snr,
            "rho7": grids.karras,
        }.items():
            built[f"grid/deis/vp_linear/{phase}/n{n}/t"] = grid(vp, n)
        for phase, grid in {"t1": grids.uniform, "t2": grids.quadratic}.items():
            built[f"grid/deis/vp_cosine/{phase}/n{n}/t"] = grid(cosine, n, t_max=0.99)
        # DEIS's cosine has no norm: sigma/alpha = tan(pi/2 (t + s)/(1 + s)) at its ends
        rho = np.tan(np.pi / 2 * (np.array([0.99, 1e-3]) + 0.008) / 1.008)
        levels = grids.karras(js.EDM(sigma_min=rho[1], sigma_max=rho[0]), n)
        built[f"grid/deis/vp_cosine/rho7/n{n}/t"] = np.arctan(levels) * 2 / np.pi * 1.008 - 0.008
    for n in golden.CONFIG["edm_steps"]:
        built[f"grid/edm/steps{n}/sigma"] = grids.append_zero(grids.karras(edm, n - 1))
    return built


def test_every_golden_grid():
    """Continuous ones; those of training indices are compared call by call in test_golden_discrete.py."""
    built = golden_grids()
    stored = {n for n in golden.GOLDEN.files if n.startswith("grid/") and n.split("/")[-1] in ("t", "sigma")}
    stored = {n for n in stored if n.endswith("/t") or n.startswith(("grid/kdiff", "grid/edm"))}
    assert set(built) == {n for n in stored if not n.startswith(("grid/diffusers", "grid/pndm_repo"))}
    for name, times in built.items():
        np.testing.assert_allclose(times, golden.GOLDEN[name], rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("schedule", ["vp_linear", "vp_cosine", "discrete", "ve"])
def test_golden_schedules(schedule):
    """alpha, sigma, lam and the time back from lam at 23 points; alpha, sigma at the points of every grid."""
    path = golden.PATHS[schedule]
    stored = {
        k: golden.GOLDEN[f"schedule/{schedule}/{k}"]
        for k in ("t", "alpha", "sigma", "lambda", "t_from_lambda")
    }
    np.testing.assert_allclose(path.alpha(stored["t"]), stored["alpha"], rtol=1e-10)
    np.testing.assert_allclose(path.sigma(stored["t"]), stored["sigma"], rtol=1e-9)
    np.testing.assert_allclose(path.lam(stored["t"]), stored["lambda"], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(path.time(stored["lambda"]), stored["t_from_lambda"], rtol=1e-8)
    for name in (n for n in golden.GOLDEN.files if n.startswith(f"grid/{schedule}/") and n.endswith("/t")):
        for value in ("alpha", "sigma"):
            want = golden.GOLDEN[name[:-1] + value]
            np.testing.assert_allclose(
                getattr(path, value)(golden.GOLDEN[name]), want, rtol=1e-9, err_msg=name
            )


def test_discrete_grids_are_those_of_diffusers():
    path = js.DiscreteVP.linear()
    made = {
        "leading0": grids.leading,
        "leading1": lambda p, n: grids.leading(p, n, 1),
        "trailing": grids.trailing,
        "linspace": grids.linspace,
    }
    for name, grid in made.items():
        for n in (5, 10, 20):
            np.testing.assert_allclose(
                indices(path, grid(path, n)), golden.GOLDEN[f"grid/diffusers/{name}/n{n}/t"], atol=1e-9
            )


def test_discrete_grids_may_end_at_the_first_level():
    """t = 1/N instead of 0; where the last index is that level, nothing is appended."""
    path = js.DiscreteVP.linear(1000)
    for grid in (
        lambda n: grids.leading(path, n, 1, final="first"),
        lambda n: grids.trailing(path, n, final="first"),
    ):
        times = grid(10)
        assert len(times) == 11
        assert times[-1] == 1e-3
        grids.checked(path, times)
    np.testing.assert_allclose(
        grids.leading(path, 4, final="first"), [0.751, 0.501, 0.251, 0.001], atol=1e-12
    )
    np.testing.assert_allclose(grids.linspace(path, 4, final="first"), [1.0, 0.667, 0.334, 0.001], atol=1e-12)
    with pytest.raises(ValueError, match="unknown final 'last'; valid: zero .*, first"):
        grids.trailing(path, 4, final="last")


def test_ays_tables():
    """Ten steps as published: indices on Stable Diffusion's path, the same levels elsewhere, to the precision
    of the tables.
    """
    sd = js.DiscreteVP.scaled_linear()
    for table, index in {
        "sd15": [999, 850, 736, 645, 545, 455, 343, 233, 124, 24],
        "sdxl": [999, 845, 730, 587, 443, 310, 193, 116, 53, 13],
    }.items():
        np.testing.assert_allclose(indices(sd, grids.ays(sd, 10, table)), index, atol=1e-9)
        levels = grids.ays(js.EDM(), 10, table)
        np.testing.assert_allclose(levels[:-1], sd.rho((np.array(index) + 1) / 1000), rtol=0.015)
        assert levels[-1] == 0.0
    sigmas = [700, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0]
    np.testing.assert_allclose(grids.ays(js.EDM(sigma_max=700.0), 10, "svd"), sigmas, rtol=1e-12)


def test_ays_on_another_schedule_keeps_the_levels():
    """On linear betas the published indices would be other levels."""
    path = js.DiscreteVP.linear()
    times = grids.ays(path, 10)
    assert path.rho(times[1]) == pytest.approx(6.475, rel=1e-9)
    grids.checked(path, times)


@pytest.mark.parametrize("n", [1, 5, 19, 40])
def test_ays_interpolates_log_levels(n):
    """n = 19 halves the gaps: every second level is published, the others are geometric means."""
    times = grids.ays(js.EDM(), n, "sdxl")
    assert len(times) == n + 1
    grids.checked(js.EDM(), times)
    assert times[0] == pytest.approx(14.615)
    if n == 19:
        np.testing.assert_allclose(times[0:19:2], grids.ays(js.EDM(), 10, "sdxl")[:-1], rtol=1e-12)
        np.testing.assert_allclose(times[1:18:2], np.sqrt(times[0:17:2] * times[2:19:2]), rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: grids.ays(js.EDM(), 10, "sdxll"), "unknown table 'sdxll'; did you mean 'sdxl'"),
        (lambda: grids.ays(js.EDM(), 10, "?"), "valid names are sd15, sdxl, svd"),
        (
            lambda: grids.ays(js.EDM(), 10, "svd"),
            r"starts at sigma/alpha = 700, this path ends at 80; choose the path",
        ),
        (lambda: grids.ays(js.EDM(), 0), "at least one; got n=0"),
        (lambda: grids.polyexponential(js.CondOT(), 4), "polyexponential needs finite lam at both ends"),
    ],
)
def test_published_grid_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_polyexponential():
    """lam short of its end by u^rho: rho = 1 is log_snr, rho = 2 on four steps leaves 9/16, 4/16, 1/16 of the
    range.
    """
    path = js.VP()
    np.testing.assert_allclose(grids.polyexponential(path, 9), grids.log_snr(path, 9), rtol=1e-12)
    lam = path.lam(grids.polyexponential(path, 4, 2.0))
    np.testing.assert_allclose(
        (lam[-1] - lam) / (lam[-1] - lam[0]), [1, 9 / 16, 1 / 4, 1 / 16, 0], rtol=1e-9, atol=1e-12
    )


# flows


def test_shifts_of_flow_times():
    """logit tau' = logit tau + log s; shifts compose; Flux's formula with mu is the shift e^mu."""
    tau = np.linspace(1, 0, 9)
    got = js.grids.shifted(tau, 3.0)
    inner = slice(1, -1)
    logit = lambda t: np.log(t[inner]) - np.log1p(-t[inner])
    np.testing.assert_allclose(logit(got), logit(tau) + np.log(3), atol=1e-12)
    assert (got[0], got[-1]) == (1, 0)
    twice = js.grids.shifted(js.grids.shifted(tau, 1.5), 2.0)
    np.testing.assert_allclose(twice, got, rtol=1e-12)
    mu = 0.5 + (1.15 - 0.5) * (1024 - 256) / (4096 - 256)
    with np.errstate(divide="ignore"):
        flux = np.exp(mu) / (np.exp(mu) + (1 / tau - 1))
    np.testing.assert_allclose(js.grids.shifted(tau, js.grids.shift_for(1024)), flux, rtol=1e-12)
    for wrong in ((tau, 0.0), ([80.0, 1.0], 3.0)):
        with pytest.raises(ValueError, match="shift must be positive|flow times are a vector in"):
            js.grids.shifted(*wrong)


def test_a_stretch_of_flow_times():
    """It is affine, keeps the noise and ends where it says."""
    tau = js.grids.shifted(np.linspace(1, 0.02, 8), 2.0)
    got = js.grids.stretched(tau, 0.1)
    np.testing.assert_allclose(1 - got, (1 - tau) * 0.9 / (1 - tau[-1]), rtol=1e-12)
    assert got[0] == 1 and got[-1] == 0.1
    with pytest.raises(ValueError, match="terminal must be in"):
        js.grids.stretched(tau, 1.0)


@pytest.mark.parametrize(
    "path", [js.VP(), js.CosineVP(), js.EDM(), js.VE(), js.CondOT(), js.SubVP()], ids=repr
)
def test_times_of_noise_levels(path):
    """sigma/alpha of the times are the levels; the ends of the path are exact."""
    top = float(path.rho(path.t_max))
    levels = np.array([min(top, 50.0), 3.0, 0.5, 0.02])
    np.testing.assert_allclose(path.rho(js.grids.from_sigmas(path, levels)), levels, rtol=1e-9)
    if float(path.rho(0.0)) == 0:
        times = js.grids.from_sigmas(path, [top, 1.0, 0.0])
        assert times[0] == path.t_max and times[-1] == 0
    else:
        with pytest.raises(ValueError, match="leave the path, whose levels"):
            js.grids.from_sigmas(path, [1.0, 0.0])
    with pytest.raises(ValueError, match="levels that decrease"):
        js.grids.from_sigmas(path, [1.0, 2.0])
