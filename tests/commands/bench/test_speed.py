"""`bench speed`: two checkouts in turns, the same values, and wrong checkouts refused."""

import subprocess
import sys

import pytest
from places import ROOT

from jaxsampler.commands import cli
from jaxsampler.commands.bench import speed


def test_this_checkout_against_itself():
    """Both processes run every kind of case; equal code gives equal values and compiles alike."""
    cases = ["tabulate 300, ddim", "tabulate 300, dpmpp_2m", "64 x 2, ddim", "import jax, equinox"]
    results = [speed.measure(ROOT, rounds=1, only=case) for case in cases]
    for case, result in zip(cases, results, strict=True):
        assert case in result.seconds
        assert all(a > 0 and b > 0 for turns in result.seconds.values() for a, b in turns)
        assert all(old == new for old, new in result.compiled.values())
        text = speed.markdown(result)
        assert f"| {case} |" in text
    assert all(v == 0 for result in results[2:] for v in result.differences.values())
    assert "median" in speed.markdown(results[0])
    assert speed.figure(results[0]).axes


def test_what_a_loop_costs_is_told_of_both_checkouts():
    """The median over the turns of a case over its work without a loop."""
    seconds = {
        "NCHW, forward": [(6.0, 1.2), (9.0, 1.1), (3.0, 5.0)],
        "NCHW, forward, no loop": [(2.0, 1.0)] * 3,
    }
    text = speed.markdown(speed.Speed("a machine", "abc", seconds, {}, {}))
    assert "NCHW, forward: time in a loop/outside 1.20 (older 3.00)." in text
    assert text.count("in a loop/outside") == 1


def test_a_folder_without_the_library_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is no checkout of jaxsampler"):
        speed.measure(tmp_path)


def test_a_checkout_that_cannot_be_imported_is_refused(tmp_path):
    (tmp_path / "jaxsampler").mkdir()
    (tmp_path / "jaxsampler" / "__init__.py").write_text("raise ImportError('made for another world')")
    with pytest.raises(ValueError, match="cannot run the cases"):
        speed.measure(tmp_path)


def test_the_command_asks_for_the_other_checkout(capsys):
    assert cli.main(["bench", "speed"]) == 2
    assert "missing --against" in capsys.readouterr().err
    assert cli.main(["bench", "overhead", "--against", "."]) == 2
    assert "--against is for bench speed" in capsys.readouterr().err


def test_cases_use_public_names_only():
    """The script runs with any checkout: it imports nothing of this one by file."""
    code = "import ast,sys; print([n.module for n in ast.walk(ast.parse(open(sys.argv[1]).read()))"
    code += " if isinstance(n, ast.ImportFrom) and (n.level or 'jaxsampler' in (n.module or ''))])"
    done = subprocess.run(
        [sys.executable, "-c", code, speed.speed_cases.__file__], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
