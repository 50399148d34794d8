"""The yardstick: rankings that are known, one compilation per number of calls, cells that are kept, one-line
errors.
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from places import ROOT

import jaxsampler as js
from jaxsampler import config, metrics
from jaxsampler.commands import cli
from jaxsampler.commands.bench import line_up, problems, quality, quality_report
from jaxsampler.commands.bench.cells import Cell, read
from jaxsampler.commands.bench.quality import Quality

SMALL = dict(
    problems=("mixture",),
    grids=("log_snr",),
    samples=(96,),
    most=(10,),
    calls=(5, 10),
    real=500,
    statistics=64,
    resamples=20,
)
SOLVERS = ("ddim", "unipc order=2", "dpmpp_2m", "heun", "dpm_v3 order=2", "euler_ancestral")


class Study(NamedTuple):
    """A small run: its config, its cells, its file, the problem it was made on, and how many shapes the
    network was traced for.
    """

    config: Quality
    cells: list[Cell]
    file: Path
    build: Callable[[str], problems.Problem]
    shapes: float

    def at(self, solver, calls):
        return next(cell for cell in self.cells if (cell.solver, cell.calls) == (solver, calls))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The mixture in chunks of 96, with a network that counts how often it is traced."""
    file, traced, p = tmp_path_factory.mktemp("bench") / "quality.csv", [], problems.problem("mixture")

    def net(x, t):
        traced.append(x.shape)
        return p.single.net(x, t)

    counted = dataclasses.replace(p, chunk=96, denoiser=js.Denoiser(net, p.single.path, "data"))
    build = lambda name: counted
    counted.converged(counted.start(1))
    for_one, c = len(traced), Quality(**SMALL, solvers=SOLVERS, v3=())
    traced.clear()
    quality.measure(c, file, build, progress=False)
    shapes = len(traced) / for_one
    c = dataclasses.replace(c, v3=("mixture",))
    return Study(c, quality.measure(c, file, build, progress=False), file, build, shapes)


def test_one_compilation_for_each_number_of_calls(study):
    """Two budgets, so two shapes, whatever the number of solvers."""
    assert study.shapes == 2


def test_published_ranking(study):
    """DPM-Solver-v3 before UniPC before DPM-Solver++(2M) before DDIM, by RMSE to the converged solution."""
    for calls, names in (
        (5, ("dpm_v3 order=2", "unipc order=2", "dpmpp_2m", "ddim")),
        (10, ("unipc order=2", "dpmpp_2m", "ddim")),
    ):
        order = [study.at(name, calls).rmse for name in names]
        assert order == sorted(order)
    assert study.at("dpm_v3 order=2", 5).rmse < 0.7 * study.at("dpmpp_2m", 5).rmse


def test_cells_are_what_they_say(study):
    """RMSE and distances of one cell from its own samples, by hand; budgets and calls; what does not apply is
    NaN.
    """
    p, path = study.build("mixture"), js.VP()
    x = p.start(96, study.config.seed)
    samples = p.run(js.tabulate(path, js.grids.log_snr(path, 5), js.solvers.ddim), x)
    cell = study.at("ddim", 5)
    assert cell.rmse == pytest.approx(metrics.rmse(samples, p.converged(x)), rel=1e-3)
    real = p.real("test", 500)
    assert cell.frechet == pytest.approx(metrics.frechet(samples, real), rel=1e-3)
    assert cell.sliced == pytest.approx(metrics.sliced_wasserstein(samples, real), rel=1e-3)
    assert study.at("real", 0).frechet == pytest.approx(metrics.frechet(p.real("train", 96), real), rel=1e-5)
    assert (study.at("heun", 5).rows, study.at("heun", 10).rows, cell.rows) == (4, 10, 5)
    assert study.at("converged", p.fine.nfe).rmse == 0
    assert math.isnan(study.at("euler_ancestral", 5).rmse) and study.at("euler_ancestral", 5).stochastic
    for cell in study.cells:
        assert cell.frechet_low < cell.frechet < cell.frechet_high
        assert cell.sliced_low < cell.sliced < cell.sliced_high
        assert math.isnan(cell.rmse) or cell.rmse_low <= cell.rmse <= cell.rmse_high
        assert cell.solver in ("real", "converged") or cell.seconds > 0


