"""Every case of the released MR Sampler code (tests/golden/mr_sampler.npz), in float64 to 1e-9 and in float32
to 1e-4.

A grid on which the code's three separately interpolated tables agree is a path: those cases run as tables of
`mr_ode` and `mr_sde` (`published=True`) and through `mr_published`. The others are no path and run through
`mr_published` alone. The network is the closed-form mixture that the vectors were made with; where a case has
a noise or v network, it runs as a data network too.
"""

import dataclasses
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from places import GOLDEN_FOLDER

import jaxsampler as js
from jaxsampler.scan.driver import drive
from jaxsampler.scan.protocol import Watch

GOLDEN = np.load(GOLDEN_FOLDER / "mr_sampler.npz")
INDEX = json.loads(str(GOLDEN["index_json"]))
CASES = {c["id"]: c for c in INDEX["cases"]}
MR = {k: c for k, c in CASES.items() if c["kind"] == "mr"}
BASE = {k: c for k, c in CASES.items() if c["kind"] == "baseline"}
EXACT = {
    k: c
    for k, c in MR.items()
    if c["exact_grid"] or float(np.max(np.abs(GOLDEN[f"grid.{c['grid_id']}.t"] % 1))) == 0
}
# the released interpolation: every case that is no path, and of those that are one the shortest
PUBLISHED = {
    k: c for k, c in MR.items() if not c["exact_grid"] and (k not in EXACT or c["opts"] or c["nfe"] == 5)
}
AS_PATH = {k: c for k, c in EXACT.items() if set(c["opts"]) <= {"lambda_min"}}


def mean_reverting(case):
    cfg = INDEX["cfgs"][case["cfg"]]
    std = cfg["max_sigma"] / 255 if cfg["max_sigma"] >= 1 else cfg["max_sigma"]
    return js.MeanReverting(
        jnp.asarray(GOLDEN[f"mu.{case['mu']}"]), std=std, schedule=cfg["schedule"], T=cfg["T"], eps=cfg["eps"]
    )


class Mixture(eqx.Module):
    """The closed-form mixture of the golden file's description, at the alpha, sigma stored for each grid
    time.
    """

    w: jax.Array
    m: list
    sd: jax.Array
    table: jax.Array  # times (rising), alphas, sigmas
    mu: jax.Array
    std: float = eqx.field(static=True)
    kind: str = eqx.field(static=True)

    def __call__(self, x, t):
        f = x.dtype
        al, sg = (jnp.interp(t, self.table[0].astype(f), v.astype(f)) for v in self.table[1:])
        mu = self.mu.astype(f)
        each = []
        for k in range(len(self.w)):
            mk, sk = jnp.broadcast_to(self.m[k].astype(f), x.shape), self.sd[k].astype(f)
            away, var = x - mu - al * (mk - mu), al**2 * sk**2 + sg**2
            logit = jnp.log(self.w[k].astype(f)) - away**2 / (2 * var) - jnp.log(var) / 2
            each.append((logit, away / var, mk + al * sk**2 * away / var))
        logits, pull, data = (jnp.stack(v) for v in zip(*each, strict=True))
        r = jax.nn.softmax(logits, axis=0)
        noise, data = sg * (r * pull).sum(0), (r * data).sum(0)
        return {"noise": noise, "data": data, "v": al * self.std * noise - sg / self.std * (data - mu)}[
            self.kind
        ]


def network(case, path, kind, *columns):
    order = np.argsort(columns[0])
    table = np.stack([np.asarray(v)[order] for v in columns])
    beyond = np.repeat(table[:, -1:], 110 - table.shape[1], 1)  # one shape for all grids, one compilation
    beyond[0] += np.arange(1, beyond.shape[1] + 1)
    w, m, sd = (GOLDEN[f"model.{case['model']}.{k}"] for k in ("w", "m", "sd"))
    m = [jnp.broadcast_to(jnp.asarray(v), path.mu.shape) for v in m]
    table = jnp.asarray(np.concatenate([table, beyond], 1))
    return js.Denoiser(
        Mixture(jnp.asarray(w), m, jnp.asarray(sd), table, path.mu, path.std, kind), path, kind
    )


KIND = {"noise": "noise", "data": "data", "velocity": "v"}


def setting(case, kind=None):
    path = mean_reverting(case)
    t, *rest = (GOLDEN[f"grid.{case['grid_id']}.{k}"] for k in ("t", "alphas", "sigmas"))
    x = (path.mu + path.std * jnp.asarray(GOLDEN["zT"])).astype(jnp.float32 if case["f32"] else jnp.float64)
    return path, t, network(case, path, kind or KIND[case["fit"]], t, *rest), x


@eqx.filter_jit
def run_table(net, table, x, noise):
    """Solver, grid and order change without a new compilation."""
    return js.run(net, table, x, noise=noise, save=range(1, 21), adjoint=js.Direct())


