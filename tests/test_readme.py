"""The README tells the truth: its code runs, its numbers hold, its table of solvers and its commands are the real ones."""

import re

import numpy as np
import pytest
from places import ROOT

from jaxsampler import config, pretrained
from jaxsampler.commands.bench import quality, quality_report
from jaxsampler.commands.bench.cells import read
from jaxsampler.commands.search import command as study
from jaxsampler.commands.search import report as study_report
from jaxsampler.commands.search.settings import HANDMADE, HANDMADE_FRECHET, Search
from jaxsampler.solvers.listing import markdown

README = (ROOT / "README.md").read_text()


def blocks(language):
    """(first line number, text) of each fenced block."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [(README[: m.start(1)].count("\n"), m[1]) for m in pattern.finditer(README)]


@pytest.fixture(scope="module")
def names():
    """All Python blocks, executed in order as one program, as the README asks the reader to; line numbers are the README's."""
    names: dict = {"__name__": "readme"}
    for line, code in blocks("python"):
        exec(compile("\n" * line + code, str(ROOT / "README.md"), "exec"), names)
    return names


@pytest.mark.slow
def test_code_runs(names):
    """Slow because it compiles a dozen samplers; the blocks assert what they claim."""
    assert len(blocks("python")) >= 10


@pytest.mark.slow
def test_claims(names):
    """What the comments beside the code say; slow with the fixture."""
    assert np.allclose(names["x"].shape, (64, 2))
    assert abs(float(names["order"]) - 2) < 0.3
    assert names["xs"].shape == (6, 64, 2)
    few, many = np.abs(np.asarray(names["xs"]) - np.asarray(names["exact"])).mean((1, 2)).reshape(2, 3)
    assert np.all(many < few), "ten steps are closer than five, for each of the three solvers"
    assert np.all(np.asarray(names["slope"]) != 0)


def test_ten_lines():
    ten_lines = next(code for _, code in blocks("python"))
    assert len([line for line in ten_lines.splitlines() if line.strip()]) <= 10


def test_table_of_solvers():
    inside = README.split("<!-- solvers -->\n")[1].split("<!-- /solvers -->")[0]
    assert inside == markdown(), "write the output of `jaxsampler solvers` between the markers"


def test_quality_is_that_of_the_run():
    """The block is what `bench quality` says of the cells beside its config, which are those that the config asks for."""
    cells = list(read(ROOT / "configs" / "bench" / "quality.csv").values())
    inside = README.split("<!-- bench quality -->\n")[1].split("<!-- /bench quality -->")[0]
    assert inside == quality_report.markdown(cells)
    c = quality.Quality()
    assert list(dict.fromkeys(cell.problem for cell in cells)) == list(c.problems)
    assert {cell.solver for cell in cells} == {*c.solvers, "real", "converged"}
    assert all(
        cell.samples == dict(zip(c.problems, c.samples, strict=True))[cell.problem] and cell.real == c.real
        for cell in cells
    )


SEARCHES = {
    "mixture": (study_report.summary, study_report.ratios),
    "empirical": (study_report.summary,),
    "fashion_edm": (study_report.summary, study_report.ratios),
    "fashion_flow": (study_report.summary, study_report.ratios),
    "ablation": (study_report.ratios,),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_searches_are_those_of_the_runs(name):
    """The blocks are what `jaxsampler search` says of the results beside its configs; the tables shipped are the best of them."""
    results = study.read(ROOT / "configs" / "search" / f"{name}.json")
    inside = README.split(f"<!-- search {name} -->\n")[1].split(f"<!-- /search {name} -->")[0]
    assert inside == "\n".join(form(results) for form in SEARCHES[name])
    c = config.load(ROOT / "configs" / "search" / f"{name}.toml", Search)
    assert {r.calls for r in results} == set(c.calls) and {*c.methods, HANDMADE, HANDMADE_FRECHET} == {
        r.method for r in results
    }
    for best in study_report.winners(results) if name in pretrained.tables() else ():
        assert pretrained.table_card(name, best.calls)["rmse"] == best.rmse


def test_what_the_readme_says_of_the_first_call():
    assert f"sigma = {pretrained.table('fashion_edm', 5).t[0]:.0f}, not 80" in README


def test_what_the_readme_says_of_quality():
    """DDIM, 2M, UniPC in this order at 5 to 10 calls on every problem; v3 on the mixture by half; stochastic solvers nearest from 10 on."""
    cells = read(ROOT / "configs" / "bench" / "quality.csv").values()
    rmse = {(cell.problem, cell.solver, cell.calls): cell.rmse for cell in cells}
    for problem in quality.Quality().problems:
        for calls in (5, 6, 8, 10):
            order = [rmse[problem, solver, calls] for solver in ("unipc order=2", "dpmpp_2m", "ddim")]
            assert order == sorted(order), (problem, calls)
    for calls in (5, 6, 8, 10):
        assert rmse["mixture", "dpm_v3 order=2", calls] < 0.65 * rmse["mixture", "unipc order=2", calls]
    for problem in ("empirical", "fashion_edm", "fashion_flow"):
        for calls in (10, 15, 20):
            column = [cell for cell in cells if (cell.problem, cell.calls) == (problem, calls)]
            assert min(column, key=lambda cell: cell.frechet).stochastic, (problem, calls)


def test_commands_are_those_of_the_ci_script():
    ci = (ROOT / ".ci" / "run").read_text().replace('\\"', '"')
    commands = [line for _, text in blocks("sh") for line in text.splitlines()]
    assert len(commands) == 2
    for command in commands:
        assert command in ci


def test_links():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), f"the README points at {target}"
