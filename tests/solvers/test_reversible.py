"""Solvers with an exact inverse: published accuracy and round trips, gradients without a tape, both ends,
clear refusals.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import gaussian, mixture, random_net

import jaxsampler as js

pytestmark = pytest.mark.usefixtures("x64")
S = js.solvers
VP = js.VP()
SOLVERS = {
    "edict": S.edict(),
    "bdia": S.bdia(),
    "obelm": S.obelm(),
    "reversible_heun": S.reversible_heun(),
    "mccallum_foster": S.mccallum_foster(),
}


@functools.partial(jax.jit, static_argnums=(0, 1))
def both_ways(solver, denoiser, rows, x):
    """One compilation for each solver and number of steps."""
    state = solver.init(x, rows)
    out, _ = jax.lax.scan(lambda s, row: (solver.step(denoiser, s, row), None), state, rows)
    back, _ = jax.lax.scan(lambda s, row: (solver.reverse(denoiser, s, row), None), out, rows, reverse=True)
    return solver.final(out), back


def there_and_back(solver, denoiser, grid, x):
    """The sample, and the state that the inverse makes of the final one."""
    return both_ways(solver, denoiser, jax.tree.map(jnp.asarray, solver.rows(denoiser.path, grid)), x)


# error of x_0 and of the round trip, as an independent program found them: Gaussian data N(0.3, 0.7^2), x_T =
# 1.3, uniform in lam
PUBLISHED = {
    ("edict", 25): (2.7e-2, 1e-13),
    ("edict", 100): (-2.2e-2, 1e-12),
    ("edict", 200): (-1.0e-2, 1e-6),
    ("bdia", 25): (3.9e-3, 1e-14),
    ("bdia", 100): (2.4e-4, 1e-14),
    ("bdia", 200): (6.1e-5, 1e-14),
    ("obelm", 25): (-1.6e-2, 1e-11),
    ("obelm", 100): (-1.0e-3, 1e-11),
    ("obelm", 200): (-2.6e-4, 1e-11),
    ("reversible_heun", 25): (None, 1e-14),
    ("reversible_heun", 100): (None, 1e-14),
    ("mccallum_foster", 25): (None, 1e-14),
    ("mccallum_foster", 100): (None, 1e-13),
}


@pytest.mark.parametrize(("name", "n"), PUBLISHED)
def test_accuracy_and_round_trip_as_published(name, n):
    denoiser, flow, _ = gaussian(VP, 0.3, 0.7)
    x = jnp.asarray([1.3])
    grid = js.grids.log_snr(VP, n)
    out, back = there_and_back(SOLVERS[name], denoiser, grid, x)
    error, trip = PUBLISHED[name, n]
    if error is not None:
        assert abs(float(out[0] - flow(x, 1.0, 1e-3)[0]) / error - 1) < 0.06
    assert float(jnp.abs(back[0] - x).max()) < trip
    if name in ("bdia", "obelm"):  # the first row started from (x, x)
        assert float(jnp.abs(back[1] - x).max()) < trip


def test_bdia_with_a_small_gamma_blows_up_and_says_so():
    denoiser, _, _ = gaussian(VP, 0.3, 0.7)
    with pytest.warns(UserWarning, match="loses 30 digits"):
        _, back = there_and_back(S.bdia(gamma=0.5), denoiser, js.grids.log_snr(VP, 100), jnp.asarray([1.3]))
    assert float(jnp.abs(back[0]).max()) > 1e9
    _, back = there_and_back(S.bdia(gamma=0.5), denoiser, js.grids.log_snr(VP, 10), jnp.asarray([1.3]))
    assert float(jnp.abs(back[0] - 1.3).max()) < 1e-9


@functools.cache
def truth():
    denoiser, flow = mixture(VP)
    start, end = float(VP.time(-1.0)), float(VP.time(1.2))
    x = np.array([0.9, -0.3, 0.2])
    return denoiser, start, end, x, flow(x, start, end)


@pytest.mark.filterwarnings("ignore:bdia")
@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("edict", 1),
        ("bdia", 2),
        ("half bdia", 1),
        ("obelm", 2),
        ("reversible_heun", 2),
        ("mccallum_foster", 2),
    ],
)
def test_order_on_a_mixture(name, order):
    solver = S.bdia(gamma=0.5) if name == "half bdia" else SOLVERS[name]
    assert solver.order == order
    denoiser, start, end, x, want = truth()
    errors, counts = [], (40, 80, 160) if name != "edict" else (160, 320, 640)
    for n in counts:
        grid = js.grids.log_snr(VP, n, t_max=start, t_min=end)
        errors.append(np.abs(there_and_back(solver, denoiser, grid, jnp.asarray(x))[0] - want).max())
    slope = np.polyfit(np.log(counts), -np.log(errors), 1)[0]
    assert abs(slope - order) < 0.25


PATHS = {"vp": VP, "mr to zero": js.MeanReverting(0.4, variant="irsde")}


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("path", PATHS)
def test_gradients_without_a_tape_equal_plain_reverse_mode(name, path):
    """Weights, x_T, entries per step, saved states and sigma = 0, against Direct to 1e-12 of the largest
    entry.
    """
    zero, path = path == "mr to zero", PATHS[path]
    net = mixture(path)[0].net
    grid = js.grids.karras(path, 9, t_max=0.5 * path.t_max, t_min=0.02 * path.t_max)
    grid = np.append(grid, 0.0) if zero else grid

    carried = name == "reversible_heun"  # its slope belongs to two intervals, so it takes no entries per step

    def loss(w, x, entries, adjoint):
        shifted = lambda x, t, e=1.0: net(x - w * e, t) + w * e
        out = js.sample(
            js.Denoiser(shifted, path, "data"),
            x,
            x=x,
            key=None,
            solver=SOLVERS[name],
            grid=grid,
            adjoint=adjoint,
            save=[0, 4, -1],
            per_step=None if carried else entries,
        )
        return (out.x**2).sum() + (out.xs[0] * out.xs[1]).sum()

    args = jnp.asarray(0.2), jnp.asarray([0.3, -0.5, 1.0]), jnp.linspace(0.5, 1.0, len(grid) - 1)
    want, got = (
        jax.jit(jax.grad(loss, argnums=(0, 1, 2)), static_argnums=3)(*args, a)
        for a in (js.Direct(), js.Reversible())
    )
    for a, b in list(zip(want, got, strict=True))[: 2 if carried else 3]:
        assert float(jnp.abs(a).max()) > 1e-3
        np.testing.assert_allclose(b, a, atol=1e-12 * max(1.0, float(jnp.abs(a).max())))


def test_every_reversible_solver_in_float32_with_a_bfloat16_network():
    """Into sigma = 0: sample and slopes are near those in float64, where they are affine in x."""
    exact = gaussian(VP)[0]
    half = js.Denoiser(lambda x, t: exact.net(x, t).astype(jnp.bfloat16), VP, "data")
    x = jnp.asarray([1.0, -0.4], jnp.float32)
    grid = np.append(js.grids.log_snr(VP, 8), 0.0)
    for name, solver in SOLVERS.items():
        total = lambda x, s=solver: js.sample(half, x, x=x, key=None, solver=s, grid=grid).sum()
        out, slope = jax.jit(jax.value_and_grad(total))(x)
        assert out.dtype == jnp.float32
        want, *shifted = (
            there_and_back(solver, exact, grid, x.astype(jnp.float64) + d)[0].sum()
            for d in np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        )
        np.testing.assert_allclose(out, want, atol=0.15, err_msg=name)
        np.testing.assert_allclose(slope, np.array(shifted) - want, atol=0.1, err_msg=name)


def test_refusals():
    net, x = js.Denoiser(random_net(), VP, "noise"), jnp.ones(3)
    sample = functools.partial(js.sample, net, x, x=x, key=None, steps=5)
    with pytest.raises(ValueError, match="edict, bdia, obelm"):
        jax.grad(lambda x: sample(adjoint=js.Reversible()).sum())(x)
    with pytest.raises(ValueError, match="hook cannot be undone"):
        sample(solver=S.edict(), adjoint=js.Reversible(), hook=lambda end: end.x)
    with pytest.raises(ValueError, match="carries its slope"):
        sample(solver=S.reversible_heun(), adjoint=js.Reversible(), per_step=jnp.ones(5))
    with pytest.raises(ValueError, match="divide by alpha"):
        js.sample(js.Denoiser(random_net(), js.CondOT(), "velocity"), x, x=x, key=None, solver=S.obelm())
    with pytest.raises(ValueError, match="need a concrete grid"):
        jax.grad(lambda grid: sample(solver=S.reversible_heun(), grid=grid, steps=None).sum())(
            jnp.asarray([0.9, 0.5, 0.1])
        )
    for bad in (lambda: S.edict(p=0.0), lambda: S.bdia(gamma=0.0), lambda: S.mccallum_foster(coupling=1.0)):
        with pytest.raises(ValueError, match="got"):
            bad()


@pytest.mark.parametrize("name", SOLVERS)
def test_float32_gradients_without_a_tape_keep_their_digits(name):
    """A network that damps nothing, on a grid in lam: the inverse of obelm alone would lose them all.

    Rounding grows by 7e5 there; states kept in between take it back to 1e-5.
    """
    w = jax.random.normal(jax.random.key(0), (2, 4, 4), jnp.float32) / 2
    net = lambda w, x, t: jnp.tanh(jnp.tanh(x @ w[0] + t) @ w[1])
    x, grid = jax.random.normal(jax.random.key(1), (8, 4), jnp.float32), js.grids.log_snr(VP, 24)

    def loss(w, adjoint):
        denoiser = js.Denoiser(lambda x, t: net(w, x, t), VP, "noise")
        out = js.sample(denoiser, x, x=x, key=None, solver=SOLVERS[name], grid=grid, adjoint=adjoint)
        return (out**2).mean()

    want, got = (jax.jit(jax.grad(loss), static_argnums=1)(w, a) for a in (js.Direct(), js.Reversible()))
    assert float(jnp.linalg.norm(got - want) / jnp.linalg.norm(want)) < 1e-3


def test_how_much_an_inverse_amplifies_rounding():
    """Twice 1/p per step by edict, 1/l by mccallum_foster, and by obelm the squares of the ratios of its
    steps in rho, in units of x = alpha y.
    """
    grid = js.grids.log_snr(VP, 24)
    total = lambda name: np.log(SOLVERS[name].growth(SOLVERS[name].rows(VP, grid))).sum()
    alpha, d = VP.alpha(grid), np.diff(VP.rho(grid))
    units = np.log(alpha[0] / alpha[-2])
    np.testing.assert_allclose(total("edict"), -48 * np.log(0.93), rtol=1e-12)
    np.testing.assert_allclose(total("mccallum_foster"), -24 * np.log(0.99), rtol=1e-12)
    np.testing.assert_allclose(total("obelm"), 2 * np.log(d[0] / d[-1]) + units, rtol=0.01)
