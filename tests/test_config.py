"""Configs: what fits is read, what does not is named."""

import dataclasses
import typing
from dataclasses import dataclass

import pytest

from jaxsampler import config
from jaxsampler.commands.bench.quality import Quality
from jaxsampler.commands.search.settings import Search
from jaxsampler.training import classify, generate, restore


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


# -- ranges


@dataclass(frozen=True)
class Bounded:
    batch: config.Count = 1
    skip: config.Natural = 0
    rate: config.Positive = 1.0
    share: config.Share = 0.5
    part: typing.Annotated[float, config.Range(0, 1, above=True, below=True)] = 0.5
    widths: config.Widths = (8,)
    seed: config.Seed = 0
    free: float = 0.0
    name: str | None = None

    def __post_init__(self):
        config.check(self)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch = 0", "key 'batch' must be at least 1; got 0"),
        ("batch = -3", "key 'batch' must be at least 1; got -3"),
        ("batch = 1000000001", "key 'batch' must be at most 1000000000; got 1000000001"),
        (f"batch = {10**400}", "key 'batch' must be "),
        (f"batch = {'9' * 5000}", "not valid TOML"),
        ("skip = -1", "key 'skip' must not be negative; got -1"),
        ("rate = 0", "key 'rate' must be above 0; got 0.0"),
        ("rate = -1e-3", "key 'rate' must be above 0; got -0.001"),
        ("rate = nan", "key 'rate' must be a finite number; got nan"),
        ("rate = inf", "key 'rate' must be a finite number; got inf"),
        (f"rate = {10**400}", "key 'rate' must be a number; got 1000"),
        ("share = 2", "key 'share' must be at most 1; got 2.0"),
        ("part = 1.0", "key 'part' must be below 1; got 1.0"),
        ("part = 0.0", "key 'part' must be above 0; got 0.0"),
        ("widths = []", "key 'widths' must have 1 to 8 entries; got ()"),
        ("widths = [0, 8]", "key 'widths' must be at least 1; got 0"),
        ("widths = [-8, 8]", "key 'widths' must be at least 1; got -8"),
        (f"widths = {[8] * 9}", "key 'widths' must have 1 to 8 entries"),
        ("seed = 4294967296", "key 'seed' must be at most 4294967295; got 4294967296"),
        ("free = -inf", "key 'free' must be a finite number; got -inf"),
        ("a = " + "[" * 100_000, "not valid TOML: it is nested too deeply"),
        ("a.b.c.d = 1", "unknown key 'a'"),
        ("widths = [[[8]]]", "key 'widths' must be an integer; got [[8]]"),
    ],
    ids=lambda text: text[:30],
)
def test_a_value_out_of_its_range_is_named(tmp_path, text, message):
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(ValueError) as e:
        config.load(tmp_path / "c.toml", Bounded)
    assert message in str(e.value)
    assert "\n" not in str(e.value)
    assert len(str(e.value)) < 400


def test_a_range_holds_however_it_is_made():
    with pytest.raises(ValueError, match="key 'batch' must be at least 1; got 0"):
        Bounded(batch=0)
    with pytest.raises(ValueError, match="key 'share' must not be negative; got -1.0"):
        dataclasses.replace(Bounded(), share=-1.0)
    assert Bounded(name="x", widths=(1, 2)).widths == (1, 2)


def test_a_file_without_end_is_no_config():
    with pytest.raises(ValueError, match="config /dev/zero is not valid TOML: it is longer than 32 MB"):
        config.read("/dev/zero")


@pytest.mark.parametrize("cls", [Search, Quality, classify.Classify, generate.Generate, restore.Restore])
def test_every_number_of_every_config_declares_its_range(cls):
    """An integer without bounds is how a traceback starts; floats are finite by themselves, and the ones here
    all have bounds too.
    """

    def bounded(hint, inside=False):
        if typing.get_origin(hint) is typing.Annotated:
            return bounded(hint.__origin__, any(isinstance(m, config.Range) for m in hint.__metadata__))
        if args := [a for a in typing.get_args(hint) if a not in (Ellipsis, type(None))]:
            return all(bounded(a, inside) for a in args)
        return inside or hint not in (int, float)

    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        assert bounded(hint) or name == "channels", name  # which is 1 or 3
