"""This checkout against an older one: `jaxsampler bench speed --against PATH`.

Two processes of the same Python, one for each checkout, run the cases of `speed_cases.py` in turns. The ratio
of a case is the median over the turns of older/newer CPU time: other load on the machine hits both sides of a
pair alike. Values are compared, so that nothing is fast by being wrong.
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ... import data
from . import speed_cases
from .timing import device

ROOT = Path(__file__).parents[3]
COMMAND = """
import sys
try:
    from jaxsampler.commands.cli import main
except ModuleNotFoundError:  # as it was called once
    from jaxsampler.cli import main
sys.exit(main(sys.argv[1:]))
"""
PHOTO = "photo.png"  # stands for the path of a small photo
PROCESSES = {  # what a new Python runs: (code, arguments, whether compiled programs may be there)
    "import jaxsampler": ("import jaxsampler", (), True),
    "import jax, equinox": ("import jax, equinox", (), True),
    "sample --n 64, nothing compiled": (COMMAND, ("sample", "--n", "64"), False),
    "sample --n 64, again": (COMMAND, ("sample", "--n", "64"), True),
    "restore, nothing compiled": (COMMAND, ("restore",), False),
    "restore, again": (COMMAND, ("restore",), True),
    "restore PHOTO, nothing compiled": (COMMAND, ("restore", PHOTO, "--task", "derain"), False),
    "restore PHOTO, again": (COMMAND, ("restore", PHOTO, "--task", "derain"), True),
}


PAIRS = {  # what the name of a case ends in that another one is compared with
    speed_cases.UNROLLED: "time in a loop/outside",
    speed_cases.BY_HAND: "time/that of a scan by hand",
    speed_cases.IN_JIT: "time/that in jit and of its table",
}


@dataclasses.dataclass
class Speed:
    """Seconds of CPU time, [older, newer] for each turn of a case."""

    device: str
    older: str
    seconds: dict[str, list[tuple[float, float]]]
    compiled: dict[str, tuple[int, int]]  # programs in the second call, older and newer
    differences: dict[str, float]  # of the values, relative to the largest


class _Checkout:
    """A process that runs the cases with the library of one checkout."""

    def __init__(self, root: Path):
        self.root, self.env = root, os.environ | {"PYTHONPATH": str(root)}
        command = [sys.executable, speed_cases.__file__]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=self.env, cwd=root, **pipes)
        self.names = self._answer()

    def _answer(self) -> Any:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            raise ValueError(f"the checkout {self.root} cannot run the cases (its own message is above)")
        return json.loads(line)

    def call(self, name: str) -> dict[str, Any]:
        """One call of a case."""
        assert self.process.stdin
        self.process.stdin.write(f"{name}\n")
        self.process.stdin.flush()
        return self._answer()

    def run(self, name: str, scratch: Path) -> float:
        """Seconds of CPU time of a Python of its own; its bytecode is compiled before."""
        code, arguments, warm = PROCESSES[name]
        result = "out.png" if PHOTO in arguments else "out"
        arguments = [str(_photo(scratch)) if part == PHOTO else part for part in arguments]
        home = scratch / self.root.name
        if not warm:
            shutil.rmtree(home / "cache", ignore_errors=True)
        env = {k: v for k, v in self.env.items() if not k.startswith("JAX_")}
        env |= {"XDG_CACHE_HOME": str(home / "cache"), "PYTHONPYCACHEPREFIX": str(home / "bytecode")}
        env["PYTHONDONTWRITEBYTECODE"] = ""
        with tempfile.TemporaryDirectory() as out:
            where = ("--out", str(Path(out) / result)) if arguments else ()
            command = [sys.executable, "-c", code, *arguments, *where]
            before = os.times()
            subprocess.run(command, env=env, cwd=self.root, check=True, capture_output=True)
            after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    def close(self) -> None:
        if self.process.stdin:
            self.process.stdin.close()
        self.process.wait()


def _photo(folder: Path) -> Path:
    """A photo of 256 x 192 pixels in this folder."""
    if not (file := folder / PHOTO).exists():
        pixels = data.held_out_photos()[0].image[:192, :256]
        data.save_image(file, pixels, data.Form())
    return file


def measure(against: Path, rounds: int = 5, only: str = "") -> Speed:
    """Time the cases whose names begin with `only`.

    Raises:
        ValueError: there is no checkout of the library at `against`, or it cannot run a case.
    """
    if not (against / "jaxsampler" / "__init__.py").exists():
        raise ValueError(f"{against} is no checkout of jaxsampler: give the folder that holds jaxsampler/")
    both = [_Checkout(root.resolve()) for root in (against, ROOT)]
    names = [n for n in both[1].names if n in both[0].names and n.startswith(only)]
    seconds, compiled, differences = {}, {}, {}
    try:
        for name in names:
            heads = [np.asarray(c.call(name)["head"]) for c in both]
            scale = max(np.abs(heads[0]).max(), 1e-12)
            differences[name] = float(np.abs(heads[0] - heads[1]).max() / scale)
            second = [c.call(name) for c in both]
            compiled[name] = (second[0]["compiled"], second[1]["compiled"])
            turns = [[c.call(name)["cpu"] for c in both] for _ in range(rounds)]
            seconds[name] = [(a, b) for a, b in turns]
            print(f"{name}: {_ratio(seconds[name]):.1f}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            for name in (name for name in PROCESSES if name.startswith(only)):
                turns = [[c.run(name, Path(scratch)) for c in both] for _ in range(rounds + 1)]
                seconds[name] = [(a, b) for a, b in turns[1:]]
                print(f"{name}: {_ratio(seconds[name]):.1f}", file=sys.stderr, flush=True)
    finally:
        for c in both:
            c.close()
    return Speed(device(), _commit(against), seconds, compiled, differences)


def _commit(root: Path) -> str:
    """The commit of a checkout, or its folder's name."""
    try:
        command = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return root.name


