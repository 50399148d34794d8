"""Inversion: exact where the solver is reversible, of the solver's order elsewhere; refinement, RF-Solver,
editing, refusals.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsampler as js

pytestmark = pytest.mark.usefixtures("x64")
S = js.solvers
VP, FLOW = js.VP(), js.CondOT()
REVERSIBLE = {n: getattr(S, n)() for n in ("edict", "bdia", "obelm", "reversible_heun", "mccallum_foster")}
MEANS = np.array([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.5]])


@functools.cache
def data():
    keys = jax.random.split(jax.random.key(0))
    return jnp.asarray(MEANS)[jax.random.randint(keys[0], (64,), 0, 3)] + 0.3 * jax.random.normal(
        keys[1], (64, 2), jnp.float64
    )


def trip(solver, n, path=VP, end=None, shift=0.0, **options):
    """Round-trip error (root mean square), and the inverted noise."""
    denoiser, x = js.models.gaussian_mixture(jnp.asarray(MEANS) + shift, 0.3, path), data() + shift
    grid = js.grids.uniform(path, n, t_max=0.999, t_min=0.01) if path is FLOW else js.grids.log_snr(path, n)
    grid = grid if end is None else np.append(grid, end)
    inverted = js.inversion.invert(denoiser, x, solver=solver, grid=grid, **options)
    return float(jnp.sqrt(((js.inversion.regenerate(denoiser, inverted) - x) ** 2).mean())), inverted


@pytest.mark.parametrize("name", REVERSIBLE)
def test_reversible_solvers_come_back_exactly(name):
    """Many steps into sigma = 0, and few on another path; 0.99 of coupling amplifies rounding."""
    bound = 1e-11 if name == "mccallum_foster" else 1e-12
    assert trip(REVERSIBLE[name], 40, end=0.0)[0] < bound
    assert trip(REVERSIBLE[name], 10, js.MeanReverting(0.4, std=0.5))[0] < bound


@pytest.mark.parametrize(
    ("solver", "path", "order"),
    [(S.ddim, VP, 1), (S.dpm_2m, VP, 2), (S.rk_rho(), VP, 2), (S.rf_solver, FLOW, 2)],
    ids=["ddim", "dpm_2m", "rk_rho", "rf_solver"],
)
def test_round_trip_error_falls_with_the_order(solver, path, order):
    errors = [trip(solver, n, path)[0] for n in (80, 320)]
    assert 0.8 * order < np.log(errors[0] / errors[1]) / np.log(4) < 1.6 * order + 0.4
    assert errors[0] < (0.2 if order == 1 else 0.02)


@pytest.mark.parametrize("name", [name for name, s in S.catalogue().items() if not s.stochastic])
def test_every_deterministic_solver_is_reversed(name):
    solver = S.catalogue()[name]
    assert 0 < trip(solver, 40)[0] < (0.2 if solver.order == 1 else 0.02)


def test_the_inverted_noise_is_where_the_flow_comes_from():
    """Fine inversions by unlike solvers agree, and have nearly the prior's law."""
    fine = [trip(solver, 400)[1].x for solver in (S.obelm(), S.dpm_2m)]
    for other in fine[1:]:
        np.testing.assert_allclose(other, fine[0], atol=0.02)
    assert abs(float(jnp.std(fine[0])) - 1) < 0.2


def test_refinement_contracts_to_an_exact_inverse_of_ddim():
    errors = [trip(S.ddim, 40, refine=k)[0] for k in (1, 3, 6, 25)]
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    assert errors[3] < 1e-9
    assert errors[1] < 0.1 * trip(S.ddim, 40)[0]
    assert trip(S.ddim, 40, js.MeanReverting(0.4, std=0.5), refine=25)[0] < 1e-6


def test_into_clean_data_with_a_data_network():
    for solver in (S.ddim, S.dpmpp_2m, S.rk_rho()):
        error, inverted = trip(solver, 80, end=0.0)
        assert error < 0.2
        assert jnp.isfinite(inverted.x).all()


def test_into_clean_data_with_a_data_step_on_a_noise_network():
    """A network that always sees the same noise e sends x0 to alpha x0 + sigma e; at sigma = 0 the step's own
    kind says nothing of e.
    """
    x, e = jnp.asarray([0.3, -1.2]), jnp.asarray([0.7, 0.4])
    net, grid = (
        js.Denoiser(lambda x, t: e, FLOW, "noise"),
        np.append(js.grids.uniform(FLOW, 60, t_max=0.8, t_min=0.02), 0.0),
    )
    got = js.inversion.invert(net, x, solver=S.dpmpp_2m, grid=grid).x
    np.testing.assert_allclose(got, 0.2 * x + 0.8 * e, atol=0.02)


def test_editing_moves_the_data_with_the_condition():
    """A target whose modes are moved by 2 moves every sample by about 2, for exact and approximate
    inversions, and keeps its mode.
    """
    source, target = (js.models.gaussian_mixture(jnp.asarray(MEANS) + d, 0.3, VP) for d in (0.0, 2.0))
    for solver in (S.obelm(), S.dpm_2m):
        edited = js.inversion.edit(source, target, data(), solver=solver, steps=60)
        moved = edited - data()
        assert abs(float(moved.mean()) - 2.0) < 0.1
        assert float((jnp.abs(moved - 2.0) < 0.5).mean()) > 0.85


