"""A search: what it finds is kept, judged on noise of its own, and saved as tables that other commands
read.
"""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from places import ROOT

import jaxsampler as js
from jaxsampler import config, metrics
from jaxsampler.commands import cli
from jaxsampler.commands.bench.problems import PATHS, problem
from jaxsampler.commands.search import report
from jaxsampler.commands.search.command import Result, read, search
from jaxsampler.commands.search.problem import Task
from jaxsampler.commands.search.settings import HANDMADE, HANDMADE_FRECHET, Search

SMALL = Search(
    "mixture",
    calls=(3,),
    methods=("random", "grid"),
    noises=64,
    held_out=128,
    test=256,
    screen=64,
    rivals=3,
    starts=1,
    iterations=24,
    batch=64,
    budget=24,
    scored=64,
    samples=128,
    real=512,
)


@pytest.fixture(scope="module")
def mixture():
    return problem("mixture")


@pytest.fixture(scope="module")
def done(mixture, tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    return search(SMALL, mixture, folder, progress=False), folder


def test_results(done, mixture):
    """Each result is what its saved table does on the noises that judge, and those are not the ones it was
    chosen by.
    """
    results, folder = done
    assert [r.method for r in results] == [HANDMADE, HANDMADE_FRECHET, "random", "grid"]
    sets = {what: mixture.start(64, i) for i, what in enumerate(("fit", "choose", "judge"))}
    assert len({a.tobytes() for a in sets.values()}) == 3
    (x, exact), (chosen, target) = (
        (a, mixture.converged(a)) for a in (mixture.start(256, 2), mixture.start(128, 1))
    )
    real = metrics.gaussian(mixture.real("test", 512))
    rmse = {}
    for r in results:
        table, card = js.Table.load(folder / r.file), js.Table.about(folder / r.file)
        assert (
            table.nfe == 3
            and card["problem"] == "mixture"
            and card["rmse"] == r.rmse
            and card["path"] == repr(mixture.path)
        )
        rmse[r.method] = float(np.sqrt(np.mean((mixture.run(table, x) - exact) ** 2, dtype=np.float64)))
        assert r.rmse == pytest.approx(rmse[r.method], rel=1e-5)
        assert r.held_out == pytest.approx(
            float(np.sqrt(np.mean((mixture.run(table, chosen) - target) ** 2))), rel=1e-4
        )
        assert r.frechet == pytest.approx(metrics.frechet(mixture.run(table, x[:128]), real), rel=1e-3)
        assert (
            r.ratio == pytest.approx(rmse[r.method] / rmse[HANDMADE], rel=1e-4) and r.low <= r.ratio <= r.high
        )
    assert rmse["grid"] < rmse[HANDMADE], "a learned grid of three calls beats all grids by hand here"


def test_kept(done, mixture, monkeypatch):
    """What is there is not searched again; a missing result is, and gives the same numbers."""
    results, folder = done
    searched = []
    find = Task.find
    monkeypatch.setattr(
        Task, "find", lambda self, calls, method: searched.append(method) or find(self, calls, method)
    )
    assert search(SMALL, mixture, folder, progress=False) == results and not searched
    kept = [r for r in read(folder / "results.json") if r.method != "random"]
    foreign = dataclasses.replace(results[0], mark="of another config")
    (folder / "results.json").write_text(json.dumps([dataclasses.asdict(r) for r in (foreign, *kept)]))
    again = search(SMALL, mixture, folder, progress=False)
    assert searched == ["random"]
    same = lambda r: dataclasses.replace(r, seconds=0.0)
    assert list(map(same, again)) == list(map(same, results)) and foreign in read(folder / "results.json")


@pytest.mark.parametrize(
    ("change", "methods"),
    [
        ({"seed": 1}, (HANDMADE, HANDMADE_FRECHET, "random", "grid")),
        ({"real": 256}, (HANDMADE, HANDMADE_FRECHET, "random", "grid")),
        ({"budget": 12}, ("random",)),
        ({"iterations": 12, "rate": 0.01}, ("grid",)),
        ({"calls": (3, 4), "methods": ("grid",)}, ()),
    ],
)
def test_what_results_depend_on(mixture, tmp_path, change, methods):
    """Another config makes those results anew that it changes, and no others."""
    before, after = (Task(c, mixture, tmp_path, False) for c in (SMALL, dataclasses.replace(SMALL, **change)))
    assert {
        m
        for m in (HANDMADE, HANDMADE_FRECHET, "random", "grid")
        if before.mark_of(3, m) != after.mark_of(3, m)
    } == set(methods)


def test_command(tmp_path, capsys, monkeypatch, done):
    """The best table of each number of calls, the Markdown and the figure; the table runs in `sample`'s place
    of a solver.
    """
    results, _ = done
    monkeypatch.setattr(report, "search", lambda c, p, folder, progress: [write(r, folder) for r in results])

    def write(r: Result, folder):
        js.Table.load(done[1] / r.file).save(folder / r.file, problem=r.problem)
        return r

    file = tmp_path / "small.toml"
    file.write_text('problem = "mixture"\ncalls = [3]\n')
    assert cli.main(["search", str(file), "--out", str(tmp_path / "out")]) == 0
    assert "| 3 | grid |" in capsys.readouterr().out
    best = min(results[2:], key=lambda r: r.held_out)
    assert js.Table.about(tmp_path / "out/mixture_3.safetensors") == {"problem": "mixture"}
    np.testing.assert_array_equal(
        js.Table.load(tmp_path / "out/mixture_3.safetensors").B, js.Table.load(done[1] / best.file).B
    )
    assert (tmp_path / "out/mixture.png").read_bytes()[1:4] == b"PNG"


def test_transferred(done, mixture, tmp_path):
    """The table of another problem, on this path: judged like any other, anew when it is another table, never
    a winner.
    """
    (handmade, by_frechet, other, own), folder = done
    shutil.copytree(folder, tmp_path / "mixture")
    carry = lambda r: js.search.transfer(js.Table.load(folder / r.file), js.VP(), js.CondOT())
    carry(own).save(tmp_path / "fashion_flow_3.safetensors", method="grid")
    c = dataclasses.replace(SMALL, methods=("grid", "transferred from fashion_flow"))
    *before, carried = search(c, mixture, tmp_path / "mixture", progress=False)
    assert before == [handmade, by_frechet, own] and carried.what == "grid on fashion_flow"
    assert carried.rmse == pytest.approx(own.rmse, rel=1e-4) and carried.held_out == pytest.approx(
        own.held_out, rel=1e-4
    )
    assert report.winners([handmade, dataclasses.replace(own, held_out=1.0), carried])[0].method == "grid"
    task = Task(c, mixture, tmp_path / "mixture", False)
    assert task.mark_of(3, carried.method) == carried.mark
    carry(other).save(tmp_path / "fashion_flow_3.safetensors", method="random")
    assert task.mark_of(3, carried.method) != carried.mark


def test_distilled(done, mixture, tmp_path):
    """On each kind of grid, the best by the noises that choose; what is learned from it is no worse there."""
    shutil.copytree(done[1], tmp_path / "mixture")
    c = dataclasses.replace(SMALL, methods=("distilled, inconsistent", "distilled then table, inconsistent"))
    handmade, _, plain, learned = search(c, mixture, tmp_path / "mixture", progress=False)
    assert plain.what.startswith("on ") and learned.what.startswith("from distilled on ")
    assert plain.held_out < 0.8 * handmade.held_out and plain.rmse < 0.8 * handmade.rmse
    assert learned.held_out <= plain.held_out and (plain.numbers, learned.numbers) == (9, 14)


def test_nothing_to_transfer(mixture, tmp_path, monkeypatch):
    """Said before the first search."""
    monkeypatch.setattr(Task, "find", None)
    with pytest.raises(
        ValueError, match=r"nothing to transfer: there is no .*smoothed_2.safetensors, and of those shipped"
    ):
        search(
            dataclasses.replace(SMALL, calls=(2,), methods=("transferred from smoothed",)),
            mixture,
            tmp_path / "mixture",
            progress=False,
        )


@pytest.mark.parametrize("name", ["mixture", "fashion_edm", "fashion_flow"])
def test_paths_of_problems(name):
    assert problem(name).path == PATHS[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"problem": "mixtur"}, "did you mean 'mixture'"),
        ({"methods": ("evolv",)}, "did you mean 'evolve'"),
        ({"methods": ("grid then tabel",)}, "unknown method 'grid then tabel'"),
        ({"methods": ("grid then distilled",)}, "unknown method 'grid then distilled'"),
        ({"methods": ("transferred from fashion_flw",)}, "did you mean 'fashion_flow'"),
        ({"methods": ("distilled then grid",)}, "frees no weights"),
        ({"methods": ("distilled then scale, inconsistent",)}, "frees no weights"),
        ({"methods": ("amplitude",)}, "leaves nothing free"),
        ({"calls": (1,)}, "at least 2"),
        ({"budget": 0}, "'budget' must be at least 1"),
        ({"rate": -1.0}, "'rate' must not be negative"),
        ({"split": (1.0, 2.0)}, "a positive share for each stage"),
        ({"samples": 257}, "at most 256, the number of test noises"),
    ],
)
def test_bad_configs(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)


