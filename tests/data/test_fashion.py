"""Fashion-MNIST: the shipped photos, files that are right, files that are not, and downloads from a server on
this machine.
"""

import functools
import gzip
import hashlib
import http.server
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from jaxsampler.data import fashion


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    return header + array.astype(np.uint8).tobytes()


PIXELS = np.random.default_rng(0).integers(0, 256, (30, 28, 28), np.uint8)
LABELS = np.arange(30) % 10
NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
FILES = dict(zip(NAMES, (idx(PIXELS), idx(LABELS), idx(PIXELS[:8]), idx(LABELS[:8])), strict=True))


def source(files: dict[str, bytes] = FILES, *addresses: str) -> fashion.Source:
    return fashion.Source(
        "tiny", addresses, {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    )


def write(folder: Path, files: dict[str, bytes] = FILES, packed: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(data) if packed else data)
    return folder


@pytest.mark.parametrize("packed", [False, True])
def test_the_files_of_a_folder_are_read_as_they_are(tmp_path, packed):
    photos = fashion.load("train", write(tmp_path, packed=packed), source=source())
    np.testing.assert_array_equal(photos.pixels, PIXELS)
    np.testing.assert_array_equal(photos.labels, LABELS)
    np.testing.assert_array_equal(fashion.load("test", tmp_path, source=source()).pixels, PIXELS[:8])


def test_images_are_padded_and_scaled():
    photos = fashion.Photos(PIXELS, LABELS.astype(np.int32))[3:5]
    assert photos.images.dtype == np.float32
    assert photos.images.shape == (2, 32, 32, 1)
    np.testing.assert_allclose((photos.images[:, 2:30, 2:30, 0] + 1) * 127.5, PIXELS[3:5], atol=1e-4)
    inside = np.zeros((32, 32), bool)
    inside[2:30, 2:30] = True
    assert np.all(photos.images[:, ~inside] == -1)  # black
    np.testing.assert_array_equal(photos.labels, [3, 4])


def test_the_shipped_photos_are_photos_of_clothes():
    """512 of ten classes; each class nearer to its own mean image than to the others', as a broken order of
    labels would not have it.
    """
    photos = fashion.some()
    assert len(photos) == 512
    assert Path(fashion.__file__).with_name("fashion_some.npz").stat().st_size < 500_000
    assert "MIT" in Path(fashion.__file__).with_name("fashion_LICENSE.txt").read_text(encoding="utf-8")
    x = photos.images.reshape(512, -1)
    means = np.stack([x[:256][photos.labels[:256] == k].mean(0) for k in range(10)])
    nearest = np.square(x[256:, None] - means).sum(-1).argmin(1)
    assert (nearest == photos.labels[256:]).mean() > 0.6
    trousers, bags = (x[photos.labels == fashion.label(name)] for name in ("trouser", "bag"))
    assert bags.mean() > trousers.mean() + 0.1  # a bag fills the picture, trousers are narrow


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: d.pop(NAMES[1]), r"neither train-labels-idx1-ubyte nor train-labels-idx1-ubyte\.gz"),
        (
            lambda d: d.update({NAMES[0]: d[NAMES[0]][:-1]}),
            r"train-images-idx3-ubyte is corrupt, or not the .* SHA-256",
        ),
        (
            lambda d: d.update({NAMES[0]: b"\x1f\x8b" + bytes(50)}),
            r"train-images-idx3-ubyte is corrupt .*fetch it again",
        ),
        (
            lambda d: d.update({NAMES[1]: gzip.compress(d[NAMES[1]])[:-4]}),
            r"train-labels-idx1-ubyte is corrupt",
        ),
    ],
)
def test_missing_and_corrupt_files_are_one_line(tmp_path, spoil, message):
    files = dict(FILES)
    spoil(files)
    with pytest.raises(ValueError, match=message) as e:
        fashion.load("train", write(tmp_path, files), source=source())
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({NAMES[0]: idx(PIXELS[:, :20])}, "images of 20 x 28 pixels; they must be 28 x 28"),
        ({NAMES[1]: idx(LABELS[:-1])}, "30 images, but .*train-labels.* 29 labels"),
        ({NAMES[1]: idx(LABELS + 1)}, "the label 10; there are 10 classes"),
        ({NAMES[0]: idx(LABELS)}, "not an IDX file of bytes in 3 dimensions: it begins with 00 00 08 01"),
        ({NAMES[0]: FILES[NAMES[0]] + b"x"}, "announces 30 x 28 x 28 bytes, but holds 23521"),
    ],
)
def test_files_of_another_kind_are_named(tmp_path, change, message):
    files = FILES | change
    with pytest.raises(ValueError, match=message):
        fashion.load("train", write(tmp_path, files), source=source(files))


