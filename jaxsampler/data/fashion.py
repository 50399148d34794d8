"""Fashion-MNIST: 70,000 grey photos of clothes in ten classes [Xiao, Rasul & Vollgraf 2017], MIT licence.

The four IDX files (a big-endian magic number 0x08 0x0d, the d sizes, then bytes), gzipped or not, are looked
for in a given folder, else in the user's data folder (`store`), else downloaded there. Whatever their origin,
their content must have the SHA-256 sum of the original. The first 512 test photos come with this package
(`some`), so that code that only needs a few real images needs no file.

Networks see 32 x 32 pixels in [-1, 1], with black margins of two pixels, channels last.
"""

import gzip
import hashlib
import io
import os
import sys
import urllib.request
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8

from ..files import write
from ..spelling import nearest

CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
LARGEST = 2**27  # bytes of a file, unpacked; the largest has 47 million
SPLITS = {"train": "train", "test": "t10k"}  # as the files are called


@dataclass(frozen=True)
class Source:
    """Origin of a data set of IDX files: addresses, tried in order, and the SHA-256 of each unpacked file."""

    name: str
    addresses: tuple[str, ...]
    sums: Mapping[str, str] = field(hash=False)


FASHION = Source(
    "fashion-mnist",
    (
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    ),
    {
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
)


@dataclass(frozen=True)
class Photos:
    """Photographs as stored, 8 bits of grey (28 x 28), and their classes."""

    pixels: UInt8[np.ndarray, "n 28 28"]
    labels: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: slice | np.ndarray) -> "Photos":
        return Photos(self.pixels[index], self.labels[index])

    @property
    def images(self) -> Float[np.ndarray, "n 32 32 1"]:
        """float32 in [-1, 1], with the margin."""
        return np.pad(self.pixels, ((0, 0), (2, 2), (2, 2)))[..., None].astype(np.float32) / 127.5 - 1


def load(split: str = "train", folder: str | Path | None = None, *, source: Source = FASHION) -> Photos:
    """Load the "train" (60,000) or "test" (10,000) photographs.

    Args:
        folder: where the four files lie; None: the user's data folder, filled by download.

    Raises:
        ValueError: no such split, or the files are missing, cannot be downloaded or are not the original
            ones.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; {nearest(split, SPLITS)}")
    images, labels = (
        _content(f"{SPLITS[split]}-{what}-ubyte", folder, source) for what in ("images-idx3", "labels-idx1")
    )
    pixels, classes = _parse(*images, 3), _parse(*labels, 1)
    if pixels.shape[1:] != (28, 28):
        size = " x ".join(map(str, pixels.shape[1:]))
        raise ValueError(f"{images[0]} holds images of {size} pixels; they must be 28 x 28")
    if len(pixels) != len(classes):
        raise ValueError(f"{images[0]} holds {len(pixels)} images, but {labels[0]} {len(classes)} labels")
    if classes.max(initial=0) >= len(CLASSES):
        raise ValueError(f"{labels[0]} holds the label {classes.max()}; there are {len(CLASSES)} classes")
    return Photos(pixels, classes.astype(np.int32))


def some() -> Photos:
    """Load the first 512 test photographs, which are shipped with the package."""
    with np.load(Path(__file__).with_name("fashion_some.npz")) as file:
        return Photos(file["pixels"], file["labels"].astype(np.int32))


def label(name: str | int, classes: Sequence[str] = CLASSES) -> int:
    """The number of a class, given its name or number; ValueError naming the nearest class."""
    if name in classes:
        return classes.index(name)
    if isinstance(name, str) and not name.isdecimal():
        raise ValueError(f"unknown class {name!r}; {nearest(name, classes)}")
    if not 0 <= int(name) < len(classes):
        raise ValueError(f"there is no class {name}: choose 0 to {len(classes) - 1}, or {', '.join(classes)}")
    return int(name)


def store() -> Path:
    """The folder for data sets: $JAXSAMPLER_DATA, else `jaxsampler` in the system's folder for user data."""
    if chosen := os.environ.get("JAXSAMPLER_DATA"):
        return Path(chosen)
    if sys.platform == "darwin":
        return Path.home() / "Library/Application Support/jaxsampler"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local") / "jaxsampler"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "jaxsampler"


def _content(name: str, folder: str | Path | None, source: Source) -> tuple[str, bytes]:
    """Return (where the IDX file was found, its bytes), those of the original."""
    if folder is None:
        path = _find(name, store() / source.name) or _download(name, source)
    else:
        path = _find(name, Path(folder))
        if path is None:
            lacks = f"{folder} has neither {name} nor {name}.gz"
            raise ValueError(f"{lacks}: choose a folder with the files of {source.name}")
    try:
        data = path.read_bytes()
    except OSError as e:
        raise ValueError(f"cannot read {path}: {e.strerror}") from None
    return str(path), _checked(data, name, str(path), source)


def _find(name: str, folder: Path) -> Path | None:
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.exists()), None)


def _checked(data: bytes, name: str, where: str, source: Source) -> bytes:
    """Unpack the bytes; ValueError if they are not the original's."""
    if data[:2] == b"\x1f\x8b":
        try:
            with gzip.open(io.BytesIO(data)) as packed:
                data = packed.read(LARGEST)  # more is not the original, and may fill the memory
        except (OSError, EOFError, zlib.error) as e:
            raise ValueError(f"{where} is corrupt ({e}): fetch it again") from None
    if hashlib.sha256(data).hexdigest() != source.sums[name]:
        other = f"{where} is corrupt, or not the {name} of {source.name}"
        raise ValueError(f"{other}: its SHA-256 sum differs; fetch it again")
    return data


def _download(name: str, source: Source) -> Path:
    """Fetch one file into the store, whole and with the right sum, or not at all."""
    failures = []
    for address in source.addresses:
        url = f"{address.rstrip('/')}/{name}.gz"
        try:
            with urllib.request.urlopen(url, timeout=30) as reply:
                data = reply.read()
            _checked(data, name, url, source)
        except (OSError, ValueError) as e:  # urllib's errors are OSErrors
            failures.append(f"{url}: {getattr(e, 'reason', None) or e}")
            continue
        path = store() / source.name / f"{name}.gz"
        write(path, data)
        return path
    place = store() / source.name
    fix = f"put the four files of {source.name} into {place}, or name their folder (data=, --data)"
    raise ValueError(f"cannot download {name} ({'; '.join(failures)}): {fix}")


def _parse(where: str, data: bytes, dimensions: int) -> np.ndarray:
    """Read the array of bytes in an IDX file."""
    start = 4 * (1 + dimensions)
    if data[:4] != bytes([0, 0, 8, dimensions]):
        begins = f"it begins with {data[:4].hex(' ')}"
        raise ValueError(f"{where} is not an IDX file of bytes in {dimensions} dimensions: {begins}")
    shape = np.frombuffer(data[:start], ">u4")[1:].astype(int)
    if len(data) != start + shape.prod():
        said = " x ".join(map(str, shape))
        raise ValueError(f"{where} announces {said} bytes, but holds {len(data) - start}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
