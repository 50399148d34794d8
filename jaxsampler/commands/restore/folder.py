"""Restore a folder of photos, one file after the other; what is finished stays finished.

A restored photo is written whole (temporary file, then renamed), so a file that exists is complete, and a run
that was killed goes on where it stopped. A hidden file (`MARK`) holds the settings that restored the photos;
a run with other settings does not take them for its own. Outputs are PNG, which is lossless, so known pixels
stay exact. A photo that cannot be read is reported and the others go on.

Several processes take the missing photos in turn. The first writes the hidden file, before all of them begin,
and reports.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from tqdm import tqdm

from ... import checkpoint, processes
from ...data import load_image, save_image
from ...data.image_files import SUFFIXES, not_kept
from ...files import write
from .photo import Restorer, expect_mask

MARK = ".restored.json"


@dataclass
class Outcome:
    """What became of a folder's photos; `failed` has one line for each."""

    done: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    lost: dict[str, list[str]] = field(default_factory=dict)  # what could not be kept, of which photos


def load_mask(path: str | Path) -> Bool[np.ndarray, "h w"]:
    """Read a mask image as booleans: white is known (True), black is to be filled."""
    image, _ = load_image(path)
    return image.mean(-1) > 0.5


def outputs(source: Path, target: Path) -> Iterator[tuple[Path, Path]]:
    """Yield (photo, where its restored version goes): `name.png`, or `name.jpg.png` if names are shared.

    No two photos go to one file, also where a file system does not tell capitals.
    """
    if not source.is_dir():
        raise ValueError(f"{source} is not a folder: give --batch a folder of photos")
    if target.resolve() == source.resolve():
        raise ValueError(
            f"--out is {source} itself, whose photos would count as finished: choose another folder"
        )
    photos = sorted(f for f in source.iterdir() if f.suffix.lower() in SUFFIXES and f.name[0] != ".")
    if not photos:
        raise ValueError(f"no photos in {source}: looked for {', '.join(SUFFIXES)}")
    names, taken = Counter(f.stem.casefold() for f in photos), {}
    for f in sorted(photos, key=lambda f: names[f.stem.casefold()] == 1):  # shared names first
        name, n = f.stem if names[f.stem.casefold()] == 1 else f.name, 1
        while (tried := name if n == 1 else f"{name}_{n}").casefold() in taken:
            n += 1
        taken[tried.casefold()] = f, target / f"{tried}.png"
    yield from sorted(taken.values())


def restore_folder(
    restorer: Restorer, source: Path, target: Path, task: str, mask: Path | None = None
) -> Outcome:
    """Restore every photo of `source` into `target`; photos and masks that do not fit are in the outcome.

    Args:
        mask: one for all photos, or a folder with a mask of each photo's name.

    Raises:
        OSError: `target` cannot be written.
        ValueError: `target` holds photos that were restored with other settings.
    """
    task, outcome = expect_mask(task, mask is not None), Outcome()
    target.mkdir(parents=True, exist_ok=True)
    photos, mark, settings = list(outputs(source, target)), target / MARK, {"task": task, **restorer.settings}
    if mark.exists():
        checkpoint.expect(mark, settings)
    elif there := next((out for _, out in photos if out.exists()), None):
        raise ValueError(f"{there} exists, from an unknown run: choose another --out, or delete it")
    processes.agree({**settings, "photos": [photo.name for photo, _ in photos]})
    joined, leads = not processes.alone(), processes.number() == 0
    if joined and leads:
        write_mark(mark, settings)
    there = processes.from_first([i for i, (_, out) in enumerate(photos) if out.exists()])
    outcome.skipped = [photos[i][1] for i in there]
    todo = [photo for i, photo in enumerate(photos) if i not in {*there}]
    todo = todo[processes.number() :: processes.count()]
    title = f"{task}, process 0 of {processes.count()}" if joined else task
    before = 0 if joined else len(there)
    for photo, out in tqdm(
        todo, unit="photo", desc=title, initial=before, total=before + len(todo), disable=not leads
    ):
        for name in (MARK, out.name):
            for stale in target.glob(f".{escape(name)}.*.part"):  # of a run that was killed
                stale.unlink(missing_ok=True)
        try:
            image, form = load_image(photo)
            known = None if mask is None else load_mask(_mask_of(photo, mask))
            restored = restorer(image, task, known)
        except ValueError as error:
            outcome.failed.append(f"{photo.name}: {error}")
            continue
        for what in not_kept(out, form):
            outcome.lost.setdefault(what, []).append(photo.name)
        if not mark.exists():  # once there is something to keep
            write_mark(mark, settings)
        save_image(out, restored, form)
        outcome.done.append(out)
    return outcome if processes.alone() else of_all(outcome, mark)


def write_mark(mark: Path, settings: dict[str, Any]) -> None:
    """Note the settings beside the photos that they restore."""
    write(mark, (json.dumps(settings, indent=2) + "\n").encode())


def of_all(outcome: Outcome, mark: Path) -> Outcome:
    """The outcome of all processes, for the first; the others have nothing to tell."""
    done = [str(out) for out in outcome.done]
    parts = processes.gather({"done": done, "failed": outcome.failed, "lost": outcome.lost})
    if processes.number() > 0:
        return Outcome(outcome.done, outcome.skipped)
    total = Outcome(skipped=outcome.skipped)
    for part in parts:
        total.done += map(Path, part["done"])
        total.failed += part["failed"]
        for what, names in part["lost"].items():
            total.lost[what] = sorted(total.lost.get(what, []) + names)
    if not total.done and not total.skipped:
        mark.unlink()
    return Outcome(sorted(total.done), total.skipped, sorted(total.failed), total.lost)


def _mask_of(photo: Path, mask: Path) -> Path:
    if not mask.is_dir():
        return mask
    found = sorted(f for f in mask.iterdir() if f.stem == photo.stem and f.suffix.lower() in SUFFIXES)
    if not found:
        raise ValueError(f"{mask} holds no mask for {photo.name}: add {photo.stem}.png")
    return found[0]
