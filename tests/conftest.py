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

from jaxsampler import eager

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
_cache = os.environ.get(
    "JAXSAMPLER_TEST_CACHE", str(pathlib.Path(tempfile.gettempdir()) / "jaxsampler-test-cache")
)
jax.config.update("jax_compilation_cache_dir", _cache)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache  # child processes use it too
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


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


VARIABLE = "JAX_DISABLE_MOST_OPTIMIZATIONS"
WHOLE = (  # where most of the time is running, or two programs must agree to the bit
    "tests/solvers/test_langevin.py",
    "tests/solvers/test_adaptive.py",
    "tests/test_notebooks.py",
    "tests/scan/test_run_table.py",
    "tests/scan/test_cost.py",
    "tests/test_callers.py",
    "tests/search/test_predictor.py",
    "tests/search/test_learn.py",
)


@pytest.fixture(scope="module", autouse=True)
def plain_programs(request):
    """Programs that run a few times only leave XLA's expensive passes out, in child processes too: those must
    give the same bits.
    """
    plain = not request.node.nodeid.startswith(WHOLE)
    before = os.environ.pop(VARIABLE, None)
    if plain:
        os.environ[VARIABLE] = "1"
    jax.config.update("jax_disable_most_optimizations", plain)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    os.environ.pop(VARIABLE, None)
    if before is not None:
        os.environ[VARIABLE] = before


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Compiled programs of one test file are of no use to the next, and hundreds of them fill the memory."""
    yield
    eager.forget()
    jax.clear_caches()
