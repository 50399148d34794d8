"""A request to `jaxsampler sample` made definite: network, sampler, labels, and the settings of the run.

Every mistake in a request is found here, before anything is computed or written.
"""

import hashlib
import math
import shlex
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

import jaxsampler

from ... import checkpoint, pretrained, solvers
from ...data import fashion
from ...files import memory
from ...numerics import Grid
from ...paths import Denoiser, grids
from ...paths import base as paths
from ...pretrained import samplers
from ...scan import Solver
from ...spelling import nearest
from ...tables import Step, Table, tabulate
from ...training import generate

MODELS = ("fashion_edm", "fashion_flow")
# grids that may end at t = 0 themselves, and those whose last step goes there
TO_ZERO = {"uniform": grids.uniform, "quadratic": grids.quadratic, "cosine": grids.cosine}
BEFORE_ZERO = {"karras": grids.karras, "log_snr": grids.log_snr, "polyexponential": grids.polyexponential}
MOST_STEPS = 10_000  # the table of more takes longer to make than a user waits for
GRIDS = (*TO_ZERO, *BEFORE_ZERO)


@dataclass(frozen=True)
class Plan:
    """`n` images of `shape` by `solver`, `batch` at a time. Image i has the key fold_in(key(seed), i).

    Args:
        solver: a table, or a solver with its times `grid`.
        label: the class of all images; None: that of image i is i modulo the number of classes.
        guidance: the weight of `guidance.classifier_free`; 1 is the class's own prediction.
        settings: all that determines the bits, as JSON.
        command: the command line that asks for the same.
    """

    denoiser: Denoiser
    solver: Table | Solver
    grid: tuple[float, ...] | None
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    label: int | None
    guidance: float
    seed: int
    n: int
    batch: int
    settings: dict[str, Any]
    command: str

    def labels(self, numbers: Int[np.ndarray, " k"]) -> Int[np.ndarray, " k"]:
        """The classes of these images."""
        in_turn = numbers % len(self.classes)
        return (in_turn if self.label is None else np.full(len(numbers), self.label)).astype(np.int32)


def plan(
    *,
    model: str | None = None,
    weights: Path | None = None,
    n: int = 64,
    label: str | None = None,
    solver: str = "dpmpp_2m",
    order: int | None = None,
    steps: int | None = None,
    grid: str | None = None,
    guidance: float = 1.0,
    seed: int = 0,
    batch: int = 100,
) -> Plan:
    """Make the plan of the command's options (`label` is --class); ValueError if something does not fit."""
    for name, value in (("--n", n), ("--batch", batch)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"--seed must lie between 0 and 2^32 - 1, got {seed}")
    if not math.isfinite(guidance):
        raise ValueError(f"--guidance must be a number, got {guidance}; 1 is no guidance")
    name, file, card = network(model, weights)
    denoiser, classes = pretrained.load(name, path=file), generate.classes(card)
    number = None if label is None else fashion.label(label, classes)
    affordable(n, min(batch, n), generate.shape(card), card["widths"][0])
    if guidance == 0 and label is not None:
        fix = f"leave --class {label} out, or give 1 for the class without guidance"
        raise ValueError(f"--guidance 0 samples any class: {fix}")
    learned = solver == samplers.LEARNED
    saved = str(samplers.shipped(name, steps)) if learned else solver
    own = None if learned else steps
    sampler, times = samplers.option(saved, denoiser.path, steps=own, grid=grid, order=order), None
    if sampler is not None:
        steps = sampler.nfe if learned else None
        about = {"table": Table.about(saved), "sha256 of table": checksum(Path(saved))}
    else:
        steps = 10 if steps is None else steps
        every = times_of(denoiser.path, grid, steps)
        sampler, times = tabulated(solver, order, denoiser.path, every)
        about = {
            "solver": solver,
            "order": order,
            "steps": steps,
            "grid": grid or "default",
            "times": [float(t) for t in every],
        }
    label, batch = None if number is None else classes[number], min(batch, n)
    asked = dict(
        model=None if weights else name,
        weights=weights,
        n=n,
        solver=solver,
        order=order,
        steps=steps,
        grid=grid,
    )
    asked |= {"class": label, "guidance": guidance, "seed": seed, "batch": batch}
    return Plan(
        denoiser,
        sampler,
        times,
        generate.shape(card),
        classes,
        number,
        guidance,
        seed,
        n,
        batch,
        {
            "model": name,
            "sha256 of weights": checksum(file),
            "sha256 of card": checksum(file.with_suffix(".json")),
            "class": "any" if guidance == 0 else label or "all in turn",
            **about,
            "guidance": guidance,
            "network calls per image": sampler.nfe * (1 if guidance in (0, 1) else 2)
            if isinstance(sampler, Table)
            else None,
            "seed": seed,
            "noise of image i": "jax.random.fold_in(jax.random.key(seed), i)",
            "n": n,
            "batch": batch,
            "versions": {"jaxsampler": jaxsampler.__version__}
            | {name: version(name) for name in ("jax", "jaxlib", "numpy", "equinox")},
            "device": jax.devices()[0].device_kind,
        },
        " ".join(
            [
                "jaxsampler sample",
                *(f"--{k} {shlex.quote(str(v))}" for k, v in asked.items() if v is not None),
            ]
        ),
    )


