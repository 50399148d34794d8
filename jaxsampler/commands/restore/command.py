"""What `jaxsampler restore` does: the demonstration, the full comparison, one photo, or a folder."""

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ... import data, pretrained, processes, solvers
from ...data.image_files import SUFFIXES, encoded, not_kept
from ...files import writable, write
from ...nn.unet import RestorationNet
from ...pretrained import samplers
from ...tables import Step
from . import comparison, report
from .figure import figure
from .folder import load_mask, restore_folder
from .photo import CHOSEN, Restorer, expect_mask

MEMBER = f"{CHOSEN['name']} {CHOSEN['order']}"


def network(weights: Path | None) -> RestorationNet:
    """Load the shipped network, or that of a safetensors file with its card."""
    return pretrained.load("restore", path=weights)


def member(solver: str | None, order: int | None) -> Step:
    """The solver that the command's options name; without a name the chosen one."""
    if solver is None and order is None:
        order = CHOSEN["order"]
    name = CHOSEN["name"] if solver is None else solver
    try:
        made = solvers.by_name(name) if order is None else solvers.by_name(name, order=order)
    except TypeError as error:
        raise ValueError(f"{error}; leave --order out") from None
    if not isinstance(made, Step):
        raise ValueError(f"{name} has no table, by which photos are restored: choose another solver")
    return made


def restorer(
    net: RestorationNet, solver: str | None, order: int | None, steps: int | None, seed: int
) -> Restorer:
    """The restorer that the command's options name; a saved table has its own steps and order."""
    saved = samplers.option(solver, net.path(jnp.zeros((1, 1, 3))), steps=steps, order=order)
    return Restorer(net, member(solver, order) if saved is None else saved, steps, seed)


def rehearse(out: Path, image: np.ndarray, form: data.Form) -> None:
    """Write one pixel as `out` will be written, and remove it: a failure to save shows before the work."""
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder: name a file in it")
    pixel = replace(form, alpha=None if form.alpha is None else form.alpha[:1, :1])
    with tempfile.TemporaryDirectory(dir=writable(out.parent)) as scratch:
        data.save_image(Path(scratch, out.name), image[:1, :1], pixel)


def one(restorer: Restorer, photo: Path, task: str, mask: Path | None, out: Path | None) -> Path:
    """Restore one photo into the file `out`; None: a free name that tells of it, in the working folder."""
    expect_mask(task, mask is not None)
    image, form = data.load_image(photo)
    known = None if mask is None else load_mask(mask)
    target = Path(f"{unlike(photo)}_restored.png") if out is None else out
    rehearse(target, image, form)
    if lost := not_kept(target, form):
        print(f"not kept of {photo}: {', '.join(lost)}", file=sys.stderr)
    restored = restorer(image, task, known, progress=True)
    if out is None:
        target = free(target, encoded(restored, form, target))
    data.save_image(target, restored, form)
    return target


def unlike(photo: Path) -> str:
    """The stem of a photo's name, or the whole name if another photo beside it has the same stem."""
    beside = (f for f in photo.parent.iterdir() if f.stem == photo.stem and f.suffix.lower() in SUFFIXES)
    return photo.stem if all(f.name == photo.name for f in beside) else photo.name


def free(target: Path, content: bytes) -> Path:
    """`target`, or TARGET_2, .. if it exists with another content: a default overwrites nothing."""
    tried, n = target, 1
    while tried.exists() and not (tried.is_file() and tried.read_bytes() == content):
        n += 1
        tried = target.with_name(f"{target.stem}_{n}{target.suffix}")
    return tried


def folder(restorer: Restorer, source: Path, task: str, mask: Path | None, out: Path) -> list[str]:
    """Restore a folder into another; return a line for each photo that failed."""
    with processes.claimed(out):
        outcome = restore_folder(restorer, source, out, task, mask)
    done, skipped, failed = (len(x) for x in (outcome.done, outcome.skipped, outcome.failed))
    for what, names in outcome.lost.items():
        others = f" and {len(names) - 1} others" if len(names) > 1 else ""
        print(f"not kept of {names[0]}{others}: {what}", file=sys.stderr)
    if processes.number() == 0:
        print(f"{done} restored into {out}, {skipped} were there already, {failed} failed")
    return outcome.failed


def demonstration(net: RestorationNet, out: Path, size: int = 128, seed: int = 0) -> Path:
    """Restore ten held-out crops, damaged in ten ways: print the table, write the figure."""
    began = time.perf_counter()
    batch, bench = comparison.shown(size), comparison.Bench(net, seed)
    members = [(s, calls) for s in dict.fromkeys(("mr_ode 2", "mr_sde 2", MEMBER)) for calls in (5, 10)]
    members += [("posterior", calls) for calls in (10, 100) if MEMBER != "mr_sde 1" or calls != 10]
    print(
        f"Ten held-out photo crops of {size}x{size}, one per task; {net_size(net)} parameters ...", flush=True
    )
    rows, images = bench.rows(batch, members)
    print(report.per_task(rows, members))
    print("posterior: posterior sampling, its jumps rescaled to the grid, which is mr_sde of order 1\n")
    columns = [("input", 0), (MEMBER, 5), (MEMBER, 10), ("posterior", 100)]
    by_crop = [[report.mean(rows, *m, task=task) for m in columns] for task in data.TASKS]
    titles = ["input", f"{MEMBER}, 5 calls", f"{MEMBER}, 10 calls", "posterior, 100 calls"]
    pictures = [batch.degraded, *(images[m] for m in columns[1:])]
    file = out / "restored.png"
    write(file, figure([*zip(titles, pictures, strict=True), ("truth", batch.clean)], by_crop))
    write(out / "restored.csv", report.as_csv(rows).encode())
    spent, compiling = time.perf_counter() - began, bench.compile_seconds
    print(f"{file} and {file.with_suffix('.csv')}; {spent:.0f} s, of which {compiling:.0f} s compiling")
    return file


def net_size(net: RestorationNet) -> str:
    """Its number of parameters, in millions."""
    return f"{sum(a.size for a in jax.tree.leaves(net) if isinstance(a, jax.Array)) / 1e6:.2f} million"


def everything(net: RestorationNet, out: Path, size: int = 128, each: int = 1, seed: int = 0) -> Path:
    """Compare all solvers on `each` crops per held-out photo and task; print and write the tables."""
    bench = comparison.Bench(net, seed)
    batches = list(comparison.crops(data.held_out_photos(), size, each))
    rows, distances = report.full(bench, batches)
    text = report.full_markdown(rows, distances, MEMBER)
    print(text)
    write(out / "full.md", text.encode())
    write(out / "full.csv", report.as_csv(rows).encode())
    write(out / "full_distances.csv", report.as_csv(distances).encode())
    print(f"{out / 'full.md'}, {out / 'full.csv'}, {out / 'full_distances.csv'}")
    return out / "full.md"


def choice(net: RestorationNet, each: int = 1, seed: int = 0) -> str:
    """Find the member of MR Sampler that does best on crops of training photos."""
    best, rows = report.choose(comparison.Bench(net, seed), each)
    members = list(dict.fromkeys((r.solver, r.calls) for r in rows if r.calls))
    print(report.per_task(rows, members))
    print(f"best at 5 and 10 calls: {best}" + ("" if best == MEMBER else f" (the default is {MEMBER})"))
    return best
