"""diffrax out: its solutions agree with closed forms, golden truth and our solvers. In: its solvers equal
ours and plain loops.
"""

import itertools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
import pytest
from golden_cases import GOLDEN, PATHS, denoiser
from oracle import gaussian, mixture

import jaxsampler as js
from jaxsampler import bridge

X = np.array([-1.3, 0.2, 0.9])


def tight(den, x, **options):
    """A reference solution; no gradient, which compiles faster."""
    controller = diffrax.PIDController(rtol=1e-11, atol=1e-11)
    return bridge.solve(den, x, **({"controller": controller, "adjoint": diffrax.ForwardMode()} | options))


@pytest.mark.parametrize("name", ["vp_linear", "vp_cosine", "ve", "subvp"])
def test_golden_truth(x64, name):
    t_max, t_min = (float(t) for t in GOLDEN[f"truth/{name}/t"])
    got = tight(denoiser(PATHS[name]), jnp.asarray(GOLDEN[f"truth/{name}/x_T"]), t_max=t_max, t_min=t_min)
    np.testing.assert_allclose(got.x, GOLDEN[f"truth/{name}/x_end"], rtol=1e-8, atol=1e-8)
    assert got.t == t_min


def test_our_solvers_at_many_steps(x64):
    path, x = PATHS["vp_linear"], jnp.asarray(GOLDEN["z"])
    exact = tight(denoiser(path), x, t_max=0.4, t_min=0.15).x
    for solver, n in ((js.solvers.rk_rho(tableau="4rk"), 100), (js.solvers.dpmpp_3s, 300)):
        grid = js.grids.log_snr(path, n, t_max=0.4, t_min=0.15)
        got = js.run(denoiser(path), js.tabulate(path, grid, solver), x, adjoint=js.Direct())
        np.testing.assert_allclose(got, exact, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("variable", ["t", "rho", "lam"])
def test_variables_and_mean_reversion(x64, variable):
    """In t the slope jumps at the knots of the schedule, which the controller is told; rho and lam see
    nothing of that.
    """
    path = js.MeanReverting(jnp.asarray([0.3, -0.5, 0.1]))
    den, flow, _ = gaussian(path)
    controller = diffrax.PIDController(rtol=1e-11, atol=1e-11)
    if variable == "t":
        controller = diffrax.ClipStepSizeController(controller, jump_ts=-path.knots[::-1])
    got = tight(den, jnp.asarray(X), variable=variable, controller=controller)
    np.testing.assert_allclose(got.x, flow(X, 100.0, 0.0), atol=1e-8)


def test_fixed_grid(x64):
    """Heun in rho on a grid is our Heun in rho, and so is its last interval to sigma = 0."""
    den = mixture(js.EDM())[0]
    x = jnp.asarray(40 * X)
    for grid in (js.grids.karras(den.path, 12), js.grids.default(den.path, 12)):
        got = tight(den, x, solver=diffrax.Heun(), variable="rho", controller=None, grid=grid)
        exact = js.loop(den, den.path, grid, js.solvers.edm, x)
        np.testing.assert_allclose(got.x, exact, rtol=1e-10, atol=1e-10)
        assert got.t == grid[-1] and got.nfe == js.tabulate(den.path, grid, js.solvers.edm).nfe
    with pytest.raises(ValueError, match="leave out"):
        bridge.solve(den, x, grid=grid, t_max=40.0)


def test_alpha_zero_in_t_only(x64):
    path = js.CondOT()
    data, flow, _ = gaussian(path)
    den = js.Denoiser(lambda x, t: data(x, t, kind="velocity"), path, "velocity")
    got = tight(den, jnp.asarray(X), variable="t", t_min=1e-3)
    np.testing.assert_allclose(got.x, flow(X, 1.0, 1e-3), atol=1e-9)
    for variable in ("rho", "lam"):
        with pytest.raises(ValueError, match="variable='t'"):
            bridge.solve(den, jnp.asarray(X), variable=variable)
        with pytest.raises(ValueError, match="variable='t'"):
            js.sample(
                den, X, key=jax.random.key(0), solver=bridge.FromDiffrax(diffrax.Heun(), variable=variable)
            )


def test_end_at_sigma_zero(x64):
    """A noise network goes all the way; a data network stops at t_min and predicts, as the last step of a
    default grid does.
    """
    path = js.VP()
    data, flow, _ = gaussian(path)
    noise = js.Denoiser(
        lambda x, t: (x - path.alpha(t) * data.net(x, t)) / jnp.where(t > 0, path.sigma(t), 1.0),
        path,
        "noise",
    )
    got = tight(noise, jnp.asarray(X), variable="rho", t_min=0.0)
    np.testing.assert_allclose(got.x, flow(X, 1.0, 0.0), atol=1e-9)
    stop = flow(X, 1.0, path.t_min)
    for variable in ("lam", "t"):
        got = tight(data, jnp.asarray(X), variable=variable, t_min=0.0)
        np.testing.assert_allclose(got.x, data.net(stop, path.t_min), atol=1e-9)
        assert got.t == 0
    np.testing.assert_allclose(got.x, flow(X, 1.0, 0.0), atol=5e-4)  # second order in rho(t_min) = 0.01


def test_system(x64):
    """Parts with unlike paths and clocks; the network is independent per part, so each follows its own closed
    form.
    """
    paths = {"image": js.MeanReverting(jnp.asarray(0.4)), "depth": js.EDM(sigma_max=10.0)}
    parts = {name: gaussian(path, mean=0.1) for name, path in paths.items()}
    den = js.Denoiser(lambda x, t: {k: parts[k][0].net(x[k], t[k]) for k in x}, paths, "data")
    x = {"image": jnp.asarray(X), "depth": 10 * jnp.asarray(X[:2])}
    exact = {k: parts[k][1](x[k], paths[k].t_max, paths[k].t_min) for k in x}
    middle = {"image": np.array([50.0, 20.0]), "depth": np.array([1.0, 0.5])}
    got = tight(den, x, variable="lam", save=middle)
    for k in x:
        np.testing.assert_allclose(got.x[k], exact[k], atol=1e-8)
        for i in range(2):  # the first part by name tells the times, the others have theirs in proportion
            at = float(got.ts[k][i])
            assert k != "depth" or at == pytest.approx(middle[k][i])
            np.testing.assert_allclose(
                got.xs[k][i], parts[k][1](x[k], paths[k].t_max, at), rtol=1e-7, atol=1e-7
            )
    assert got.t == {k: paths[k].t_min for k in paths}


def printed(den_of, m=0.3, s=0.7):
    """The gradients of the closed form of specs: L = |y_0 - c|^2/2 of N(m, s^2) data from rho = 8 down to
    0.
    """
    y_T, c = jnp.asarray([5.0, -3.0, 9.0]), jnp.asarray([0.1, 0.2, -0.4])
    return jax.grad(lambda m, s, y: 0.5 * ((den_of(m, s, y) - c) ** 2).sum(), argnums=(0, 1, 2))(
        jnp.asarray(m), jnp.asarray(s), y_T
    )


def noise_net(m, s, x, t):
    return t * (x - m) / (s**2 + t**2)


@pytest.mark.parametrize("adjoint", [diffrax.RecursiveCheckpointAdjoint(), diffrax.BacksolveAdjoint()])
def test_gradients(x64, adjoint):
    path, controller = js.EDM(sigma_max=8.0), diffrax.PIDController(rtol=1e-10, atol=1e-10)

    def end(m, s, y):
        den = js.Denoiser(jax.tree_util.Partial(noise_net, m, s), path, "noise")
        return bridge.solve(den, y, variable="rho", t_min=0.0, controller=controller, adjoint=adjoint).x

    dm, ds, dy = printed(end)
    np.testing.assert_allclose([dm, ds], [1.7164787, 1.9985580], atol=1e-7)
    np.testing.assert_allclose(dy, [0.0531444, -0.0163570, 0.1271201], atol=1e-7)


def test_dense_and_saved(x64):
    path = js.VP()
    den, flow, _ = gaussian(path)
    times = np.array([0.9, 0.37, 0.02, 0.001])
    got = tight(den, jnp.asarray(X), solver=diffrax.Dopri8(), dense=True, save=times, max_steps=512)
    np.testing.assert_allclose(got.ts, times, rtol=1e-9)
    for t, x in zip(times, got.xs, strict=True):
        np.testing.assert_allclose(x, flow(X, 1.0, t), atol=1e-6)  # interpolated, which costs orders
        np.testing.assert_allclose(got(t), x, atol=1e-9)
    steps = tight(den, jnp.asarray(X), save="all", max_steps=512)
    n = int(steps.stats["num_accepted_steps"])
    assert np.all(np.diff(steps.ts[:n]) < 0) and np.all(~np.isfinite(steps.xs[n:]))
    exact = np.stack([flow(X, 1.0, t) for t in np.asarray(steps.ts[:n])])
    np.testing.assert_allclose(steps.xs[:n], exact, atol=1e-8)
    with pytest.raises(ValueError, match="dense=True"):
        steps(0.5)
    for bad in (times[::-1], [0.5, 1e-5], "every"):
        with pytest.raises(ValueError, match="save"):
            bridge.solve(den, jnp.asarray(X), save=bad)


@pytest.mark.parametrize("variable", ["t", "lam"])
def test_events(x64, variable):
    """Events see the path's t and x: one on each, located by a root finder."""
    path = js.VP()
    den, flow, _ = gaussian(path)
    newton = optimistix.Newton(1e-9, 1e-9, optimistix.rms_norm)
    half = diffrax.Event(lambda t, x, args, **kwargs: t - 0.5, newton)
    got = tight(den, jnp.asarray(X), variable=variable, event=half, solver=diffrax.Dopri8())
    assert float(got.t) == pytest.approx(0.5, abs=1e-9)
    np.testing.assert_allclose(got.x, flow(X, 1.0, 0.5), atol=1e-5)  # dense output between two steps
    crossing = diffrax.Event(lambda t, x, args, **kwargs: x[0] + 0.2, newton)
    got = tight(den, jnp.asarray(X), variable=variable, event=crossing, t_min=0.0)
    assert 0.01 < float(got.t) < 0.99 and float(got.x[0]) == pytest.approx(-0.2, abs=1e-8)
    np.testing.assert_allclose(got.x, flow(X, 1.0, float(got.t)), atol=1e-5)


@pytest.mark.parametrize("solver", [diffrax.Tsit5(), diffrax.Heun()])
def test_nfe_counts_network_calls(solver):
    den, calls = mixture(js.VP())[0], []

    def net(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return den.net(x, t)

    counted = js.Denoiser(net, den.path, "data")
    got = bridge.solve(
        counted, jnp.asarray(X, jnp.float32), solver=solver, adjoint=diffrax.ForwardMode(), t_min=0.0
    )
    jax.block_until_ready(got.x)
    jax.effects_barrier()
    assert (
        int(got.nfe) == len(calls)
        and got.stats["num_rejected_steps"] + got.stats["num_accepted_steps"] == got.stats["num_steps"]
    )


@pytest.mark.parametrize(("variable", "solver"), [("rho", diffrax.ShARK()), ("t", diffrax.Heun())])
def test_reverse_sde_has_the_marginals_of_the_data(x64, variable, solver):
    """From the exact marginal at 0.8 to that at 0.05, where the ODE's samples would have the same law but
    other values.
    """
    path = js.VP()
    den, _, moments = gaussian(path)
    n, (centre, var) = 2048, moments(0.8)
    x = centre + np.sqrt(var) * jax.random.normal(jax.random.key(1), (n,))
    grid = js.grids.log_snr(path, 60, t_max=0.8, t_min=0.05)
    got = np.asarray(
        tight(den, x, key=jax.random.key(2), variable=variable, solver=solver, controller=None, grid=grid).x
    )
    centre, var = moments(0.05)
    assert abs(got.mean() - centre) < 4 * np.sqrt(var / n)
    assert abs(got.var() - var) < 4 * var * np.sqrt(2 / n) + 0.01 * var
    kept = (
        path.alpha(0.8) / path.alpha(0.05) * np.sqrt(var / moments(0.8)[1])
    )  # correlation of the forward process, 0.14
    assert abs(np.corrcoef(got, np.asarray(x))[0, 1] - kept) < 4 / np.sqrt(n)


def test_one_brownian_path_for_all_steps(x64):
    """Adaptive and fixed steps on one key find the same sample, far from where the ODE leads."""
    den = mixture(js.VP())[0]
    fixed = dict(controller=None, grid=js.grids.log_snr(den.path, 100, t_max=0.8, t_min=0.05))
    adaptive = dict(
        controller=diffrax.PIDController(rtol=1e-3, atol=1e-3, pcoeff=0.1, icoeff=0.3), t_max=0.8, t_min=0.05
    )
    one, two = (tight(den, jnp.asarray(X), key=jax.random.key(5), **how).x for how in (fixed, adaptive))
    ode = js.run(den, js.tabulate(den.path, fixed["grid"], js.solvers.dpmpp_2m), jnp.asarray(X))
    assert float(jnp.abs(one - two).max()) < 0.02 < 0.3 < float(jnp.abs(one - ode).max())


class Shift:
    """A hook: moves the state at the end of every interval."""

    def __call__(self, end):
        return end.x + 0.1 * jnp.sin(3 * end.x)


def net_with_weight(x, t, w):
    return jnp.tanh(x * w + t)


CASES = [
    (diffrax.Heun(), "rho", js.solvers.rk_rho(tableau="2heun")),
    (diffrax.Ralston(), "t", js.solvers.heun(a=2 / 3)),
    (diffrax.Euler(), "t", js.solvers.euler),
    (
        diffrax.Bosh3(),
        "rho",
        js.solvers.rk_rho(tableau="3ralston"),
    ),  # FSAL: a stale slope would show under the hook and per_step
]


@pytest.mark.parametrize(("solver", "variable", "ours"), CASES)
def test_from_diffrax_equals_our_tables(x64, solver, variable, ours):
    """With a hook, entries per step and saved states."""
    path = js.VP()
    den = js.Denoiser(net_with_weight, path, "noise")
    how = dict(
        grid=js.grids.log_snr(path, 7),
        hook=Shift(),
        per_step=jnp.linspace(0.5, 2.0, 7),
        save="all",
        x=jnp.asarray(X),
        key=None,
    )
    got = js.sample(den, X, solver=bridge.FromDiffrax(solver, variable), **how)
    want = js.sample(den, X, solver=ours, **how)
    np.testing.assert_allclose(got.xs[1:], want.xs[1:], rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(got.t[1:], want.t[1:])


@pytest.mark.parametrize("kind", ["data", "noise"])
def test_from_diffrax_into_sigma_zero(x64, kind):
    """A data network ends by its prediction, like our tables; a noise network by a full step of the solver,
    which lands on rho = 0.
    """
    path = js.EDM(sigma_max=8.0)
    den = js.Denoiser(lambda x, t: noise_net(0.3, 0.7, x, t), path, "noise")
    if kind == "data":
        den = js.Denoiser(lambda x, t: x - t * noise_net(0.3, 0.7, x, t), path, "data")
    grid = js.grids.append_zero(js.grids.karras(path, 10, t_min=0.2))
    got = js.sample(
        den, X, key=None, x=8 * jnp.asarray(X), grid=grid, solver=bridge.FromDiffrax(diffrax.Heun(), "rho")
    )
    x = 8 * X
    for t, s in itertools.pairwise(grid):
        k = noise_net(0.3, 0.7, x, t)
        x = x + (s - t) * (
            k if s == 0 and kind == "data" else 0.5 * (k + noise_net(0.3, 0.7, x + (s - t) * k, s))
        )
    np.testing.assert_allclose(got, x, rtol=1e-12)


def by_hand(name, grid, x):
    """The methods that carry a state, or solve for the next one, as plain loops on dy/drho = eps of N(0.3,
    0.7^2).
    """
    eps = lambda y, rho: noise_net(0.3, 0.7, y, rho)
    last, last_rho, hat, slope = x, grid[0], x, eps(x, grid[0])
    for t, s in itertools.pairwise(grid):
        if name == "LeapfrogMidpoint":
            x, last, last_rho = last + (s - last_rho) * eps(x, t), x, t
        elif name == "ReversibleHeun":
            hat = 2 * x - hat + (s - t) * slope
            x, slope = x + (s - t) / 2 * (slope + eps(hat, s)), eps(hat, s)
        else:  # implicit Euler, whose equation is linear here
            c = (s - t) * s / (0.49 + s**2)
            x = (x - c * 0.3) / (1 - c)
    return x


@pytest.mark.parametrize(
    "solver", [diffrax.LeapfrogMidpoint(), diffrax.ReversibleHeun(), diffrax.ImplicitEuler()]
)
def test_from_diffrax_carries_state_and_solves(x64, solver):
    path = js.EDM(sigma_max=8.0)
    den = js.Denoiser(lambda x, t: noise_net(0.3, 0.7, x, t), path, "noise")
    grid = js.grids.karras(path, 12, t_min=0.05)
    got = js.sample(
        den, X, key=None, x=8 * jnp.asarray(X), grid=grid, solver=bridge.FromDiffrax(solver, "rho", tol=1e-10)
    )
    np.testing.assert_allclose(got, by_hand(type(solver).__name__, grid, 8 * X), rtol=1e-8)


@pytest.mark.parametrize(("solver", "order"), [(diffrax.Tsit5(), 5), (diffrax.Kvaerno3(), 3)])
def test_from_diffrax_order(x64, solver, order):
    path = js.VP()
    den, flow, _ = gaussian(path)
    x = flow(X, 1.0, 0.7)
    errors = []
    for n in (8, 16):
        made = bridge.FromDiffrax(solver, "lam", tol=1e-9)
        got = js.sample(
            den,
            X,
            key=None,
            x=jnp.asarray(x),
            grid=js.grids.log_snr(path, n, t_max=0.7, t_min=0.2),
            solver=made,
        )
        errors.append(np.abs(np.asarray(got) - flow(X, 1.0, 0.2)).max())
    assert order - 0.3 < np.log2(errors[0] / errors[1]) < order + 1


@pytest.mark.parametrize("adjoint", [js.Direct(), js.RecursiveCheckpoint(3)])
def test_from_diffrax_gradients(x64, adjoint):
    path = js.EDM(sigma_max=8.0)
    grid = js.grids.append_zero(js.grids.karras(path, 30, t_min=0.02))
    solver = bridge.FromDiffrax(diffrax.Dopri8(), "rho")

    def end(m, s, y):
        den = js.Denoiser(jax.tree_util.Partial(noise_net, m, s), path, "noise")
        return js.sample(den, y, key=None, x=y, grid=grid, solver=solver, adjoint=adjoint)

    dm, ds, dy = printed(end)
    np.testing.assert_allclose([dm, ds], [1.7164787, 1.9985580], atol=1e-6)
    np.testing.assert_allclose(dy, [0.0531444, -0.0163570, 0.1271201], atol=1e-6)
    tangent = jax.jvp(lambda m: end(m, 0.7, 8 * jnp.asarray(X)), (0.3,), (1.0,))[1]
    np.testing.assert_allclose(tangent, np.full(3, 1 - 0.7 / np.sqrt(0.7**2 + 64)), atol=1e-6)


def test_from_diffrax_sde(x64):
    path = js.VP()
    den, _, moments = gaussian(path)
    n, (centre, var) = 2048, moments(0.8)
    x = centre + np.sqrt(var) * jax.random.normal(jax.random.key(1), (n,))
    how = dict(
        x=x,
        grid=js.grids.log_snr(path, 40, t_max=0.8, t_min=0.05),
        solver=bridge.FromDiffrax(diffrax.ShARK(), "lam", eta=1.0),
    )
    got = np.asarray(js.sample(den, x, key=jax.random.key(2), **how))
    centre, var = moments(0.05)
    assert (
        abs(got.mean() - centre) < 4 * np.sqrt(var / n)
        and abs(got.var() - var) < 4 * var * np.sqrt(2 / n) + 0.01 * var
    )
    assert abs(np.corrcoef(got, np.asarray(x))[0, 1]) < 0.14 + 4 / np.sqrt(n)  # the ODE would give 1
    with pytest.raises(ValueError, match="key="):
        js.sample(den, x, key=None, **how)


def test_precisions():
    """float32 and bfloat16 states stay what they are; a solve can be vmapped."""
    path = js.VP()
    den, flow, _ = gaussian(path)
    for dtype, tol in ((jnp.float32, 1e-4), (jnp.bfloat16, 2e-2)):
        x = jnp.asarray(X, dtype)
        exact = flow(np.asarray(x, np.float64), 1.0, 1e-3)
        narrow = js.sample(den, x, key=None, x=x, steps=40, solver=bridge.FromDiffrax(diffrax.Tsit5(), "lam"))
        for got in (bridge.solve(den, x, adjoint=diffrax.ForwardMode()).x, narrow):
            assert got.dtype == dtype
            np.testing.assert_allclose(np.asarray(got, np.float64), exact, atol=tol)
    x = jnp.stack([jnp.asarray(X, jnp.float32), -jnp.asarray(X, jnp.float32)])
    got = jax.vmap(lambda x: bridge.solve(den, x, adjoint=diffrax.ForwardMode()).x)(x)
    np.testing.assert_allclose(got, np.stack([flow(np.asarray(a), 1.0, 1e-3) for a in x]), atol=1e-4)


def test_terms_in_a_solve_of_ones_own(x64):
    path = js.VP()
    den, flow, _ = gaussian(path)
    terms = bridge.ode_terms(den, "rho")
    own = terms.vector_field
    s0, s1 = (float(own.s(t)) for t in (0.7, 0.01))
    y = own.enter(jnp.asarray(X), 0.7)
    controller = diffrax.PIDController(rtol=1e-10, atol=1e-10)
    got = diffrax.diffeqsolve(
        terms, diffrax.Tsit5(), s0, s1, 0.1, y, stepsize_controller=controller, adjoint=diffrax.ForwardMode()
    )
    np.testing.assert_allclose(own.leave(got.ys[-1], 0.01), flow(X, 0.7, 0.01), atol=1e-8)
    tree = diffrax.UnsafeBrownianPath((3,), jax.random.key(0))
    # the published SDE of VP, dx = -beta x/2 dt - (1 + eta^2) beta/2 score dt + eta sqrt(beta) dw, and the
    # same in y = x/alpha
    beta, alpha, rho, x = (
        0.1 + 0.3 * 19.9,
        path.alpha(0.3),
        path.rho(0.3),
        np.asarray(den.net(jnp.asarray(X), 0.3)),
    )
    score = (alpha * x - X) / path.sigma(0.3) ** 2
    eps, rise = (
        -path.sigma(0.3) * score,
        {"t": 1.0, "rho": beta / (2 * alpha**2 * rho), "lam": beta / (2 * alpha**2 * rho**2)},
    )  # dl/dt
    for variable in rise:
        drift, noise = bridge.sde_terms(den, tree, variable, eta=0.5).terms
        flow = drift.vector_field
        s, y = flow.s(0.3), flow.enter(jnp.asarray(X), 0.3)
        per_t = (
            -beta / 2 * X - 1.25 * beta / 2 * score
            if variable == "t"
            else 1.25 * beta / (2 * alpha**2 * rho) * eps
        )
        np.testing.assert_allclose(drift.vf(s, y, None), -per_t / rise[variable], rtol=1e-9)
        g = 0.5 * np.sqrt(beta / rise[variable]) / (1 if variable == "t" else alpha)
        np.testing.assert_allclose(noise.vf(s, y, None).mv(jnp.ones(3)), g * np.ones(3), rtol=1e-9)
    with pytest.raises(ValueError, match="eta"):
        bridge.sde_terms(den, tree, eta=0.0)


def test_errors():
    path = js.VP()
    den, x, key = gaussian(path)[0], jnp.asarray(X, jnp.float32), jax.random.key(0)
    with pytest.raises(TypeError, match="js.Denoiser"):
        bridge.solve(lambda x, t: x, x)
    with pytest.raises(ValueError, match="unknown variable 'sigma'"):
        bridge.solve(den, x, variable="sigma")
    with pytest.raises(ValueError, match="leaves the path"):
        bridge.solve(den, x, t_max=2.0)
    with pytest.raises(ValueError, match="decreases"):
        bridge.solve(den, x, t_max=0.2, t_min=0.3)
    with pytest.raises(
        ValueError, match="does not determine"
    ):  # at t = 1 noise says nothing of the data, hence of the velocity
        bridge.solve(js.Denoiser(lambda x, t: x, js.CondOT(), "noise"), x, variable="t")
    with pytest.raises(TypeError, match="diffrax.Heun"):
        bridge.FromDiffrax(diffrax.Heun)
    for split in (diffrax.ShARK(), diffrax.KenCarp3(), diffrax.SemiImplicitEuler()):
        with pytest.raises(ValueError, match="several terms"):
            bridge.FromDiffrax(split)
    with pytest.raises(TypeError, match="js.Denoiser"):
        js.sample(lambda x, t: x, x, key=key, solver=bridge.FromDiffrax(diffrax.Heun()))
