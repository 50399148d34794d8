"""Strict promotion everywhere, a persistent compilation cache, and float64 on request."""

import os
import pathlib
import tempfile

os.environ.setdefault("MPLBACKEND", "Agg")

import jax
import jaxtyping
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


@pytest.fixture(scope="module")
def unchecked():
    """Annotations are not checked: half the time of files that tabulate thousands of intervals.

    The other files check them, tests/tables for every solver on every kind of path.
    """
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Compiled programs of one test file are of no use to the next, and hundreds of them fill the memory."""
    yield
    jax.clear_caches()
