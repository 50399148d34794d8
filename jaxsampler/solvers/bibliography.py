"""The publications behind the solvers, as BibTeX: `jaxsampler solvers --bibtex`.

`references.bib` beside this file has one entry for each publication that a docstring cites. Its key follows
from the citation: [Lu et al. 2022a, alg. 1] is lu2022a. A citation names one author, two, or the first of
more (`et al.`); an entry whose authors are others is another publication.
"""

import re
from collections.abc import Iterable
from pathlib import Path

REFERENCES = Path(__file__).with_name("references.bib")
CITATION = re.compile(r"([A-Z][\w'-]*)( et al\.| & [A-Z][\w'-]*)? (\d{4}[a-z]?)")


def publications() -> dict[str, str]:
    """The entries of references.bib by their keys."""
    entries = re.split(r"\n(?=@)", REFERENCES.read_text(encoding="utf-8"))
    return {entry[entry.index("{") + 1 : entry.index(",")]: entry.strip() for entry in entries}


def cited(reference: str) -> list[str]:
    """The keys of the publications that a reference names."""
    return [(author + year).lower() for author, _, year in CITATION.findall(reference)]


def found(reference: str) -> list[str]:
    """The keys of those that references.bib holds, by the same authors."""
    known = publications()
    named = {(author + year).lower(): others for author, others, year in CITATION.findall(reference)}
    return [key for key, others in named.items() if key in known and _by(known[key], others)]


def _by(entry: str, others: str) -> bool:
    """Whether an entry has no, one, or more authors beside its first, as a citation says."""
    authors = re.findall(r"author = \{(.*)\}", entry)[0].split(" and ")[1:]
    if others.startswith(" &"):
        return [a.split(",")[0] for a in authors] == [others.removeprefix(" & ")]
    return len(authors) > 1 if others else not authors


def bibtex(references: Iterable[tuple[str, str]]) -> str:
    """The entries behind (solver, reference), each once, under a comment that names its solvers.

    A reference without an entry, of a solver of your own say, is a comment at the end.
    """
    known, solvers, others = publications(), {}, []
    for solver, reference in references:
        keys = found(reference)
        others += [] if keys else [f"% {solver}: {reference or 'no reference'}"]
        for key in keys:
            solvers.setdefault(key, []).append(solver)
    entries = [f"% {', '.join(names)}\n{known[key]}\n" for key, names in sorted(solvers.items())]
    return "\n".join(entries + others)
