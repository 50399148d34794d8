"""`jaxsampler train CONFIG`: the config's `task` says what is trained, the rest of the file is for it."""

import csv
import io
from dataclasses import fields
from pathlib import Path

from .. import config, processes
from ..files import write
from ..spelling import nearest
from ..training import classify, generate, restore
from ..training.task import Task
from . import configs

TASKS: dict[str, Task] = {"restore": restore.TASK, "generate": generate.TASK, "classify": classify.TASK}


def main(file: str, out: str | None = None, data: str | None = None) -> Path:
    """Train as the config says; an interrupted training goes on from the folder beside its weights.

    The folder also holds the log of the losses and, at the end, its plot.

    Args:
        out: the weights to write; by default the config's name with .safetensors, in the working folder.
        data: overrides the config's folder of data.
    """
    values = config.read(configs.find(file, "train"))
    name = values.pop("task", "restore")
    if not isinstance(name, str) or name not in TASKS:
        raise ValueError(f"config {file}: unknown task {name!r}; {nearest(str(name), TASKS)}")
    task, target = TASKS[name], Path(out or f"{Path(file).stem}.safetensors")
    if target.suffix != ".safetensors":
        raise ValueError(f"--out {target} names no weights: end it with .safetensors")
    if target.is_dir():
        raise ValueError(f"--out {target} is a folder: name a file in it")
    if data is not None:
        if "data" not in {f.name for f in fields(task.config)}:
            named = f"the data of task {name!r} are named in its config"
            raise ValueError(f"--data is for Fashion-MNIST, {named}: leave it out")
        values["data"] = data
    try:
        c = config.build(values, task.config)
    except ValueError as e:
        raise ValueError(f"config {file}: {e}") from None
    processes.agree({key: repr(value) for key, value in values.items()})
    task.train(c, target)
    if processes.number() == 0:
        plot(target.with_suffix("") / "log.csv")
    return target


def plot(log: Path) -> Path:
    """Draw the `log.csv` of a training as loss.png beside it, both axes logarithmic."""
    from matplotlib.figure import Figure

    with log.open() as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.loglog([int(r["step"]) for r in rows], [float(r["loss"]) for r in rows], lw=1.2)
    axes.set(xlabel="iteration", ylabel="loss", title=log.parent.name)
    axes.grid(True, which="both", lw=0.3)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=150)
    write(log.with_name("loss.png"), data.getvalue())
    return log.with_name("loss.png")