def _ratio(turns: list[tuple[float, float]]) -> float:
    return float(np.median([a / b for a, b in turns]))


def markdown(result: Speed) -> str:
    """Format the table."""
    lines = [
        f"{result.device}; commit {result.older} against this one, CPU milliseconds, medians of turns",
        "",
        "| case | older | newer | older/newer | compiled by a second call, older | newer |",
        "|---|---|---|---|---|---|",
    ]
    for name, turns in result.seconds.items():
        old, new = 1e3 * np.median(turns, axis=0)
        compiled = result.compiled.get(name, ("", ""))
        lines.append(
            f"| {name} | {old:.3g} | {new:.3g} | {_ratio(turns):.2g} | {compiled[0]} | {compiled[1]} |"
        )
    for n in (300, 1000):
        tabulated = [_ratio(t) for name, t in result.seconds.items() if name.startswith(f"tabulate {n},")]
        if tabulated:
            lines.append("")
            lines.append(
                f"`tabulate`, {n} steps, {len(tabulated)} solvers, without its cache: older/newer median "
                f"{np.median(tabulated):.1f}, least {min(tabulated):.1f}."
            )
    for suffix, what in PAIRS.items():
        for name in (n for n in result.seconds if n + suffix in result.seconds):
            pairs = zip(result.seconds[name], result.seconds[name + suffix], strict=True)
            sides = np.median([np.divide(one, other) for one, other in pairs], axis=0)
            lines += ["", f"{name}: {what} {sides[1]:.2f} (older {sides[0]:.2f})."]
    worst = max(result.differences.items(), key=lambda item: item[1], default=("nothing", 0.0))
    lines += ["", f"Largest relative difference of values: {worst[1]:.1e} ({worst[0]})."]
    return "\n".join(lines) + "\n"


def figure(result: Speed) -> Any:
    """Plot the ratios."""
    import matplotlib.pyplot as plt

    items = [(name, _ratio(turns)) for name, turns in result.seconds.items()][::-1]
    fig, ax = plt.subplots(figsize=(7, 0.2 * len(items) + 1), layout="constrained")
    ax.scatter([ratio for _, ratio in items], range(len(items)), s=20, zorder=3)
    ax.axvline(1.0, color="0.3", lw=1)
    ax.set_xscale("log")
    ax.set_yticks(range(len(items)), [name for name, _ in items], fontsize=7)
    ax.set_xlabel(f"CPU time of {result.older}/CPU time of this checkout")
    ax.grid(axis="x", alpha=0.3)
    return fig
