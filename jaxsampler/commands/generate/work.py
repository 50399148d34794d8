"""A plan carried out: batches are functions of the plan, kept as they finish; the results come last.

Image i depends on (seed, i) alone, because every image is sampled by itself (`vmap`) with its own key: other
images of the batch affect neither its noise nor, in solvers that look at norms, its steps. So the batch size
changes memory and rounding only. A batch is finished when its file is there, whole. A run that was killed
computes what is missing and writes the same bytes as one that was not. The JSON file comes last: if it is
there, everything is.

Several processes take the missing batches in turn and keep them in one folder, from which the first makes the
results; another number of processes may go on. A process spreads each batch over its devices.
"""

import hashlib
import io
import json
import math
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image
from tqdm import tqdm

from ... import processes
from ...files import from_json, seal, unsealed, write
from ...front_door import sample
from ...guidance import classifier_free
from ...numerics import Key
from ...paths import Denoiser
from ...scan import Direct, Solver
from ...solvers import Adaptive
from ...tables import Table
from ..compilations import waiting
from .plans import Plan

SHOWN = 100  # images in the PNG
SEEN, LARGEST = 800, 8  # pixels of a side of the PNG, for which a pixel of an image becomes up to 8 x 8
RESULTS = ("samples.npz", "samples.png")
LATE = 60  # seconds
FINAL, KEPT, BEGUN = "samples.json", ".samples", "settings.json"


@eqx.filter_jit
def draw(
    denoiser: Denoiser,
    solver: Table | Solver,
    key: Key,
    numbers: Int[Array, " k"],
    labels: Int[Array, " k"] | None,
    guidance: Float[Array, ""] | None,
    shape: tuple[int, int, int],
    grid: tuple[float, ...] | None,
) -> tuple[UInt8[Array, "k h w c"], Array]:
    """Sample the images of these numbers, in 256 levels of grey, and say which are good.

    Args:
        labels: None: any class.
        guidance: None: the plain prediction.
    """

    def one(number, label):
        d = denoiser if label is None else denoiser.bind(label=label)
        if guidance is not None:
            d = cast(Denoiser, classifier_free(cond=d, uncond=denoiser, w=guidance))
        like, own = jax.ShapeDtypeStruct(shape, jnp.float32), jax.random.fold_in(key, number)
        x = sample(
            d, like, key=own, solver=solver, grid=None if grid is None else np.array(grid), adjoint=Direct()
        )
        x, arrived = (x.x, x.reached) if isinstance(x, Adaptive) else (x, True)
        return x, jnp.isfinite(x).all() & arrived

    x, good = jax.vmap(one, in_axes=(0, None if labels is None else 0))(numbers, labels)
    grey = jnp.round(127.5 * (jnp.clip(jnp.nan_to_num(x), -1, 1) + 1)).astype(jnp.uint8)
    return grey, good


def over_devices(batch: int, *axes: str) -> NamedSharding | None:
    """How an array with these axes lies on this process's devices, of which each has a part of a batch; None:
    there is one, or they cannot have equal parts.
    """
    devices = jax.local_devices()
    if len(devices) == 1 or batch % len(devices):
        return None
    return NamedSharding(Mesh(np.array(devices), ("batch",)), PartitionSpec(*axes))


def laid_out(plan: Plan) -> Plan:
    """The plan with its network on every device that has a part of a batch."""
    everywhere = over_devices(plan.batch)
    if everywhere is None:
        return plan
    arrays, rest = eqx.partition(plan.denoiser, eqx.is_array)
    return replace(plan, denoiser=eqx.combine(jax.device_put(arrays, everywhere), rest))


def begin(plan: Plan, first: int) -> tuple[Array, Array]:
    """Start to sample the images from number `first` on; the last batch is computed at full length."""
    numbers, parts = np.arange(first, first + plan.batch, dtype=np.int32), over_devices(plan.batch, "batch")
    labels = None if plan.guidance == 0 else jax.device_put(plan.labels(numbers), parts)
    guidance = None if plan.guidance in (0, 1) else jnp.asarray(plan.guidance, jnp.float32)
    key, numbers = jax.random.key(np.uint32(plan.seed)), jax.device_put(numbers, parts)
    with waiting("the sampler"):
        return draw(plan.denoiser, plan.solver, key, numbers, labels, guidance, plan.shape, plan.grid)