def test_stopped_and_continued(study, monkeypatch, tmp_path):
    """Stopped while measuring its fourth cell, a run has kept three and measures only the rest; the numbers
    are those of one run.
    """
    file, made, measure_cell = tmp_path / "quality.csv", [], quality.Task.cell

    def counted(self, *args):
        made.append(args[0])
        if len(made) == 4:
            raise KeyboardInterrupt
        return measure_cell(self, *args)

    monkeypatch.setattr(quality.Task, "cell", counted)
    c = dataclasses.replace(study.config, solvers=SOLVERS[:3], calls=(5,))
    with pytest.raises(KeyboardInterrupt):
        quality.measure(c, file, study.build, progress=False)
    assert len(read(file)) == 3
    again = quality.measure(c, file, study.build, progress=False)
    assert made[3:] == ["unipc order=2", "unipc order=2", "dpmpp_2m"]
    assert [cell.solver for cell in again] == ["real", "converged", *SOLVERS[:3]]
    assert again[2].frechet == pytest.approx(study.at("ddim", 5).frechet, rel=1e-4)
    assert not [f for f in tmp_path.iterdir() if f.suffix == ".part"]


def test_other_settings_are_measured_anew(study):
    """A cell counts only for the network, grid, seed and numbers that it was measured with; unchanged
    settings find every cell.
    """
    c, file, p, marks = study.config, study.file, study.build("mixture"), set()
    before = file.read_bytes()
    found = quality.measure(c, file, study.build, progress=False)
    assert [cell.solver for cell in found] == [cell.solver for cell in study.cells]
    assert found[5].rmse == pytest.approx(study.cells[5].rmse, rel=1e-5)
    assert file.read_bytes() == before
    for other in (
        c,
        dataclasses.replace(c, seed=1),
        dataclasses.replace(c, grids=("uniform",)),
        dataclasses.replace(c, real=600),
    ):
        marks.add(quality.Task(other, 0, p, file.parent, []).mark)
    wider = js.models.gaussian_mixture(np.zeros((2, 64)), 0.5, js.VP())
    marks.add(quality.Task(c, 0, dataclasses.replace(p, denoiser=wider), file.parent, []).mark)
    assert len(marks) == 5


def test_learned_tables(study, tmp_path):
    """A saved table takes part at its own number of calls on the problem that its card names."""
    table = js.tabulate(js.VP(), js.grids.uniform(js.VP(), 5), js.solvers.unipc(order=3))
    table.save(tmp_path / "mine.safetensors", problem="mixture")
    c = dataclasses.replace(
        study.config, solvers=("ddim",), v3=(), tables=(str(tmp_path / "mine.safetensors"),)
    )
    cells = quality.measure(c, tmp_path / "quality.csv", study.build, progress=False)
    mine = [cell for cell in cells if cell.solver == "mine"]
    assert [(cell.calls, cell.rows) for cell in mine] == [(5, 5)]
    p = study.build("mixture")
    x = p.start(96, c.seed)
    assert mine[0].rmse == pytest.approx(metrics.rmse(p.run(table, x), p.converged(x)), rel=1e-3)
    table.save(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="names the problem None; save the table with problem="):
        quality.learned(str(tmp_path / "other.safetensors"))


def test_line_up_keeps_the_budget():
    """The largest table of each solver, none where there is none, and no two of the same numbers."""
    found = line_up.line_up(
        js.EDM(), ("ddim", "edm", "heun", "dpm_3", "unipc order=3", "edm s_churn=5"), js.grids.karras, 7
    )
    assert {name: t.nfe for name, t in found.items()} == {
        "ddim": 7,
        "edm": 6,
        "dpm_3": 6,
        "unipc order=3": 7,
        "edm s_churn=5": 6,
    }
    assert found["edm s_churn=5"].draws == 3
    assert line_up.line_up(js.EDM(), ("edm", "dpm_3"), js.grids.karras, 1) == {}
    np.testing.assert_allclose(found["edm"].end[1::2], js.grids.karras(js.EDM(), 3)[1:])


