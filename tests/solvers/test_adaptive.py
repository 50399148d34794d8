"""Adaptive DPM-Solver against exact flows: tolerance, counts, gradients, ends of paths, and what it says when
it cannot arrive.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import gaussian, mixture

import jaxsampler as js

pytestmark = pytest.mark.usefixtures("x64")
S = js.solvers
VP = js.VP()
ENDS = float(VP.time(-1.0)), float(VP.time(1.2))
X = np.array([0.9, -0.3, 0.2])


@functools.cache
def runner(order, kind, **options):
    """jitted (tolerance, x) -> Adaptive on the VP path from lam = -1 to 1.2."""
    exact = mixture(VP)[0]

    def net(x, t):  # computes in the precision of t, float32 at least
        return exact.net(x.astype(t.dtype), t)

    def run(tolerance, x):
        solver = S.dpm_adaptive(order=order, kind=kind, atol=tolerance, rtol=tolerance, **options)
        return js.sample(
            js.Denoiser(net, VP, "data"),
            x,
            key=None,
            solver=solver,
            grid=np.array(ENDS),
            x=x,
            adjoint=js.Direct(),
        )

    return jax.jit(run)


@pytest.mark.parametrize("kind", ["noise", "data"])
@pytest.mark.parametrize("order", [2, 3])
def test_error_and_cost_follow_the_tolerance(order, kind):
    """Error proportional to the tolerance, calls to its power -1/order: what a pair of orders with this
    control promises.
    """
    truth = mixture(VP)[1](X, *ENDS)
    tolerances = np.array([1e-3, 1e-4, 1e-5, 1e-6]) if order == 2 else np.array([1e-5, 1e-6, 1e-7, 1e-8])
    outs = [runner(order, kind, max_steps=3000)(jnp.asarray(tol), jnp.asarray(X)) for tol in tolerances]
    errors = np.array([np.abs(out.x - truth).max() for out in outs])
    assert all(out.reached for out in outs)
    assert all(float(out.t) == ENDS[1] for out in outs)
    assert np.all(errors < 2 * tolerances)
    assert abs(np.polyfit(np.log(tolerances), np.log(errors), 1)[0] - 1) < 0.2
    assert (
        abs(np.polyfit(np.log(tolerances), np.log([int(out.nfe) for out in outs]), 1)[0] + 1 / order) < 0.05
    )
    assert all(int(out.nfe) == order * int(out.accepted + out.rejected) for out in outs)


def test_nfe_is_the_number_of_calls():
    """Counted where the network is: the lower order result reuses the calls of the higher one."""
    calls = []
    base = mixture(VP)[0]

    def net(x, t):
        jax.debug.callback(lambda _: calls.append(1), t)
        return base.net(x, t)

    out = js.sample(js.Denoiser(net, VP, "data"), X, key=None, solver=S.dpm_adaptive(), grid=ENDS, x=X)
    jax.effects_barrier()
    assert len(calls) == int(out.nfe)


def test_vmap_gives_every_sample_its_own_steps():
    xs = jnp.asarray([0.9, -3.0, 0.2, 10.0])[:, None]
    run = runner(3, "data")
    together = jax.jit(jax.vmap(run, (None, 0)))(jnp.asarray(1e-4), xs)
    assert len(set(together.nfe.tolist())) > 1
    for i, x in enumerate(xs):
        alone = run(jnp.asarray(1e-4), x)
        assert [int(alone.accepted), int(alone.rejected), int(alone.nfe)] == [int(a[i]) for a in together[3:]]
        np.testing.assert_allclose(together.x[i], alone.x, rtol=1e-11)


def test_gradients_are_those_of_the_flow():
    """With respect to x_T, a parameter of the network and the last time, for samples that arrive after
    different numbers of steps.

    Half a minute on a busy machine: three reverse passes through a checkpointed loop are compiled.
    """
    _, _, moments = gaussian(VP)
    gain = np.sqrt(moments(ENDS[1])[1] / moments(ENDS[0])[1])
    solver = S.dpm_adaptive(order=3, kind="data", atol=1e-6, rtol=1e-6)

    def end(x, mean, t):
        grid = jnp.stack([jnp.asarray(ENDS[0]), t])
        out = js.sample(
            gaussian(VP, mean)[0], x, key=None, solver=solver, grid=grid, x=x, adjoint=js.Direct()
        )
        return out.x.sum(), out

    xs = jnp.asarray([[0.9], [-30.0], [0.2]])
    slopes = jax.jit(jax.vmap(jax.grad(end, (0, 1, 2), has_aux=True), (0, None, None)))
    (by_x, by_mean, by_time), out = slopes(xs, jnp.asarray(0.7), jnp.asarray(ENDS[1]))
    assert len(set(out.nfe.tolist())) > 1
    np.testing.assert_allclose(by_x[:, 0], gain, rtol=1e-4)
    np.testing.assert_allclose(by_mean, VP.alpha(ENDS[1]) - gain * VP.alpha(ENDS[0]), rtol=1e-4)
    velocity = gaussian(VP)[0](out.x, jnp.asarray(ENDS[1]), "velocity")[:, 0]
    np.testing.assert_allclose(by_time, velocity, rtol=1e-4)


@pytest.mark.parametrize(
    "options", [{"atol": 1e-18, "rtol": 1e-18}, {"atol": 1e-9, "rtol": 1e-9, "max_steps": 30}]
)
def test_what_cannot_be_reached_is_reported(options):
    """Too tight for float64, or too few trials: the time it came to and the exact flow's state there."""
    denoiser, flow = mixture(VP)
    out = js.sample(
        denoiser,
        X,
        key=None,
        solver=S.dpm_adaptive(kind="data", **options),
        grid=np.array(ENDS),
        x=X,
        adjoint=js.Direct(),
    )
    assert not out.reached
    assert ENDS[1] < float(out.t) < ENDS[0]
    np.testing.assert_allclose(out.x, flow(X, ENDS[0], float(out.t)), rtol=1e-7)


