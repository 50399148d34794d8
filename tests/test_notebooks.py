"""Every notebook runs from top to bottom and keeps its promises: claims, one figure, a badge, few lines.

Slow because a notebook is a process of its own that imports, compiles and draws. JAXSAMPLER_QUICK makes it
smaller: fewer samples and iterations, the same claims, about 15 s on two cores. The stored outputs are those
of the full run.
"""

import jax
import pytest
from places import ROOT

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def code(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def figures(notebook):
    outputs = [o.get("data", {}) for cell in notebook.cells for o in cell.get("outputs", [])]
    return [text for data in outputs for kind, text in data.items() if kind.startswith("image/")]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path, monkeypatch):
    """A failed assertion inside a notebook fails here; no cell may take four minutes on a busy machine."""
    monkeypatch.setenv("JAXSAMPLER_QUICK", "1")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(jax.config.jax_compilation_cache_dir))
    monkeypatch.delenv("MPLBACKEND")  # the inline backend is what draws in a notebook
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell["outputs"] = []
    nbclient.NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    ).execute()
    assert len(figures(notebook)) == 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_form(path):
    notebook = nbformat.read(path, as_version=4)
    assert f"blob/main/notebooks/{path.name})" in notebook.cells[0].source, "the badge opens this notebook"
    assert "google.colab" in code(notebook)[0], "the first cell installs on Colab, and only there"
    assert "JAXSAMPLER_QUICK" in code(notebook)[0] and any("QUICK" in source for source in code(notebook)[1:])
    assert len(figures(notebook)) == 1, "the outputs of the full run are stored"
    lines = [line for source in code(notebook)[1:] for line in source.splitlines() if line.strip()]
    assert len(lines) <= 30
    assert not [line for line in lines if line.lstrip().startswith(("def ", "class "))], (
        "what can be reused belongs in the library"
    )
    assert sum(map(len, figures(notebook))) < 300_000 * 4 / 3, (
        "committed figures stay small (base64 of 300 kB)"
    )
    assert not [o for cell in notebook.cells for o in cell.get("outputs", []) if o.output_type == "error"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.parametrize("place", ["checkout", "colab", "elsewhere", "installed"])
def test_the_first_cell_finds_the_library_or_says_how_to_get_it(path, place, monkeypatch, tmp_path):
    """From the checkout that the file lies in, else from the package index; no address that may not exist."""
    import importlib.util
    import sys

    installed, there = [], place == "installed"
    source = code(nbformat.read(path, as_version=4))[0].replace('%pip install -q "{what}"', "pip(what)")
    assert "%" not in source and "http" not in source
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: object() if there or (installed and place != "colab") else None,
    )
    monkeypatch.chdir(path.parent if place == "checkout" else tmp_path)
    if place == "colab":
        monkeypatch.setitem(sys.modules, "google.colab", object())
    if place in ("checkout", "installed"):
        exec(source, {"pip": installed.append})
        assert installed == ([f"{ROOT}[notebooks]"] if place == "checkout" else [])
    else:  # the package index has none, or nothing may be installed unasked
        with pytest.raises(ModuleNotFoundError, match=r'pip install -e "\.\[notebooks\]" in it'):
            exec(source, {"pip": installed.append})
        assert installed == (["jaxsampler[notebooks]"] if place == "colab" else [])


def test_there_are_notebooks():
    assert NOTEBOOKS
