"""What a command compiles, and what of it the next process would find."""

import jax
import pytest

from jaxsampler import eager

COMPILED, FOUND = "/jax/core/compile/backend_compile_duration", "/jax/compilation_cache/cache_hits"
_heard = []
jax.monitoring.register_event_duration_secs_listener(lambda event, _, **about: _heard.append(event))
jax.monitoring.register_event_listener(lambda event, **about: _heard.append(event))


@pytest.fixture
def compiled_again():
    """`compiled_again(f)`: how many programs f compiles in a second process, and how many it finds, compiled.

    The second process is this one, with all that it knows forgotten: the cache on disk stays. JAX keeps no
    program there that calls back into Python.
    """

    def count(f):
        f()
        eager.forget()
        jax.clear_caches()
        _heard.clear()
        f()
        return _heard.count(COMPILED) - _heard.count(FOUND), _heard.count(FOUND)

    return count
