"""The split by scene, and files of every kind read and written."""

import errno
import os

import numpy as np
import pytest
from PIL import Image

from jaxsampler.data import Form, held_out_photos, load_image, photos, save_image, training_photos


def test_no_scene_is_on_both_sides():
    train, test = training_photos(), held_out_photos()
    assert len({p.scene for p in test}) >= 3
    assert not {p.scene for p in train} & {p.scene for p in test}
    assert not {p.name for p in train} & {p.name for p in test}
    assert {p.scene for p in train if "motorcycle" in p.name} == {"motorcycle"}
    # Nor by their pixels: no two photos of different scenes look alike (correlation of thumbnails).
    thumbs = {}
    for p in train + test:
        grey = np.asarray(Image.fromarray(p.pixels).convert("L").resize((24, 24)), float)
        thumbs[p.name] = p.scene, (grey - grey.mean()).ravel() / np.linalg.norm(grey - grey.mean())
    for a, (scene_a, u) in thumbs.items():
        for b, (scene_b, v) in thumbs.items():
            assert scene_a == scene_b or u @ v < 0.8, (a, b)


def test_photos_are_real_colour_photos():
    for p in training_photos() + held_out_photos():
        image = p.image
        assert image.dtype == np.float32 and image.shape[2] == 3 and min(image.shape[:2]) >= 300
        assert max(image.shape[:2]) <= photos.LONGEST
        assert 0 <= image.min() and image.max() <= 1 and image.std() > 0.1
        assert np.ptp(image, axis=-1).mean() > 0.02  # colour
        assert p.source and p.licence
        with pytest.raises(ValueError):
            p.pixels[0] = 0  # shared by all that load it


def test_held_out_photos_are_what_the_packages_hold():
    from skimage import data

    by_name = {p.name: p for p in held_out_photos()}
    assert (by_name["astronaut"].pixels == data.astronaut()).all()
    assert (by_name["coffee"].pixels == data.coffee()).all()


def test_folders(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "deep").mkdir()
    Image.fromarray(rng.integers(0, 255, (120, 3000, 3), np.uint8)).save(tmp_path / "deep" / "wide.png")
    Image.fromarray(rng.integers(0, 255, (90, 100), np.uint8)).save(tmp_path / "grey.webp")
    (tmp_path / "notes.txt").write_text("no photo")
    for folders in ([tmp_path], tmp_path, str(tmp_path)):
        mine = training_photos(folders)[len(training_photos()) :]
        assert [(p.name, p.pixels.shape) for p in mine] == [
            ("wide", (round(120 * photos.LONGEST / 3000), photos.LONGEST, 3)),
            ("grey", (90, 100, 3)),
        ]
    with pytest.raises(ValueError, match="nowhere is not a folder of photos"):
        training_photos([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no photos in"):
        training_photos([tmp_path / "empty"])


def test_desktop_photos_name_the_missing_packages(monkeypatch, tmp_path):
    there = tmp_path / "there.png"
    Image.fromarray(np.full((50, 60, 3), 7, np.uint8)).save(there)
    monkeypatch.setattr(photos, "DESKTOP", [("kept", str(there), "Ada", "CC0")])
    (found,) = training_photos(["desktop"])[len(training_photos()) :]
    assert (found.name, found.scene, found.licence) == ("there", "desktop/there", "Ada, CC0")
    lost = [("lost-b", "/nowhere/b.jpg", "", ""), ("lost-a", "/nowhere/a.jpg", "", "")]
    monkeypatch.setattr(photos, "DESKTOP", [("kept", str(there), "Ada", "CC0"), *lost])
    with pytest.raises(ValueError, match="apt-get install lost-a lost-b$"):
        training_photos(["desktop"])


def test_desktop_list_is_well_formed():
    assert len(photos.DESKTOP) > 25 and len({file for _, file, *_ in photos.DESKTOP}) == len(photos.DESKTOP)
    for package, file, author, licence in photos.DESKTOP:
        assert package and author and licence and file.startswith("/usr/share/")


def test_missing_wheel(monkeypatch):
    monkeypatch.setitem(photos.WHEELS, "astronaut", ("astronaut", "no_such_package", "x.png", ""))
    with pytest.raises(ValueError, match="pip install no_such_package"):
        held_out_photos()


# --- reading and writing --------------------------------------------------------------------------------

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (12, 17, 3), np.uint8)
GREY = RNG.integers(0, 256, (12, 17), np.uint8)
ALPHA = RNG.integers(0, 256, (12, 17), np.uint8)
DEEP = RNG.integers(0, 65536, (12, 17)).astype(np.uint16)
FILES = {
    "rgb.png": Image.fromarray(RGB),
    "rgb.bmp": Image.fromarray(RGB),
    "rgb.tif": Image.fromarray(RGB),
    "rgba.png": Image.fromarray(np.dstack([RGB, ALPHA])),
    "rgba.tiff": Image.fromarray(np.dstack([RGB, ALPHA])),
    "grey.png": Image.fromarray(GREY),
    "grey_alpha.png": Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)]),
    "deep.png": Image.fromarray(DEEP),
    "deep.tif": Image.fromarray(DEEP),
}


@pytest.mark.parametrize("name", FILES)
def test_round_trip(name, tmp_path):
    FILES[name].save(tmp_path / name)
    image, form = load_image(tmp_path / name)
    assert image.dtype == np.float32 and image.shape == (12, 17, 3)
    expected = {"rgb": RGB / 255, "gre": np.dstack([GREY] * 3) / 255, "dee": np.dstack([DEEP] * 3) / 65535}[
        name[:3]
    ]
    np.testing.assert_allclose(image, expected, atol=1e-6)
    save_image(tmp_path / f"new_{name}", image, form)
    before, after = Image.open(tmp_path / name), Image.open(tmp_path / f"new_{name}")
    assert before.mode == after.mode and (np.asarray(before) == np.asarray(after)).all()
    assert sorted(os.listdir(tmp_path)) == sorted([name, f"new_{name}"])