def test_a_last_step_to_zero_does_not_leap():
    """If the interval before it was not finished, the state stays where it is, and is reported as such."""
    path = js.EDM()
    denoiser, flow, _ = gaussian(path)
    x = jnp.asarray([40.0, -90.0])
    out = js.sample(
        denoiser,
        x,
        key=None,
        solver=S.dpm_adaptive(kind="data", atol=1e-6, rtol=1e-6, max_steps=5),
        grid=[80.0, 0.002, 0.0],
        x=x,
    )
    assert not out.reached
    assert float(out.t) > 0.002
    np.testing.assert_allclose(out.x, flow(x, 80.0, float(out.t)), rtol=1e-4)


def test_a_network_that_fails_is_reported():
    out = js.sample(
        js.Denoiser(lambda x, t: x * jnp.nan, VP, "noise"),
        X,
        key=None,
        solver=S.dpm_adaptive(),
        grid=np.array(ENDS),
        x=X,
    )
    assert not out.reached
    assert float(out.t) == ENDS[0]
    assert int(out.accepted) == 0
    assert int(out.nfe) < 200  # the step shrinks to rounding long before max_steps
    np.testing.assert_array_equal(out.x, X)


def test_a_trial_that_overflows_is_taken_back():
    """dx/dsigma = sinh(20 x)/20 from x = 1, solved by tanh(10 x) ~ e^sigma: the first trial is off to
    infinity.
    """
    path = js.EDM(0.1, 1.0)
    denoiser = js.Denoiser(lambda x, t: jnp.sinh(20 * x) / 20, path, "noise")
    out = js.sample(
        denoiser,
        jnp.ones(()),
        key=None,
        solver=S.dpm_adaptive(h_init=0.5, atol=1e-6, rtol=1e-6),
        grid=[1.0, 0.1],
        x=jnp.ones(()),
    )
    assert out.reached
    assert int(out.rejected) >= 5
    np.testing.assert_allclose(out.x, np.arctanh(np.tanh(10.0) * np.exp(0.1 - 1.0)) / 10, rtol=1e-4)