def checked(plan: Plan, first: int, images: Array, good: Array) -> UInt8[np.ndarray, "k h w c"]:
    """Wait for a batch and cut it, on the host; ValueError if a solver failed."""
    left = min(plan.batch, plan.n - first)
    arrived = np.asarray(good)[:left]
    if not arrived.all():
        bad = first + int(np.argmin(arrived))
        raise ValueError(
            f"the solver diverges on image {bad}, or does not arrive: use more steps or another solver"
        )
    return np.asarray(images)[:left]


def run(plan: Plan, out: Path) -> Path:
    """Sample into the folder `out`: samples.png (the first hundred), .npz (images, labels) and .json.

    Goes on where a run with the same settings stopped. Returns the path of the PNG.

    Raises:
        ValueError: `out` holds something else.
        OSError: `out` cannot be written, or another process is at it.
    """
    processes.agree(plan.settings)
    with processes.claimed(out):
        if processes.number() == 0:
            return carry_out(plan, out)
        keep(plan, out / KEPT, processes.from_first(), {})  # the first says what is missing
        processes.gather()
        return out / RESULTS[1]


def carry_out(plan: Plan, out: Path) -> Path:
    """`run`, in a folder that is this process's, and of those that it leads."""
    kept, final = out / KEPT, out / FINAL
    begun = kept / BEGUN
    if finished(plan, out):
        processes.from_first([])
        processes.gather()
        shutil.rmtree(kept, ignore_errors=True)
        print(f"{out} holds these {plan.n} images already: nothing was drawn", file=sys.stderr)
        return out / RESULTS[1]
    other = [name for name in RESULTS if (out / name).exists()]
    if other and not final.exists() and not begun.exists():
        found = f"{out} holds {' and '.join(other)} without {FINAL}"
        raise ValueError(f"{found}: choose another --out, or delete them")
    expect(plan, begun, "an unfinished run")
    for stale in (
        *out.glob(".samples.*.part"),
        *kept.glob(".*.part"),
    ):  # of a run killed in the middle of a write
        stale.unlink(missing_ok=True)
    starts = range(0, plan.n, plan.batch)
    found = {first: read_batch(plan, kept / f"{first}.npy", first) for first in starts}
    there = {first: images for first, images in found.items() if images is not None}
    missing = processes.from_first([first for first in starts if first not in there])
    keep(plan, kept, missing, there)
    processes.gather()  # all others have kept theirs
    for first in missing:
        if first not in there:
            there[first] = received(plan, kept / f"{first}.npy", first)
    images = np.concatenate([there[first] for first in starts])
    labels = {} if plan.guidance == 0 else {"labels": plan.labels(np.arange(plan.n))}
    written = saved(np.savez, images=images, **labels), contact_sheet(images[:SHOWN], columns(plan))
    results = dict(zip(RESULTS, written, strict=True))
    for name, data in results.items():
        write(out / name, data)
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in results.items()}
    write(final, encoded({"command": plan.command, "settings": plan.settings, "sha256": sums}))
    shutil.rmtree(kept, ignore_errors=True)
    return out / RESULTS[1]


def keep(plan: Plan, kept: Path, missing: list[int], there: dict[int, UInt8[np.ndarray, "k h w c"]]) -> None:
    """Draw this process's part of the missing batches, write each into `kept` and add it to `there`."""
    mine, count = missing[processes.number() :: processes.count()], processes.count()
    leads = processes.number() == 0
    if leads and len(missing) < count:
        idle = f"{count - len(missing)} of {count} processes have nothing to do"
        print(f"{idle}: there are {len(missing)} batches of --batch {plan.batch} to draw", file=sys.stderr)
    own, name = sum(min(plan.batch, plan.n - first) for first in mine), kept.parent.name
    before = plan.n - own if processes.alone() else 0
    title = name if processes.alone() else f"{name}, process 0 of {count}"
    plan = laid_out(plan)
    with tqdm(total=before + own, initial=before, unit="image", desc=title, disable=not leads) as bar:
        coming = [begin(plan, first) for first in mine[:1]]
        for i, first in enumerate(mine):  # the next batch is computed while this one is written
            drawn, coming = coming, [begin(plan, following) for following in mine[i + 1 : i + 2]]
            images = checked(plan, first, *drawn[0])
            if leads and not (kept / BEGUN).exists():  # once there is something to keep
                write(kept / BEGUN, encoded(plan.settings))
            write(kept / f"{first}.npy", seal(saved(np.save, images), called(plan, first)))
            if leads:
                there[first] = images
            bar.update(len(images))


