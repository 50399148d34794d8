"""Evolution and random search: what they find, that they go on where they were killed, and what they
refuse.
"""

import os
import subprocess
import sys

import chex
import jax
import numpy as np
import pytest
from places import ROOT

import jaxsampler as js
from jaxsampler.search.archive import Archive
from jaxsampler.search.evolution import children, evolve, random_search
from jaxsampler.search.known_schedules import known
from jaxsampler.search.predictor import s3
from jaxsampler.search.score import each, rmse
from jaxsampler.search.space import Space

VP = js.VP()
SPACE = Space(VP, 4)
KEY = jax.random.key(0)
DENOISER = js.models.gaussian_mixture(np.array([[1.0, 0.5], [-0.8, -0.3]]), 0.3, VP)
QUIET = {"key": KEY, "progress": False}


def start(seed, n):
    x = jax.random.normal(jax.random.key(seed), (n, 2))
    return x, js.run(DENOISER, js.tabulate(VP, js.grids.quadratic(VP, 100), js.solvers.unipc), x)


SCORE, FRESH = rmse(DENOISER, *start(1, 256)), rmse(DENOISER, *start(2, 1024))


def far(tables):
    """A cheap score without a network: how far the last rows are from a mean over all outputs."""
    return np.abs(tables.B[:, -1, 1:] - 0.25).sum(1) + np.abs(tables.t[:, 1] - 0.7)


def bits(archive):
    return b"".join(np.asarray(a).tobytes() for a in jax.tree.leaves(archive))


def test_evolution_beats_its_parents_and_random_search():
    table, report = evolve(SCORE, Space(VP, 4, gentle=0.1), budget=640, size=64, **QUIET)
    first = report.archive.scores[: max(64, len(known(SPACE)))]
    _, drawn = random_search(SCORE, SPACE, budget=640, **QUIET)
    assert report.score < 0.9 * first.min() and report.score < 0.8 * drawn.score
    stacked = js.stack([table])
    assert SCORE(stacked)[0] == pytest.approx(report.score, rel=1e-4)
    hand_made = FRESH(SPACE.tables(known(SPACE))).min()
    assert (
        FRESH(stacked)[0] < 0.95 * hand_made
    )  # on noise that it never saw, and of which that is the best of 240


def test_the_report_is_the_archive():
    final = each(lambda table: table.t[1])
    table, report = evolve(
        far,
        SPACE,
        budget=150,
        size=40,
        start=SPACE.sample(np.random.default_rng(0), 3),
        final_score=final,
        finalists=7,
        **QUIET,
    )
    scores = report.archive.scores
    assert report.evaluated == len(scores) == 150 and report.dropped == 0
    np.testing.assert_allclose(scores, far(SPACE.tables(report.archive.schedules)))
    np.testing.assert_array_equal(report.history[:, 0], [40, 80, 120, 150])
    np.testing.assert_array_equal(report.history[:, 1], [scores[:n].min() for n in (40, 80, 120, 150)])
    top = np.argsort(scores)[:7]
    chosen = top[np.argmin(SPACE.tables(report.archive.schedules[top]).t[:, 1])]
    np.testing.assert_array_equal(report.best.times, report.archive.schedules.times[chosen])
    assert report.score == scores[chosen] and report.final == pytest.approx(table.t[1], rel=1e-6)


def test_children_are_of_their_parents():
    """Without mutation a child is a parent or a crossing of two."""
    still = Space(VP, 4, shift=0.0, bend=0.0, redraw=0.0, move=0.0)
    parents = still.sample(np.random.default_rng(0), 5)
    made = children(still, parents, np.random.default_rng(1), 200)
    whole = [
        any(
            all(
                np.array_equal(a[i], b[j], equal_nan=True)
                for a, b in zip(*map(jax.tree.leaves, (made, parents)))
            )
            for j in range(5)
        )
        for i in range(200)
    ]
    assert abs(np.mean(whole) - 0.76) < 0.13  # .7, and a fifth of the crossings are with oneself
    assert all(set(made.order[i, 3:4]) <= set(parents.order[:, 3]) for i in range(200))