def test_inner_points_are_landed_on():
    """Saved states are the exact flow's, a hook sees each of them, and the step size carries over the
    points.
    """
    denoiser, flow = mixture(VP)
    solver = S.dpm_adaptive(kind="data", atol=1e-6, rtol=1e-6)
    grid = VP.time(np.linspace(-1.0, 1.2, 5))
    shift = lambda end: end.x + jnp.where(end.t < 0.3, 1.0, 0.0)
    run = jax.jit(
        lambda x: js.sample(
            denoiser, x, key=None, solver=solver, grid=grid, x=x, save="all", hook=shift, adjoint=js.Direct()
        )
    )
    got = run(jnp.asarray(X))
    x = X
    for i in range(4):
        x = flow(x, grid[i], grid[i + 1]) + (1.0 if grid[i + 1] < 0.3 else 0.0)
        np.testing.assert_allclose(got.xs[i + 1], x, rtol=1e-5)
    np.testing.assert_array_equal(got.x.x, got.xs[-1])
    whole = runner(3, "data")(jnp.asarray(1e-6), jnp.asarray(X))
    assert (
        int(got.x.nfe) < int(whole.nfe) + 50
    )  # about one interrupted step at each point, not a new start from h_init


def test_batch_axis_is_one_control_for_all():
    """A batch of copies steps as one of them, whichever axis it lies along (that the largest error decides:
    test_golden_dpm.py).
    """
    alone = runner(3, "data")(jnp.asarray(1e-4), jnp.asarray(X))
    copies = jnp.broadcast_to(jnp.asarray(X), (4, 3))
    first = runner(3, "data", batch_axis=0)(jnp.asarray(1e-4), copies)
    last = runner(3, "data", batch_axis=1)(jnp.asarray(1e-4), copies.T)
    assert int(first.nfe) == int(last.nfe) == int(alone.nfe)
    np.testing.assert_allclose(first.x, jnp.broadcast_to(alone.x, (4, 3)), rtol=1e-11)
    np.testing.assert_allclose(last.x.T, first.x, rtol=1e-11)


@pytest.mark.parametrize(
    "path", [js.EDM(), js.CondOT(), js.MeanReverting(0.3, variant="irsde")], ids=lambda p: type(p).__name__
)
def test_ends_where_lam_is_infinite(path):
    """Into sigma = 0 and out of alpha = 0 by one first-order step; in between the exact flow."""
    denoiser, flow, _ = gaussian(path)
    inner = {"EDM": [80.0, 1e-4], "CondOT": [0.9999, 1e-5], "MeanReverting": [100.0, 0.01]}[
        type(path).__name__
    ]
    grid = [*([1.0] if isinstance(path, js.CondOT) else []), *inner, 0.0]
    x = path.prior(jax.random.key(0), jnp.zeros(4))
    solver = S.dpm_adaptive(kind="data", atol=1e-7, rtol=1e-7)

    run = lambda x: js.sample(
        denoiser, x, key=None, solver=solver, grid=grid, x=x, adjoint=js.Direct(), check=True
    )
    if isinstance(path, js.CondOT):  # both ends; the gradient takes its time to compile
        (_, out), slope = jax.jit(jax.value_and_grad(lambda x: ((out := run(x)).x.sum(), out), has_aux=True))(
            x
        )
        np.testing.assert_allclose(
            slope, (flow(x + 1e-3, grid[0], 0.0) - flow(x, grid[0], 0.0)) / 1e-3, atol=2e-3
        )
    else:
        out = jax.jit(run)(x)
    assert out.reached
    assert int(out.nfe) == 3 * int(out.accepted + out.rejected) - 2 * (len(grid) - 2)
    np.testing.assert_allclose(out.x, flow(x, grid[0], 0.0), atol=2e-3)