def test_modes_that_become_rgb(tmp_path):
    few = RGB // 128 * 127  # eight colours
    Image.fromarray(few).convert("P", palette=Image.Palette.ADAPTIVE, colors=8).save(tmp_path / "p.png")
    image, form = load_image(tmp_path / "p.png")
    np.testing.assert_allclose(image * 255, few, atol=1e-4)
    assert form == Form()
    with_hole = Image.fromarray(few).convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    with_hole.save(tmp_path / "hole.png", transparency=with_hole.getpixel((0, 0)))
    assert load_image(tmp_path / "hole.png")[1].alpha[0, 0] == 0
    Image.fromarray(RGB).convert("CMYK").save(tmp_path / "c.tif")
    np.testing.assert_allclose(load_image(tmp_path / "c.tif")[0] * 255, RGB, atol=1.01)
    Image.fromarray(GREY > 127).save(tmp_path / "1.png")
    image, form = load_image(tmp_path / "1.png")
    assert form.grey and (image[..., 1] == (GREY > 127)).all()


def test_orientation_and_profile(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    Image.fromarray(RGB).save(tmp_path / "turned.png", exif=exif, icc_profile=b"a profile")
    image, form = load_image(tmp_path / "turned.png")
    assert (np.round(image * 255) == np.rot90(RGB, -1)).all()
    save_image(tmp_path / "upright.png", image, form)
    upright = Image.open(tmp_path / "upright.png")
    assert upright.info["icc_profile"] == b"a profile" and upright.getexif().get(0x0112, 1) == 1
    assert (np.asarray(upright) == np.rot90(RGB, -1)).all()


def test_grey_restored_in_colour_is_its_luma(tmp_path):
    save_image(tmp_path / "g.png", RGB / 255, Form(grey=True))
    luma = np.asarray(Image.fromarray(RGB).convert("L"), int)
    assert np.abs(np.asarray(Image.open(tmp_path / "g.png"), int) - luma).max() <= 1


def test_values_outside_the_range_saturate(tmp_path):
    save_image(tmp_path / "x.png", np.float32([[[-0.5, 0.5, 1.7]]]))
    assert np.asarray(Image.open(tmp_path / "x.png")).tolist() == [[[0, 128, 255]]]


def test_unreadable(tmp_path):
    (tmp_path / "text.png").write_text("this is no image")
    (tmp_path / "empty.png").touch()
    Image.fromarray(RGB).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:300])
    (tmp_path / "zero.gif").write_bytes(b"GIF89a" + bytes(2) + b"\x05\x00" + bytes(3) + b",")
    Image.fromarray(np.full((3, 3), np.nan, np.float32)).save(tmp_path / "nan.tif")
    for name, message in (
        ("missing.png", "No such file"),
        ("text.png", "Pillow knows no such image"),
        ("empty.png", "is empty"),
        ("cut.png", "truncated"),
        ("zero.gif", "has no pixels"),
        ("nan.tif", r"outside \[0, 1\]"),
        (".", "directory"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            load_image(tmp_path / name)
        assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of the TIFF decoder
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "gif", "bmp"])
def test_broken_bytes_give_an_image_or_one_line(suffix, tmp_path):
    """Whatever a decoder raises on a corrupt file reaches the user as one line that names the file."""
    whole, broken = tmp_path / f"whole.{suffix}", tmp_path / f"broken.{suffix}"
    Image.fromarray(RGB).save(whole)
    content, rng, refused = whole.read_bytes(), np.random.default_rng(1), 0
    for i in range(60):
        damaged = bytearray(content[: rng.integers(1, len(content))] if i % 2 else content)
        damaged[rng.integers(len(damaged))] ^= int(rng.integers(1, 256))
        broken.write_bytes(damaged)
        try:
            assert load_image(broken)[0].shape[2] == 3
        except ValueError as error:
            refused += 1
            assert str(broken) in str(error) and "\n" not in str(error)
    assert refused > 10


def test_unwritable(tmp_path, monkeypatch):
    image = RGB / 255
    with pytest.raises(ValueError, match="unknown image suffix '.xyz'"):
        save_image(tmp_path / "a.xyz", image)
    with pytest.raises(ValueError, match="JPEG cannot hold transparency"):
        save_image(tmp_path / "a.jpg", image, Form(alpha=ALPHA / 255))
    with pytest.raises(OSError, match="cannot write .*: No such file or directory"):
        save_image(tmp_path / "no" / "a.png", image)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot write .*: Not a directory"):
        save_image(tmp_path / "file" / "a.png", image)
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    save_image(tmp_path / "a.png", RGB / 255)
    old = (tmp_path / "a.png").read_bytes()

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="cannot write .*a.png: the disk is full") as error:
        save_image(tmp_path / "a.png", 1 - RGB / 255)
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["a.png"] and (tmp_path / "a.png").read_bytes() == old


@pytest.mark.skipif(
    not os.access("/dev/full", os.W_OK), reason="needs /dev/full, the disk that is always full"
)
def test_a_disk_that_is_really_full(tmp_path, monkeypatch):
    """The bytes themselves fail to be written: the temporary file is /dev/full."""
    opened = open
    monkeypatch.setattr("builtins.open", lambda path, mode: opened("/dev/full", "wb"))
    with pytest.raises(OSError, match="the disk is full"):
        save_image(tmp_path / "a.png", RGB / 255)
    assert os.listdir(tmp_path) == []
