"""`jaxsampler solvers --bibtex`: every solver has its publication, every publication its solver, each
once.
"""

import re

from places import ROOT

from jaxsampler.commands import cli
from jaxsampler.solvers import bibliography, listing


def test_every_solver_has_its_publication():
    """A solver that the guide's table does not list yet may cite what references.bib does not hold."""
    known = bibliography.publications()
    listed = (ROOT / "notebooks" / "guides" / "solvers.md").read_text()
    used = set()
    for entry in listing.entries():
        used |= set(bibliography.found(entry.reference))
        if f"| `{entry.name}` |" not in listed:
            continue
        keys = bibliography.cited(entry.reference)
        assert keys, f"{entry.name} cites {entry.reference!r}, which names no publication"
        for key in keys:
            assert key in known, f"{entry.name} cites {key}: add it to references.bib"
    assert used == set(known), "references.bib holds what no solver cites"


def test_entries_are_complete():
    for key, text in bibliography.publications().items():
        assert text.count("{") == text.count("}"), key
        fields = dict(re.findall(r"^  (\w+) = \{(.*)\},$", text, re.MULTILINE))
        assert {"author", "title", "year"} <= set(fields), key
        assert fields["year"] in key, key
        assert fields["author"].split(",")[0].lower() == re.match(r"[a-z]+", key)[0]


def test_the_command_prints_each_entry_once(capsys):
    assert cli.main(["solvers", "--bibtex"]) == 0
    printed = capsys.readouterr().out
    keys = re.findall(r"^@\w+\{(\w+),$", printed, re.MULTILINE)
    assert sorted(keys) == sorted(bibliography.publications())
    assert "% unipc\n@inproceedings{zhao2023," in printed


def test_a_namesake_is_not_credited():
    """The authors count, not only the first one's name and the year."""
    known = bibliography.publications()
    assert "Zhang, Qinsheng and Chen" in known["zhang2023"]
    assert bibliography.found("Zhang & Chen 2023, eq. 15") == ["zhang2023"]
    for other in ("Zhang et al. 2023, alg. 1", "Zhang 2023", "Zhang & Li 2023"):
        assert bibliography.found(other) == []
        assert bibliography.bibtex([("mine", other)]) == f"% mine: {other}"
    listed = (ROOT / "notebooks" / "guides" / "solvers.md").read_text()
    for entry in listing.entries():
        if f"| `{entry.name}` |" in listed:
            assert bibliography.found(entry.reference) == bibliography.cited(entry.reference), entry.name


def test_an_unknown_reference_is_said():
    assert bibliography.bibtex([("mine", "Me 2031")]) == "% mine: Me 2031"