def received(plan: Plan, file: Path, first: int) -> UInt8[np.ndarray, "k h w c"]:
    """The batch that another process has written; a network's file system may show it some seconds later."""
    for _ in range(LATE):
        if file.exists():
            break
        time.sleep(1)
    if (images := read_batch(plan, file, first)) is None:
        raise OSError(f"cannot read {file}, which another process has written")
    return images


def called(plan: Plan, first: int) -> str:
    """What a kept batch is: the images of this plan from number `first` on."""
    return f"{first} of {json.dumps(plan.settings)}"


def read_batch(plan: Plan, file: Path, first: int) -> UInt8[np.ndarray, "k h w c"] | None:
    """The kept images from number `first` on; None if there are none, or others, or damaged ones."""
    data = unsealed(file, called(plan, first))
    return None if data is None else np.load(io.BytesIO(data), allow_pickle=False)


def finished(plan: Plan, out: Path) -> bool:
    """Whether the results of this plan are in `out`, undamaged; ValueError if those of another plan are."""
    final = out / FINAL
    if not final.exists():
        return False
    expect(plan, final, "the results of a run")
    sums = from_json(final.read_bytes()).get("sha256")
    return isinstance(sums, dict) and all(
        (out / name).exists() and hashlib.sha256((out / name).read_bytes()).hexdigest() == sums.get(name)
        for name in RESULTS
    )


def expect(plan: Plan, file: Path, what: str) -> None:
    """Raise a ValueError if the settings in `file` are there and are not those of the plan."""
    if not file.exists():
        return
    try:
        old = from_json(file.read_bytes())
        old = old["settings"] if file.name == FINAL else old
        changed = sorted(k for k in {*old, *plan.settings} if old.get(k) != plan.settings.get(k))
    except (ValueError, KeyError, TypeError, AttributeError):
        changed = ["origin"]
    if changed:
        place = file.parent if file.name == FINAL else file.parent.parent
        found = f"{place} holds {what} with another {', '.join(changed)}"
        raise ValueError(f"{found}: choose another --out, or delete that folder")


def columns(plan: Plan) -> int:
    """Columns of the PNG: one for each class if classes take turns for a whole row, else as many as rows."""
    kinds, shown = len(plan.classes), min(plan.n, SHOWN)
    return kinds if plan.label is None and 1 < kinds <= min(16, shown) else math.ceil(math.sqrt(shown))


def contact_sheet(images: UInt8[np.ndarray, "k h w c"], columns: int, gap: int = 2) -> bytes:
    """Put images side by side on white, row by row, as a PNG; small ones are enlarged to be seen."""
    k, h, w, c = images.shape
    columns = min(columns, k)
    rows = math.ceil(k / columns)
    sheet = np.full((rows * (h + gap) + gap, columns * (w + gap) + gap, c), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = (gap + side * (length + gap) for side, length in zip(divmod(i, columns), (h, w), strict=True))
        sheet[y : y + h, x : x + w] = image
    larger = min(max(1, math.ceil(SEEN / max(sheet.shape[:2]))), LARGEST)
    sheet = sheet.repeat(larger, 0).repeat(larger, 1)
    data = io.BytesIO()
    Image.fromarray(sheet[..., 0] if c == 1 else sheet).save(data, "PNG")
    return data.getvalue()


def saved(save: Callable, *array: np.ndarray, **arrays: np.ndarray) -> bytes:
    """What numpy's `save(file, ..)` writes; its zip files carry no dates."""
    data = io.BytesIO()
    save(data, *array, **arrays)
    return data.getvalue()


def encoded(values: dict[str, Any]) -> bytes:
    """As JSON, indented for people."""
    return (json.dumps(values, indent=2) + "\n").encode()
