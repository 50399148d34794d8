"""The yardsticks measure what they say, on small instances; their files are whole; a bad place is found
before the work.
"""

import dataclasses
import json

import jax
import pytest

from jaxsampler.commands import cli
from jaxsampler.commands.bench import gradients, inversion, overhead, precision, report
from jaxsampler.nn.unet import RestorationNet
from jaxsampler.solvers.listing import catalogue, others


@pytest.fixture(scope="module")
def cost():
    """Of a small restoration network in the shipped one's place."""
    small = RestorationNet((0.1,) * 10, std=0.5, widths=(8, 8), depth=1, embedding=16, key=jax.random.key(0))
    with pytest.MonkeyPatch.context() as m:
        m.setattr(overhead.pretrained, "load", {"restore": small}.__getitem__)
        return overhead.measure(32, rounds=1)


@pytest.mark.slow
def test_overhead_covers_every_solver_in_one_compilation(cost):
    """Slow: it compiles the loop of a network some fifteen times."""
    assert set(cost.ratios) == set(catalogue())
    assert set(cost.no_tables) == set(others()) - {"mr_published"}
    assert cost.compilations == 1
    assert max(cost.program_bytes.values()) < 1.05 * min(cost.program_bytes.values())
    assert all(
        0.2 < ratio < 20
        for ratio in [*cost.ratios.values(), *cost.no_tables.values(), *cost.baselines.values()]
    )
    text = overhead.markdown(cost)
    for name in ("scan by hand (DDIM)", "diffrax Euler", "diffrax Heun"):
        assert name in text


def test_tables_have_one_shape_and_at_most_twenty_calls():
    import jax.numpy as jnp

    from jaxsampler.paths.mean_reverting import MeanReverting

    tables = overhead.tables(MeanReverting(jnp.zeros(2)))
    assert len({(t.nfe, t.regs) for t in tables.values()}) == 1
    assert next(iter(tables.values())).nfe == overhead.NFE
    for name, table in tables.items():  # the rows before the padding are a sampler that uses its budget
        assert (table.end == table.end).sum() >= 5, name


def test_gradients_on_two_routes():
    found = gradients.measure(1, (8, 32), ["Direct()", "Reversible(), bdia"])
    assert found.megabytes["Direct()"][1] > 2 * found.megabytes["Direct()"][0]
    assert found.megabytes["Reversible(), bdia"][1] < 1.05 * found.megabytes["Reversible(), bdia"][0]
    for errors in found.error.values():
        assert errors[1] < 0.3 * errors[0]


def test_inversion_of_three_ways():
    found = inversion.measure((10, 20), ["ddim", "dpm_2m", "obelm"]).error
    assert found["obelm"][0] < 1e-12
    assert found["dpm_2m"][1] < 0.5 * found["dpm_2m"][0] < 0.5 * found["ddim"][0]


def test_command_writes_three_whole_files(tmp_path, capsys, monkeypatch):
    result = inversion.measure((4,), ["obelm"])
    monkeypatch.setattr(inversion, "measure", lambda: result)
    out = tmp_path / "new" / "bench"
    assert cli.main(["bench", "inversion", "--out", str(out)]) == 0
    assert capsys.readouterr().out == (out / "inversion.md").read_text() == inversion.markdown(result)
    assert json.loads((out / "inversion.json").read_text()) == dataclasses.asdict(result)
    assert (out / "inversion.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(f.name for f in out.iterdir()) == ["inversion.json", "inversion.md", "inversion.png"]


def test_command_refuses_a_file_as_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(inversion, "measure", lambda: pytest.fail("measured before the folder was looked at"))
    (tmp_path / "file").write_text("")
    assert cli.main(["bench", "inversion", "--out", str(tmp_path / "file")]) == 2
    assert "jaxsampler:" in capsys.readouterr().err


@pytest.mark.parametrize("module", [gradients, inversion, overhead, precision])
def test_every_benchmark_has_the_three_parts(module):
    assert module.__name__.rsplit(".", 1)[1] in report.benchmarks()
    assert all(callable(getattr(module, part)) for part in ("measure", "markdown", "figure"))
