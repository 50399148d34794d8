"""Where a sample starts: at the first time of the grid, whatever says which grid that is."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import Cubic, gaussian

import jaxsampler as js

KEY, N = jax.random.key(0), 20_000
LIKE = jax.ShapeDtypeStruct((N,), jnp.float32)
STARTS = {  # path: (a time below t_max, the deviation of noise there; 1 on variance-preserving paths)
    "vp": (js.VP(), 0.8, 1.0),
    "cosine": (js.CosineVP(), 0.9, 1.0),
    "discrete": (js.DiscreteVP.linear(), 0.9, 1.0),
    "subvp": (js.SubVP(), 0.8, 1 - np.exp(-(0.64 * 19.9 / 2 + 0.08))),
    "ve": (js.VE(), 0.8, 0.01 * 5000**0.8),
    "edm": (js.EDM(), 10.0, 10.0),
    "cond_ot": (js.CondOT(), 0.95, 0.95),
    "pfgm": (js.PFGMpp(D=1e6), 10.0, 10.0),
    "mean_reverting": (js.MeanReverting(0.0, std=0.5), 90.0, 0.5),
    "user": (Cubic(), 0.95, 0.95),
}


def starts(path, t, kind="data", **options):
    """The states that a sampler of one step begins at."""
    denoiser = js.Denoiser(lambda x, t: 0 * x, path, kind)
    return np.asarray(js.sample(denoiser, LIKE, key=KEY, save=[0], **options).xs[0])


@pytest.mark.parametrize("name", STARTS)
def test_a_start_is_drawn_at_the_first_time_of_the_grid(name):
    """Steps, tables and solvers agree, and their deviation is that of the noise at that time."""
    path, t, std = STARTS[name]
    path = js.PFGMpp(D=1e6, batch_axes=1) if name == "pfgm" else path
    grid = np.array([t, t / 2])
    x = starts(path, t, grid=grid, solver=js.solvers.ddim)
    assert abs(x.mean()) < 4 * std / N**0.5
    assert abs(x.std() / std - 1) < 4 / (2 * N) ** 0.5
    np.testing.assert_array_equal(starts(path, t, solver=js.tabulate(path, grid, js.solvers.ddim)), x)
    np.testing.assert_array_equal(starts(path, t, solver=js.solvers.edict(), grid=grid), x)
    whole = starts(path, t, grid=[path.t_max, t], solver=js.solvers.euler)
    np.testing.assert_allclose(whole, path.prior(jax.random.split(KEY)[0], LIKE), rtol=1e-6)


def test_the_sample_of_a_shorter_grid_has_the_law_of_its_data():
    """EDM from t = 10: std s sqrt(100/(s^2 + 100)) by the exact flow, not eight times that; on VP unit data.

    The tables saved by another version do not say when they begin: their first call does.
    """
    edm, vp, s = js.EDM(), js.VP(), 0.5
    grid = js.grids.append_zero(js.grids.karras(edm, 40, t_max=10.0))
    tell = js.tabulate(edm, grid, js.solvers.dpmpp_2m)
    old = js.Table(**{f: getattr(tell, f) for f in fields_of(tell) if f != "begin"})
    for how in ({"grid": grid}, {"solver": tell}, {"solver": old}):
        x = js.sample(gaussian(edm, 0.0, s)[0], LIKE, key=KEY, **how)
        assert abs(float(x.std()) / (s * np.sqrt(100 / (100 + s**2))) - 1) < 0.02
    x = js.sample(gaussian(vp, 0.0, 1.0)[0], LIKE, key=KEY, grid=js.grids.log_snr(vp, 20, t_max=0.7))
    assert abs(float(x.std()) - 1) < 0.02


def fields_of(table):
    return [f.name for f in table.__dataclass_fields__.values()]


def test_churn_and_systems_start_at_their_own_times():
    edm, ot = js.EDM(), js.CondOT()
    x = starts(edm, 10.0, solver=js.tabulate(edm, [10.0, 5.0], js.solvers.edm(s_churn=5.0)))
    assert x.std() < 10 * 1.42  # raised by sqrt(2) from 10, not from 80
    zero = lambda x, t: jax.tree.map(jnp.zeros_like, x)
    both = js.Denoiser(zero, {"a": edm, "b": ot}, "data")
    grid = {"a": np.array([10.0, 5.0]), "b": np.array([0.95, 0.5])}
    out = js.sample(both, {"a": LIKE, "b": LIKE}, key=KEY, grid=grid, save=[0], solver=js.solvers.ddim).xs
    np.testing.assert_allclose([out["a"].std(), out["b"].std()], [10, 0.95], rtol=0.02)


def test_the_start_moves_with_a_traced_grid():
    """x = g_0 z on EDM and (g_1/g_0) x + .. by ddim of a network that says 0: the sample is g_1 z."""
    denoiser = js.Denoiser(lambda x, t: 0 * x, js.EDM(), "data")
    like = jax.ShapeDtypeStruct((), jnp.float32)
    z = js.EDM().noise(jax.random.split(KEY)[0], like)
    draw = lambda g: js.sample(denoiser, like, key=KEY, grid=g, solver=js.solvers.ddim)
    value, slope = jax.value_and_grad(draw)(jnp.array([10.0, 4.0]))
    np.testing.assert_allclose([value, *slope], [4 * z, 0, z], rtol=1e-5, atol=1e-6)


def test_a_warning_tells_of_data_that_a_drawn_start_leaves_out():
    with pytest.warns(UserWarning, match=r"alpha/sigma = 0.39\), and x is drawn without"):
        starts(js.CondOT(), 0.72, grid=[0.72, 0.5])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        starts(js.CondOT(), 0.9, grid=[0.9, 0.5])
        starts(js.DiscreteVP.scaled_linear(), 0.9, grid=js.grids.leading(js.DiscreteVP.scaled_linear(), 4))
        denoiser = js.Denoiser(lambda x, t: 0 * x, js.CondOT(), "data")
        js.sample(denoiser, jnp.ones(3), key=None, x=jnp.ones(3), grid=[0.72, 0.5])


def test_log_prob_takes_the_prior_of_the_time_that_it_reaches():
    """Gaussian data on EDM from t = 10: x_T = k x by the exact flow, log p = log N(k x; 0, 10^2) + log k."""
    path, s, x = js.EDM(), 0.5, 0.3
    low, high = path.t_min, 10.0
    k = np.sqrt((s**2 + high**2) / (s**2 + low**2))
    want = -((k * x / high) ** 2) / 2 - np.log(high * np.sqrt(2 * np.pi)) + np.log(k)
    got = js.likelihood.log_prob(gaussian(path, 0.0, s)[0], jnp.array([x]), t_max=high)
    np.testing.assert_allclose(got, want, atol=1e-4)