def test_low_precision():
    """float32 agrees with float64, bfloat16 states stay bfloat16, and times are float32 at least."""
    want = runner(3, "data")(jnp.asarray(1e-3), jnp.asarray(X))
    with jax.enable_x64(False):
        single, half = (
            runner(3, "data")(jnp.float32(1e-3), jnp.asarray(X, dtype))
            for dtype in (jnp.float32, jnp.bfloat16)
        )
    assert single.reached
    assert single.t.dtype == jnp.float32
    np.testing.assert_allclose(single.x, want.x, rtol=1e-4)
    assert half.x.dtype == jnp.bfloat16
    assert half.t.dtype == jnp.float32
    np.testing.assert_allclose(half.x.astype(jnp.float32), want.x, atol=0.03)


@pytest.mark.parametrize("order", [2, 3])
def test_pid_control(order):
    """The product of powers: the integral part alone answers a constant error, the others a changing one; the
    limiter is 1 + atan.
    """
    unlimited = lambda factor: 1 + np.tan(float(factor) - 1)
    gains = {"pcoeff": 0.3, "icoeff": 0.5, "dcoeff": 0.2}
    E = 0.4

    def factor(errors, **gains):
        return S.PID(**({"pcoeff": 0.0, "icoeff": 0.0, "dcoeff": 0.0} | gains))(
            errors[0], tuple(1 / e for e in errors[1:]), order
        )[0]

    np.testing.assert_allclose(unlimited(factor((E, E, E), **gains)), E ** (-0.5 / order), rtol=1e-6)
    np.testing.assert_allclose(
        unlimited(factor((E, 2 * E, 5 * E), pcoeff=0.3)), 2 ** (0.3 / order), rtol=1e-6
    )
    np.testing.assert_allclose(
        unlimited(factor((E, 2 * E, 4 * E), dcoeff=0.2)), 1.0, rtol=1e-6
    )  # log E falls steadily
    np.testing.assert_allclose(
        unlimited(factor((E, 2 * E, 8 * E), dcoeff=0.2)), 2 ** (-0.2 / order), rtol=1e-6
    )
    out = runner(order, "data", pid=S.PID())(jnp.asarray(1e-6), jnp.asarray(X))
    np.testing.assert_allclose(out.x, mixture(VP)[1](X, *ENDS), rtol=1e-4)


def test_user_errors():
    for options, message in (
        ({"order": 4}, "order 2 or 3"),
        ({"kind": "v"}, "kind 'noise' or 'data'"),
        ({"max_steps": 0}, "max_steps"),
    ):
        with pytest.raises(ValueError, match=message):
            S.dpm_adaptive(**options)
    with pytest.raises(ValueError, match="unknown form"):
        S.dpm_adaptive(form="midpoint")
    with pytest.raises(ValueError, match="nothing to adapt"):
        js.sample(gaussian(js.EDM())[0], X, key=None, solver=S.dpm_adaptive(), grid=[80.0, 0.0], x=X)


@pytest.mark.parametrize(("order", "kind"), [(2, "noise"), (2, "data")])
def test_a_trial_is_taken_if_its_error_is_at_most_one(order, kind):
    """E of the first trial by steps of fixed size: it is taken at E = 0.95, not at 1.05."""
    denoiser, h = mixture(VP)[0], 0.8
    low, high = {"noise": (S.dpm_1, S.dpm_2), "data": (S.dpmpp_1, S.dpmpp_2s)}[kind]
    trial = [ENDS[0], float(VP.time(float(VP.lam(ENDS[0])) + h))]
    x_low, x_high = (js.sample(denoiser, x=X, grid=trial, solver=step) for step in (low, high))
    relative = np.abs(x_high - x_low) / np.maximum(np.abs(x_low), np.abs(X))
    whole = float(np.sqrt((relative**2).mean()))  # E at rtol = 1, atol = 0
    for E in (0.95, 1.05):
        solver = S.dpm_adaptive(order=order, kind=kind, atol=0.0, rtol=whole / E, h_init=h, max_steps=1)
        out = js.sample(denoiser, x=X, grid=list(ENDS), solver=solver)
        assert (int(out.accepted), int(out.rejected)) == ((1, 0) if E < 1 else (0, 1))
        np.testing.assert_allclose(out.t, trial[1] if E < 1 else trial[0], rtol=1e-12)
        np.testing.assert_allclose(out.x, x_high if E < 1 else X, rtol=1e-10)
