"""The measured pages in configs/: their tables are those of the runs, and the text beside a table is true."""

import re

import numpy as np
import pytest
from pages import inside, rows
from places import ROOT

from jaxsampler import config, pretrained
from jaxsampler.commands.bench import quality, quality_report
from jaxsampler.commands.bench.cells import read
from jaxsampler.commands.search import command, report
from jaxsampler.commands.search.settings import HANDMADE, HANDMADE_FRECHET, Search

BENCH, SEARCH = ROOT / "configs" / "bench", ROOT / "configs" / "search"
FEW = (5, 6, 8, 10)


@pytest.fixture(scope="module")
def cells():
    return list(read(BENCH / "quality.csv").values())


@pytest.fixture(scope="module")
def rmse(cells):
    return {(cell.problem, cell.solver, cell.calls): cell.rmse for cell in cells}


def test_quality_is_that_of_the_run(cells):
    """The block is what `bench quality` says of the cells, which are those that the config asks for."""
    assert inside(BENCH / "quality.md", "bench quality") == quality_report.markdown(cells)
    c = quality.Quality()
    assert list(dict.fromkeys(cell.problem for cell in cells)) == list(c.problems)
    assert {cell.solver for cell in cells} == {*c.solvers, "real", "converged"}
    assert all(
        cell.samples == dict(zip(c.problems, c.samples, strict=True))[cell.problem] and cell.real == c.real
        for cell in cells
    )


def test_what_is_said_of_quality(cells, rmse):
    """DDIM, 2M, UniPC in this order with few calls; order 3 later; v3; solvers on noise; stochastic ones."""
    for problem in quality.Quality().problems:
        for calls in FEW:
            order = [rmse[problem, solver, calls] for solver in ("unipc order=2", "dpmpp_2m", "ddim")]
            assert order == sorted(order), (problem, calls)
        assert rmse[problem, "unipc order=3", 20] < 1.15 * rmse[problem, "unipc order=2", 20]
    for problem in ("mixture", "empirical"):
        assert rmse[problem, "unipc order=3", 50] < rmse[problem, "unipc order=2", 50]
    ratios = [rmse["mixture", "dpm_v3 order=2", n] / rmse["mixture", "unipc order=2", n] for n in FEW]
    assert 0.45 < min(ratios) and max(ratios) < 0.65
    for calls in (4, 5, 6):
        assert rmse["fashion_edm", "dpm_v3 order=2", calls] > rmse["fashion_edm", "ddim", calls]
    for calls in (8, 10, 15, 20):
        assert rmse["fashion_edm", "dpm_v3 order=2", calls] > rmse["fashion_edm", "unipc order=2", calls]
    works_on_noise = ("deis order=2", "deis order=3", "ipndm", "dpm_3", "dpm_v3 order=2")
    assert not {cell.solver for cell in cells if cell.problem == "fashion_flow"} & {*works_on_noise}
    for problem in ("empirical", "fashion_edm", "fashion_flow"):
        converged = next(c.frechet for c in cells if (c.problem, c.solver) == (problem, "converged"))
        for calls in (10, 15, 20):
            column = [cell for cell in cells if (cell.problem, cell.calls) == (problem, calls)]
            best = min(column, key=lambda cell: cell.frechet)
            assert best.stochastic and best.frechet < converged, (problem, calls)


