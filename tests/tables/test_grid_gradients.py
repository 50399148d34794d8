"""Derivatives of tables by their grid, from alpha = 0 into sigma = 0: those of differences of concrete
tables, in both modes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsampler as js

pytestmark = pytest.mark.usefixtures("x64")
S = js.solvers
OT = [1.0, 0.6, 0.3, 0.0]
SOLVERS = {
    "ddim": S.ddim,
    "ddim eta": S.ddim(eta=0.5),
    "ddim eta 1": S.ddim(eta=1.0),
    "ddpm": S.ddpm,
    "euler": S.euler,
    "heun": S.heun,
    "euler_ancestral": S.euler_ancestral,
    "dpmpp_2s_ancestral": S.dpmpp_2s_ancestral,
    "dpmpp_2s_ancestral 0.5": S.dpmpp_2s_ancestral(eta=0.5),
    "dpmpp_sde": S.dpmpp_sde,
    "dpmpp_sde 0": S.dpmpp_sde(eta=0.0),
    "dpmpp_2s": S.dpmpp_2s,
    "dpmpp_sde_1": S.dpmpp_sde_1,
    "dpmpp_sde_1 0": S.dpmpp_sde_1(eta=0.0),
    "dpmpp_2m": S.dpmpp_2m,
    "dpmpp_3m": S.dpmpp_3m,
    "dpmpp_2m_sde 0": S.dpmpp_2m_sde(eta=0.0),
    "unipc": S.unipc(order=2),
    "churn": S.edm(s_churn=1.0),
}
READ_THE_FIRST_LAM = ("dpmpp_2m", "dpmpp_3m", "unipc", "dpmpp_2m_sde", "dpmpp_3m_sde")
# there alpha = 0: 1/(lam_1 - lam_0) has an infinite slope


def flat(table):
    """All entries as one vector."""
    columns = [table.t, table.A, table.B, table.C, table.form, table.start]
    xp = np if isinstance(table.A, np.ndarray) else jnp
    return xp.concatenate([xp.ravel(c) for c in columns])


def slopes(path, grid, solver, *, to_zero, from_noise):
    """Of a random combination of all entries: by reverse mode, forward mode, and differences."""
    weights = np.random.default_rng(0).standard_normal(flat(js.tabulate(path, grid, solver)).shape)
    ends = {"to_zero": to_zero, "from_noise": from_noise}
    total = lambda g: flat(js.tabulate(path, g, solver, **ends)) @ weights
    both = jax.jit(lambda g: (jax.grad(total)(g), jax.jacfwd(total)(g)))(jnp.asarray(grid))
    h, wanted = 1e-6 * path.t_max, []
    for i in range(len(grid)):
        step = h * np.eye(len(grid))[i]
        if grid[i] == path.t_max:
            step, sign = -step, -1
        else:
            sign = 1
        if grid[i] in (0.0, path.t_max):  # one-sided, of second order
            v = [total(np.asarray(grid) + k * step) for k in range(3)]
            wanted.append(sign * (-3 * v[0] + 4 * v[1] - v[2]) / (2 * h))
        else:
            wanted.append((total(np.asarray(grid) + step) - total(np.asarray(grid) - step)) / (2 * h))
    return *map(np.asarray, both), np.asarray(wanted, np.float64)


@pytest.mark.parametrize("name", SOLVERS)
def test_from_pure_noise_into_clean_data(name):
    reverse, forward, wanted = slopes(js.CondOT(), OT, SOLVERS[name], to_zero=True, from_noise=True)
    assert np.isfinite(reverse).all()
    np.testing.assert_allclose(forward, reverse, rtol=1e-8, atol=1e-8)
    there = slice(1 if name.startswith(READ_THE_FIRST_LAM) else 0, None)
    np.testing.assert_allclose(reverse[there], wanted[there], rtol=1e-4, atol=1e-4 * np.abs(wanted[1:]).max())


@pytest.mark.parametrize("name", ["ddim", "ddim eta 1", "ddpm", "dpmpp_2m", "dpmpp_sde_1 0"])
def test_where_sigma_itself_has_no_slope(name):
    """VP at t = 0, where sigma grows like sqrt(t): the other times are right, and the last is finite."""
    grid = [1.0, 0.5, 0.2, 0.0]
    reverse, forward, wanted = slopes(js.VP(), grid, SOLVERS[name], to_zero=True, from_noise=False)
    assert np.isfinite(reverse).all()
    np.testing.assert_allclose(forward, reverse, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(reverse[:-1], wanted[:-1], rtol=1e-4, atol=1e-4 * np.abs(wanted[:-1]).max())


def test_a_sample_moves_with_its_grid():
    """The right slopes of a nonlinear flow's sample, and through a path with a parameter of its own."""
    path = js.CondOT()
    denoiser = js.Denoiser(lambda x, t: x * t - jnp.tanh(x + t), path, "velocity")
    x = jnp.array([0.4, -0.8])
    total = lambda g: js.run(denoiser, js.tabulate(path, g, S.ddim), x).sum()
    for slope in (jax.grad(total), jax.jacfwd(total)):
        np.testing.assert_allclose(slope(jnp.array([1, 0.5, 0.0])), [2.67228, -0.35445, -0.84075], atol=1e-5)

    class Bent(js.Path):
        power: jax.Array

        def alpha(self, t):
            return 1 - t

        def sigma(self, t):
            return t**self.power

    grid = jnp.array([0.9, 0.5, 0.1])
    weight = lambda p, g: js.tabulate(Bent(p), g, S.ddim).A[0]  # sigma_s/sigma_t = (5/9)^p
    slope = jax.jit(jax.grad(weight))(jnp.float64(2.0), grid)
    np.testing.assert_allclose(slope, (5 / 9) ** 2 * np.log(5 / 9), rtol=1e-10)
