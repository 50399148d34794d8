"""16-bit colour comes back to the bit, and what a file cannot hold is said."""

import io

import numpy as np
import pytest
import tifffile
from PIL import Image

from jaxsampler.data import Form, image_files, load_image, save_image
from jaxsampler.data.image_files import deep_png, not_kept

RNG = np.random.default_rng(0)
DEEP = RNG.integers(0, 65536, (12, 17, 4)).astype(np.uint16)
DEEP[0, 0], DEEP[0, 1], DEEP[0, 2] = 0, 65535, 256  # the ends, and a low byte of 0


def tiff(pixels, **options):
    data = io.BytesIO()
    alpha = ["unassalpha"] if pixels.shape[2] == 4 else None
    tifffile.imwrite(data, pixels, photometric="rgb", extrasamples=alpha, **options)
    return data.getvalue()


FILES = {
    "own.png": lambda a: deep_png(a, None),
    "own.tif": lambda a: image_files.deep_tiff(a, None),
    "big_endian.tif": lambda a: tiff(a, byteorder=">"),
    "packed.tif": lambda a: tiff(a, compression="zlib", predictor=True),
    "packed_big.tif": lambda a: tiff(a, compression="zlib", byteorder=">"),
}


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_deep_colour_comes_back_to_the_bit(name, channels, suffix, tmp_path):
    """Read by us, written by us, read by tifffile or, from PNG, as the specification says."""
    pixels = np.ascontiguousarray(DEEP[..., :channels])
    (tmp_path / name).write_bytes(FILES[name](pixels))
    image, form = load_image(tmp_path / name)
    np.testing.assert_allclose(image, pixels[..., :3] / 65535, atol=1e-7)
    assert (form.bits, form.grey, form.lost) == (16, False, ())
    assert (form.alpha is None) == (channels == 3)
    out = tmp_path / f"out.{suffix}"
    save_image(out, image, form)
    back = tifffile.imread(out) if suffix == "tif" else png_pixels(out.read_bytes())
    np.testing.assert_array_equal(back, pixels)
    assert not_kept(out, form) == []


def png_pixels(data):
    """Pixels of a PNG of 16-bit samples whose rows have filter 2: the other way of `deep_png`."""
    import struct
    import zlib

    place, chunks = 8, {}
    while place < len(data):
        (size,) = struct.unpack(">I", data[place : place + 4])
        name, body = data[place + 4 : place + 8], data[place + 8 : place + 8 + size]
        assert zlib.crc32(name + body) == struct.unpack(">I", data[place + 8 + size : place + 12 + size])[0]
        chunks[name], place = body, place + 12 + size
    width, height, bits, colour = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    assert bits == 16
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, -1)
    assert (rows[:, 0] == 2).all()
    whole = np.cumsum(rows[:, 1:], axis=0, dtype=np.uint8)
    return whole.view(">u2").reshape(height, width, {2: 3, 6: 4}[colour])


def test_deep_colour_with_orientation_and_profile(tmp_path):
    image, _ = load_image_of(tmp_path, "turned.tif", tiff(DEEP[..., :3], extratags=[(274, 3, 1, 6, True)]))
    np.testing.assert_allclose(image, np.rot90(DEEP[..., :3], -1) / 65535, atol=1e-7)
    for name in ("p.png", "p.tif"):
        save_image(tmp_path / name, image, Form(bits=16, icc_profile=b"a profile"))
        assert Image.open(tmp_path / name).info["icc_profile"] == b"a profile"


def load_image_of(folder, name, data):
    (folder / name).write_bytes(data)
    return load_image(folder / name)


def test_what_cannot_be_kept_is_said(tmp_path):
    deep = Form(bits=16)
    assert not_kept("a.jpg", deep) == ["16 bits per channel (JPEG holds 8)"]
    assert not_kept("a.png", deep) == not_kept("a.tiff", deep) == []
    grey = Form(bits=16, grey=True, alpha=np.ones((1, 1), np.float32))
    assert not_kept("a.png", grey) == ["16 bits per channel (grey with alpha is written with 8)"]
    assert not_kept("a.bmp", Form(icc_profile=b"x")) == ["the colour profile (BMP holds none)"]
    assert not_kept("a.gif", Form()) == ["all but 256 colours (GIF)"]

    def lost(name, **options):
        picture = options.pop("of", Image.fromarray(np.zeros((4, 4, 3), np.uint8)))
        picture.save(tmp_path / name, **options)
        return list(load_image(tmp_path / name)[1].lost)

    exif = Image.Exif()
    exif[0x0112] = 6
    assert lost("turned.jpg", exif=exif) == []  # which is applied
    exif[0x010F] = "a camera"
    assert lost("camera.jpg", exif=exif) == ["EXIF data"]
    many = [Image.fromarray(np.full((4, 4), 90 * k, np.uint8)) for k in range(3)]
    assert lost("many.gif", of=many[0], save_all=True, append_images=many[1:]) == [
        "all but the first of 3 pictures in it"
    ]
    inks = Image.new("CMYK", (4, 4))
    assert lost("inks.tif", of=inks, icc_profile=b"of inks") == ["CMYK colours (RGB is written)"]
    assert load_image(tmp_path / "inks.tif")[1].icc_profile is None
    number = Image.fromarray(np.full((3, 3), 0.5, np.float32))
    assert lost("number.tif", of=number) == ["32-bit numbers (16 bits are kept)"]


def test_integers_that_are_no_16_bits_are_refused(tmp_path):
    Image.fromarray(np.full((3, 3), 70000, np.int32)).save(tmp_path / "wide.tif")
    with pytest.raises(ValueError, match=r"wide\.tif holds integers outside \[0, 65535\]: scale them first"):
        load_image(tmp_path / "wide.tif")


def test_an_image_too_large_for_the_memory_is_not_decoded(tmp_path, monkeypatch):
    """A file of a few bytes may claim any size."""
    Image.new("1", (10_000, 10_000)).save(tmp_path / "small.png")
    huge = (tmp_path / "small.png").read_bytes()
    assert len(huge) < 20_000
    monkeypatch.setattr(image_files, "memory", lambda: 2**30)
    with pytest.raises(ValueError, match="its 10000x10000 pixels do not fit into this machine's memory"):
        load_image_of(tmp_path, "huge.png", huge)