SEARCHES = {
    "mixture": ("mixture", (report.summary, report.ratios)),
    "empirical": ("empirical", (report.summary,)),
    "fashion_edm": ("fashion", (report.summary, report.ratios)),
    "fashion_flow": ("fashion", (report.summary, report.ratios)),
    "ablation": ("ablation", (report.ratios,)),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_searches_are_those_of_the_runs(name):
    """The blocks are what `jaxsampler search` says of its results; the best of them are shipped."""
    page, forms = SEARCHES[name]
    results = command.read(SEARCH / f"{name}.json")
    assert inside(SEARCH / f"{page}.md", f"search {name}") == "\n".join(form(results) for form in forms)
    c = config.load(SEARCH / f"{name}.toml", Search)
    assert {r.calls for r in results} == set(c.calls) and {*c.methods, HANDMADE, HANDMADE_FRECHET} == {
        r.method for r in results
    }
    for best in report.winners(results) if name in pretrained.tables() else ():
        assert pretrained.table_card(name, best.calls)["rmse"] == best.rmse


def test_what_is_said_of_the_first_call():
    said = (SEARCH / "fashion.md").read_text()
    assert f"sigma = {pretrained.table('fashion_edm', 5).t[0]:.0f}, not 80" in said


def numbers(cells):
    return np.array([float(re.sub(r"[^0-9.e+-]", "", cell)) for cell in cells])


def test_what_is_said_of_gradients():
    """Columns: memory, time and error at 16, 64 and 256 steps."""
    table = {
        row[0].strip("`"): numbers(row[1:]) for row in rows(BENCH / "gradients.md", "bench gradients")[2:]
    }
    exact = ("Direct()", "Direct(remat=True)", "RecursiveCheckpoint()")
    for name in exact:
        np.testing.assert_array_equal(table[name][6:], table["Direct()"][6:])
    for name, row in table.items():
        memory, error = row[:3], row[6:]
        constant = name.startswith(("AdjointDPM", "Reversible", "LastK"))
        assert (memory[2] == memory[0]) == constant, name
        assert (error[2] < error[0] / 30) == (name != "LastK(4)"), name
    assert table["Direct()"][2] > 10 * table["Direct(remat=True)"][2] > 20 * table["RecursiveCheckpoint()"][2]


def test_what_is_said_of_overhead():
    text = inside(BENCH / "overhead.md", "bench overhead")
    ratios = [float(row[1]) for row in rows(BENCH / "overhead.md", "bench overhead")[2:7]]
    assert max(ratios) < 1
    assert "Compilations for all 35 solvers: 1." in text


def test_what_is_said_of_precision():
    """A bfloat16 number is off by at most 2^-9: every solver errs by a few of these."""
    for name, _, single, data, noise in rows(BENCH / "precision.md", "bench precision")[2:]:
        assert 1e-8 < float(single) < 1e-6, name
        assert 0.5 < float(data) * 2**9 < 4 and 0.5 < float(noise) * 2**9 < 3, name


def test_what_is_said_of_inversion():
    """The last five rows are exact; the others err, and less with more steps."""
    table = rows(BENCH / "inversion.md", "bench inversion")[2:]
    assert [row[0] for row in table[-5:]] == ["edict", "bdia", "obelm", "reversible_heun", "mccallum_foster"]
    for row in table[-5:]:
        assert numbers(row[1:]).max() < 1e-11, row[0]
    for row in table[:-5]:
        assert numbers(row[1:]).min() > 1e-7, row[0]
        assert np.all(np.diff(numbers(row[1:])) < 0), row[0]


def test_what_is_said_of_likelihoods():
    """The third column puts all bits on 784 pixels; twice the calls change nothing that is shown."""
    for name, bits, pixel, _, _, change in rows(BENCH / "likelihood.md", "bench likelihood")[2:]:
        (bits, error), (pixel, pixel_error) = (numbers(cell.split("±")) for cell in (bits, pixel))
        assert pixel == pytest.approx(bits * 1024 / 784, abs=0.006), name
        assert pixel_error == pytest.approx(error * 1024 / 784, abs=0.006), name
        assert abs(float(change)) < error / 100


def test_what_is_said_of_restoring():
    """`posterior` is `mr_sde` of order 1; PSNR falls with more calls, and with order 2, which errs less."""
    block = inside(ROOT / "configs" / "train" / "restore.md", "restore table")
    tables = [[line.split("|")[1:-1] for line in t.splitlines()[2:]] for t in block.split("\n\n")]
    means, distances = (
        {name.strip(): [float(cell.split("/")[0]) for cell in cells] for name, *cells in table}
        for table in tables[1:3]
    )
    assert means["posterior"] == means["mr_sde 1"]
    for member in ("mr_ode", "mr_sde"):
        assert np.all(np.diff(means[f"{member} 1"]) < 0)
        assert np.all(np.less(means[f"{member} 2"], means[f"{member} 1"]))
    assert np.all(np.less(distances["mr_ode 2"], distances["mr_ode 1"]))
