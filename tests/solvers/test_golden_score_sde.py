"""Score-SDE against its golden vectors: predictors and correctors as released, on its grid, with batch-mean norms and the stored noise."""

import golden_cases as g
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsampler as js

pytestmark = pytest.mark.usefixtures("x64")
PATHS = {"vp": ("vp_linear", 1e-3), "subvp": ("subvp", 1e-3), "ve": ("score_sde_ve", 1e-5)}


@pytest.mark.parametrize("name", g.cases("score_sde/"))
def test_as_published(name):
    _, sde, method, n = name.split("/")
    predictor, corrector = method.split("+")
    path_name, eps = PATHS[sde]
    path, N = g.PATHS[path_name], int(n[1:])
    solver = js.solvers.score_sde(
        predictor=predictor.removesuffix("_pf").removesuffix("_sampling"),
        corrector=corrector,
        snr=g.CASES[name]["snr"],
        probability_flow=predictor.endswith("_pf"),
        batch_axis=0,
        published=True,
        noise=jnp.asarray(g.GOLDEN[f"noise/{name}"]),
    )
    rows = solver.rows(path, np.linspace(1.0, eps, N))
    assert len(rows.t) == len(
        g.GOLDEN[f"noise/{name}"]
    )  # a call, and a draw, per predictor and per corrector step
    got = jax.jit(
        lambda x: js.sample(g.denoiser(path), x, key=None, x=x, solver=solver, grid=np.linspace(1.0, eps, N))
    )(g.start(path_name))
    g.close(got, name)
