"""The guides: each page is one program that runs and asserts what it says, and no link leads nowhere."""

import re

import pytest
from pages import GUIDES, MEASURED, README, anchors, blocks, execute, inside

from jaxsampler.solvers.listing import markdown


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in GUIDES if blocks(p, "python")], ids=lambda p: p.stem)
def test_code_runs(page):
    """Slow because each page compiles several samplers; the blocks assert what they claim."""
    execute(page)


@pytest.mark.parametrize("page", GUIDES, ids=lambda p: p.stem)
def test_code_asserts(page):
    code = "".join(text for _, text in blocks(page, "python"))
    assert not code or "assert" in code


def test_the_table_of_solvers_is_true():
    """Each row is what `jaxsampler solvers` prints; a new solver may be missing until it is printed again."""
    page = next(p for p in GUIDES if p.stem == "solvers")
    head, printed = markdown().splitlines()[:2], markdown().splitlines()[2:]
    shown = inside(page, "solvers").splitlines()
    assert shown[:2] == head
    assert [row for row in printed if row in shown[2:]] == shown[2:], (
        "write the output of `jaxsampler solvers` between the markers"
    )
    assert len(shown[2:]) >= 44, "a solver is missing"


@pytest.mark.parametrize("page", [README, *GUIDES, *MEASURED], ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_links(page):
    """Files are there, and so are the headings that a link names."""
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        file, _, heading = target.partition("#")
        there = page.parent / file if file else page
        assert there.exists(), f"{page.name} points at {target}"
        assert not heading or heading in anchors(there), f"{page.name} points at {target}"


def test_every_page_is_linked_from_the_readme():
    """A guide that nobody finds is no guide; measured pages are reached from the README or from a guide."""
    text = {page: page.read_text() for page in (README, *GUIDES)}
    for page in GUIDES:
        assert f"(notebooks/guides/{page.name}" in text[README], page
    for page in MEASURED:
        name = f"configs/{page.parent.name}/{page.name}"
        assert any(f"{name})" in t for t in text.values()), page
