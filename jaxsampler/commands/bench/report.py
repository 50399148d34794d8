"""Write a benchmark's table, raw numbers and figure into a folder, each whole or not at all."""

import dataclasses
import io
import json
from pathlib import Path
from types import ModuleType
from typing import Any

from matplotlib.figure import Figure

from ...files import claimed
from ...files import write as write_file
from . import gradients, inversion, likelihood, overhead, precision, speed


def benchmarks() -> dict[str, ModuleType]:
    """Modules with measure(..) -> a dataclass, markdown(result) and figure(result)."""
    return {
        "gradients": gradients,
        "inversion": inversion,
        "likelihood": likelihood,
        "overhead": overhead,
        "precision": precision,
        "speed": speed,
    }


def write(what: str, out: Path, rounds: int, against: Path | None = None) -> str:
    """Measure `what`, write WHAT.md, WHAT.json and WHAT.png into `out`, and return the Markdown."""
    module: Any = benchmarks()[what]
    given: dict[str, Any] = {"rounds": rounds} if what in ("gradients", "overhead", "speed") else {}
    if what == "speed":
        if against is None:
            raise ValueError(
                "missing --against: bench speed compares with an older checkout, give its folder"
            )
        given["against"] = against
    with claimed(out, what):  # before minutes of work
        result = module.measure(**given)
    text = module.markdown(result)
    write_file(out / f"{what}.json", json.dumps(dataclasses.asdict(result), indent=1).encode())
    write_file(out / f"{what}.md", text.encode())
    write_file(out / f"{what}.png", png(module.figure(result)))
    return text


def png(figure: Figure) -> bytes:
    """The bytes of a PNG file of a matplotlib figure."""
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    plt.close(figure)
    return buffer.getvalue()
