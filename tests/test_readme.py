"""The README tells the truth: its code runs, its advice follows from measurements, CI has its commands."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pages import README, blocks, execute, rows
from places import ROOT

import jaxsampler as js
from jaxsampler import pretrained
from jaxsampler.commands.bench.cells import read
from jaxsampler.commands.search.command import read as read_search
from jaxsampler.commands.search.report import winners
from jaxsampler.commands.search.settings import HANDMADE
from jaxsampler.solvers.listing import by_name, catalogue, markdown, others

NETWORKS = ("fashion_edm", "fashion_flow")
TEXT = README.read_text()
FEW = (5, 6, 8, 10)


@pytest.fixture(scope="module")
def names():
    """All Python blocks as one program; the file of "Add a solver" is run where it would lie.

    Promotion is what users have: optax needs it.
    """
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return execute(README, __package__="jaxsampler.solvers")


def test_length():
    assert len(TEXT.splitlines()) <= 350, "the rest goes into a guide"


@pytest.mark.slow
def test_claims(names):
    """What the comments beside the code say; slow because it compiles four samplers and trains a network."""
    for sample in (names["x"], names["learned"]):
        assert np.allclose(np.mean(sample, 0), [0, 0.5], atol=0.1)
    assert np.allclose(np.std(names["learned"], 0), np.std(names["x"], 0), atol=0.1)
    assert names["bells"].mean() == pytest.approx(2, abs=0.05)
    assert names["bells"].std() == pytest.approx(0.5, abs=0.03)


def test_a_network_that_wants_one_time_per_sample(names):
    x = jnp.arange(6.0).reshape(3, 2)
    np.testing.assert_allclose(names["mine"](x, jnp.float32(0.5)), 0.5 * x, rtol=1e-6)


def test_ten_lines():
    ten_lines = next(code for _, code in blocks(README, "python"))
    assert len([line for line in ten_lines.splitlines() if line.strip()]) <= 10


def test_a_solver_is_one_file_and_one_line(names, monkeypatch, x64):
    """The README's file is all that the tests, the command line and the table of solvers ask for."""
    midpoint, solvers = names["midpoint"], js.solvers
    added = next(code for _, code in blocks(README, "") if "import midpoint" in code)
    assert added == "from .midpoint_rule import midpoint as midpoint\n"
    monkeypatch.setattr(solvers, "midpoint", midpoint, raising=False)
    assert catalogue()["midpoint"] is midpoint and by_name("midpoint") == midpoint
    assert "| `midpoint` | 2 | 2 | velocity |  |  |  | Runge 1895 |" in markdown()

    example = doctest.DocTestParser().get_doctest(midpoint.__doc__, {"js": js}, "midpoint", None, None)
    assert example.examples and doctest.DocTestRunner().run(example).failed == 0

    path = js.CondOT()
    denoiser = js.models.gaussian_mixture(jnp.array([[-1.0], [1.0]]), 0.5, path)
    x, ends = jnp.linspace(-2.0, 2.0, 7)[:, None], dict(t_max=0.9, t_min=0.1)
    grid = js.grids.uniform(path, 10, **ends)
    table = js.run(denoiser, js.tabulate(path, grid, midpoint), x)
    np.testing.assert_allclose(table, js.loop(denoiser, path, grid, midpoint, x), rtol=1e-10, atol=1e-12)
    assert abs(solvers.order(midpoint).measured - 2) < 0.2


def test_the_solvers_named_are_there():
    table = TEXT.split("| family | `js.solvers.` |")[1].split("\n\n")[0]
    named = table.replace("`published=True`", "").split("`")[1::2]
    assert not set(named) - {*catalogue(), *others()}
    assert len(set(named)) == len(named) >= 44


def test_commands_are_those_of_the_ci_script():
    ci = (ROOT / ".ci" / "run").read_text().replace('\\"', '"')
    commands = [line for _, text in blocks(README, "sh") for line in text.splitlines()]
    assert len(commands) == 2
    for command in commands:
        assert command in ci


