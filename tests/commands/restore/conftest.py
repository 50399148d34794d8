"""A small network with random weights (a trained one starts with zero branches and would hide mistakes), and
its files.
"""

import dataclasses
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import pytest
from places import ROOT

from jaxsampler import checkpoint, config, data
from jaxsampler.nn.unet import RestorationNet
from jaxsampler.training.restore import Restore

CONFIG = ROOT / "configs/train/restore.toml"
RESIDUAL = tuple(np.linspace(0.05, 0.3, len(data.TASKS)).tolist())


@pytest.fixture(scope="session")
def net() -> RestorationNet:
    """Two levels, one block each: a pixel sees 21 others on each side."""
    net = RestorationNet(RESIDUAL, std=0.5, widths=(8, 8), depth=1, embedding=16, key=jax.random.key(0))
    leaves, tree = jax.tree.flatten(net)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [
        a + 0.05 * jax.random.normal(k, a.shape) if eqx.is_array(a) else a
        for a, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(tree, noisy)


@pytest.fixture(scope="session")
def weights(net, tmp_path_factory) -> Path:
    """The network as `jaxsampler train` writes it."""
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    c = dataclasses.replace(config.load(CONFIG, Restore), widths=(8, 8), depth=1, embedding=16)
    checkpoint.save(path, net, dataclasses.asdict(c) | {"residual": RESIDUAL})
    return path


@pytest.fixture(scope="session")
def photo() -> np.ndarray:
    """64 x 64 pixels of a held-out photo."""
    return {p.name: p for p in data.held_out_photos()}["astronaut"].image[80:144, 180:244]
