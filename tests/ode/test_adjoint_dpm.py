"""AdjointDPM: the continuous adjoint converges to the exact gradient, in memory that does not grow, and says
where it does not apply.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import gaussian, mixture, random_net

import jaxsampler as js
from jaxsampler.ode.adjoint_dpm import rising_table, shares

S = js.solvers
VP = js.VP()
EDM = js.EDM(sigma_max=80.0)


class Scalar(eqx.Module):
    """eps of x0 ~ N(m, s^2) on the EDM path, with m and s to be learned."""

    m: jax.Array
    s: jax.Array

    def __call__(self, x, t):
        t = jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape)
        return t * (x - self.m) / (self.s**2 + t**2)


def published_loss(net, x, table, adjoint):
    c = jnp.asarray([0.1, 0.2, -0.4])
    return 0.5 * ((js.run(js.Denoiser(net, EDM, "noise"), table, x, adjoint=adjoint) - c) ** 2).sum()


@jax.jit
def direct_gradients(net, x, table):
    """One compilation for all tables of a shape."""
    return jax.grad(published_loss, argnums=(0, 1))(net, x, table, js.Direct())


def published_problem(n, adjoint):
    """Gradients (m, s, y_T) of sum (y_0 - c)^2 /2 by Heun in rho down to 0, in equal steps of rho^(1/7)."""
    grid = np.linspace(8 ** (1 / 7), 0, n + 1) ** 7
    table = js.tabulate(EDM, grid, S.rk_rho().replace(to_zero=None), to_zero=False)
    args = Scalar(jnp.asarray(0.3), jnp.asarray(0.7)), jnp.asarray([5.0, -3.0, 9.0])
    if isinstance(adjoint, js.Direct):
        net, x = direct_gradients(*args, js.pad(table, nfe=256))
    else:  # these need to know the table
        net, x = jax.jit(lambda net, x: jax.grad(published_loss, (0, 1))(net, x, table, adjoint))(*args)
    return float(net.m), float(net.s), np.asarray(x)


# errors of dL/ds by the direct and by the adjoint route, as an independent program found them
PUBLISHED = {16: (1.2e-1, 1.6e-1), 32: (2.9e-2, 3.3e-2), 64: (6.9e-3, 7.5e-3), 128: (1.7e-3, 1.8e-3)}


@pytest.mark.usefixtures("x64")
def test_published_problem():
    """Its closed-form gradients are approached at order 2 by both routes, with the published errors; the
    routes differ.
    """
    for n, (direct, continuous) in PUBLISHED.items():
        for adjoint, want in ((js.Direct(), direct), (js.AdjointDPM(), continuous)):
            m, s, x = published_problem(n, adjoint)
            assert abs(abs(s - 1.9985580) / want - 1) < 0.05
            assert abs(m - 1.7164787) < 0.3 * want
            assert np.abs(x - [0.0531444, -0.0163570, 0.1271201]).max() < 0.1 * want


@pytest.mark.usefixtures("x64")
def test_last_k_on_the_published_problem():
    """32 of 64 steps restart at rho = 1/16 and see a two-hundredth of dL/dm; all of them see all."""
    assert abs(published_problem(64, js.LastK(32))[0] - 0.007459) < 1e-6
    np.testing.assert_allclose(
        published_problem(64, js.LastK(64))[0], published_problem(64, js.Direct())[0], rtol=1e-12
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("forward", "backward", "order"), [("dpmpp_2m", None, 2), ("dpm_3", "4rk", 3), ("rk4", "euler", 1)]
)
def test_order_is_the_lower_of_the_two(forward, backward, order):
    """dx(t)/dx(s) of a mixture's flow, from central differences of an independent integration."""
    denoiser, flow = mixture(VP)
    start, end = float(VP.time(-1.0)), float(VP.time(1.2))
    up, down = flow(np.array([0.4 + 1e-4, 0.4 - 1e-4]), start, end)
    want = (up - down) / 2e-4
    solver = S.rk_rho(tableau="4rk") if forward == "rk4" else S.by_name(forward)
    adjoint = js.AdjointDPM(None if backward is None else S.rk_rho(tableau=backward))
    errors, counts = [], (10, 20, 40) if order == 3 else (20, 40, 80)
    for n in counts:
        table = js.tabulate(VP, js.grids.log_snr(VP, n, t_max=start, t_min=end), solver)
        slope = jax.jit(jax.grad(lambda x, table=table: js.run(denoiser, table, x, adjoint=adjoint).sum()))
        errors.append(abs(float(slope(jnp.asarray([0.4]))[0]) - want))
    assert abs(np.polyfit(np.log(counts), -np.log(errors), 1)[0] - order) < 0.35


