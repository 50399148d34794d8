"""Image files read and written: any mode in, the same mode out, and a word for what cannot be kept.

Pillow reads 16-bit grey, but of 16-bit colour only the high bytes. Reading a file again as if its bytes were
swapped gives the low ones. It writes no 16-bit colour: PNG is simple enough to be written here, TIFF is for
tifffile.
"""

import io
import struct
import sys
import warnings
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageOps, UnidentifiedImageError

from ..files import memory, write

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".gif", ".ppm")
DEEP = ("PNG", "TIFF")  # formats of 16 bits
SWAPPED = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}  # byte orders
PLAIN = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "I", "F")
PER_PIXEL = 64  # bytes of memory that reading takes, float arrays and copies included


@dataclass(frozen=True)
class Form:
    """What an image file holds besides its colours, so that a restored image is written in the same mode.

    Example:
        >>> js.data.Form(grey=True, bits=16)
        Form(grey=True, bits=16, alpha=None, icc_profile=None)
    """

    grey: bool = False
    bits: int = 8  # or 16
    alpha: np.ndarray | None = None  # (H, W), float32 in [0, 1]
    icc_profile: bytes | None = None
    lost: tuple[str, ...] = field(default=(), repr=False, compare=False)  # what was not read, in words


class Found(NamedTuple):
    """Facts of a file beside its pixels."""

    icc_profile: bytes | None
    deep: bool  # 16-bit colour, of which the image holds the high bytes
    lost: list[str]


def load_image(path: str | Path) -> tuple[Float[np.ndarray, "H W 3"], Form]:
    """Read an image of any mode: float32 RGB in [0, 1], upright, and the `Form` to pass to `save_image`.

    Grey is repeated into three channels; alpha is kept aside, not blended; palettes and CMYK become RGB.

    Raises:
        ValueError: the file cannot be read, is empty, is not an image, or is too large for the memory; one
            line that names it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     js.data.save_image(f"{folder}/grey.png", np.full((2, 3, 3), 0.2), js.data.Form(grey=True))
        ...     image, form = js.data.load_image(f"{folder}/grey.png")
        >>> image.shape, form.grey, image[0, 0, 0] == np.float32(0.2)
        ((2, 3, 3), True, np.True_)
    """
    image, found = opened(path := Path(path))
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.asarray(image).astype(np.float64)
        most = 1 if image.mode == "F" else 65535
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= most):
            kind = "floating-point values" if image.mode == "F" else "integers"
            raise ValueError(f"{path} holds {kind} outside [0, {most}]: scale them first")
        lost = found.lost + (["32-bit numbers (16 bits are kept)"] if image.mode == "F" else [])
        grey = (values / most).astype(np.float32)
        form = Form(grey=True, bits=16, icc_profile=found.icc_profile, lost=tuple(lost))
        return np.repeat(grey[..., None], 3, axis=-1), form
    grey = image.mode in ("1", "L", "LA", "La")
    alpha = image.has_transparency_data
    if found.deep:
        low, _ = opened(path, low=True)
        rgba = (256 * np.asarray(image, np.float32) + np.asarray(low, np.float32)) / np.float32(65535)
    else:
        rgba = np.asarray(image.convert("RGBA"), np.float32) / 255
    form = Form(
        grey=grey,
        bits=16 if found.deep else 8,
        alpha=rgba[..., 3].copy() if alpha else None,
        icc_profile=found.icc_profile,
        lost=tuple(found.lost),
    )
    return rgba[..., :3].copy(), form


def opened(path: Path, draft: int | None = None, low: bool = False) -> tuple[Image.Image, Found]:
    """The upright image, decoded, and what else the file holds.

    Args:
        draft: a JPEG may be reduced to this many pixels or more while it is decoded.
        low: of 16-bit colour the low bytes.
    """
    try:
        if path.stat().st_size == 0:
            raise ValueError("it is empty")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # what is too large is said here
            image = Image.open(path)
        with image:
            width, height = image.size
            if PER_PIXEL * width * height > memory():
                raise ValueError(f"its {width}x{height} pixels do not fit into this machine's memory")
            raws = [_raw(tile) for tile in getattr(image, "tile", ())]  # gone once it is loaded
            if draft and max(image.size) > draft:
                image.draft("RGB", (draft, draft))
            if low:
                image.tile = [_swapped(tile) for tile in image.tile]
            image.load()
            found = facts(image, raws)
            upright = ImageOps.exif_transpose(image)
    except UnidentifiedImageError:
        raise ValueError(f"cannot read {path}: Pillow knows no such image, or it has no pixels") from None
    except Exception as error:  # decoders raise almost anything on a broken file
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"cannot read {path}: {reason}") from None
    return upright, found


def facts(image: Image.Image, raws: list[str]) -> Found:
    """What an image holds beside its pixels, which were stored in these raw modes."""
    lost = []
    wide = [raw for raw in raws if ";16" in raw and not raw.startswith("I;16")]
    deep = bool(raws) and all(raw[:-1] in (f"{image.mode};16",) and raw[-1] in SWAPPED for raw in raws)
    deep = deep and image.mode in ("RGB", "RGBA") and "transparency" not in image.info
    if wide and not deep:
        lost.append("16 bits per channel (8 are read)")
    if getattr(image, "n_frames", 1) > 1:
        lost.append(f"all but the first of {getattr(image, 'n_frames', 1)} pictures in it")
    if any(tag != 0x0112 for tag in _exif(image)):  # the orientation is applied
        lost.append("EXIF data")
    icc = image.info.get("icc_profile")
    if image.mode not in PLAIN and not image.mode.startswith("I;16"):
        lost.append(f"{image.mode} colours (RGB is written)")
        icc = None  # which is of those colours
    return Found(icc, deep, lost)