def test_a_file_that_is_something_else(tmp_path, mixture):
    (tmp_path / "results.json").write_text('[{"rmse": 1}]')
    with pytest.raises(ValueError, match="not the results of a search"):
        search(SMALL, mixture, tmp_path, progress=False)


def test_the_configs_in_the_repository_are_valid():
    files = sorted((ROOT / "configs/search").glob("*.toml"))
    assert files
    for file in files:
        c = config.load(file, Search)
        assert min(c.held_out, c.test) >= c.screen, "the judges are not fewer than the jury's first look"


@pytest.mark.bench
@pytest.mark.parametrize("name", ["mixture", "empirical", "fashion_edm", "fashion_flow"])
def test_distance_of_converged_samples(name):
    """The floor of a search's Frechet distances, that of the samples which all samplers approximate, is what
    its page says (minutes).
    """
    c, p = config.load(ROOT / f"configs/search/{name}.toml", Search), problem(name)
    real, features = (
        metrics.gaussian(p.features(p.real("test", c.real))),
        p.features(p.converged(p.start(c.samples, 2))),
    )
    distance = lambda features: metrics.frechet(features, real)
    print(f"\n{name}: {distance(features):.3f}, 95% {metrics.interval(distance, features)}")
    page = ROOT / f"configs/search/{name.split('_')[0]}.md"
    assert f"{distance(features):.2g}" in page.read_text()
