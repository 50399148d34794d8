"""Learned tables that are shipped: what their file names, cards and numbers say is one thing; names, and
paths that tables are for.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsampler as js
from jaxsampler import pretrained
from jaxsampler.commands.bench.problems import PROBLEMS, problem
from jaxsampler.data import fashion
from jaxsampler.pretrained import samplers
from jaxsampler.search.baselines import GRIDS, SOLVERS, handmade
from jaxsampler.search.error_measures import Ratio, ratio, squared

SHIPPED = [(name, calls) for name, numbers in pretrained.tables().items() for calls in numbers]


@pytest.fixture(scope="module")
def path():
    """{problem: the path of its denoiser}; some photos do where a denoiser is made of photos."""
    return {name: problem(name, photos=fashion.some()[:30]).path for name in pretrained.tables()}


def test_all_files_are_tables_of_problems():
    for name in ("mixture", "fashion_edm", "fashion_flow"):
        assert {*range(3, 11)} <= {*pretrained.tables()[name]}
    assert {*pretrained.tables()} <= {*PROBLEMS}
    names = {f"{name}_{calls}.safetensors" for name, calls in SHIPPED}
    assert {f.name for f in samplers.FOLDER.iterdir()} == names
    assert sum(f.stat().st_size for f in samplers.FOLDER.iterdir()) < 1e6


@pytest.mark.parametrize(("name", "calls"), SHIPPED)
def test_file_card_and_table_say_the_same(path, name, calls):
    table, card = pretrained.table(name, calls), pretrained.table_card(name, calls)
    assert (card["problem"], card["calls"], table.nfe) == (name, calls, calls)
    assert card["config"]["problem"] == name and calls in card["config"]["calls"]
    assert card["path"] == repr(path[name])
    assert samplers.expect(table, path[name]) is table
    for field in ("t", "A", "B", "C", "form", "start"):
        assert np.isfinite(getattr(table, field)).all(), field
    assert not np.isnan(table.end[-1])
    assert table.draws == 0
    assert card["what"] and card["baseline"].split(",")[0] in SOLVERS
    assert 0 < card["low"] < card["ratio"] < card["high"] < 1, (
        "better than the best hand-made sampler, surely"
    )
    assert card["rmse"] > 0


@pytest.fixture(scope="module")
def judged() -> dict[int, Ratio]:
    """{calls: the learned table of the mixture against its card's baseline} on 4096 noises of a seed of their
    own.
    """
    p, found = problem("mixture"), {}
    x = p.start(4096, seed=1234)
    want = p.converged(x).astype(np.float64)
    for calls in pretrained.tables()["mixture"]:
        base = pretrained.table_card("mixture", calls)["baseline"]
        solver, grid = base.split(", ")[:2]
        known = handmade(p.path, calls, chosen={solver: SOLVERS[solver]}, grids={grid: GRIDS[grid]})
        pair = [pretrained.table("mixture", calls), next(h.table for h in known if h.name == base)]
        pair = [js.pad(table, nfe=10, regs=16) for table in pair]  # of one shape: one compilation
        found[calls] = ratio(*(squared(p.run(table, x).astype(np.float64), want) for table in pair))
    return found


@pytest.mark.parametrize("calls", pretrained.tables()["mixture"])
def test_the_mixture_is_sampled_as_well_as_the_card_says(judged, calls):
    """Without the worst hundredth of the noises, which end in another mode than they should and make up most
    of the plain ratio.
    """
    card = pretrained.table_card("mixture", calls)
    assert judged[calls].trimmed == pytest.approx(card["trimmed"], rel=0.25)
    assert judged[calls].low < card["high"] and card["low"] < judged[calls].high


@pytest.mark.parametrize(
    ("name", "calls", "message"),
    [
        ("mixtrue", 5, "there is no learned table for 'mixtrue'; did you mean 'mixture'?"),
        (
            "mixture",
            2,
            "no learned table for 'mixture' has 2 network calls: choose one of 3, 4, 5, 6, 7, 8, 9, 10",
        ),
    ],
)
@pytest.mark.parametrize("ask", [pretrained.table, pretrained.table_card])
def test_what_is_not_shipped(ask, name, calls, message):
    with pytest.raises(ValueError) as e:
        ask(name, calls)
    assert str(e.value).startswith(message)


def test_calls_where_nobody_says_how_many(monkeypatch, tmp_path):
    monkeypatch.setattr(samplers, "FOLDER", tmp_path)
    for name in ("a_3", "a_10", "b_2", "b_8", "two_words_11", "two_words_12"):
        (tmp_path / f"{name}.safetensors").touch()
    assert pretrained.tables() == {"a": [3, 10], "b": [2, 8], "two_words": [11, 12]}
    assert [samplers.shipped(name, None).stem for name in ("a", "b", "two_words")] == [
        "a_10",
        "b_8",
        "two_words_11",
    ]


MU = jnp.zeros((1, 1, 3))


@pytest.mark.parametrize(
    ("told", "path", "same"),
    [
        (js.EDM(), js.EDM(0.002, 80.0), True),
        (js.EDM(0.002, 80.0), js.EDM(), True),
        (js.EDM(sigma_max=20.0), js.EDM(), False),
        (js.EDM(), js.EDM(sigma_max=20.0), False),
        (js.VP(), js.CosineVP(), False),
        (js.CondOT(), js.CondOT(), True),
        (js.DiscreteVP.linear(5), js.DiscreteVP.linear(5), True),
        (js.DiscreteVP.linear(5), js.DiscreteVP.linear(5, beta_end=0.03), False),
        (
            js.MeanReverting(np.ones((2, 64, 64, 3)), std=0.5),
            js.MeanReverting(MU, std=0.5, eps=float("0.005")),
            True,
        ),
        (
            js.MeanReverting(MU, std=0.5, T=200, variant="irsde", eps=0.01),
            js.MeanReverting(0.5 * MU, 0.5, "cosine", 200, 0.01, "irsde"),
            True,
        ),
        (js.MeanReverting(MU, std=0.5), js.MeanReverting(MU), False),
        (js.MeanReverting(MU, T=50), js.MeanReverting(MU), False),
        (js.MeanReverting(MU, variant="irsde"), js.MeanReverting(MU), False),
    ],
)
def test_a_card_tells_of_a_path(told, path, same):
    assert samplers.tells_of(repr(told), path) is same


def test_cards_from_before_paths_printed_as_one_line_are_read():
    """They quote all the numbers of a discrete schedule, over many lines or one."""
    path = js.DiscreteVP.linear(50)
    told = (
        "DiscreteVP(\n  alphas_cumprod=(\n    " + ",\n    ".join(map(repr, path.alphas_cumprod)) + "\n  )\n)"
    )
    for text in (told, " ".join(told.split())):
        assert samplers.tells_of(text, path)
        assert not samplers.tells_of(text.replace("0.9999,", "0.9998,"), path)
        assert not samplers.tells_of(text, js.DiscreteVP.linear(51))


def test_tables_for_other_times_are_refused():
    path = js.EDM()
    table = js.tabulate(path, js.grids.default(path, 3), js.solvers.ddim)
    assert samplers.expect(table, path) is table
    odd = [
        eqx.tree_at(lambda t: t.end, table, end)
        for end in np.array([[-1.0, 1.0, 0.0], [80.0, 1.0, 0.0], [np.nan] * 3])
    ]
    for bad, other in [
        (table, js.EDM(sigma_max=20.0)),
        (table, js.EDM(sigma_max=161.0)),
        (table, js.CondOT()),
        *((t, path) for t in odd),
    ]:
        with pytest.raises(ValueError, match="the table was made for another path; this network is on"):
            samplers.expect(bad, other)
    scaled = dataclasses.replace(table, t=np.append(20.0, table.t[1:]), start=np.array([0.25, 0.0]))
    assert samplers.expect(scaled, path) is scaled  # 80 is scaled to 20
    with pytest.raises(ValueError, match="for another path"):
        samplers.expect(scaled, js.EDM(sigma_max=30.0))
    with pytest.raises(ValueError, match="the table holds 2 tables"):
        samplers.expect(js.stack([table, table]), path)
    with pytest.raises(
        ValueError,
        match=r"the table was made for EDM\(sigma_max=20.0\); "
        r"this network is on EDM\(\): make one for that path",
    ):
        samplers.expect(jax.tree.map(np.copy, table), path, made_for="EDM(sigma_max=20.0)")
