"""Real colour photographs, split by scene.

A network trained on crops of a photo must not be judged on another crop of it, so the split is by *scene* and
fixed: four easily judged scenes (a face, an animal, an object, a building in a landscape) are held out, all
others train. The photos come with packages under free licences: a few with scikit-image, scikit-learn and
matplotlib, and, by the name "desktop", some thirty wallpapers of Debian packages (photos, not drawings).

Large photos are reduced on loading (Lanczos) to `LONGEST` pixels: at full size a photo is smooth and noisy at
the scale of a pixel, reduced it is crisp and clean, which is what a restoration should learn to return.
"""

import functools
import importlib.util
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from .image_files import SUFFIXES, opened

LONGEST = 960

# name: (scene, python package, file inside it, author and licence)
WHEELS = {
    "astronaut": ("astronaut", "skimage", "data/astronaut.png", "NASA, public domain"),
    "chelsea": ("chelsea", "skimage", "data/chelsea.png", "Stefan van der Walt, CC0"),
    "coffee": ("coffee", "skimage", "data/coffee.png", "Rachel Michetti, CC0"),
    "china": ("china", "sklearn", "datasets/images/china.jpg", "danielbuechele, CC BY 2.0"),
    "rocket": ("rocket", "skimage", "data/rocket.jpg", "SpaceX, public domain"),
    "motorcycle_left": (
        "motorcycle",
        "skimage",
        "data/motorcycle_left.png",
        "Scharstein et al. 2014, scikit-image",
    ),
    "motorcycle_right": (
        "motorcycle",
        "skimage",
        "data/motorcycle_right.png",
        "Scharstein et al. 2014, scikit-image",
    ),
    "flower": ("flower", "sklearn", "datasets/images/flower.jpg", "vultilion, CC BY 2.0"),
    "hopper": ("hopper", "matplotlib", "mpl-data/sample_data/grace_hopper.jpg", "US Navy, public domain"),
}
HELD_OUT = ("astronaut", "chelsea", "coffee", "china")  # scenes

# (Debian package, file, author, licence), as the package's copyright file or the picture's own metadata says.
_UBUNTU, _MATE, _KDE = "/usr/share/backgrounds", "/usr/share/backgrounds/mate/nature", "/usr/share/wallpapers"
DESKTOP = (
    *(
        ("lomiri-wallpapers-16.04", f"{_UBUNTU}/{file}.jpg", author, licence)
        for file, author, licence in (
            ("Bridge_by_Sander_Klootwijk", "Sander Klootwijk", "CC BY-SA 4.0"),
            ("Dragonfly_by_Bolly", "Bolly", "CC BY-SA 4.0"),
            ("Picture_0B_by_freespace", "Trevor 'Freespace'", "CC BY 4.0"),
            ("Picture_1A_by_freespace", "Trevor 'Freespace'", "CC BY 4.0"),
            ("Wine_by_Jakkub_Mede", "Jakub Mede", "CC BY 4.0"),
            ("aitzgorri_by_Aitzol_Berasategi", "Aitzol Berasategi", "CC BY 4.0"),
            ("friends_by_Aitzol_Berasategi", "Aitzol Berasategi", "CC BY 4.0"),
            ("greentock_by_Peter_Nerlich", "Peter Nerlich", "CC BY-SA 4.0"),
            ("life_by_Aitzol_Berasategi", "Aitzol Berasategi", "CC BY 4.0"),
            ("picosdeeuropa_by_Aitzol_Berasategi", "Aitzol Berasategi", "CC BY 4.0"),
            ("seeding_by_Clements_Engelhardt", "Clemens Engelhardt", "CC0"),
            ("sunset_by_Aitzol_Berasategi", "Aitzol Berasategi", "CC BY 4.0"),
        )
    ),
    ("lomiri-wallpapers-20.04", f"{_UBUNTU}/Kleiber_by_Lukas_Baubkus.jpg", "Lukas Baubkus", "CC BY-SA 3.0"),
    *(
        ("mate-backgrounds", f"{_MATE}/{file}.jpg", author, "GPL-2+")
        for file, author in (
            ("Aqua", "Charles Barbin"),
            ("Blinds", "Lennart Poettering, Andrea Cimitan"),
            ("Dune", "Marco Cogoni, Hylke Bons"),
            ("FreshFlower", "Jens Ansorg"),
            ("Garden", "Charles Barbin"),
            ("GreenMeadow", "Timothy Schellhase, Lapo Calamandrei"),
            ("LadyBird", "Charles Barbin"),
            ("RainDrops", "blackcombwhistler07"),
            ("Storm", "Sergey Nazarov"),
            ("TwoWings", "Charles Barbin, Hylke Bons"),
            ("Wood", "Jean-François Fortin Tam"),
            ("YellowFlower", "Charles Barbin"),
        )
    ),
    *(
        ("plasma-workspace-wallpapers", f"{_KDE}/{folder}/contents/images/2560x1600.jpg", author, "LGPLv3")
        for folder, author in (
            ("BytheWater", "Maciej Wiklo"),
            ("ColorfulCups", "Dmitri Popov"),
            ("EveningGlow", "Ian Hex"),
            ("FallenLeaf", "Martin Klapetek"),
            ("Kite", "Risto Saukonpää"),
            ("OneStandsOut", "Risto Saukonpää"),
            ("Path", "Risto Saukonpää"),
            ("summer_1am", "Risto Saukonpää"),
        )
    ),
)


