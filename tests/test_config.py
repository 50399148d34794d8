"""Configs: what fits is read, what does not is named."""

from dataclasses import dataclass

import pytest

from jaxsampler import config


@dataclass(frozen=True)
class Recipe:
    solver: str
    steps: int = 20
    lr: float = 1e-3
    sizes: tuple[int, ...] = (1,)
    mask: str | None = None
    fast: bool = False


def read(tmp_path, text: str) -> Recipe:
    (tmp_path / "c.toml").write_text(text)
    return config.load(tmp_path / "c.toml", Recipe)


def test_values_become_fields_of_their_type(tmp_path):
    c = read(tmp_path, 'solver = "ddim"\nlr = 1\nsizes = [3, 4]\nmask = "m.png"\nfast = true')
    assert c == Recipe("ddim", 20, 1.0, (3, 4), "m.png", True)
    assert type(c.lr) is float
    assert type(c.sizes) is tuple


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('solver = "ddim"\nstep = 3', "unknown key 'step'; did you mean 'steps'"),
        (
            'solver = "ddim"\nzzz = 3',
            "unknown key 'zzz'; valid names are fast, lr, mask, sizes, solver, steps",
        ),
        ("steps = 3", r"key 'solver' is missing \(a string\)"),
        ('solver = "ddim"\nsteps = 3.5', "key 'steps' must be an integer; got 3.5"),
        ('solver = "ddim"\nsteps = true', "key 'steps' must be an integer; got True"),
        ('solver = "ddim"\nlr = "fast"', "key 'lr' must be a number; got 'fast'"),
        ('solver = "ddim"\nsizes = 3', "key 'sizes' must be an array of an integer; got 3"),
        ('solver = "ddim"\nsizes = [3, "a"]', "key 'sizes' must be an integer; got 'a'"),
        ('solver = "ddim"\nmask = 1', "key 'mask' must be a string; got 1"),
        ("solver = ", "not valid TOML"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as e:
        read(tmp_path, text)
    assert "c.toml" in str(e.value)
    assert "\n" not in str(e.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read config .*nowhere\.toml: No such file"):
        config.load(tmp_path / "nowhere.toml", Recipe)


def test_a_config_among_other_values():
    card = {"solver": "ddim", "steps": 7, "metrics": {"loss": 1.0}}
    assert config.pick(card, Recipe) == Recipe("ddim", 7)
    with pytest.raises(ValueError, match="key 'solver' is missing"):
        config.pick({"steps": 7}, Recipe)
