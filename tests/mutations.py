"""Mutation check: change one expression of a formula at a time and see whether a test fails.

`python tests/mutations.py draw` writes tests/mutations.json: 40 mutations at random places, at most one in a
function. The same code gives the same list.

`python tests/mutations.py run --tree PATH --out FILE` copies the checkout at PATH and applies each mutation
to the copy. It runs the test files of its folder that say most about the mutated module, until a test fails.
If none fails, it runs all others except the SLOW ones. FILE says which test caught each mutation.
At the end the catching tests run without mutations; one that fails then has caught nothing. A run that was
stopped continues. Allow an hour or two.

A mutation swaps + and -, * and /, or sin and cos, turns a comparison round, or changes a number or exponent.
Its place is an expression in a named function, compared by syntax: one list serves checkouts whose files were
moved or reformatted, and functions that were renamed but kept the statement. If neither is found, the
mutation is "gone". Never drawn: defaults, annotations, error texts, guards that only raise, shapes, indices,
axes, numbers below 1e-3 (tolerances), and what EQUIVALENT lists.
"""

import argparse
import ast
import copy
import json
import os
import random
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIST = ROOT / "tests" / "mutations.json"
SEED, COUNT = 14, 40

FORMULAS = """solvers/*.py paths/*.py tables/table.py tables/tabulation.py tables/rows.py scan/table_solver.py
    scan/adjoints.py scan/brownian.py ode/*.py guidance/*.py metrics.py training/losses.py
    training/times.py"""
TESTS = {  # of each folder of formulas; the names are those of this checkout and of the earlier, flat one
    "solvers": "solvers/* tables/* test_tables.py",
    "paths": "paths/* test_paths.py test_grids.py test_predictions.py test_pfgm.py test_models.py "
    "test_discrete.py",
    "tables": "tables/* test_tables.py scan/* test_run.py test_orders.py test_usf.py test_identities.py",
    "scan": "scan/* test_run.py test_adjoints.py tables/* test_tables.py",
    "ode": "ode/* test_likelihood.py test_inversion.py test_adjoint_dpm.py test_bridge.py",
    "guidance": "guidance/*",
    "metrics.py": "test_metrics.py",
    "training": "training/*",
}
SLOW = "test_notebooks.py test_readme.py test_devices.py"

PAIRS = [(ast.Add, ast.Sub), (ast.Mult, ast.Div), (ast.Lt, ast.Gt), (ast.LtE, ast.GtE), (ast.Eq, ast.NotEq)]
OTHER = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}
SHAPING = re.compile(
    "range|reshape|zeros|ones|full|arange|eye|swapaxes|moveaxis|expand_dims|squeeze|broadcast_to|repeat|tile|pad|"
    "getattr|isinstance|len|split|stack|concatenate|take|fold_in|dynamic_update_index_in_dim|tree_at|vmap"
)
REDUCING = re.compile("mean|sum|prod|any|all|sort|cumsum|min|max|draw|argmin|argmax|std|var")
AXES = re.compile("axis|ndim|size|dtype|shape|in_axes|out_axes|length")
BOOKKEEPING = re.compile(r"\blen\(|shape|ndim|\.size|dtype|['\"]|None|type\(|structure")  # in a comparison

# (function, expression, occurrence): why no test can tell the difference
EQUIVALENT: dict[tuple[str, str, int], str] = {}


def values(node):
    """The parts of a statement or expression in which a mutation changes a value."""
    match node:
        case ast.FunctionDef() | ast.ClassDef() | ast.Raise() | ast.Assert() | ast.JoinedStr():
            return []
        case ast.If(body=body) if all(isinstance(line, ast.Raise) for line in body):
            return node.orelse
        case ast.Compare() if BOOKKEEPING.search(ast.unparse(node)):
            return []
        case ast.Subscript() | ast.AnnAssign():
            return [node.value] if node.value else []
        case ast.Dict():
            return node.values
        case ast.Call():
            name = ast.unparse(node.func).split(".")[-1]
            if SHAPING.fullmatch(name):
                return [node.func]
            args = node.args[:2] if name in ("linspace", "tensordot") else node.args
            if isinstance(node.func, ast.Attribute) and REDUCING.fullmatch(name):
                args = [a for a in args if not re.fullmatch(r"-?\d", ast.unparse(a))]
            return [node.func, *args, *(k.value for k in node.keywords if not AXES.fullmatch(k.arg or ""))]
    return ast.iter_child_nodes(node)


