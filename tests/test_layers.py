"""The house: which room may import which, what is reachable as js.NAME, and that a module's name means the
module.
"""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import jaxsampler

PACKAGE = Path(jaxsampler.__file__).parent

# The rule. The ground is files, the rest are rooms. A room of the tower imports the ground and the rooms
# before it. Leaves import the ground, the tower up to `front_door`, and what is named here; never each other.
GROUND = (
    "numerics",
    "files",
    "checkpoint",
    "spelling",
    "config",
    "metrics",
    "convolutions",
    "eager",
    "rollcall",
    "processes",
    "threefry",
)
TOWER = (
    "paths",
    "tables",
    "scan",
    "solvers",
    "front_door",
    "ode",
    "guidance",
    "inverse",
    "steering",
    "editing",
)
LEAVES = {
    "data": (),
    "nn": (),
    "training": ("data", "nn", "guidance"),
    "pretrained": ("data", "nn", "training"),
    "search": (),
    "commands": ("ode", "guidance", "data", "nn", "training", "pretrained", "search"),
}
LAZY = {("paths.grids.optimised", "search")}  # js.grids.optimise names grids that js.search finds


def modules() -> dict[str, Path]:
    """Dotted name below the package -> file."""
    named = {}
    for file in PACKAGE.rglob("*.py"):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return named


MODULES = modules()


def arrows(name: str, *, lazy: bool) -> set[str]:
    """The modules of the package that a module imports, at its top level or anywhere."""
    file, found = MODULES[name], set()
    here = name.split(".") if name else []
    here = here if file.name == "__init__.py" else here[:-1]
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if lazy else tree.body:
        if isinstance(node, ast.ImportFrom):
            if node.level:
                start = [*here[: len(here) - node.level + 1], *(node.module or "").split(".")]
            elif (node.module or "").split(".")[0] == "jaxsampler":
                start = (node.module or "").split(".")[1:]
            else:
                continue
            base = ".".join(part for part in start if part)
            for alias in node.names:
                whole = f"{base}.{alias.name}" if base else alias.name
                found.add(whole if whole in MODULES else base)
        elif isinstance(node, ast.Import):
            found |= {a.name.partition(".")[2] for a in node.names if a.name.split(".")[0] == "jaxsampler"}
    return found - {name}


def room(name: str) -> str:
    return name.split(".")[0]


def allowed(here: str) -> set[str]:
    """The rooms that a module of this room may import from; "" is the package itself, for its version."""
    if here in GROUND:
        return set(GROUND)
    if here in TOWER:
        return {here, "", *GROUND, *TOWER[: TOWER.index(here)]}
    return {here, "", *GROUND, *TOWER[: TOWER.index("front_door") + 1], *LEAVES[here]}


@pytest.mark.parametrize("name", sorted(set(MODULES) - {""}))
def test_imports_point_down(name):
    """No arrow runs up, lazy ones included."""
    for target in arrows(name, lazy=True):
        if (name, room(target)) in LAZY:
            continue
        assert room(target) in allowed(room(name)), f"{name} imports {target}, which its room must not know"


def test_no_circle():
    """At import time the modules form a directed acyclic graph: a package counts as its `__init__`."""
    order = TopologicalSorter({name: arrows(name, lazy=False) for name in MODULES if name})
    assert len(list(order.static_order())) >= len(MODULES) - 1


def test_ground_is_ordered():
    """On the ground a file imports only files that do not import it back, also inside functions."""
    order = TopologicalSorter({name: arrows(name, lazy=True) for name in GROUND}).static_order()
    assert set(order) >= set(GROUND)  # a circle raises


def test_every_module_is_reached_by_its_dotted_name():
    """`import jaxsampler.a.b` gives the module, not a function of the same name."""
    names = [m.name for m in pkgutil.walk_packages(jaxsampler.__path__, "jaxsampler.")]
    assert len(names) == len(MODULES) - 1
    for name in names:
        space: dict = {}
        exec(f"import {name} as it", space)
        assert inspect.ismodule(space["it"]), f"{name} is shadowed by {space['it']!r}"


PROMISED = {
    "AdjointDPM CondOT CosineVP Denoiser Direct DiscreteVP EDM LastK MeanReverting PFGMpp Path "
    "RecursiveCheckpoint",
    "Reversible Solver Step StepEnd Stopped SubVP Table Trajectory VE VP __version__ bridge convert data "
    "discrete grids",
    "guidance inversion likelihood loop models nn ode pad paths per_sample pretrained "
    "resume run sample scan search solvers stack step",
    "tables tabulate training",
}


def test_what_is_promised():
    """After `import jaxsampler as js` the names are the promised ones; the ground cannot be reached by
    accident. What sampling does not need is not there yet, nor are the packages that it needs.
    """
    code = (
        "import sys, jaxsampler as js; print(*sorted(dir(js)));"
        "print(*sorted(n for n in vars(js) if n[0] != '_'));"
        "print(*sys.modules)"
    )
    listed, present, loaded = (
        set(line.split())
        for line in subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.splitlines()
    )
    promised = {name for line in PROMISED for name in line.split()}
    assert listed == promised
    assert present <= promised
    unused = {"diffrax", "optax", "chex", "scipy", "PIL", "matplotlib", "tqdm"}
    assert not loaded & {*unused, *(f"jaxsampler.{name}" for name in ("ode", "guidance", *LEAVES))}


@pytest.mark.parametrize("name", sorted(jaxsampler._LAZY))
def test_what_is_imported_at_its_first_use(name):
    """It is what its module defines, and found at once the next time; type checkers are told of it."""
    found = getattr(jaxsampler, name)
    module = importlib.import_module(f"jaxsampler{jaxsampler._LAZY[name]}")
    assert found is (module if inspect.ismodule(found) else getattr(module, name))
    assert vars(jaxsampler)[name] is found
    assert name in dir(jaxsampler)
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    told = [node for node in tree.body if isinstance(node, ast.If)]
    assert name in {alias.asname for node in told[0].body for alias in getattr(node, "names", [])}


def test_only_tables_of_contents_re_export():
    """A name is imported from the file that defines it, or from a room's table of contents."""
    for name, file in MODULES.items():
        if file.name == "__init__.py":
            continue
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom):
                assert not any(a.asname == a.name for a in node.names), f"{name} re-exports"
