"""The losses of a training as a figure."""

import csv
import io
from pathlib import Path

from ..files import write


def losses(log: str | Path) -> Path:
    """Draws the `log.csv` of `fit` beside it, as loss.png: each mean over `log_every` steps, both axes logarithmic."""
    from matplotlib.figure import Figure

    log = Path(log)
    with log.open() as file:
        rows = list(csv.DictReader(file))
    steps, values = [int(r["step"]) for r in rows], [float(r["loss"]) for r in rows]
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.loglog(steps, values, lw=1.2)
    axes.set(xlabel="step", ylabel="loss", title=log.parent.name)
    axes.grid(True, which="both", lw=0.3)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=150)
    write(log.with_name("loss.png"), data.getvalue())
    return log.with_name("loss.png")