def expressions(tree):
    """(place, expression, its number among equal ones of its function) of every expression of the package."""

    def functions(node, above=()):
        for child in ast.iter_child_nodes(node):
            name = (*above, child.name) if isinstance(child, ast.FunctionDef | ast.ClassDef) else above
            if isinstance(child, ast.FunctionDef):
                yield ".".join(name), child
            yield from functions(child, name)

    def walk(node, context=""):
        if isinstance(node, ast.stmt):
            context = ast.unparse(node).splitlines()[0]
        elif isinstance(node, ast.expr) and not isinstance(node, ast.JoinedStr):
            yield context, node
        for child in values(node):
            yield from walk(child, context)

    for path in sorted((tree / "jaxsampler").rglob("*.py")):
        for function, body in functions(ast.parse(path.read_text())):
            seen: dict[str, int] = {}
            for context, node in (found for line in body.body for found in walk(line)):
                text = ast.unparse(node)
                seen[text] = seen.get(text, -1) + 1
                place = {"function": function, "file": str(path.relative_to(tree)), "context": context}
                yield place, node, seen[text]


def mutated(node):
    """(kind, changed expression), or None if there is nothing to change."""
    new = copy.deepcopy(node)
    match node:
        case ast.BinOp(op=ast.Pow(), right=ast.Constant()):
            new.right.value += 1
            return "exponent", new
        case ast.BinOp(op=ast.Pow()):
            new.right = ast.BinOp(new.right, ast.Add(), ast.Constant(1))
            return "exponent", new
        case ast.BinOp() if type(node.op) in OTHER:
            if any(ast.unparse(a)[0] in "['\"" or isinstance(a, ast.Tuple) for a in (node.left, node.right)):
                return None  # lists and texts
            new.op = OTHER[type(node.op)]()
            return "arithmetic", new
        case ast.Constant(value=int() | float() as c) if not isinstance(c, bool) and not 0 < abs(c) < 1e-3:
            new.value = 1.1 * c if isinstance(c, float) and c else c + 1
            return "number", new
        case ast.Compare(ops=[op]) if type(op) in OTHER and not BOOKKEEPING.search(ast.unparse(node)):
            new.ops = [OTHER[type(op)]()]
            return "comparison", new
        case ast.Call(func=ast.Attribute(attr="sin" | "cos" as name)):
            new.func.attr = "cos" if name == "sin" else "sin"
            return "sin/cos", new
    return None


def draw(tree):
    """Write the list."""
    drawn, every = {}, []
    for place, node, occurrence in expressions(tree):
        file = Path(place["file"])
        rooms = [i for i, room in enumerate(FORMULAS.split()) if file.match(f"jaxsampler/{room}")]
        if rooms and (change := mutated(node)):
            texts = {"kind": change[0], "before": ast.unparse(node), "after": ast.unparse(change[1])}
            every.append((rooms[0], place | texts | {"occurrence": occurrence}))
    every = [m for _, m in sorted(every, key=lambda room_and_m: room_and_m[0])]
    random.Random(SEED).shuffle(every)
    for m in every:
        if (m["function"], m["before"], m["occurrence"]) not in EQUIVALENT and len(drawn) < COUNT:
            drawn.setdefault(m["function"], {"number": len(drawn)} | m)
    LIST.write_text(json.dumps(list(drawn.values()), indent=1) + "\n")
    print(f"{len(drawn)} of {len(every)} mutations")


def public(text):
    """Names without a leading underscore, which functions lose when they move to a file of their own."""
    return re.sub(r"\b_(?=[a-z])", "", text)


def find(tree, m):
    """(file, expression) of a mutation in a checkout, None if it is gone."""
    found = []
    for place, node, occurrence in expressions(tree):
        same, kept = place["function"] == m["function"], public(place["context"]) == public(m["context"])
        text = public(ast.unparse(node))
        if (same or kept) and occurrence == m["occurrence"] and text == public(m["before"]):
            file = place["file"].split("/")[-1] == m["file"].split("/")[-1]
            found.append((same + kept, file, tree / place["file"], node))
    return max(found, key=lambda place: place[:2])[2:] if found else None


def write(path, text):
    """Write a module and forget its compiled form, which may look as new."""
    path.write_bytes(text)
    for compiled in path.parent.glob(f"__pycache__/{path.stem}.*"):
        compiled.unlink()


def replace(path, node, after):
    """Put an expression in the place of another."""
    lines = path.read_bytes().splitlines(keepends=True)
    start = sum(map(len, lines[: node.lineno - 1])) + node.col_offset
    end = sum(map(len, lines[: node.end_lineno - 1])) + node.end_col_offset
    write(path, b"".join(lines)[:start] + f"({after})".encode() + b"".join(lines)[end:])


