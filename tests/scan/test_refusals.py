"""What can be known of a table before it runs, and whom `check` blames."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import gaussian

import jaxsampler as js

S = js.solvers
VP, EDM, OT = js.VP(), js.EDM(), js.CondOT()


def table_of(path):
    return js.tabulate(path, 0.9 * path.t_max * np.array([1, 0.5, 0.1]), S.dpmpp_2m)


@pytest.mark.parametrize(
    ("made", "run"), [(EDM, VP), (VP, EDM), (VP, js.CosineVP()), (OT, VP), (js.MeanReverting(0.0), VP)]
)
def test_a_table_of_another_path_is_refused(made, run, tmp_path):
    """Also when it comes from a file, or was corrected since; a stack of tables says nothing."""
    table, x = table_of(made), jnp.ones(3)
    table.save(tmp_path / "t.safetensors")
    corrected = dataclasses.replace(table, t=table.t * 0.999)
    for one in (table, js.Table.load(tmp_path / "t.safetensors"), corrected):
        with pytest.raises(ValueError, match=r"made on (another path|a path)"):
            js.run(gaussian(run)[0], one, x)


def test_tables_of_equal_schedules_and_transferred_ones_run():
    x, table = jnp.ones(3), table_of(EDM)
    for path in (js.EDM(sigma_max=200.0), js.PFGMpp(D=64.0), js.EDM(sigma_min=0.01)):
        assert jnp.isfinite(js.run(gaussian(path)[0], table, x)).all()
    moved = js.search.transfer(table_of(VP), VP, OT)
    assert jnp.isfinite(js.run(gaussian(OT)[0], moved, x)).all()


def test_times_beyond_the_path_are_refused_of_tables_that_do_not_know_theirs():
    known = table_of(EDM)
    fields = {name: getattr(known, name) for name in known.__dataclass_fields__ if name != "made_on"}
    with pytest.raises(ValueError, match="at t=72, but VP ends at t_max=1"):
        js.run(gaussian(VP)[0], js.Table(**fields), jnp.ones(3))


@pytest.mark.parametrize("kind", ["noise", "score"])
def test_check_does_not_blame_the_network_for_what_it_cannot_tell(kind):
    """A traced table from alpha = 0: a network that says 0 is fine, what the row makes of it is not."""
    table = js.tabulate(OT, [1.0, 0.5, 0.1], S.dpmpp_2m)
    denoiser = js.Denoiser(lambda x, t: 0 * x, OT, kind)
    with pytest.raises(ValueError, match="does not determine"):
        js.run(denoiser, table, jnp.ones(3))
    run = jax.jit(lambda table: js.run(denoiser, table, jnp.ones(3), check=True, adjoint=js.Direct()))
    with pytest.raises(Exception, match="row 0 of 2.*the state became non-finite; where alpha = 0 a noise"):
        jax.block_until_ready(run(table))


def test_nearly_equal_times_are_named():
    """unipc divides by their distance in lam; a solver of one step does not."""
    grid = np.array([0.9, 0.7, 0.5, 0.5 - 1e-9, 0.3, 0.1])
    with pytest.warns(UserWarning, match=r"grid\[2\]=0.5 and grid\[3\]=0.499999999 are nearly equal: unipc"):
        js.tabulate(VP, grid, S.unipc)
    js.tabulate(VP, grid, S.ddim)
    for other in (js.grids.karras(EDM, 1000), js.grids.append_zero(js.grids.karras(EDM, 10))):
        js.tabulate(EDM, other, S.unipc)


def test_half_precision_over_a_wide_range():
    """EDM from 4000 down to 1e-4 in float16: every step stays finite, and near the sample in float32."""
    path = js.EDM(1e-4, 4000.0)
    denoiser = js.models.gaussian_mixture([[0.5]], 0.5, path)
    grid = js.grids.append_zero(js.grids.karras(path, 12))
    run = jax.jit(lambda table, x: js.run(denoiser, table, x, key=jax.random.key(0), adjoint=js.Direct()))
    x = 4000.0 * jnp.linspace(-1.5, 1.5, 16)[:, None]
    for name in ("dpmpp_2m", "dpm_3", "edm", "unipc", "euler", "dpmpp_2s_ancestral", "ddpm"):
        table = js.pad(js.tabulate(path, grid, S.by_name(name)), nfe=40, regs=8)
        half, single = run(table, x.astype(jnp.float16)), run(table, x)
        assert half.dtype == jnp.float16
        assert jnp.isfinite(half).all()
        if not S.by_name(name).stochastic:  # draws of another precision are other draws
            wide = float(jnp.abs(single).max())
            np.testing.assert_allclose(half.astype(jnp.float32), single, atol=0.02 * wide + 0.02)