def trajectory(case, kind):
    path, t, net, x = setting(case, kind)
    make = js.solvers.mr_sde if case["solver"] == "sde" else js.solvers.mr_ode
    table = js.tabulate(path, t, make(order=case["order"], kind=case["param"], published=True))
    return run_table(net, js.pad(table, nfe=20, regs=3), x, jnp.asarray(GOLDEN["noise"]))


@eqx.filter_jit
def drive_rows(net, solver, rows, x):
    return drive(solver, rows, net, x, watch=Watch(js.Direct(), save=range(1, 21)))


def run_published(net, solver, rows, x):
    """The order and the last denoising step are in the rows: few compilations, for tables of 20 rows."""
    fill = {"Cx": 1.0, "Cmu": 0.0, "w": 0.0, "S": 0.0, "end": np.nan}  # rows that change nothing

    def longer(name, column):
        tail = np.broadcast_to(fill.get(name, column[-1]), (20 - len(column), *column.shape[1:]))
        return jnp.asarray(np.concatenate([column, tail.astype(column.dtype)]))

    rows = type(rows)(**{name: longer(name, column) for name, column in rows._asdict().items()})
    return drive_rows(net, dataclasses.replace(solver, order=2, denoise_last=False), rows, x)


def close(got, want, tolerance):
    error = np.max(np.abs(np.asarray(got, np.float64) - want) / np.maximum(1, np.abs(want)))
    assert error < tolerance, f"relative error {error:.2e}"


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", AS_PATH)
def test_as_table(case):
    c = MR[case]
    tolerance = 1e-4 if c["f32"] else 1e-9
    got = trajectory(c, KIND[c["fit"]])
    assert got.x.dtype == (jnp.float32 if c["f32"] else jnp.float64)
    close(got.x, GOLDEN[f"{case}.x"], tolerance)
    close(got.xs[: c["nfe"]], GOLDEN[f"{case}.traj"], tolerance)
    if c["fit"] != "data":
        close(trajectory(c, "data").x, GOLDEN[f"{case}.x"], tolerance)


def published(case):
    o = case["opts"]
    return js.solvers.mr_published(
        sde=case["solver"] == "sde",
        order=case["order"],
        kind=case["param"],
        denoise_last=o.get("denoise_last", False),
        threshold=(o["threshold_ratio"], o["threshold_max"]) if o.get("thresholding") else None,
        noise=jnp.asarray(GOLDEN["noise"]),
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", PUBLISHED)
def test_as_published(case):
    """Separately interpolated tables included; the rows' alpha and sigma are held against the stored ones."""
    c = MR[case]
    path, t, net, x = setting(c)
    solver = published(c)
    rows = solver.rows(path, t)
    precision = 1e-6 if c["f32"] else 1e-12
    np.testing.assert_allclose(rows.alpha, GOLDEN[f"grid.{c['grid_id']}.alphas"][:-1], atol=precision)
    np.testing.assert_allclose(rows.sigma, GOLDEN[f"grid.{c['grid_id']}.sigmas"][:-1], atol=precision)
    got = run_published(net, solver, rows, x)
    tolerance = 1e-4 if c["f32"] else 1e-9
    close(got.x, GOLDEN[f"{case}.x"], tolerance)
    close(got.xs[: len(GOLDEN[f"{case}.traj"])], GOLDEN[f"{case}.traj"], tolerance)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("option", ["denoise_last", "thresholding"])
def test_through_the_front_door(option):
    """js.sample gives what the shared compilations above give."""
    case, c = next((case, c) for case, c in PUBLISHED.items() if c["opts"].get(option))
    _, t, net, x = setting(c)
    got = js.sample(net, x, key=None, solver=published(c), grid=t, x=x, save="all", adjoint=js.Direct())
    close(got.x, GOLDEN[f"{case}.x"], 1e-9)
    n = len(GOLDEN[f"{case}.traj"])
    close(got.xs[1 : n + 1], GOLDEN[f"{case}.traj"], 1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", BASE)
def test_unrescaled_baselines(case):
    c = BASE[case]
    path = mean_reverting(c)
    index = np.arange(path.T + 1.0)
    net = network(c, path, "noise", index, path.alpha(index), path.sigma(index))
    solver = {
        "posterior": js.solvers.posterior,
        "euler_sde": js.solvers.euler_maruyama,
        "euler_ode": js.solvers.euler,
    }[c["alg"]]
    grid = np.append(np.asarray(c["model_times"], float), 0.0)
    x = path.mu + path.std * jnp.asarray(GOLDEN["zT"])
    table = js.pad(js.tabulate(path, grid, solver(published=True)), nfe=20, regs=3)
    close(run_table(net, table, x, jnp.asarray(GOLDEN["noise"])).x, GOLDEN[f"{case}.x"], 1e-9)


def test_no_case_is_left_out():
    covered = set(AS_PATH) | set(PUBLISHED) | set(BASE)
    assert covered == set(CASES)
    assert len(CASES) == 173
