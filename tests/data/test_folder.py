"""A folder of images: cut, reduced, in classes, some kept out; and networks of its size and classes trained
on it.
"""

import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxsampler as js
from jaxsampler import checkpoint
from jaxsampler.commands import cli
from jaxsampler.data import folder
from jaxsampler.nn.small_images import Classifier

CONFIG = """
    seed = 0
    steps = 3
    batch = 4
    widths = [4]
    depth = 1
    embedding = 8
    noise_mean = -1.0
    noise_std = 1.0
    lr = 1e-2
    warmup = 1
    weight_decay = 0.0
    clip = 1.0
    average = 0.1
    images = "pets"
    size = 8
    channels = 3
"""


@pytest.fixture
def pets(tmp_path, monkeypatch):
    """Twelve files in two classes, of all shapes: cats are red, dogs blue, the left margin of wide ones
    green.
    """
    monkeypatch.chdir(tmp_path)
    for name, colour in (("cat", (200, 0, 0)), ("dog", (0, 0, 100))):
        (tmp_path / "pets" / name / "more").mkdir(parents=True)
        for i, suffix in enumerate(("png", "jpg", "bmp", "webp", "more/x.png", "more/y.jpg")):
            image = np.full((20, 20 + 10 * i, 3), colour, np.uint8)
            image[:, : 5 * i] = (0, 255, 0)
            Image.fromarray(image).save(
                tmp_path / "pets" / name / (suffix if "/" in suffix else f"{i}.{suffix}")
            )
    return tmp_path / "pets"


def test_classes_colours_and_the_split(pets):
    train, test = folder.load("train", pets, 8, 3), folder.load("test", pets, 8, 3)
    assert train.names == test.names == ("cat", "dog")
    assert (len(train), len(test)) == (11, 1)
    assert train.pixels.shape[1:] == (8, 8, 3)
    np.testing.assert_array_equal(train.labels, [0] * 6 + [1] * 5)
    assert test.labels[0] == 1
    want = np.where(train.labels[:, None] == 0, (200, 0, 0), (0, 0, 100))
    np.testing.assert_allclose(train.pixels[:, 4, 4], want, atol=6)  # JPEG moves colours a little
    np.testing.assert_allclose(train.images[:, 4, 4], want / 127.5 - 1, atol=0.05)
    wide = train[np.array([3])].pixels[
        0
    ]  # 50 x 20, green up to 15: the middle square is the columns 15 to 35
    np.testing.assert_allclose(wide[:, 1:], np.broadcast_to((200, 0, 0), (8, 7, 3)), atol=25)
    grey = folder.load("train", pets, 8, 1)
    np.testing.assert_allclose(grey.pixels[:, 4, 4, 0], want @ [0.299, 0.587, 0.114], atol=6)


def test_resampling_is_an_average(tmp_path):
    """A fine checkerboard becomes even grey, not one of its colours; a gradient stays one."""
    board = np.indices((64, 64)).sum(0) % 2 * 255
    ramp = np.broadcast_to(np.arange(64) * 4, (64, 64))
    for i in range(10):
        Image.fromarray((board if i else ramp).astype(np.uint8)).save(tmp_path / f"{i}.png")
    images = folder.load("train", tmp_path, 8)
    assert images.names == (tmp_path.name,)
    np.testing.assert_allclose(images.pixels[1:, 2:-2, 2:-2], 127.5, atol=3)
    np.testing.assert_allclose(images.pixels[0, 4, :, 0], 4 * (8 * np.arange(8) + 3.5), atol=4)


def test_the_checksum_knows_every_image(pets):
    before = folder.load("train", pets, 8).checksum
    assert before == folder.load("train", pets, 8).checksum
    Image.new("RGB", (9, 9), (1, 2, 3)).save(pets / "cat" / "0.png")
    assert folder.load("train", pets, 8).checksum != before


def corrupt(pets):
    (pets / "dog" / "0.png").write_bytes((pets / "dog" / "0.png").read_bytes()[:40])


def few(pets):
    for file in pets.glob("*/more/*"):
        file.unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (corrupt, "cannot read .*dog/0.png"),
        (few, "only 8 images in .*: at least 10"),
        (lambda pets: (pets / "emu").mkdir(), "the class .*emu has no images"),
        (lambda pets: (pets / "loose.png").write_bytes(b"x"), "loose.png beside them"),
        (lambda pets: pets.rename(pets.with_name("away")), "pets is not a folder"),
        (lambda pets: (pets.rename(pets.with_name("away")), pets.mkdir()), "no images in .*pets"),
    ],
)
def test_what_is_wrong_with_a_folder_is_one_line(pets, capsys, change, message):
    change(pets)
    with pytest.raises(ValueError, match=message) as e:
        for split in ("test", "train"):
            folder.load(split, "pets", 8)
    assert "\n" not in str(e.value)
    (pets.parent / "c.toml").write_text(
        'task = "classify"\nfeatures = 4\nclean = 0.5\n' + textwrap.dedent(CONFIG)
    )
    assert cli.main(["train", "c.toml"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not list(pets.parent.glob("c/*")) and not list(pets.parent.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("size = 8", "size = 9"), "must be a multiple of 2"),
        (("channels = 3", "channels = 2"), "1 (grey) or 3 (RGB)"),
        (('images = "pets"', ""), "size and channels are for a folder of images"),
        (('images = "pets"', 'images = "pets"\ndata = "idx"'), "leave one out"),
        (("batch = 4", "batch = 12"), "a batch of 12 images, but only 11"),
    ],
)
def test_what_is_wrong_with_the_config_is_one_line(pets, capsys, change, message):
    text = 'task = "generate"\nmodel = "edm"\ndropout = 0.2\n' + textwrap.dedent(CONFIG)
    (pets.parent / "c.toml").write_text(text.replace(*change))
    assert cli.main(["train", "c.toml"]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1


def test_networks_of_a_folder(pets, capsys):
    """Three steps each; what is written knows its size, channels and classes, and samples."""
    (pets.parent / "pet_flow.toml").write_text(
        'task = "generate"\nmodel = "flow"\ndropout = 0.2\n' + textwrap.dedent(CONFIG)
    )
    (pets.parent / "which.toml").write_text(
        'task = "classify"\nfeatures = 4\nclean = 0.5\n' + textwrap.dedent(CONFIG)
    )
    for name in ("pet_flow", "which"):
        assert cli.main(["train", f"{name}.toml"]) == 0, capsys.readouterr().err
        card = checkpoint.read_card(f"{name}.safetensors")
        assert card["classes"] == ["cat", "dog"]
        assert (card["size"], card["channels"], card["trained_steps"]) == (8, 3, 3)
        assert card["sha256 of images"] == folder.load("train", "pets", 8, 3).checksum
        assert "images" not in card
    flow = js.pretrained.load("fashion_flow", path="pet_flow.safetensors")
    assert flow.net.unet.classes == 2
    x = js.sample(
        flow.bind(label=jnp.array([0, 1, 2])), jnp.zeros((3, 8, 8, 3)), key=jax.random.key(0), steps=2
    )
    assert np.isfinite(x).all()
    assert np.abs(x[0] - x[1]).max() > 0
    judge = js.pretrained.load("fashion_classifier", path="which.safetensors")
    assert isinstance(judge, Classifier)
    assert judge(x).shape == (3, 2)
    # other images under the same name: the run is not continued with them
    (pets / "dog" / "0.png").unlink()
    assert cli.main(["train", "pet_flow.toml"]) == 2
    assert "holds a run with another sha256 of images" in capsys.readouterr().err
