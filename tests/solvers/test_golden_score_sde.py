"""Score-SDE against its golden vectors: predictors and correctors as released, on its grid, with batch-mean
norms
and the stored noise.
"""

import functools

import equinox as eqx
import golden_cases as g
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsampler as js
from jaxsampler.scan.driver import drive
from jaxsampler.scan.protocol import Watch

pytestmark = pytest.mark.usefixtures("x64")
PATHS = {"vp": ("vp_linear", 1e-3), "subvp": ("subvp", 1e-3), "ve": ("score_sde_ve", 1e-5)}


def solver_of(name):
    """The solver of a case, the name of its path and its grid."""
    _, sde, method, n = name.split("/")
    predictor, corrector = method.split("+")
    path_name, eps = PATHS[sde]
    solver = js.solvers.score_sde(
        predictor=predictor.removesuffix("_pf").removesuffix("_sampling"),
        corrector=corrector,
        snr=g.CASES[name]["snr"],
        probability_flow=predictor.endswith("_pf"),
        batch_axis=0,
        published=True,
        noise=jnp.asarray(g.GOLDEN[f"noise/{name}"]),
    )
    return solver, path_name, np.linspace(1.0, eps, int(n[1:]))


@functools.cache
def compiled(method):
    """Rows and noise are arguments, padded by rows that change nothing: one compilation for both lengths."""
    solver, path_name, _ = solver_of(f"{method}/N25")
    net = g.denoiser(g.PATHS[path_name])

    def run(rows, noise, x):
        return drive(eqx.tree_at(lambda s: s.noise, solver, noise), rows, net, x, watch=Watch(js.Direct()))

    return jax.jit(run)


def padded(rows, noise, n=100):
    """`n` rows: those after the last one return the state."""
    more = n - len(rows.t)
    fill = {"A": 1.0, "B": 0.0, "C": 0.0, "L": 0.0, "end": np.nan}
    tail = {name: np.full(more, fill.get(name, column[-1])) for name, column in rows._asdict().items()}
    rows = type(rows)(*(np.append(column, tail[name]) for name, column in rows._asdict().items()))
    return rows._replace(index=rows.index.astype(np.int32)), jnp.pad(
        noise, [(0, n - len(noise)), (0, 0), (0, 0)]
    )


@pytest.mark.parametrize("name", g.cases("score_sde/"))
def test_as_published(name):
    solver, path_name, grid = solver_of(name)
    rows, noise = solver.rows(g.PATHS[path_name], grid), solver.noise
    assert len(rows.t) == len(noise)  # a call, and a draw, per predictor and per corrector step
    got = compiled(name.rsplit("/", 1)[0])(*padded(rows, noise), g.start(path_name))
    g.close(got, name)


@pytest.mark.parametrize(
    "name", ["vp/reverse_diffusion+langevin", "subvp/euler_maruyama+ald", "ve/none+langevin"]
)
def test_through_the_front_door(name):
    """js.sample gives what the shared compilation above gives."""
    solver, path_name, grid = solver_of(f"score_sde/{name}/N25")
    x = g.start(path_name)
    got = jax.jit(
        lambda x: js.sample(g.denoiser(g.PATHS[path_name]), x, key=None, x=x, solver=solver, grid=grid)
    )(x)
    g.close(got, f"score_sde/{name}/N25")