def affordable(n: int, batch: int, shape: tuple[int, int, int], width: int) -> None:
    """Raise a ValueError if the images, or a batch with its first layer, do not fit into the memory."""
    height, across, channels = shape
    largest = memory() // (height * across * channels * 4)  # bytes, joined and packed
    if n > min(largest, 2**31 - 1):
        raise ValueError(f"--n {n} images of {across}x{height} are too many at once: at most {largest} fit")
    at_once = memory() // (height * across * width * 4)
    if batch > at_once:
        fix = f"give --batch {at_once}" if at_once else "they are too large"
        raise ValueError(
            f"a batch of {batch} images of {across}x{height} does not fit into the memory: {fix}"
        )


def network(model: str | None, weights: Path | None) -> tuple[str, Path, dict[str, Any]]:
    """Return (name, file, card) of the weights to use; the card beside the weights names the model."""
    if model is not None and model not in MODELS:
        raise ValueError(f"unknown model {model!r}; {nearest(model, MODELS)}")
    if weights is None:
        model = model or MODELS[0]
        weights = Path(pretrained.__file__).with_name(f"{model}.safetensors")
    card = checkpoint.read_card(weights)
    name = f"fashion_{card.get('model')}"
    if name not in MODELS:
        raise ValueError(f"{weights.with_suffix('.json')} is not the card of a network that generates images")
    if model is not None and model != name:
        raise ValueError(f"{weights} holds weights of {name!r}, not {model!r}: leave --model out")
    return name, weights, card


def times_of(path: paths.Path, name: str | None, steps: int) -> Grid:
    """The grid called `name`, with `steps` intervals from t_max to t = 0; None: the path's default."""
    if not 1 <= steps <= MOST_STEPS:
        limit = "at least 1" if steps < 1 else f"at most {MOST_STEPS}"
        raise ValueError(f"--steps must be {limit}, got {steps}")
    if name is None:
        return grids.default(path, steps)
    if name not in GRIDS:
        raise ValueError(f"unknown grid {name!r}; {nearest(name, GRIDS)}")
    if name in TO_ZERO:
        return TO_ZERO[name](path, steps, t_min=0.0)
    try:
        if steps == 1:
            return np.array([path.t_max, 0.0])
        return grids.append_zero(BEFORE_ZERO[name](path, steps - 1))
    except ValueError:
        misfit = f"the grid {name!r} does not fit {path!r}, which has no signal at its start"
        raise ValueError(f"{misfit}; use {', '.join(TO_ZERO)}") from None


def tabulated(
    name: str, order: int | None, path: paths.Path, times: Grid
) -> tuple[Table | Solver, tuple[float, ...] | None]:
    """The solver called `name` as a table; a solver that is not a table with its times."""
    try:
        solver = solvers.by_name(name) if order is None else solvers.by_name(name, order=order)
    except TypeError as error:
        hint = "leave --order out" if order is not None else "the command line cannot give it, use js.sample"
        raise ValueError(f"{name}: {error}; {hint}") from None
    if isinstance(solver, Step):
        return tabulate(path, times, solver), None
    solver.rows(path, grids.checked(path, times))  # raises if something does not fit
    return solver, tuple(float(t) for t in times)


def checksum(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
