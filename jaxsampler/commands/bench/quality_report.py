"""The cells of `quality` as a table, a figure and files: the end of `jaxsampler bench quality`."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ... import config
from ...files import claimed, write
from .. import configs
from .cells import Cell
from .problems import problem
from .quality import Quality, learned, measure
from .report import png

SHOWN = (5, 10, 20)  # calls in the table
TITLES = {
    "mixture": "mixture of 8 Gaussians, 64 dimensions, VP",
    "empirical": "2,000 photos, exact, EDM",
    "smoothed": "2,000 blurred photos, exact, EDM",
    "fashion_edm": "our network `fashion_edm`, EDM",
    "fashion_flow": "our network `fashion_flow`, CondOT",
}
COLOURS = {  # solvers that stand out; the others are grey
    "ddim": "black",
    "dpmpp_2m": "tab:blue",
    "unipc order=2": "tab:orange",
    "unipc order=3": "tab:red",
    "deis order=3": "tab:green",
    "ipndm": "tab:olive",
    "dpm_v3 order=2": "tab:purple",
    "edm": "tab:brown",
    "euler_ancestral": "tab:cyan",
    "dpmpp_2m_sde": "tab:pink",
}


def main(file: Path | None, out: Path, data: Path | None, weights: Path | None) -> str:
    """Measure as the config says (None: `Quality()`); write .csv, .md and .png; return the Markdown."""
    c = Quality() if file is None else config.load(configs.find(file, "bench"), Quality)
    for entry in c.tables:  # fail before minutes of work if a table cannot be read or the folder not made
        learned(entry)
    with claimed(out, "quality"):
        cells = measure(c, out / "quality.csv", partial(problem, data=data, weights=weights))
    text = markdown(cells)
    write(out / "quality.md", text.encode())
    write(out / "quality.png", png(figure(cells)))
    return text


def markdown(cells: Sequence[Cell]) -> str:
    """Format a table per problem: RMSE and Frechet distance ± half their 95% intervals, the least in bold."""
    return "\n".join(
        _table([cell for cell in cells if cell.problem == name])
        for name in dict.fromkeys(cell.problem for cell in cells)
    )


def _table(cells: list[Cell]) -> str:
    real, converged, *measured = sorted(
        cells, key=lambda cell: (cell.solver != "real", cell.solver != "converged")
    )
    every, names = (
        list(dict.fromkeys(getattr(cell, key) for cell in measured)) for key in ("calls", "solver")
    )
    calls = [k for k in every if k in SHOWN] or every[:3]
    at = {(cell.solver, cell.calls): cell for cell in measured}
    columns = [(what, k) for what in ("rmse", "frechet") for k in calls]
    best = {
        (what, k): np.nanmin(
            [math.nan if (name, k) not in at else getattr(at[name, k], what) for name in names]
        )
        for what, k in columns
    }
    features = "the states" if real.problem == "mixture" else "Fashion-MNIST classifier features"
    head = [*(f"RMSE, {k} calls" for k in calls), *(f"Frechet, {k} calls" for k in calls)]
    pace = float(np.median([cell.seconds / cell.calls for cell in measured]))
    lines = [
        f"**{real.problem}**: {TITLES[real.problem]}. {real.samples:,} samples, "
        f"{_time(pace)} for each and call.",
        f"Frechet distance in {features} to {real.real:,} test samples:",
        f"{_number(real, 'frechet')} for as many real ones, "
        f"{_number(converged, 'frechet')} for the converged solution.",
        "",
        f"| solver | {' | '.join(head)} |",
        "|---" * (len(head) + 1) + "|",
    ]
    for name in sorted(names, key=lambda name: _rank([cell for cell in measured if cell.solver == name])):
        row = []
        for what, k in columns:
            cell = at.get((name, k))
            text = "" if cell is None else _number(cell, what)
            row.append(f"**{text}**" if cell is not None and getattr(cell, what) == best[what, k] else text)
            if cell is not None and cell.rows != k and text:
                row[-1] += f" ({cell.rows} calls)"
        if any(row):
            lines.append(f"| `{label(name)}` | {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def _time(seconds: float) -> str:
    return f"{1e3 * seconds:.2g} ms" if seconds > 1e-4 else f"{1e6 * seconds:.2g} µs"


def _rank(cells: list[Cell]) -> tuple[bool, float]:
    """Deterministic solvers first, by RMSE at the middle of the shown calls; others by Frechet distance."""
    cell = min(cells, key=lambda cell: abs(cell.calls - SHOWN[len(SHOWN) // 2]))
    value = cell.frechet if cell.stochastic else cell.rmse
    return cell.stochastic, value if math.isfinite(value) else math.inf


def label(entry: str) -> str:
    """Write an entry of a config as in Python: "unipc order=3" is unipc(order=3)."""
    name, *options = entry.split()
    python = (option.replace("true", "True").replace("false", "False") for option in options)
    return f"{name}({', '.join(python)})" if options else name


def _number(cell: Cell, what: str) -> str:
    """Format value ± half the interval: empty if it does not apply, > 1000 if a solver went astray."""
    value, low, high = (getattr(cell, what + end) for end in ("", "_low", "_high"))
    if math.isnan(value):
        return "" if what == "rmse" and cell.stochastic else "not finite"
    if value >= 1000:
        return "> 1000"
    half = (high - low) / 2
    digits = min(4, max(0, 1 - math.floor(math.log10(half)))) if half > 0 else 1  # two of the interval's
    return f"{value:.{digits}f} ± {half:.{digits}f}"


def figure(cells: Sequence[Cell]) -> Any:
    """Plot RMSE and Frechet distance against calls, a column per problem.

    Bands are intervals; broken lines are the floor and the converged solution.
    """
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(cell.problem for cell in cells))
    fig, axes = plt.subplots(
        2,
        len(names),
        figsize=(3.6 * len(names) + 2.2, 7.2),
        layout="constrained",
        squeeze=False,
        sharex="col",
    )
    for column, name in enumerate(names):
        mine = [cell for cell in cells if cell.problem == name]
        for row, what in enumerate(("rmse", "frechet")):
            _panel(axes[row, column], mine, what)
        axes[0, column].set_title(name, fontsize=11)
        axes[1, column].set_xlabel("network calls")
    axes[0, 0].set_ylabel("RMSE to the converged solution")
    axes[1, 0].set_ylabel("Frechet distance to test data")
    seen = {
        text: handle
        for axis in axes.flat
        for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    fig.legend(seen.values(), seen.keys(), loc="outside right upper", fontsize=9, frameon=False)
    return fig


def _panel(axis: Axes, cells: list[Cell], what: str) -> None:
    """Plot one error of one problem; the axis is cut to the range of DDIM and DPM-Solver++(2M)."""
    lines: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.calls and cell.solver != "converged" and math.isfinite(getattr(cell, what)):
            lines.setdefault(cell.solver, []).append(cell)
    usual = [getattr(cell, what) for name in ("ddim", "dpmpp_2m") for cell in lines.get(name, [])]
    for name, points in sorted(lines.items(), key=lambda item: item[0] in COLOURS):
        x, y = [cell.rows for cell in points], [getattr(cell, what) for cell in points]
        colour = COLOURS.get(name, "tab:gray" if not name.endswith(".safetensors") else "magenta")
        stands_out = name in COLOURS
        style = "--" if points[0].stochastic else "-"
        lw, ms, text = (1.6, 3, label(name)) if stands_out else (0.7, 1.5, "others")
        axis.plot(x, y, style, color=colour, lw=lw, marker="o", ms=ms, label=text)
        if stands_out:
            low, high = (
                [max(getattr(cell, what + end), 1e-9) for cell in points] for end in ("_low", "_high")
            )
            axis.fill_between(x, low, high, color=colour, alpha=0.12, lw=0)
    if what == "frechet":
        for name, style in (("real", ":"), ("converged", "-.")):
            for cell in (cell for cell in cells if cell.solver == name):
                text = f"{name} ({'floor' if name == 'real' else 'the model'})"
                axis.axhline(cell.frechet, color="0.4", ls=style, lw=1.2, label=text)
    axis.set_xscale("log")
    axis.set_yscale("log")
    if usual:
        least = min(getattr(cell, what) for cell in cells if getattr(cell, what) > 0)
        axis.set_ylim(max(0.7 * least, min(usual) / 50), 2.5 * max(usual))
    ticks = sorted({cell.calls for points in lines.values() for cell in points})
    axis.set_xticks(ticks, [str(t) for t in ticks], fontsize=8)
    axis.minorticks_off()
    axis.grid(alpha=0.25)
