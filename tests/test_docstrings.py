"""Each public name says what it is and shows one example, and the examples are true."""

import doctest
import inspect
import io
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsampler as js

ROOMS = [
    *(
        "paths",
        "tables",
        "scan",
        "solvers",
        "ode",
        "guidance",
        "data",
        "nn",
        "training",
        "pretrained",
        "search",
    ),
    *("search", "bridge", "grids", "models", "likelihood", "inversion"),
]


def public() -> dict[str, object]:
    """Functions, classes and steps reachable as js.X or js.ROOM.X, each once."""
    found: dict[str, object] = {}
    seen: set[int] = set()
    places = [("js", js)] + [(f"js.{room}", getattr(js, room)) for room in ROOMS]
    for prefix, room in places[1:]:
        places += [(f"{prefix}.{n}", m) for n, m in vars(room).items() if listed(room, n, m)]
    for prefix, place in places:
        for name, value in sorted(vars(place).items()):
            if name.startswith("_") or id(value) in seen or not ours(value):
                continue
            if not hasattr(place, "__path__") and value.__module__ != place.__name__:
                continue  # what a file imports is public where it is defined
            seen.add(id(value))
            found[f"{prefix}.{name}"] = value
    return found


def ours(value: object) -> bool:
    if isinstance(value, js.Step):
        return True
    return (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__.startswith("jaxsampler")


def listed(room: types.ModuleType, name: str, value: object) -> bool:
    """Whether the room's table of contents names this module: `from . import name as name`."""
    return isinstance(value, types.ModuleType) and f"import {name} as {name}\n" in inspect.getsource(room)


PUBLIC = public()


def examples(name: str) -> doctest.DocTest:
    doc = inspect.getdoc(PUBLIC[name]) or ""
    names = {"js": js, "jax": jax, "jnp": jnp, "np": np}
    return doctest.DocTestParser().get_doctest(doc, names, name, None, None)


@pytest.mark.parametrize("name", PUBLIC)
def test_example(name):
    """The docstring has an example, which runs and prints what it says."""
    test = examples(name)
    assert test.examples, f"{name} ({type(PUBLIC[name]).__name__}) shows no example"
    said = io.StringIO()
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.DocTestRunner(optionflags=flags).run(test, out=said.write)
    assert result.failed == 0, said.getvalue()


def test_all_rooms_are_looked_at():
    modules = {n for n in dir(js) if isinstance(getattr(js, n), types.ModuleType)}
    # the import hook of the tests and other tests leave names behind
    assert modules - {"jaxtyping", "commands"} == set(ROOMS)
    assert len(PUBLIC) > 150
