"""Each public name says what it is and shows one example, and the examples are true."""

import doctest
import importlib
import inspect
import io
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsampler as js

ROOMS = [
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
    "bridge",
    "grids",
    "models",
    "likelihood",
    "inversion",
]


def public() -> dict[str, object]:
    """Functions, classes and steps reachable as js.X or js.ROOM.X, each once, by its shortest name."""
    found: dict[str, object] = {}
    seen: set[int] = set()
    places = [("js", js)] + [(f"js.{room}", getattr(js, room)) for room in ROOMS]
    for module in list(vars(js.training).values()):
        if isinstance(module, types.ModuleType) and module.__name__.startswith("jaxsampler.training."):
            places.append((f"js.training.{module.__name__.split('.')[-1]}", module))
    for prefix, place in places:
        for name, value in sorted(vars(place).items()):
            if name.startswith("_") or id(value) in seen or isinstance(value, types.ModuleType):
                continue
            home = value.__module__ if not isinstance(value, js.Step) else "jaxsampler"
            if isinstance(value, js.Step) or inspect.isclass(value) or inspect.isfunction(value):
                if not str(home).startswith("jaxsampler"):
                    continue
                if inspect.ismodule(place) and not hasattr(place, "__path__") and place is not js:
                    if not isinstance(value, js.Step) and home != place.__name__:
                        continue  # what a module imports is public where it is defined
                seen.add(id(value))
                found[f"{prefix}.{name}"] = value
    return found


PUBLIC = public()


def examples(name: str) -> doctest.DocTest:
    doc = inspect.getdoc(PUBLIC[name]) or ""
    names = {"js": js, "jax": jax, "jnp": jnp, "np": np}
    return doctest.DocTestParser().get_doctest(doc, names, name, None, None)


@pytest.mark.parametrize("name", PUBLIC)
def test_example(name):
    """The docstring has an example, which runs and prints what it says."""
    test = examples(name)
    assert test.examples, f"{name} ({PUBLIC[name].__module__}) shows no example"
    said = io.StringIO()
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.DocTestRunner(optionflags=flags).run(test, out=said.write)
    assert result.failed == 0, said.getvalue()


def test_all_rooms_are_looked_at():
    rooms = {n for n in dir(js) if isinstance(getattr(js, n), types.ModuleType)}
    assert rooms == set(ROOMS)
    assert importlib.import_module("jaxsampler").__doc__
    assert len(PUBLIC) > 150
