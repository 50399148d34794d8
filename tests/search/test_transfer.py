"""A table on another path gives the samples that it gives on its own, whatever the data, the solver or the
corrections.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsampler as js
from jaxsampler.search.parametrisation import learnable, replaced
from jaxsampler.search.transfers import transfer

S = js.solvers
VP, EDM, OT, VE = js.VP(), js.EDM(), js.CondOT(), js.VE(sigma_max=200.0)
MEANS, STDS = np.array([[-1.0, 0.4], [0.8, 0.1], [0.2, -0.9]]), np.array([0.3, 0.15, 0.4])
Z = np.random.default_rng(0).standard_normal((9, 2))
NOISE = np.random.default_rng(1).standard_normal((13, 9, 2))
INNER = np.array([0.9, 0.7, 0.5, 0.3, 0.12, 0.02])  # times of VP whose noise levels all these paths have


def corrected(vary: str, **options: Any) -> js.Table:
    """A learned table: every free number of it moved, network times of its own among them."""
    rng = np.random.default_rng(2)
    model = learnable(VP, S.dpmpp_3m, INNER, vary=vary, **options)
    return replaced(
        model, {name: 0.1 * rng.standard_normal(np.shape(value)) for name, value in model.free.items()}
    ).table()


TABLES = {
    "multistep": js.tabulate(VP, INNER, S.dpmpp_2m),
    "noise": js.tabulate(VP, INNER, S.dpm_3m),
    "corrector": js.tabulate(VP, INNER, S.unipc(order=3)),
    "corrector on noise": js.tabulate(VP, INNER, S.unipc(order=2, kind="noise")),
    "velocity, two calls": js.tabulate(VP, INNER, S.heun),
    "edm, two calls": js.tabulate(VP, INNER, S.edm),
    "three calls": js.tabulate(VP, INNER[::2], S.dpmpp_3s),
    "stochastic": js.tabulate(VP, INNER, S.dpmpp_2m_sde),
    "ancestral, two calls": js.tabulate(VP, INNER, S.dpmpp_2s_ancestral),
    "churn": js.tabulate(VP, INNER, S.edm(s_churn=0.3)),
    "learned": corrected("table+scale", consistent=False),
    "relaxed, then learned": corrected("nodes+shifts+relaxation+weights"),
}


@eqx.filter_jit
def _run(net, table, x, noise):
    return js.run(net, table, x, noise=noise)


def samples(path: js.Path, table: js.Table, z: Any = Z, means: Any = MEANS, stds: Any = STDS) -> np.ndarray:
    """(x - mu)/alpha at the end of the table, from x_T = mu + prior_std z; one compilation serves all tables
    of a path.
    """
    net = js.models.gaussian_mixture(means, stds, path)
    mu = 0.0 if path.centre is None else path.centre
    x = _run(net, js.pad(table, nfe=13, regs=10), jnp.asarray(mu + path.prior_std * z), jnp.asarray(NOISE))
    return (np.asarray(x) - mu) / float(path.alpha(table.end[-1]))


@pytest.fixture(autouse=True)
def _double(x64):
    pass


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("target", [EDM, OT, VE, js.SubVP()], ids=lambda path: type(path).__name__)
def test_exact(name, target):
    """The same samples from the same z; grid times of the same noise level, and no call, register or draw
    more.
    """
    table = TABLES[name]
    moved = transfer(table, VP, target)
    np.testing.assert_allclose(samples(target, moved), samples(VP, table), atol=1e-10)
    np.testing.assert_allclose(target.rho(moved.end), VP.rho(table.end), rtol=1e-10)
    np.testing.assert_allclose(target.rho(moved.t), VP.rho(table.t), rtol=1e-10)
    assert moved.B.shape == table.B.shape and moved.draws == table.draws


@pytest.mark.parametrize("name", TABLES)
def test_there_and_back(name):
    """On its own path again a table is what it was."""
    table = TABLES[name]
    back = transfer(transfer(table, VP, OT), OT, VP)
    for field in dataclasses.fields(table):
        if getattr(table, field.name) is None:
            assert getattr(back, field.name) is None
            continue
        np.testing.assert_allclose(
            getattr(back, field.name), getattr(table, field.name), rtol=1e-9, atol=1e-12, err_msg=field.name
        )


@pytest.mark.parametrize(
    "solver",
    [S.dpmpp_2m, S.dpm_2m, S.unipc(order=3), S.dpmpp_2s, S.edm, S.dpmpp_3m_sde],
    ids=lambda s: s.name,
)
def test_solvers_in_noise_levels_commute(solver):
    """Solvers written in rho or lam are the same on every path: to tabulate there is to transfer."""
    grid = EDM.time(VP.lam(INNER))
    moved, made = transfer(js.tabulate(VP, INNER, solver), VP, EDM), js.tabulate(EDM, grid, solver)
    np.testing.assert_allclose(
        samples(EDM, moved), samples(EDM, dataclasses.replace(made, start=moved.start)), atol=1e-10
    )
    np.testing.assert_allclose(moved.end, made.end, rtol=1e-10)


class Cubic(js.Path):
    """A path of a user, in jax.numpy."""

    def alpha(self, t):
        return 1 - jnp.asarray(t) ** 3

    def sigma(self, t):
        return 1.0 * t


def test_user_path():
    """Alpha and sigma suffice; from pure noise (alpha = 0) to pure noise, and down to the data, nothing is
    lost.
    """
    table = js.tabulate(OT, js.grids.uniform(OT, 12), S.dpmpp_3m)
    moved = transfer(table, OT, Cubic())
    assert moved.t[0] == 1
    np.testing.assert_allclose(samples(Cubic(), moved), samples(OT, table), atol=1e-10)


def test_padded():
    """Rows that do nothing go along."""
    table = TABLES["corrector"]
    moved = transfer(js.pad(table, nfe=9, regs=8), VP, OT)
    assert np.isnan(moved.end[-1])
    end = dataclasses.replace(moved, end=np.append(moved.end[:-1], moved.end[table.nfe - 1]))
    np.testing.assert_allclose(samples(OT, end), samples(VP, table), atol=1e-10)


def test_mean_reverting():
    """Tables know no mean: between two schedules that revert to it the state is centred at both."""
    mu = np.array([0.3, -0.2])
    one, other = js.MeanReverting(mu), js.MeanReverting(mu, schedule="linear")
    table = js.tabulate(one, np.array([60.0, 40.0, 20.0, 5.0]), S.unipc)
    np.testing.assert_allclose(samples(other, transfer(table, one, other)), samples(one, table), atol=1e-10)


def test_from_edm_to_flow():
    """EDM begins at rho = 80 and ends at 0: so does the table on CondOT, at t = 80/81 with 80/81 of the
    noise, and exactly.
    """
    table = js.tabulate(EDM, js.grids.append_zero(js.grids.karras(EDM, 9)), S.dpmpp_3m)
    moved = transfer(table, EDM, OT)
    assert moved.t[0] == pytest.approx(80 / 81, rel=1e-12) and moved.end[-1] == 0
    np.testing.assert_allclose(moved.start, [80 / 81, 0], rtol=1e-12)
    np.testing.assert_allclose(samples(OT, moved), samples(EDM, table), atol=1e-10)


@pytest.mark.parametrize(
    ("source", "grid"),
    [(OT, js.grids.uniform(OT, 12)), (VP, js.grids.log_snr(VP, 12)[:-1])],
    ids=["flow", "vp"],
)
def test_from_more_noise_than_there_is(source, grid):
    """A table from rho = inf or 152 on EDM: first call at 80 of x_T as it is; nearly its samples, exactly if
    the data are one point.
    """
    table = js.tabulate(source, np.append(grid[grid > 0], 0.0), S.unipc(order=2))
    moved = transfer(table, source, EDM)
    assert moved.t[0] == 80 and np.all(np.diff(moved.t) <= 0) and moved.end[-1] == 0
    np.testing.assert_allclose(moved.start, [1, 0], rtol=1e-4)  # VP says x_T = z where sigma is 1 - 2e-5
    np.testing.assert_allclose(transfer(table, source, js.VE(sigma_max=0.5)).start, [1, 0], rtol=1e-4)
    point = {"means": MEANS[:1], "stds": np.array([1e-9])}
    np.testing.assert_allclose(samples(EDM, moved, **point), np.broadcast_to(MEANS[0], Z.shape), atol=1e-8)
    assert np.abs(samples(EDM, moved) - samples(source, table)).max() < 3e-3  # about std^2/80


def test_to_less_noise_than_there_is():
    """VE stops at rho = 0.01: a table down to 0 makes its last calls there, of states as clean as they are,
    and ends clean.
    """
    table = js.tabulate(EDM, np.array([80.0, 20.0, 3.0, 0.5, 0.05, 0.004, 0.0]), S.dpmpp_2m)
    moved = transfer(table, EDM, VE)
    assert moved.t[-1] == 0 and moved.end[-1] == 0 and np.all(moved.t[:-1] > 0)
    assert np.abs(samples(VE, moved) - samples(EDM, table)).max() < 3e-3


def test_errors():
    table = TABLES["multistep"]
    with pytest.raises(TypeError, match="part by itself"):
        transfer(table, {"a": VP}, EDM)
    with pytest.raises(ValueError, match="before stacking"):
        transfer(js.stack([table, table]), VP, EDM)
    with pytest.raises(ValueError, match="outside jit"):
        jax.jit(lambda table: transfer(table, VP, EDM))(table)
    with pytest.raises(ValueError, match="at which time it ends"):
        transfer(dataclasses.replace(table, end=np.full(table.nfe, np.nan)), VP, EDM)


def test_beyond_a_target_of_little_noise():
    """VE that ends at sigma = 0.5: every call at more noise keeps eps, so that of one point mass the network
    sees it, in whatever row.
    """
    small = js.VE(sigma_max=0.5)
    table = js.tabulate(EDM, np.array([80.0, 0.75, 0.6, 0.2]), S.dpmpp_2m)
    assert (EDM.lam(np.array(table.t)) > 0).any(), (
        "of the calls beyond the end some have less noise than signal"
    )
    moved = transfer(table, EDM, small)
    seen = []
    eps = lambda x, t: x / small.sigma(t)  # of data at 0
    net = js.Denoiser(
        lambda x, t: jax.debug.callback(lambda e: seen.append(float(e)), eps(x, t)[0]) or 0.0 * x,
        small,
        "data",
    )
    js.run(net, moved, jnp.array([0.5]))
    jax.effects_barrier()
    np.testing.assert_allclose(seen, np.ones(moved.nfe), rtol=1e-5)