def test_one_compilation_for_all_generations():
    @chex.assert_max_traces(n=1)
    def score(table):
        return table.B[-1, 1]

    evolve(
        each(score, chunk=16),
        SPACE,
        budget=100,
        size=30,
        start=SPACE.sample(np.random.default_rng(0), 5),
        **QUIET,
    )


SEARCHES = {
    "evolve": (evolve, {"budget": 90, "size": 20, "progress": False}),
    "s3": (s3, {"budget": 90, "size": 20, "progress": False, "candidates": 30, "updates": 5}),
}
SCRIPT = """
import os, signal, sys, numpy as np  # imported once; nothing is computed before the forks
import jax, jaxsampler as js
from jaxsampler.search.evolution import evolve
from jaxsampler.search.predictor import s3
from jaxsampler.search.space import Space

def killed(find, folder, options):
    space, calls = Space(js.VP(), 4), []

    def far(tables):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.abs(tables.B[:, -1, 1:] - 0.25).sum(1) + np.abs(tables.t[:, 1] - 0.7)

    start = space.sample(np.random.default_rng(0), 3)
    find(far, space, key=jax.random.key(0), start=start, folder=folder, **options)

for name, options in eval(sys.argv[2]).items():
    if (pid := os.fork()) == 0:
        killed({"evolve": evolve, "s3": s3}[name], os.path.join(sys.argv[1], name), options)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A folder with what is left of each search, killed in its third generation."""
    folder = tmp_path_factory.mktemp("killed")
    options = repr({name: options for name, (_, options) in SEARCHES.items()})
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
    }
    child = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), options], env=env, capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr
    return folder


@pytest.mark.parametrize("name", SEARCHES)
def test_killed_and_started_again_it_ends_with_the_same_bits(name, killed):
    (find, options), folder = SEARCHES[name], killed / name
    assert (folder / "state.safetensors").exists()
    calls = []

    def counted(tables):
        calls.append(len(tables.t))
        return far(tables)

    begin = SPACE.sample(np.random.default_rng(0), 3)
    table, report = find(counted, SPACE, key=KEY, start=begin, folder=folder, **options)
    assert calls == [1, 20, 20, 10]  # the score is held against the file; two generations were there
    whole, wanted = find(far, SPACE, key=KEY, start=begin, **options)
    assert bits(report.archive) == bits(wanted.archive) and bits(table) == bits(whole)


def test_a_larger_budget_goes_on_within_the_generation(tmp_path):
    options = {"size": 20, "start": SPACE.sample(np.random.default_rng(0), 3), **QUIET}
    evolve(far, SPACE, budget=50, folder=tmp_path, **options)
    _, report = evolve(far, SPACE, budget=75, folder=tmp_path, **options)
    _, wanted = evolve(far, SPACE, budget=75, **options)
    assert bits(report.archive) == bits(wanted.archive)
    _, less = evolve(far, SPACE, budget=30, folder=tmp_path, **options)
    assert less.evaluated == 30 and less.score == wanted.archive.scores[:30].min()


def test_a_folder_of_another_search_is_refused(tmp_path):
    begin = SPACE.sample(np.random.default_rng(0), 3)
    evolve(far, SPACE, budget=20, size=20, start=begin, folder=tmp_path, **QUIET)
    for options, what in [
        ({"size": 21}, "size"),
        ({"key": jax.random.key(1)}, "key"),
        ({"start": begin[:2]}, "start"),
    ]:
        with pytest.raises(ValueError, match=f"holds a search with another {what}: use another folder"):
            evolve(
                far, SPACE, folder=tmp_path, **({"budget": 40, "size": 20, "start": begin} | QUIET | options)
            )
    with pytest.raises(ValueError, match="another grids, shift"):
        other = Space(VP, 4, shift=0.1, grids=[js.grids.uniform, js.grids.log_snr])
        evolve(far, other, budget=40, size=20, start=begin, folder=tmp_path, **QUIET)
    with pytest.raises(ValueError, match="holds a search by another score"):
        evolve(
            lambda tables: 2 * far(tables), SPACE, budget=40, size=20, start=begin, folder=tmp_path, **QUIET
        )
    (tmp_path / "state.safetensors").write_bytes(b"half a file")
    with pytest.raises(ValueError, match="corrupt"):
        evolve(far, SPACE, budget=40, size=20, start=begin, folder=tmp_path, **QUIET)


