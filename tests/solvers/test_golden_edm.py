"""EDM against its golden vectors: Heun with churn, and the ablation's solvers in t on the schedules and grids
of VP,
VE, iDDPM and EDM.
"""

import functools

import golden_cases as g
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsampler as js
from jaxsampler.numerics import namespace

pytestmark = pytest.mark.usefixtures("x64")
S = js.solvers
N = (6, 18)


def options(setting):
    names = {"S_churn": "s_churn", "S_min": "s_min", "S_max": "s_max", "S_noise": "s_noise"}
    return {names[k]: v for k, v in g.CONFIG["churn"][setting].items()}


@pytest.mark.parametrize("n", N)
def test_heun(n):
    grid = g.GOLDEN[f"grid/edm/steps{n}/sigma"]
    np.testing.assert_allclose(grid, js.grids.default(g.PATHS["ve"], n), rtol=1e-12)
    table = js.tabulate(g.PATHS["ve"], grid, S.edm)
    assert table.nfe == g.CASES[f"edm/heun/steps{n}"]["nfe"]
    g.close(g.finish("ve", table), f"edm/heun/steps{n}")


@pytest.mark.parametrize("setting", ["a", "b"])
@pytest.mark.parametrize("n", N)
def test_churn(setting, n):
    name = f"edm/heun_churn_{setting}/steps{n}"
    table = js.tabulate(g.PATHS["ve"], g.GOLDEN[f"grid/edm/steps{n}/sigma"], S.edm(**options(setting)))
    assert table.nfe == g.CASES[name]["nfe"]
    g.close(g.finish("ve", table, noise=g.GOLDEN[f"noise/{name}"]), name)


class RootTime(js.Path):
    """The variance-exploding schedule of the EDM paper, table 1: sigma = sqrt(t)."""

    @property
    def t_max(self):
        return 100.0**2

    def alpha(self, t):
        return 1.0 + 0.0 * t

    def sigma(self, t):
        return namespace(t).sqrt(t)


def iddpm_levels(n, low=0.002, high=81.0, M=1000):
    """Noise levels of iDDPM (spec section 1): a recursion over its 1000 training levels, then n of those in
    range.
    """
    bar = np.sin(np.pi / 2 * np.arange(M + 1) / M / 1.008) ** 2
    u = [0.0]
    for j in range(M, 0, -1):
        u.append(np.sqrt((u[-1] ** 2 + 1) / max(bar[j - 1] / bar[j], 0.001) - 1))
    kept = np.array([v for v in u[::-1] if low <= v <= high])
    return kept[np.round((len(kept) - 1) / (n - 1) * np.arange(n)).astype(int)]


ABLATION = {  # path and grid of each discretization-schedule-scaling
    "vp-vp-vp": (js.VP(0.1, 20.0), lambda n: np.linspace(1, 1e-3, n)),
    "ve-ve-none": (RootTime(), lambda n: np.geomspace(100.0**2, 0.02**2, n)),
    "iddpm-linear-none": (js.EDM(0.002, 81.0), iddpm_levels),
    "edm-linear-none": (js.EDM(), lambda n: np.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), n) ** 7),
}
SOLVERS = {"euler": S.euler, "heun": S.heun, "alpha0.5": S.heun(a=0.5)}


@functools.cache
def ablation_run(setting):
    """Tables of one padded shape share a compilation."""
    net = g.denoiser(ABLATION[setting][0])
    return jax.jit(lambda table, x: js.run(net, table, x, adjoint=js.Direct()))


@pytest.mark.parametrize("name", g.cases("edm/ablation"))
def test_ablation(name):
    """Solvers in t, on the velocity of the path alpha = s(t), sigma = s(t) sigma(t)."""
    _, _, solver, setting, steps = name.split("/")
    path, levels = ABLATION[setting]
    table = js.tabulate(path, js.grids.append_zero(levels(int(steps[5:]))), SOLVERS[solver])
    assert table.nfe == g.CASES[name]["nfe"]
    x = jnp.asarray(g.GOLDEN["z"]) * float(path.sigma(table.t[0]))
    g.close(ablation_run(setting)(js.pad(table, nfe=35, regs=3), x), name)


def test_no_case_is_left_out():
    tested = (
        {f"edm/heun/steps{n}" for n in N}
        | {f"edm/heun_churn_{s}/steps{n}" for s in "ab" for n in N}
        | set(g.cases("edm/ablation"))
    )
    assert tested == set(g.cases("edm/"))