def test_unknown_splits_and_classes():
    with pytest.raises(ValueError, match="unknown split 'tset'; did you mean 'test'"):
        fashion.load("tset")
    with pytest.raises(ValueError, match="unknown class 'boots'; did you mean 'boot'"):
        fashion.label("boots")
    with pytest.raises(ValueError, match="no class 10"):
        fashion.label("10")
    assert fashion.label("boot") == fashion.label(9) == fashion.label("9") == 9


@pytest.fixture
def server(tmp_path):
    """A web server for the files in tmp_path/www, and the list of what was asked of it."""
    folder, asked = write(tmp_path / "www", packed=True), []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))
    ) as served:
        thread = threading.Thread(target=served.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{served.server_port}", folder, asked
        served.shutdown()


def test_downloaded_once_into_the_store(tmp_path, monkeypatch, server):
    address, _, asked = server
    monkeypatch.setenv("JAXSAMPLER_DATA", str(tmp_path / "store"))
    here = source(FILES, f"{address}/nothing-here", f"{address}/")
    np.testing.assert_array_equal(fashion.load("train", source=here).pixels, PIXELS)
    assert sorted(os.listdir(tmp_path / "store/tiny")) == [f"{NAMES[0]}.gz", f"{NAMES[1]}.gz"]
    count = len(asked)
    assert "/train-images-idx3-ubyte.gz" in " ".join(asked)
    np.testing.assert_array_equal(fashion.load("train", source=here).labels, LABELS)
    assert len(asked) == count


def test_a_bad_download_leaves_nothing(tmp_path, monkeypatch, server):
    address, folder, _ = server
    (folder / f"{NAMES[0]}.gz").write_bytes(gzip.compress(FILES[NAMES[0]][:-1] + b"?"))
    monkeypatch.setenv("JAXSAMPLER_DATA", str(tmp_path / "store"))
    with pytest.raises(
        ValueError,
        match=r"cannot download train-images-idx3-ubyte .*SHA-256.*put the four files of tiny into",
    ) as e:
        fashion.load("train", source=source(FILES, address))
    assert "\n" not in str(e.value)
    assert not (tmp_path / "store").exists()


def test_no_server_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXSAMPLER_DATA", str(tmp_path / "store"))
    with pytest.raises(ValueError, match="cannot download t10k-images-idx3-ubyte"):
        fashion.load("test", source=source(FILES, "http://127.0.0.1:9"))


def test_the_store_is_where_the_system_keeps_data(monkeypatch):
    monkeypatch.delenv("JAXSAMPLER_DATA", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_DATA_HOME", "/x")
    assert fashion.store() == Path("/x/jaxsampler")
    monkeypatch.delenv("XDG_DATA_HOME")
    assert fashion.store() == Path.home() / ".local/share/jaxsampler"
    monkeypatch.setattr("sys.platform", "darwin")
    assert fashion.store() == Path.home() / "Library/Application Support/jaxsampler"
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", "/l")
    assert fashion.store() == Path("/l/jaxsampler")