def test_report(study):
    """Bold is the least of its column; the calls made where they are fewer; stochastic solvers have no RMSE
    and come last.
    """
    text = quality_report.markdown(study.cells)
    rows = [
        [part.strip() for part in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith("| `")
    ]
    assert text.splitlines()[4].count("RMSE") == 2
    values = [cell.rmse for cell in study.cells if cell.calls == 10 and not cell.stochastic]
    bold = [row for row in rows if row[2].startswith("**")]
    assert len(bold) == 1 and bold[0][2].startswith(f"**{min(values):.3f}"[:-1])
    assert rows[0] == bold[0] and rows[-1][:3] == ["`euler_ancestral`", "", ""]
    assert any(row[1].endswith("(4 calls)") and "heun" in row[0] for row in rows)
    assert (
        "500 test samples" in text
        and quality_report.label("unipc order=2 corrector=false") == "unipc(order=2, corrector=False)"
    )


def test_figure_shows_every_solver_that_stands_out(study):
    figure = quality_report.figure(study.cells)
    upper, lower = figure.axes
    line = next(line for line in upper.lines if line.get_label() == "ddim")
    np.testing.assert_allclose(
        line.get_xydata(), [(5, study.at("ddim", 5).rmse), (10, study.at("ddim", 10).rmse)]
    )
    assert {"unipc(order=2)", "dpm_v3(order=2)"} <= {line.get_label() for line in upper.lines}
    assert {"euler_ancestral", "real (floor)", "converged (the model)"} <= {
        line.get_label() for line in lower.lines
    }
    low, high = upper.get_ylim()
    assert all(
        low < cell.rmse < high for cell in study.cells if cell.solver in ("ddim", "dpmpp_2m", "unipc order=2")
    )


def test_command(tmp_path, capsys):
    """A whole run by the command line, from a config; what it prints is what it writes."""
    (tmp_path / "c.toml").write_text(
        'problems = ["mixture"]\ngrids = ["uniform"]\nsamples = [20]\nmost = [3]\n'
        'calls = [3]\nsolvers = ["ddim"]\n'
        "real = 50\nresamples = 2\nv3 = []\n"
    )
    assert (
        cli.main(
            ["bench", "quality", "--config", str(tmp_path / "c.toml"), "--out", str(tmp_path / "new" / "b")]
        )
        == 0
    )
    assert capsys.readouterr().out == (tmp_path / "new" / "b" / "quality.md").read_text()
    assert sorted(f.name for f in (tmp_path / "new" / "b").iterdir()) == [
        "quality.csv",
        "quality.md",
        "quality.png",
    ]


def test_defaults_are_the_shipped_config():
    assert config.load(ROOT / "configs" / "bench" / "quality.toml", Quality) == Quality()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"problems": ("mixtures",)}, "unknown problem 'mixtures'; did you mean 'mixture'"),
        ({"samples": (10, 20)}, "key 'samples' needs one entry for each of the 1 problems, it has 2"),
        ({"solvers": ("unipcc",)}, "unknown solver 'unipcc'; did you mean 'unipc'"),
        ({"solvers": ("unipc ordr=2",)}, "ordr"),
        ({"solvers": ("unipc order=two",)}, "give options as name=value"),
        ({"solvers": ("dpm_v3 order=9",)}, "orders 1, 2 and 3"),
        ({"solvers": ("dpm_adaptive",)}, "'dpm_adaptive' has no table"),
        ({"grids": ("karas",)}, "unknown grid 'karas'; did you mean 'karras'"),
        ({"resamples": 1}, "key 'resamples' must be at least 2; got 1"),
    ],
)
def test_refused_config(change, message):
    with pytest.raises(ValueError, match=message) as error:
        Quality(**SMALL | change)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["quality", "--config", "none.toml"], "cannot read config none.toml"),
        (["quality", "--out", "{file}"], "exists"),
        (["quality", "--config", "{config}", "--out", "{folder}"], "is not from `bench quality`"),
        (["precision", "--data", "x"], "--config, --data and --weights are for bench quality"),
        (["quality", "--config", "{tables}"], "cannot read the table gone.safetensors"),
    ],
)
def test_command_refuses_in_one_line(args, message, tmp_path, capsys):
    places = {
        "file": tmp_path / "file",
        "folder": tmp_path / "b",
        "config": tmp_path / "c.toml",
        "tables": tmp_path / "t.toml",
    }
    places["folder"].mkdir()
    places["file"].write_text("")
    places["config"].write_text('problems = ["mixture"]\ngrids = ["uniform"]\nsamples = [20]\nmost = [3]\n')
    places["tables"].write_text('tables = ["gone.safetensors"]\n')
    (tmp_path / "b" / "quality.csv").write_text("a,b\n1,2\n")
    assert cli.main(["bench", *(arg.format(**places) for arg in args)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
