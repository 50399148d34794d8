"""The report of a search, the end of `jaxsampler search`: Markdown, a figure, and the tables found."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ... import config
from ...files import claimed, write
from .. import configs
from ..bench.problems import problem
from ..bench.report import png
from .command import Result, search
from .settings import HANDMADE, HANDMADE_FRECHET, TRANSFERRED, Search


def main(file: str | Path, out: Path, data: Path | None = None, progress: bool = True) -> str:
    """Run the search of a config and return its report as Markdown.

    `out` gets PROBLEM_CALLS.safetensors, the best table found for each number of calls, PROBLEM.md and
    PROBLEM.png. All tables, results and states lie in the folder out/PROBLEM.
    """
    c = config.load(configs.find(file, "search"), Search)
    folder = out / c.problem
    with claimed(folder):  # fails now, not after minutes of work, if it cannot be written to
        results = search(c, problem(c.problem, data=data), folder, progress)
    for best in winners(results):
        write(out / f"{c.problem}_{best.calls}.safetensors", (folder / best.file).read_bytes())
    text = "\n".join(form(results) for form in (summary, ratios, markdown))
    write(out / f"{c.problem}.md", text.encode())
    write(out / f"{c.problem}.png", png(figure(results)))
    return text


def winners(results: Sequence[Result]) -> list[Result]:
    """Return the result of each number of calls that is best on the noises that choose.

    Only tables found for this problem count, not hand-made or transferred ones.
    """
    made = [r for r in results if not r.method.startswith((HANDMADE, TRANSFERRED))]
    return [
        min((r for r in made if r.calls == k), key=lambda r: r.held_out)
        for k in dict.fromkeys(r.calls for r in made)
    ]


def markdown(results: Sequence[Result]) -> str:
    """Return a table with one row per number of calls and method."""
    frechet = any(r.frechet is not None for r in results)
    head = ["calls", "method", "sampler", "RMSE", "ratio to the best by hand (95%)", "without the worst 1%"]
    rows = []
    for r in results:
        row = [str(r.calls), r.method, r.what, f"{r.rmse:.4f}", _ratio(r), f"{r.trimmed:.2f}"]
        rows.append([*row, *([_distance(r)] if frechet else []), str(r.numbers or ""), f"{r.seconds:.0f}"])
    return _table([*head, *["Frechet distance (95%)"] * frechet, "numbers", "s"], rows)


def summary(results: Sequence[Result]) -> str:
    """Return a table with one row per number of calls: the best by hand and the best found."""
    known = {(r.calls, r.method): r for r in results}
    frechet = any(r.frechet is not None for r in results)
    head = ["calls", "best by hand", "RMSE", "found, from", "RMSE", "ratio (95%)", "without the worst 1%"]
    rows = []
    for r in sorted(winners(results), key=lambda r: r.calls):
        hand = known[r.calls, HANDMADE]
        row = [str(r.calls), hand.what, f"{hand.rmse:.3f}", r.what.removeprefix("from "), f"{r.rmse:.3f}"]
        row += [_ratio(r), f"{r.trimmed:.2f}"]
        rows.append([*row, *(map(_distance, (hand, known[r.calls, HANDMADE_FRECHET], r)) if frechet else ())])
    return _table([*head, *["Frechet distance: best by hand", "best by hand in it", "found"] * frechet], rows)


def ratios(results: Sequence[Result]) -> str:
    """Return a table of RMSE ratios to the best by hand: a row per method, a column per number of calls."""
    known, calls = {(r.method, r.calls): r for r in results}, sorted({r.calls for r in results})
    methods = dict.fromkeys(r.method for r in results if not r.method.startswith(HANDMADE))
    cell = lambda r: "" if r is None else _ratio(r)
    rows = [[m, *(cell(known.get((m, k))) for k in calls)] for m in methods]
    return _table(["found by", *(f"{k} calls" for k in calls)], rows)


def _ratio(r: Result) -> str:
    return f"{r.ratio:.2f} ({r.low:.2f}-{r.high:.2f})"


def _distance(r: Result) -> str:
    return "" if r.frechet is None else f"{r.frechet:.2g} ({r.frechet_low:.2g}-{r.frechet_high:.2g})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def figure(results: Sequence[Result]) -> Any:
    """Return the figure of RMSE against calls, one line per method."""
    import matplotlib.pyplot as plt

    fig, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for method in dict.fromkeys(r.method for r in results):
        line = [r for r in results if r.method == method]
        style = {"color": "black", "lw": 2} if method == HANDMADE else {"lw": 1.2}
        axis.semilogy([r.calls for r in line], [r.rmse for r in line], "o-", ms=4, label=method, **style)
    calls = sorted({r.calls for r in results})
    axis.set(xlabel="network calls", ylabel="RMSE to the converged solution")
    axis.set(title=results[0].problem, xticks=calls)
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=8)
    return fig