def tests(tree, m, path):
    """Up to eight test files of a mutation's folder that say most of its function or module; all others."""

    def among(file, patterns):
        return any(file.match(f"tests/{p}") or file.match(f"tests/*/{p}") for p in patterns.split())

    texts = {file: file.read_text() for file in (tree / "tests").rglob("test_*.py") if not among(file, SLOW)}
    scores = dict.fromkeys(texts, 0.0)
    names = {getattr(node, "name", "_") for node in ast.parse(path.read_text()).body}
    for name in {name for name in names if name[0] != "_"}:
        times = {file: len(re.findall(rf"\b{name}\b", text)) for file, text in texts.items()}
        weight = (20 if name == m["function"].split(".")[0] else 1) / (1 + sum(map(bool, times.values())))
        scores = {file: score + weight * times[file] for file, score in scores.items()}
    folder = TESTS[m["file"].split("/")[1]]
    every = sorted(texts, key=lambda file: (among(file, folder), scores[file], file), reverse=True)
    near = [file for file in every if among(file, folder) and scores[file]][:8] or every[:4]
    return near, every[len(near) :]


def failures(tree, names, seconds, *options):
    """The tests that fail, or ["timeout"] after that time on a processor."""
    flags = shlex.split("-m pytest -n 0 -q -p no:cacheprovider --tb=no -rfE --hypothesis-seed=0")
    command = [sys.executable, *flags, *options, *map(str, names)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    env = os.environ | {"PYTHONPATH": str(tree)}
    limit = lambda: resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    pytest = subprocess.run(command, cwd=tree, env=env, text=True, preexec_fn=limit, **pipes)
    if pytest.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return ["timeout"]
    failed = re.findall(r"^(?:FAILED|ERROR) (tests/.*?)(?: - .*)?$", pytest.stdout, re.MULTILINE)
    if pytest.returncode in (4, 5):  # no tests to run
        raise RuntimeError(pytest.stdout[-3000:])
    return failed or ([f"crash: exit {pytest.returncode}"] if pytest.returncode else [])


def run(tree, out, seconds, only):
    """Apply the list to a copy of a checkout."""
    chosen = [m for m in json.loads(LIST.read_text()) if only is None or m["number"] in only]
    results = json.loads(out.read_text()) if out.exists() else {}
    scratch = Path(tempfile.mkdtemp()).resolve() / "tree"
    shutil.copytree(tree, scratch, ignore=shutil.ignore_patterns(".git", "__pycache__", ".hypothesis"))

    def note(m, **result):
        results[str(m["number"])] = m | result
        out.write_text(json.dumps(results, indent=1) + "\n")
        print(m["number"], m["function"], ":", m["before"], "->", m["after"], result, flush=True)

    for far, state in enumerate((None, "not by the likeliest tests")):
        for m in chosen:
            last = results.get(str(m["number"]), {})
            if last.get("caught") != state:
                continue
            if (place := find(scratch, m)) is None:
                note(m, caught="gone", seconds=0)
                continue
            path, began = place[0], time.monotonic()
            original, names = path.read_bytes(), tests(scratch, m, path)[far]
            before, after = ast.unparse(place[1]), m["after"]
            replace(*place, after if before == m["before"] else public(after))
            try:
                failed = failures(scratch, names, 3 * seconds if far else seconds, "-x")
            finally:
                write(path, original)
            caught = failed[0] if failed else "no test" if far else "not by the likeliest tests"
            note(m, caught=caught, seconds=round(time.monotonic() - began + last.get("seconds", 0)))

    catching = sorted({r["caught"] for r in results.values() if "::" in r["caught"]})
    false = failures(scratch, catching, 10 * seconds) if catching else []
    for r in [r for r in results.values() if r["caught"] in false]:
        note(r, caught=f"falsely by {r['caught']}, which fails without it")
    caught = [r["caught"] for r in results.values()]
    print({what: caught.count(what) for what in ("no test", "timeout", "gone")}, "of", len(caught))
    shutil.rmtree(scratch.parent)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["draw", "run"])
    parser.add_argument("--tree", type=Path, default=ROOT, help="the checkout (default: this one)")
    parser.add_argument("--out", type=Path, default=Path("mutations_result.json"))
    parser.add_argument(
        "--seconds",
        type=int,
        default=900,
        help="of a processor, for the likeliest tests of one mutation; thrice that for all others",
    )
    parser.add_argument("--only", type=int, nargs="*", help="numbers in the list")
    given = parser.parse_args()
    if given.what == "draw":
        draw(given.tree.resolve())
    else:
        run(given.tree.resolve(), given.out.resolve(), given.seconds, given.only)