def test_entries_per_step_keep_their_intervals():
    """Guidance that changes from interval to interval comes back exactly only if each interval meets its own
    entry again.
    """
    base = js.models.gaussian_mixture(jnp.asarray(MEANS), 0.3, VP)
    denoiser = js.Denoiser(lambda x, t, w: base.net(x, t) * (1 + 0.2 * w), VP, "data")
    weights = jnp.asarray(np.random.default_rng(0).normal(size=12))
    inverted = js.inversion.invert(denoiser, data(), solver=S.obelm(), steps=12, per_step=weights)
    back = js.inversion.regenerate(denoiser, inverted, per_step=weights)
    np.testing.assert_allclose(back, data(), atol=1e-11)
    weights = jnp.asarray(np.random.default_rng(0).normal(size=80))
    for options, bound in (({"refine": 25}, 1e-8), ({}, 0.1)):
        inverted = js.inversion.invert(denoiser, data(), solver=S.ddim, steps=80, per_step=weights, **options)
        error = js.inversion.regenerate(denoiser, inverted, per_step=weights) - data()
        assert float(jnp.sqrt((error**2).mean())) < bound


def test_an_edit_takes_entries_for_both_ways():
    base = js.models.gaussian_mixture(jnp.asarray(MEANS), 0.3, VP)
    denoiser = js.Denoiser(lambda x, t, w: base.net(x, t) * (1 + 0.2 * w), VP, "data")
    weights = jnp.linspace(-1.0, 1.0, 12)
    edit = lambda there, back: js.inversion.edit(
        denoiser, denoiser, data(), solver=S.obelm(), steps=12, per_step=(there, back)
    )
    np.testing.assert_allclose(edit(weights, weights), data(), atol=1e-11)
    inverted = js.inversion.invert(denoiser, data(), solver=S.obelm(), steps=12, per_step=weights)
    np.testing.assert_allclose(
        edit(weights, 0 * weights),
        js.inversion.regenerate(denoiser, inverted, per_step=0 * weights),
        atol=1e-12,
    )
    assert float(jnp.abs(edit(weights, 0 * weights) - data()).max()) > 0.1


def test_gradients_flow_through_an_inversion():
    denoiser = js.models.gaussian_mixture(jnp.asarray(MEANS), 0.3, VP)
    f = lambda x: (js.inversion.invert(denoiser, x, solver=S.obelm(), steps=8).x ** 2).sum()
    x, v = data()[:2], jnp.asarray([[0.3, -1.0], [0.5, 0.2]])
    numeric = (f(x + 1e-6 * v) - f(x - 1e-6 * v)) / 2e-6
    np.testing.assert_allclose((jax.grad(f)(x) * v).sum(), numeric, rtol=1e-6)


def test_refusals():
    net, x = js.models.gaussian_mixture(jnp.asarray(MEANS), 0.3, VP), data()
    cases = [
        (ValueError, "draws noise", lambda: js.inversion.invert(net, x, solver=S.dpmpp_2m_sde)),
        (ValueError, "first-order", lambda: js.inversion.invert(net, x, solver=S.dpmpp_2m, refine=2)),
        (ValueError, "leave refine out", lambda: js.inversion.invert(net, x, solver=S.obelm(), refine=2)),
        (
            ValueError,
            "not saved here",
            lambda: js.inversion.regenerate(
                net, js.inversion.invert(net, x, solver=S.obelm(), steps=4), save="all"
            ),
        ),
        (TypeError, "reversible solver", lambda: js.inversion.invert(net, x, solver=S.mr_published())),
        (
            ValueError,
            "not on a system",
            lambda: js.inversion.invert(js.Denoiser(lambda x, t: x, {"a": VP}, "data"), {"a": x}),
        ),
    ]
    for kind, message, call in cases:
        with pytest.raises(kind, match=message):
            call()


@pytest.mark.parametrize(
    "solver", [js.solvers.ddim, js.solvers.euler, js.solvers.dpmpp_2m, js.solvers.heun], ids=repr
)
def test_a_constant_flow_is_inverted_exactly(solver):
    """dx/dt = 2 from sigma = 0: a velocity network says the noise there, so the first step is exact."""
    denoiser = js.Denoiser(lambda x, t: 2 + 0 * x, js.CondOT(), "velocity")
    inverted = js.inversion.invert(denoiser, jnp.zeros(1), solver=solver, grid=[1.0, 0.5, 0.0])
    np.testing.assert_allclose(inverted.x, 2.0, rtol=1e-6)


def test_steps_beside_a_grid_are_refused():
    denoiser = js.Denoiser(lambda x, t: 2 + 0 * x, js.CondOT(), "velocity")
    with pytest.raises(ValueError, match="steps=7 beside grid="):
        js.inversion.invert(denoiser, jnp.zeros(1), grid=[1.0, 0.5, 0.0], steps=7)
    with pytest.raises(ValueError, match="steps=7 beside grid="):
        js.likelihood.log_prob(denoiser, jnp.zeros(1), grid=[1.0, 0.5, 0.1], steps=7)
