"""Files from strangers: everything is looked at before anything is built from it, and refused in one line."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

import jaxsampler as js
from jaxsampler import checkpoint
from jaxsampler.tables import Table

SHIPPED = Path(js.pretrained.__file__).parent


def refused(load, *hints):
    with pytest.raises(ValueError) as told:
        load()
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 500
    for hint in hints:
        assert hint in str(told.value)


def network(tmp_path, name, **changes):
    """A file of weights whose card is changed; None leaves a key out."""
    card = checkpoint.read_card(SHIPPED / f"{name}.json") | changes
    card = {k: v for k, v in card.items() if v is not None}
    file = tmp_path / "w.safetensors"
    file.with_suffix(".json").write_text(json.dumps(card))
    if not file.exists():
        file.symlink_to(SHIPPED / f"{name}.safetensors")
    return lambda: js.pretrained.load(name, path=file)


HUGE = 10**12
CARDS = {
    "fashion_edm": [
        *({"size": value} for value in (HUGE, 0, -32, "32", 33, [32])),
        *({"widths": value} for value in ([HUGE], [], [0, 8], [-8, 8], [[8]], [8] * 1000, "8", [8.5])),
        *({"depth": value} for value in (HUGE, -1, 0, "2", True)),
        *({"embedding": value} for value in (HUGE, -1)),
        *({"classes": value} for value in ([], HUGE, "ten", [1, 2], ["a"] * 100_001, {"a": 1})),
        *({"sigma_data": value} for value in (float("nan"), float("inf"), 0, -1, "0.5", [0.5], None, HUGE)),
        *({"channels": value} for value in (0, 2, HUGE, "1")),
        *({"seed": value} for value in (-1, 2**80)),
        *({"model": value} for value in ("edn", None, 3, ["edm"])),
    ],
    "restore": [
        *({"residual": value} for value in ([], [0.1], [0.1] * 11, [-1.0] * 10, ["a"] * 10, HUGE, None)),
        *({"residual": [value] * 10} for value in (float("nan"), float("inf"), 0.0)),
        *({"T": value} for value in (HUGE, 0, -5, 2.5)),
        *({"eps": value} for value in (0.0, 1.0, -1, float("nan"))),
        *({"std": value} for value in (0.0, -1, float("inf"))),
        *({"widths": value} for value in ([48, 80, HUGE], [48, 80], [48, 80, 129])),
    ],
    "fashion_classifier": [{"features": HUGE}, {"features": 0}, {"widths": []}, {"depth": 10**6}],
}


@pytest.mark.parametrize(
    ("name", "changes"),
    [(name, changes) for name, cards in CARDS.items() for changes in cards],
    ids=lambda v: str(v)[:40],
)
def test_a_card_with_absurd_settings(tmp_path, name, changes):
    refused(network(tmp_path, name, **changes), "w.")


@pytest.mark.parametrize("name", CARDS)
def test_the_cards_as_they_are(tmp_path, name):
    """So that what is refused above is refused for its change."""
    assert network(tmp_path, name)() is not None


@pytest.mark.parametrize(
    "text", ["[" * 200_000, '{"a":' * 100_000, "null", "[1]", "{", "", "NaN", "\udc80"], ids=range(8)
)
def test_a_card_that_is_none(tmp_path, text):
    load = network(tmp_path, "fashion_edm")
    (tmp_path / "w.json").write_bytes(text.encode(errors="surrogatepass"))
    refused(load, "w.json")


def header(arrays, tail=b""):
    text = json.dumps(arrays).encode()
    return struct.pack("<Q", len(text)) + text + tail


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 8,
        struct.pack("<Q", 2**63) + b"{}",
        header([1, 2]),
        header({"a": 3}),
        header({"a": {"dtype": "F32"}}),
        header({"a": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}, b"12"),
        header({"a": {"dtype": "F32", "shape": [HUGE, HUGE], "data_offsets": [0, 4]}}, b"1234"),
        header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"1234"),
        header({"a": {"dtype": "F32", "shape": "x", "data_offsets": [0, 4]}}, b"1234"),
        struct.pack("<Q", 300_000) + b"[" * 300_000,
    ],
    ids=range(11),
)
def test_weights_with_an_absurd_header(tmp_path, data):
    load = network(tmp_path, "fashion_edm")
    (tmp_path / "w.safetensors").unlink()
    (tmp_path / "w.safetensors").write_bytes(data)
    refused(load, "w.safetensors")
    refused(lambda: checkpoint.read(tmp_path / "w.safetensors"), "w.safetensors")


def test_weights_of_another_shape_are_not_read(tmp_path, monkeypatch):
    """The header is compared first, whatever the file's size."""
    file = tmp_path / "w.safetensors"
    checkpoint.save(file, {"a": np.zeros((3, 4), np.float32)})
    monkeypatch.setattr(checkpoint, "parse", lambda data: pytest.fail("read"))
    refused(lambda: checkpoint.load(file, {"a": np.zeros(3, np.float32)}), "float32[3, 4]", "float32[3]")
    refused(lambda: checkpoint.load(Path("/dev/zero"), {}), "/dev/zero is corrupt")