@dataclass(frozen=True)
class Photo:
    """One photo: `pixels` are its 8-bit values (H, W, 3), `source` names its package or file.

    Example:
        >>> pixels = np.full((1, 1, 3), 51, np.uint8)
        >>> print(js.data.Photo("grey", "grey", pixels, source="made", licence="CC0").image)
        [[[0.2 0.2 0.2]]]
    """

    name: str
    scene: str
    pixels: np.ndarray
    source: str
    licence: str

    @property
    def image(self) -> Float[np.ndarray, "H W 3"]:
        """float32 in [0, 1]."""
        return self.pixels.astype(np.float32) / 255


def held_out_photos() -> list[Photo]:
    """Load the scenes that no training ever touches.

    Example:
        >>> [photo.name for photo in js.data.held_out_photos()]
        ['astronaut', 'chelsea', 'coffee', 'china']
    """
    return [_from_wheel(name) for name, (scene, *_) in WHEELS.items() if scene in HELD_OUT]


def training_photos(folders: Iterable[str | Path] | str | Path = ()) -> list[Photo]:
    """Load the training scenes: those of the Python packages, then those of each entry of `folders`.

    Args:
        folders: each a folder of photos (searched deeply, each file its own scene) or "desktop" (see
            `DESKTOP`).

    Raises:
        ValueError: a folder without photos, or a package that is not installed.

    Example:
        >>> [photo.name for photo in js.data.training_photos()]
        ['rocket', 'motorcycle_left', 'motorcycle_right', 'flower', 'hopper']
    """
    photos = [_from_wheel(name) for name, (scene, *_) in WHEELS.items() if scene not in HELD_OUT]
    for folder in [folders] if isinstance(folders, str | Path) else folders:
        photos += _desktop() if folder == "desktop" else _from_folder(Path(folder))
    return photos


def _from_wheel(name: str) -> Photo:
    scene, package, file, licence = WHEELS[name]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        wheel = {"skimage": "scikit-image", "sklearn": "scikit-learn"}.get(package, package)
        raise ValueError(
            f"the photo {name!r} comes with {wheel}, which is not installed: pip install {wheel}"
        )
    return Photo(name, scene, _reduced(Path(spec.submodule_search_locations[0], file)), package, licence)


def _desktop() -> list[Photo]:
    missing = sorted({package for package, file, *_ in DESKTOP if not os.path.exists(file)})
    if missing:
        raise ValueError(f"some desktop photos are not installed: sudo apt-get install {' '.join(missing)}")
    photos = []
    for package, file, author, licence in DESKTOP:
        kde = file.startswith(_KDE)  # whose files are all called 2560x1600.jpg
        name = file.split("/")[4] if kde else Path(file).stem
        photos.append(Photo(name, f"desktop/{name}", _reduced(Path(file)), package, f"{author}, {licence}"))
    return photos


def _from_folder(folder: Path) -> list[Photo]:
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder of photos: give a folder or the name 'desktop'")
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"no photos in {folder}: looked for {', '.join(SUFFIXES)}")
    return [Photo(f.stem, str(f), _reduced(f), str(folder), "as given by its owner") for f in files]


@functools.cache
def _reduced(path: Path) -> np.ndarray:
    image = opened(path, draft=2 * LONGEST)[0].convert("RGB")
    image.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS, reducing_gap=3.0)
    pixels = np.array(image)
    pixels.flags.writeable = False
    return pixels
