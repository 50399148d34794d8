"""A folder of images as training data: cut square about the centre, one size, a class per subfolder.

    FOLDER/cat/a.jpg  FOLDER/cat/more/b.png  FOLDER/dog/c.png      two classes, in the order of their names
    FOLDER/a.jpg      FOLDER/b.png                                 one class, named as the folder

Every tenth image, in the order of classes and file names, is kept out of training as the "test" split.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageOps
from tqdm import tqdm

from ..spelling import nearest
from .image_files import SUFFIXES, load_image

HELD_OUT = 10  # one image in this many
SPLITS = ("train", "test")


@dataclass(frozen=True)
class Images:
    """Images of one size, 8 bits per channel, and their classes (`names`)."""

    pixels: UInt8[np.ndarray, "n h w c"]
    labels: Int[np.ndarray, " n"]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: slice | np.ndarray) -> "Images":
        return Images(self.pixels[index], self.labels[index], self.names)

    @property
    def images(self) -> Float[np.ndarray, "n h w c"]:
        """float32 in [-1, 1]."""
        return self.pixels.astype(np.float32) / 127.5 - 1

    @property
    def checksum(self) -> str:
        """SHA-256 of pixels and labels, in hexadecimal."""
        return hashlib.sha256(self.pixels.tobytes() + self.labels.tobytes()).hexdigest()


def load(split: str, folder: str | Path, size: int = 32, channels: int = 1) -> Images:
    """Load the "train" or "test" images of `folder`, size x size pixels; transparency is ignored.

    Args:
        channels: 1 (grey) or 3 (RGB).

    Raises:
        ValueError: no such split or folder, a class without images, fewer than ten images, an image that
            cannot be read, or images both in subfolders and beside them.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; {nearest(split, SPLITS)}")
    if channels not in (1, 3):
        raise ValueError(f"images cannot have {channels} channels: choose 1 (grey) or 3 (RGB)")
    classes = files(Path(folder))
    every = [(file, label) for label, found in enumerate(classes.values()) for file in found]
    if len(every) < HELD_OUT:
        needed = f"at least {HELD_OUT} are needed, one of which is kept out of training"
        raise ValueError(f"only {len(every)} images in {folder}: {needed}")
    mine = [pair for i, pair in enumerate(every) if (i % HELD_OUT == HELD_OUT - 1) == (split == "test")]
    pixels = [
        square(file, size, channels)
        for file, _ in tqdm(mine, desc=f"{folder}, {split}", unit="image", disable=None)
    ]
    return Images(np.stack(pixels), np.array([label for _, label in mine], np.int32), tuple(classes))


def files(folder: Path) -> dict[str, list[Path]]:
    """The image files of each class, in order."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder of images")
    seen = lambda at: sorted(f for f in at if f.suffix.lower() in SUFFIXES and f.name[0] != ".")
    beside = seen(folder.iterdir())
    classes = {
        f.name: seen(f.rglob("*")) for f in sorted(folder.iterdir()) if f.is_dir() and f.name[0] != "."
    }
    if classes and beside:
        mixed = f"images in subfolders, which are classes, and {beside[0].name} beside them"
        raise ValueError(f"{folder} has {mixed}: move it into a class")
    for name, found in classes.items():
        if not found:
            raise ValueError(f"the class {folder / name} has no images: looked for {', '.join(SUFFIXES)}")
    if not (classes or beside):
        raise ValueError(f"no images in {folder}: looked for {', '.join(SUFFIXES)}")
    return classes or {folder.resolve().name: beside}


def square(file: Path, size: int, channels: int) -> UInt8[np.ndarray, "size size c"]:
    """Cut the largest square about the centre of an image file, and resample it (Lanczos)."""
    image, _ = load_image(file)
    picture = Image.fromarray(np.round(image * 255).astype(np.uint8))
    picture = ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS)
    return np.asarray(picture.convert("L" if channels == 1 else "RGB")).reshape(size, size, channels)
