"""Strict promotion everywhere, fast compilation, a persistent cache of it, and float64 on request."""

import importlib.metadata
import os
import pathlib
import tempfile

os.environ.setdefault("MPLBACKEND", "Agg")
if importlib.metadata.version("jaxlib").startswith("0.10.") and "JAXSAMPLER_TEST_XLA" not in os.environ:
    # XLA's earlier code generator for fusions compiles these small programs in 0.6 of the time. Later
    # releases, as fast by themselves, refuse the flag. With JAXSAMPLER_TEST_XLA=default the tests compile as
    # users do.
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_use_fusion_emitters=false"

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
_cache = os.environ.get(
    "JAXSAMPLER_TEST_CACHE", str(pathlib.Path(tempfile.gettempdir()) / "jaxsampler-test-cache")
)
jax.config.update("jax_compilation_cache_dir", _cache)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def pytest_collection_modifyitems(items):
    """The notebooks first: each is minutes long, and one worker would run them while the other has nothing
    left to do.
    """
    items.sort(key=lambda item: "test_notebooks" not in item.nodeid)


@pytest.fixture
def x64():
    """Double precision for the duration of a test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Compiled programs of one test file are of no use to the next, and hundreds of them fill the memory."""
    yield
    jax.clear_caches()
