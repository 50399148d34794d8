"""The configs that come with the library, by name: `jaxsampler train fashion_edm`.

In a checkout they lie in configs/, a folder for each command; a wheel holds them as jaxsampler/configs/.
"""

from pathlib import Path

from ..spelling import nearest

PACKAGE = Path(__file__).parents[1]


def shipped(command: str) -> dict[str, Path]:
    """The files of a command, by name."""
    for folder in (PACKAGE / "configs" / command, PACKAGE.parent / "configs" / command):
        if found := sorted(folder.glob("*.toml")):
            return {file.stem: file for file in found}
    return {}


def find(given: str | Path, command: str) -> Path:
    """The file that is meant: one that exists, else the shipped one of that name.

    `configs/train/restore.toml` and `restore.toml` name the shipped one too, wherever the command is run.

    Raises:
        ValueError: there is neither; the error names what is shipped.
    """
    file, known = Path(given), shipped(command)
    if file.exists() and not file.is_dir():  # `train NAME` makes a folder of that name
        return file
    plain = file.parent.parts in ((), (command,), ("configs", command)) and file.suffix in ("", ".toml")
    if plain and file.stem in known:
        return known[file.stem]
    raise ValueError(
        f"cannot read config {given}: No such file; of those shipped, {nearest(file.stem, known)}"
    )
