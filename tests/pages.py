"""Markdown pages of the repository: their code blocks, what lies between their markers, and their links."""

import re
from pathlib import Path

from places import ROOT

README = ROOT / "README.md"
GUIDES = sorted((ROOT / "notebooks" / "guides").glob("*.md"))
MEASURED = sorted((ROOT / "configs").rglob("*.md"))


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """(first line number, text) of each fenced block."""
    text = page.read_text()
    fences = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text[: m.start(2)].count("\n"), m[2]) for m in fences if m[1] == language]


def execute(page: Path, **names: object) -> dict:
    """All Python blocks in order, as one program; line numbers in tracebacks are the page's."""
    names = {"__name__": page.stem, **names}
    for line, code in blocks(page, "python"):
        exec(compile("\n" * line + code, str(page), "exec"), names)
    return names


def inside(page: Path, marker: str) -> str:
    """What lies between <!-- marker --> and <!-- /marker -->."""
    return page.read_text().split(f"<!-- {marker} -->\n")[1].split(f"<!-- /{marker} -->")[0]


def rows(page: Path, marker: str) -> list[list[str]]:
    """The cells of all tables between the markers, heads and rules too."""
    lines = inside(page, marker).splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]


def anchors(page: Path) -> set[str]:
    """Names of its headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