@pytest.mark.usefixtures("x64")
def test_the_way_back_leaves_clean_data_with_the_noise_of_its_first_level():
    """A network that always sees the same noise e: x0 becomes alpha x0 + sigma e, exactly, in one step and in
    three.
    """
    x, e, path = jnp.asarray([0.3, -1.2]), jnp.asarray([0.7, 0.4]), js.CondOT()
    net = js.Denoiser(lambda x, t: e, path, "noise")
    for grid in ([0.3, 0.0], [0.6, 0.5, 0.2, 0.0]):
        table = rising_table(S.rk_rho(), path, np.asarray(grid), "data")
        got = js.run(net, table, x, adjoint=js.Direct())
        np.testing.assert_allclose(got, (1 - grid[0]) * x + grid[0] * e, rtol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", ["data", "noise"])
def test_all_that_a_sample_depends_on(kind):
    """Closed-over and explicit parameters, mu, entries per step, x_T, saved states, sigma = 0, vmap over
    parameters: near Direct.
    """
    path = js.MeanReverting(0.4, std=0.3, variant="irsde")
    grid = np.append(js.grids.log_snr(path, 160, t_max=80.0, t_min=1.0), 0.0)
    table = js.tabulate(path, grid, S.dpmpp_2m)
    base = gaussian(path, 0.7, 0.2)[0].net

    def loss(args, adjoint):
        shift, mu, entry, x = args
        here = js.MeanReverting(mu, std=0.3, variant="irsde")

        def net(x, t, e):
            t = jnp.asarray(t)
            data = base(x - shift * e - (mu - 0.4), t) + shift * e + (mu - 0.4)
            return data if kind == "data" else js.convert(data, x, t, here, source="data", target="noise")

        entries = {"e": jnp.broadcast_to(entry, (len(grid) - 1,))}
        denoiser = js.Denoiser(lambda x, t, e: net(x, t, e["e"]), here, kind)
        out = js.run(denoiser, table, x, adjoint=adjoint, per_step=entries, save=[0, 80, -1])
        return (out.x**2).sum() + (out.xs[0] * out.xs[1]).sum() + 0.3 * out.xs[2].sum()

    args = jnp.asarray(0.2), jnp.asarray(0.4), jnp.asarray(0.8), jnp.asarray([0.3, 0.9])
    if kind == "noise":  # at sigma = 0 the conversion above is singular
        grid, table = grid[:-1], js.tabulate(path, grid[:-1], S.dpmpp_2m)
    grads = [jax.jit(jax.grad(lambda args, a=a: loss(args, a)))(args) for a in (js.Direct(), js.AdjointDPM())]
    for a, b in zip(*grads, strict=True):
        np.testing.assert_allclose(b, a, rtol=0.03, atol=2e-3)
        assert float(jnp.abs(a).max()) > 0.05
    by_shift = jax.grad(lambda s: loss((s, *args[1:]), js.AdjointDPM()))
    many = jax.jit(jax.vmap(by_shift))(jnp.asarray([0.2, 0.5]))
    np.testing.assert_allclose(many[0], grads[1][0], rtol=1e-10)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("solver", [S.ddim, S.dpmpp_2s], ids=["one call", "two calls"])
def test_each_interval_has_its_own_entry(solver):
    """The effect is even in an entry and signs alternate, so the gradients' do: each near Direct's, with one
    and two calls.
    """
    base = mixture(VP)[0].net
    net = js.Denoiser(lambda x, t, e: base(x, t) * (1 + 0.1 * e * e), VP, "data")
    grid, x = js.grids.log_snr(VP, 60, t_max=0.9, t_min=0.05), jnp.asarray([0.4, -1.0])
    table, entries = js.tabulate(VP, grid, solver), jnp.asarray((-1.0) ** np.arange(60))
    loss = lambda e, adjoint: (js.run(net, table, x, per_step=e, adjoint=adjoint) ** 2).sum()
    want, got = (
        jax.jit(jax.grad(lambda e, a=a: loss(e, a)))(entries) for a in (js.Direct(), js.AdjointDPM())
    )
    np.testing.assert_allclose(got, want, atol=0.1 * float(jnp.abs(want).max()))


def temp_bytes(adjoint, n, solver=None, width=128, batch=64):
    """Compiled temporaries of the gradient with respect to the weights."""
    w = jnp.zeros((width, 8 * width))
    grid = js.grids.log_snr(VP, n)

    def loss(w, x):
        denoiser = js.Denoiser(lambda x, t: jnp.tanh(jnp.tanh(x @ w) @ w.T), VP, "noise")
        return js.sample(
            denoiser, x, x=x, key=None, grid=grid, solver=solver or S.dpmpp_2m, adjoint=adjoint
        ).sum()

    return (
        jax.jit(jax.grad(loss))
        .lower(w, jnp.zeros((batch, width)))
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
    )


def test_memory_does_not_grow():
    """Slow (compiles eight gradients): 16 times the steps, less than 5% more memory; Direct grows with the
    steps. The inverse of bdia would lose digits over 512 of them: two pairs of states are kept.
    """
    pair = 2 * 64 * 128 * 4
    for adjoint, solver, kept in (
        (js.AdjointDPM(), None, 0),
        (js.Reversible(), S.bdia(), 2),
        (js.Reversible(), S.reversible_heun(), 0),
    ):
        few, many = (temp_bytes(adjoint, n, solver) for n in (32, 512))
        assert many < 1.05 * few if not kept else many - few < 1.05 * kept * pair
    direct = [temp_bytes(js.Direct(), n) for n in (32, 512)]
    assert direct[1] > 12 * direct[0]
    assert few < 0.2 * direct[0]


def test_noise_is_replayed_by_the_exact_routes_and_refused_by_the_continuous_one():
    net, x = js.Denoiser(lambda x, t: 0.5 * jnp.tanh(x), VP, "data"), jnp.ones(3)
    run = lambda adjoint: jax.grad(
        lambda x: (
            js.sample(net, x, x=x, key=jax.random.key(0), solver=S.dpmpp_2m_sde, steps=9, adjoint=adjoint)
            ** 2
        ).sum()
    )(x)
    direct = run(js.Direct())
    for adjoint in (js.Direct(remat=True), js.RecursiveCheckpoint(3), js.LastK(9)):
        np.testing.assert_allclose(run(adjoint), direct, rtol=1e-5)
    with pytest.raises(ValueError, match="deterministic"):
        run(js.AdjointDPM())


def test_last_k_reduces_variance_with_a_key():
    """The gradient of the last step, averaged over re-noisings, is near its mean over many; value and bias
    stay.
    """
    denoiser, _, _ = gaussian(VP)
    x, table = jnp.asarray([0.4]), js.tabulate(VP, js.grids.log_snr(VP, 6, t_min=0.2), S.ddim)

    def value(shift, adjoint, key):
        net = js.Denoiser(lambda x, t: jnp.sin(3 * x) * shift + denoiser.net(x, t), VP, "data")
        return js.run(net, table, x, key=key, adjoint=adjoint).sum()

    def slopes(adjoint, seeds):
        """(value, slope) for each seed."""
        one = jax.value_and_grad(lambda shift, seed: value(shift, adjoint, jax.random.key(seed)))
        return np.stack(jax.jit(jax.vmap(one, (None, 0)))(jnp.float32(0.0), jnp.arange(seeds)), 1)

    plain, few, more = (
        slopes(js.LastK(1), 1)[0],
        *(slopes(js.LastK(1, variance_reduction=n), 40) for n in (1, 8)),
    )
    np.testing.assert_allclose(few[:, 0], plain[0], rtol=1e-6)
    assert more[:, 1].std() < 0.6 * few[:, 1].std()
    assert abs(more[:, 1].mean() - few[:, 1].mean()) < 4 * few[:, 1].std() / 40**0.5
    with pytest.raises(ValueError, match="needs key="):
        value(jnp.float32(0.0), js.LastK(1, variance_reduction=2), None)


def test_refusals():
    net, x = js.Denoiser(random_net(), VP, "noise"), jnp.ones(3)
    flow = js.Denoiser(random_net(), js.CondOT(), "velocity")
    system = js.Denoiser(lambda x, t: x, {"a": VP}, "noise")
    draw = lambda net, x: js.sample(net, x, key=jax.random.key(0), adjoint=js.AdjointDPM())
    table, adjoint = js.tabulate(VP, [0.9, 0.5, 0.1], S.dpmpp_2m), js.AdjointDPM()
    scaled = dataclasses.replace(table, start=np.array([0.5, 0.0]))
    cases = [
        ("plain callable has no path", lambda: js.run(random_net(), table, x, adjoint=adjoint)),
        ("through a hook", lambda: js.run(net, table, x, adjoint=adjoint, hook=lambda end: end.x)),
        ("must be concrete", lambda: jax.jit(lambda table: js.run(net, table, x, adjoint=adjoint))(table)),
        ("needs a table", lambda: js.sample(net, x, x=x, key=None, solver=S.edict(), adjoint=adjoint)),
        ("infinite where alpha = 0", lambda: draw(flow, x)),
        ("noise-kind step", lambda: js.AdjointDPM(S.dpmpp_2m)),
        ("this table scales it", lambda: js.run(net, scaled, x, adjoint=adjoint)),
        ("not on a system", lambda: draw(system, {"a": x})),
        ("counts intervals", lambda: js.LastK(0)),
        ("table does not show", lambda: jax.jit(lambda t: js.run(net, t, x, adjoint=js.LastK(1)))(table)),
    ]  # fmt: skip
    for message, call in cases:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("name", ["dpm_2m", "rk_rho", "deis_rho"])
def test_shares_are_the_weights_of_the_calls(name):
    """What each output adds to the end, by unit impulses through the recurrence."""
    table = rising_table(S.by_name(name), VP, js.grids.log_snr(VP, 5, t_max=0.9, t_min=0.1), "noise")
    response = lambda calls: plain(table, lambda x, t: next(calls))
    want = [response(iter(row)) for row in np.eye(table.nfe)]
    np.testing.assert_allclose(shares(table), want, rtol=1e-12)


def plain(table, model):
    """The recurrence of a table from x = 0, as it is written."""
    x, memory = 0.0, np.zeros(table.regs)
    for n in range(table.nfe):
        m = model(x, table.t[n])
        memory[table.keep[n]] = x
        memory[table.slot[n]] = m
        x = table.A[n] * x + table.B[n] @ memory
    return x


def test_less_memory_than_checkpointing_from_16_steps():
    """The sum for the weights has no registers; here the weights are 16 times the state, and most of it."""
    for n, bound in ((16, 0.9), (256, 0.55)):
        assert temp_bytes(js.AdjointDPM(), n) < bound * temp_bytes(js.RecursiveCheckpoint(), n)