@pytest.fixture(scope="module")
def table():
    path = js.VP()
    return js.tabulate(path, js.grids.log_snr(path, 3), js.solvers.dpmpp_2m)


@pytest.mark.parametrize(
    "changes",
    [
        {"slot": [0, 1, 2]},
        {"slot": [0, -1, 0]},
        {"keep": [2**31 - 1, 0, 0]},
        {"draw": [2**31 - 1, 0, 0]},
        {"draw": [-1, 0, 0]},
        {"slot": np.zeros(3)},
        {"B": np.zeros((3, 0))},
        {"B": np.zeros(3)},
        {"form": np.zeros((3, 3))},
        {"t": np.float64(1.0)},
        {"extra": np.zeros(1)},
    ],
    ids=lambda changes: str(next(iter(changes))),
)
def test_a_table_with_absurd_numbers(tmp_path, table, changes):
    arrays = {k: np.asarray(v, order="C") for k, v in vars(table).items() if v is not None}
    file = tmp_path / "t.safetensors"
    file.write_bytes(save(arrays))
    assert Table.load(file).nfe == 3  # as it is
    for name, value in changes.items():
        value = np.asarray(value)
        arrays[name] = value.astype(np.int32) if value.dtype.kind == "i" else value
    file.write_bytes(save(arrays))
    refused(lambda: Table.load(file), "t.safetensors")


@pytest.mark.parametrize("about", ["[" * 100_000, "[1]", "{", "3"], ids=range(4))
def test_a_table_with_an_absurd_card(tmp_path, table, about):
    arrays = {k: np.asarray(v, order="C") for k, v in vars(table).items() if v is not None}
    (tmp_path / "t.safetensors").write_bytes(save(arrays, {"about": "{}"}))
    assert Table.about(tmp_path / "t.safetensors") == {}
    (tmp_path / "t.safetensors").write_bytes(save(arrays, {"about": about}))
    refused(lambda: Table.load(tmp_path / "t.safetensors"), "t.safetensors")
    refused(lambda: Table.about(tmp_path / "t.safetensors"), "t.safetensors")


GOOD = {"lam": [-1.0, 1.0], "mark": [0.0] * 10, "about": []}


@pytest.mark.parametrize(
    ("card", "arrays"),
    [
        ("[" * 100_000, {}),
        ("{", {}),
        ("[]", {}),
        ({}, {}),
        (GOOD | {"lam": [1.0]}, {}),
        (GOOD | {"lam": [1.0, -1.0]}, {}),
        (GOOD | {"lam": ["a", "b"]}, {}),
        (GOOD | {"lam": [float("nan"), 1.0]}, {}),
        (GOOD | {"lam": 3}, {}),
        (GOOD, {"s": np.zeros((5, 3))}),
        (GOOD, {"l": np.full((5, 2), np.nan)}),
        (GOOD, {"b": np.zeros((5, 2), np.int32)}),
        (GOOD, {"l": np.zeros((2, 2)), "s": np.zeros((2, 2)), "b": np.zeros((2, 2))}),
        (GOOD, {"l": None}),
    ],
    ids=range(14),
)
def test_statistics_with_absurd_numbers(tmp_path, card, arrays):
    every = {name: np.zeros((5, 2)) for name in "lsb"} | arrays
    every = {name: a for name, a in every.items() if a is not None}
    text = card if isinstance(card, str) else json.dumps(card)
    (tmp_path / "s.safetensors").write_bytes(
        save({name: np.zeros((5, 2)) for name in "lsb"}, {"statistics": json.dumps(GOOD)})
    )
    assert len(js.solvers.Statistics.load(tmp_path / "s.safetensors").lam) == 5  # as it should be
    (tmp_path / "s.safetensors").write_bytes(save(every, {"statistics": text}))
    refused(lambda: js.solvers.Statistics.load(tmp_path / "s.safetensors"), "s.safetensors is corrupt")
