"""Checkpoints: the same bits back, every mismatch named, and never half a file."""

import errno
import os

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsampler import checkpoint


def tree(scale: float = 1.0) -> dict:
    return {
        "net": eqx.nn.Linear(3, 2, key=jax.random.key(0)),
        "half": scale * jnp.arange(4, dtype=jnp.float16) / 3,
        "host": scale * np.arange(3, dtype=np.float32),
        "many": (jnp.float32(scale * np.pi), jnp.int32(7), "not an array"),
    }


def test_the_same_bits_come_back(tmp_path):
    file = tmp_path / "deep" / "x.safetensors"
    checkpoint.save(file, tree(), {"seed": 3})
    back = checkpoint.load(file, tree(scale=0.0))
    for a, b in zip(jax.tree.leaves(tree()), jax.tree.leaves(back), strict=True):
        assert a == b if isinstance(a, str) else np.asarray(a).tobytes() == np.asarray(b).tobytes()
        assert isinstance(a, str) or a.dtype == b.dtype
    assert checkpoint.read_card(file) == {"seed": 3}
    assert set(checkpoint.read(file)) == {"net.weight", "net.bias", "half", "host", "many.0", "many.1"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t | {"half": jnp.zeros(5, jnp.float16)},
            r"'half' is float16\[4\], the model needs float16\[5\]",
        ),
        (lambda t: t | {"half": jnp.zeros(4)}, r"'half' is float16\[4\], the model needs float32\[4\]"),
        (lambda t: t | {"new": jnp.zeros(1)}, "no array 'new'"),
        (lambda t: {k: v for k, v in t.items() if k != "net"}, "'net.bias' that the model lacks"),
    ],
)
def test_a_mismatch_is_named(tmp_path, change, message):
    checkpoint.save(tmp_path / "x.safetensors", tree())
    with pytest.raises(ValueError, match=message):
        checkpoint.load(tmp_path / "x.safetensors", change(tree()))


@pytest.mark.parametrize(
    "spoil", [lambda b: b[:-9], lambda b: b"", lambda b: b"\xff" * 64, lambda b: b[:40] + b"!" + b[41:]]
)
def test_a_corrupt_file_is_one_line(tmp_path, spoil):
    file = tmp_path / "x.safetensors"
    checkpoint.save(file, tree())
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(ValueError, match=r"x\.safetensors is corrupt") as e:
        checkpoint.load(file, tree())
    assert "\n" not in str(e.value)


def test_missing_files_and_broken_cards(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read .*No such file"):
        checkpoint.load(tmp_path / "x.safetensors", tree())
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match=r"x\.json is corrupt"):
        checkpoint.read_card(tmp_path / "x.safetensors")


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    file = tmp_path / "x.safetensors"
    checkpoint.save(file, tree())
    old = file.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*x\.safetensors: the disk is full"):
        checkpoint.save(file, tree(scale=2.0))
    assert file.read_bytes() == old
    assert os.listdir(tmp_path) == ["x.safetensors"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "a").write_text("a file, no folder")
    with pytest.raises(OSError, match=r"cannot write .*a/x\.safetensors"):
        checkpoint.save(tmp_path / "a" / "x.safetensors", tree())


def test_a_digest_is_of_all_numbers_and_their_layout():
    a = np.arange(6, dtype=np.float32)
    same = [{"a": a, "b": 1.0}, {"a": jnp.asarray(a), "b": "no array"}]
    other = [
        {"a": a + np.float32(1e-6)},
        {"a": a.reshape(2, 3)},
        {"a": a.view(np.int32)},
        {"a": a, "b": a[:0]},
        {},
    ]
    first, second, *rest = (checkpoint.digest(tree) for tree in same + other)
    assert first == second
    assert len({first, *rest}) == 1 + len(other)


@pytest.mark.parametrize("layout", ["transposed", "every other", "reversed", "a scalar view"])
def test_arrays_that_do_not_lie_in_order_come_back_as_they_are(tmp_path, layout):
    """safetensors writes memory as it lies: every writer makes its arrays contiguous."""
    whole = np.arange(6.0).reshape(2, 3)
    given = {
        "transposed": whole.T,
        "every other": whole[:, ::2],
        "reversed": whole[::-1],
        "a scalar view": whole[1, 1, ...],
    }[layout]
    checkpoint.save(tmp_path / "x.safetensors", {"a": given})
    back = checkpoint.load(tmp_path / "x.safetensors", {"a": np.zeros(given.shape)})
    np.testing.assert_array_equal(back["a"], given)