def test_schedules_that_score_nan_are_dropped_and_counted():
    def score(tables):
        values = far(tables)
        return np.where(tables.t[:, 1] > 0.6, np.nan, np.where(tables.t[:, 1] < 0.2, np.inf, values))

    _, report = evolve(score, SPACE, budget=200, size=50, **QUIET)
    second = SPACE.tables(report.archive.schedules).t[:, 1]
    bad = (second > 0.6) | (second < 0.2)
    assert report.dropped == bad.sum() > 10
    np.testing.assert_array_equal(np.isnan(report.archive.scores), bad)
    assert (
        np.isfinite(report.score) and report.score == far(SPACE.tables(report.archive.schedules))[~bad].min()
    )
    assert set(Archive.ranked(report.archive, 200)) == set(np.flatnonzero(~bad))


@pytest.mark.parametrize(
    ("score", "options", "message"),
    [
        (lambda tables: np.full(len(tables.t), np.nan), {}, "all of the first 20 schedules scored NaN"),
        (
            lambda tables: 1.0,
            {},
            r"one number for each of the 20 stacked tables, got float64 of shape \(\).*js.search.each",
        ),
        (lambda tables: tables.t, {}, r"shape \(20, 4\)"),
        (far, {"budget": 0}, "budget is the number of schedules"),
        (far, {"size": 0}, "at least 1"),
        (far, {"finalists": 0}, "at least 1"),
        (far, {"final_score": lambda tables: np.full(len(tables.t), np.nan)}, "final_score is NaN"),
    ],
)
def test_bad_input(score, options, message):
    begin = SPACE.sample(np.random.default_rng(0), 3)
    with pytest.raises(ValueError, match=message):
        evolve(score, SPACE, **({"budget": 40, "size": 20, "start": begin} | QUIET | options))


def test_the_same_key_finds_the_same(capfd):
    options = {"budget": 60, "size": 20, "start": SPACE.sample(np.random.default_rng(0), 3)}
    a, b, c = (
        evolve(far, SPACE, key=key, **options)[1].archive
        for key in (KEY, jax.random.PRNGKey(0), jax.random.key(1))
    )
    assert bits(a) == bits(b) != bits(c)
    assert "60/60" in capfd.readouterr().err  # the progress bar


RATES = """
import time, jax, jaxsampler as js
from jaxsampler.commands.bench.problems import problem
mixture, key = problem("mixture"), jax.random.key(0)
for nfe, noises in ((5, 32), (5, 64), (10, 32), (10, 64)):
    x = mixture.start(noises)
    score, space = js.search.rmse(mixture.denoiser, x, mixture.converged(x)),
    js.search.Space(mixture.denoiser.path, nfe) js.search.evolve(score, space, budget=32, key=key,
    progress=False)  # compiles began, used = time.perf_counter(), time.process_time()
    js.search.evolve(score, space, budget=2048, size=256, key=key, progress=False)
    wall, used = time.perf_counter() - began, time.process_time() - used
    print(f"{2048 / wall:.0f} schedules/s ({2048 / used:.0f} per core second) at NFE {nfe}, {noises} noises:
    drawn, built and scored")
"""


@pytest.mark.bench
def test_schedules_per_second(capsys):
    """In a process of its own: type checks of the tests would be timed too."""
    root = str(ROOT)
    out = subprocess.run(
        [sys.executable, "-c", RATES],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    with capsys.disabled():
        print("\n" + out.stdout)
    assert min(int(line.split()[0]) for line in out.stdout.splitlines()) > 200
