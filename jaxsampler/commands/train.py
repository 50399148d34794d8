"""`jaxsampler train CONFIG`: the config's `task` says what is trained; the rest of the file is that task's."""

from pathlib import Path

from .. import config
from ..spelling import nearest

TASKS = ("restore", "generate", "classify")


def main(file: str, out: str | None = None, data: str | None = None) -> Path:
    """Trains what the config says; returns the weights written, `out` or the config's name with .safetensors in the working folder.

    `data` overrides the config's folder of data. An interrupted run is continued from the folder beside the weights, where the log of
    losses and, at the end, its plot lie.
    """
    values = config.read(file)
    task = values.pop("task", "restore")
    if task not in TASKS:
        raise ValueError(f"config {file}: unknown task {task!r}; {nearest(str(task), TASKS)}")
    target = Path(out or f"{Path(file).stem}.safetensors")
    from ..training import classify, generate, restore
    from . import train_plot as plot

    module, cls = {
        "restore": (restore, restore.Restore),
        "generate": (generate, generate.Generate),
        "classify": (classify, classify.Classify),
    }[task]
    if data is not None:
        if task == "restore":
            raise ValueError(
                "--data is for the Fashion-MNIST trainings; the photos of a restoration are named in its config (photos)"
            )
        values["data"] = data
    try:
        c = config.build(values, cls)
    except ValueError as e:
        raise ValueError(f"config {file}: {e}") from None
    module.main(c, target)
    plot.losses(target.with_suffix("") / "log.csv")
    return target
