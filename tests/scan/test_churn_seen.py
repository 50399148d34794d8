"""With churn, saved states and hooks see the states at the times of the grid, before noise is raised."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import gaussian

import jaxsampler as js

pytestmark = pytest.mark.usefixtures("x64")
KEY, N = jax.random.key(0), 4000
LIKE = jax.ShapeDtypeStruct((N,), jnp.float64)


def samples(path, grid, like=LIKE, **options):
    """Of Gaussian data, unit ones on VP (whose prior is then exact), by a churned solver."""
    denoiser = gaussian(path, 0.0, 1.0 if isinstance(path, js.VP) else 0.5)[0]
    return js.sample(denoiser, like, key=KEY, solver=js.solvers.edm(s_churn=40.0), grid=grid, **options)


@pytest.mark.parametrize("path", [js.EDM(), js.VP()], ids=["edm", "vp"])
def test_saved_states_have_the_law_of_their_times(path):
    """Their deviation is sqrt(alpha^2 s^2 + sigma^2), which churn keeps; the raised level is 1.41 of it."""
    edm = isinstance(path, js.EDM)
    grid = js.grids.karras(path, 30) if edm else js.grids.log_snr(path, 30)
    out = samples(path, grid, save="all")
    np.testing.assert_allclose(out.t, grid, rtol=1e-12)
    want = np.sqrt(path.alpha(grid) ** 2 * (0.25 if edm else 1.0) + path.sigma(grid) ** 2)
    np.testing.assert_allclose(out.xs.std(1) / want, 1.0, atol=0.1)
    np.testing.assert_allclose(out.x, samples(path, grid), rtol=1e-10, atol=1e-10)  # as if nobody looked
    np.testing.assert_array_equal(out.xs[-1], out.x)


def test_a_hook_that_noises_again_meets_the_level_of_its_time():
    """A hook puts x = sigma(t) of its t: what is saved there is that, and the last one is the sample."""
    path, grid = js.EDM(), np.array([10.0, 5.0, 2.0])
    hook = lambda end: jnp.zeros_like(end.x) + end.t
    out = samples(path, grid, hook=hook, save="all")
    np.testing.assert_allclose(out.xs[1:], np.array([[5.0], [2.0]]) * np.ones(N), rtol=1e-12)
    np.testing.assert_allclose(out.x, 2.0, rtol=1e-12)


def test_stop_and_stack_keep_churn():
    """A run that stops is at the state of the grid, and goes on to what it would have been; tables stack."""
    path = js.EDM()
    grid = js.grids.karras(path, 6)
    whole, out = samples(path, grid), samples(path, grid, save=[3])
    stopped = samples(path, grid, stop=3)
    np.testing.assert_allclose(stopped.x, out.xs[0], rtol=1e-12)
    np.testing.assert_allclose(js.resume(stopped), whole, rtol=1e-10)
    churned, plain = (js.tabulate(path, grid, s) for s in (js.solvers.edm(s_churn=4.0), js.solvers.dpmpp_2m))
    both = js.stack([churned, plain])
    net, x = gaussian(path)[0], jnp.array([40.0, -10.0])
    run = lambda table: js.run(net, table, x, key=KEY, save=[0, 3], adjoint=js.Direct()).xs
    stacked = jax.vmap(run)(both)
    for table, got in zip((churned, plain), stacked, strict=True):
        np.testing.assert_allclose(got, run(table), rtol=1e-10)