@pytest.fixture(scope="module")
def cells():
    return list(read(ROOT / "configs" / "bench" / "quality.csv").values())


def column(cells, problem, calls, what):
    """Of every solver at this many calls."""
    named = [c for c in cells if (c.problem, c.calls) == (problem, calls) and c.solver != "converged"]
    return {c.solver: getattr(c, what) for c in named if np.isfinite(getattr(c, what))}


def test_advice_for_few_calls(cells):
    for problem in NETWORKS:
        for calls in (3, 4):
            errors = column(cells, problem, calls, "rmse")
            assert errors["dpmpp_2m"] < 1.03 * min(errors.values())
        for calls in FEW:
            errors = column(cells, problem, calls, "rmse")
            assert errors["unipc order=2"] < 1.01 * min(errors.values())
    for problem in ("mixture", "empirical", "fashion_edm"):
        for solver, calls in (("edm", 4), ("dpm_3", 3)):
            assert column(cells, problem, calls, "rmse")[solver] > 3


def test_advice_for_learned_tables():
    ratios = {}
    for name in ("mixture", "empirical", *NETWORKS):
        results = read_search(ROOT / "configs" / "search" / f"{name}.json")
        hand = {r.calls: r for r in results if r.method == HANDMADE}
        ratios[name] = {r.calls: r.rmse / hand[r.calls].rmse for r in winners(results)}
        if name == "fashion_flow":
            assert all("cosine" in r.what for r in hand.values())
    few = [f"{ratios[name][calls]:.2f}" for name in NETWORKS for calls in (3, 4)]
    assert f"learned tables have {min(few)} to {max(few)} of the error" in TEXT
    every = [f"{ratio:.2f}" for found in ratios.values() for ratio in found.values()]
    assert f"they have {min(every)} to {max(every)} of the error" in TEXT
    assert set(NETWORKS) < set(pretrained.tables())


def test_advice_for_many_calls(cells):
    for problem in ("mixture", "empirical", *NETWORKS):
        errors = column(cells, problem, 20, "rmse")
        assert errors["unipc order=3"] < 1.15 * errors["unipc order=2"]
    for problem in ("mixture", "empirical"):
        errors = column(cells, problem, 50, "rmse")
        assert errors["unipc order=3"] < errors["unipc order=2"]


def test_advice_on_noise(cells):
    """`dpmpp_2m_sde` against all deterministic solvers from 10 calls on, and against UniPC with few."""
    deterministic = {c.solver for c in cells if not c.stochastic}
    for problem in ("empirical", *NETWORKS):
        for calls in (10, 15, 20):
            distance = column(cells, problem, calls, "frechet")
            assert distance["dpmpp_2m_sde"] < min(distance[s] for s in deterministic & {*distance})
        for calls in (5, 6):
            distance = column(cells, problem, calls, "frechet")
            assert distance["dpmpp_2m_sde"] > 0.95 * distance["unipc order=2"]


@pytest.mark.parametrize("name", ["deis", "ipndm", "dpm_1", "dpm_2", "dpm_3", "dpm_2m", "dpm_3m"])
def test_advice_for_flows(name):
    path = js.CondOT()
    with pytest.raises(ValueError, match="alpha"):
        js.tabulate(path, js.grids.default(path, 8), js.solvers.by_name(name))


def test_advice_for_photographs_and_inversion():
    members = rows(ROOT / "configs" / "train" / "restore.md", "restore table")
    psnr = {row[0]: float(row[1].split("/")[0]) for row in members if len(row) == 5 and "/" in row[1]}
    assert max(psnr.values()) == psnr["mr_sde 1"]
    trips = {row[0]: row for row in rows(ROOT / "configs" / "bench" / "inversion.md", "bench inversion")}
    assert float(trips["obelm"][2]) < 1e-15