def _exif(image: Image.Image) -> list[int]:
    """Tags of the EXIF block; those of a TIFF describe its pixels and are no such block."""
    return [] if image.format == "TIFF" else list(image.getexif())


def _raw(tile: Any) -> str:
    """The raw mode in a tile's arguments."""
    arguments = tile[3]
    return str(arguments if isinstance(arguments, str) else (arguments or ("",))[0])


def _swapped(tile: Any) -> Any:
    """A tile that is read with its bytes in the other order."""
    raw, arguments = _raw(tile), tile[3]
    other = raw[:-1] + SWAPPED[raw[-1]]
    made = (*tile[:3], other if isinstance(arguments, str) else (other, *arguments[1:]))
    return type(tile)(*made) if hasattr(tile, "_fields") else made


def not_kept(path: str | Path, form: Form) -> list[str]:
    """What an image of this form loses when it is written to `path`, in words."""
    kind, lost = kind_of(Path(path)), list(form.lost)
    if form.bits == 16 and kind not in DEEP:
        lost.append(f"16 bits per channel ({kind} holds 8)")
    elif form.bits == 16 and form.grey and form.alpha is not None:
        lost.append("16 bits per channel (grey with alpha is written with 8)")
    if form.icc_profile and kind in ("BMP", "PPM"):
        lost.append(f"the colour profile ({kind} holds none)")
    if kind == "GIF" and not form.grey:
        lost.append("all but 256 colours (GIF)")
    return lost


def kind_of(path: Path) -> str:
    """The format that a file's suffix names; ValueError if it is unknown or cannot be written."""
    Image.init()
    kind = Image.EXTENSION.get(path.suffix.lower(), "")
    if kind not in Image.SAVE:
        known = f"use one of {', '.join(SUFFIXES)}"
        raise ValueError(f"cannot write {path}: unknown image suffix {path.suffix!r}; {known}")
    return kind


def save_image(path: str | Path, image: Float[np.ndarray, "H W 3"], form: Form | None = None) -> None:
    """Write float RGB in [0, 1] in the given form, the whole file or nothing; the suffix names the format.

    Raises:
        ValueError: the suffix is unknown, or the format cannot hold transparency.
        OSError: the folder is not writable or the disk is full; one line, and nothing is left behind.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     js.data.save_image(f"{folder}/red.png", np.array([[[1.0, 0.0, 0.0]]]))
        ...     pathlib.Path(folder, "red.png").read_bytes()[:4]
        b'\\x89PNG'
    """
    write(Path(path), encoded(image, form or Form(), Path(path)), parents=False)


def encoded(image: Float[np.ndarray, "H W 3"], form: Form, path: Path) -> bytes:
    """The bytes of an image file that would be called `path`."""
    kind, image = kind_of(path), np.asarray(image, np.float64)
    if form.alpha is not None and kind in ("JPEG", "BMP", "PPM"):
        raise ValueError(f"cannot write {path}: {kind} cannot hold transparency; use .png")
    if form.bits == 16 and not form.grey and kind in DEEP:
        channels = [image] if form.alpha is None else [image, form.alpha[..., None]]
        deep = np.round(np.clip(np.concatenate(channels, axis=-1), 0, 1) * 65535).astype(np.uint16)
        return deep_png(deep, form.icc_profile) if kind == "PNG" else deep_tiff(deep, form.icc_profile)
    picture = _picture(image, form, deep=kind in DEEP)
    options = {"icc_profile": form.icc_profile} if form.icc_profile else {}
    options |= {"quality": 95} if kind in ("JPEG", "WEBP", "AVIF") else {}
    data = io.BytesIO()
    picture.save(data, format=kind, **options)
    return data.getvalue()


def deep_png(pixels: np.ndarray, icc_profile: bytes | None) -> bytes:
    """A PNG of uint16 [h, w, 3 or 4], each row as its differences to the one above (filter 2)."""
    height, width, channels = pixels.shape
    rows = pixels.astype(">u2").reshape(height, -1).view(np.uint8)
    filtered = np.full((height, rows.shape[1] + 1), 2, np.uint8)
    filtered[:, 1:] = np.diff(rows, axis=0, prepend=np.zeros_like(rows[:1]))  # modulo 256
    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    profile = b"" if icc_profile is None else b"ICC Profile\0\0" + zlib.compress(icc_profile)
    chunks = [
        (b"IHDR", header),
        (b"iCCP", profile),
        (b"IDAT", zlib.compress(filtered.tobytes())),
        (b"IEND", b""),
    ]
    made = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
        if data or name == b"IEND"
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


def deep_tiff(pixels: np.ndarray, icc_profile: bytes | None) -> bytes:
    """A TIFF of uint16 [h, w, 3 or 4]."""
    import tifffile

    data = io.BytesIO()
    alpha = ["unassalpha"] if pixels.shape[2] == 4 else None
    options = {"photometric": "rgb", "extrasamples": alpha, "iccprofile": icc_profile, "metadata": None}
    tifffile.imwrite(data, pixels, **options)
    return data.getvalue()


def _picture(image: np.ndarray, form: Form, deep: bool) -> Image.Image:
    """float RGB -> Pillow image; grey is the luma of Rec. 601, as Pillow has it."""
    if form.grey:
        grey = np.clip(image @ np.array([0.299, 0.587, 0.114]), 0, 1)
        if form.bits == 16 and deep and form.alpha is None:
            return Image.fromarray(np.round(grey * 65535).astype(np.uint16))
        picture = Image.fromarray(_bytes(grey))
    else:
        picture = Image.fromarray(_bytes(image))
    if form.alpha is not None:
        picture.putalpha(Image.fromarray(_bytes(form.alpha)))
    return picture


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)
