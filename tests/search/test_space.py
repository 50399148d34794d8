"""The search space: whatever it draws, mutates or crosses is valid, and its tables are those of the textbook
steps.
"""

import dataclasses
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsampler as js
from jaxsampler.search.known_schedules import encode, known
from jaxsampler.search.schedules import CHOICES, join, stack, unstack
from jaxsampler.search.space import Space
from jaxsampler.solvers import Decision, FittedKind, usf

S = js.solvers
VP = js.VP()
NET = jax.tree_util.Partial(
    lambda x, t: (
        0.5
        * jnp.tanh(
            1.3 * x @ jnp.asarray(ROTATE, x.dtype) + jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape)
        )
    )
)
ROTATE = np.array([[0.2, 1.0, -0.4], [-0.9, 0.3, 0.5], [0.1, -0.6, 0.8]])
LAM = np.linspace(-9.0, 9.0, 25)
FITTED = FittedKind(types.SimpleNamespace(lam=LAM, l=1 / (1 + np.exp(-LAM)), s=0.3 * np.cos(LAM)), slope=True)
WIDE = {
    "starts": {0: 0.7, 1: 0.2, 2: 0.1},
    "relaxations": {"linear": 0.5, "dpmsolver-2": 0.3, "0.5exp": 0.2},
    "nodes": {1: 0.4, 2: 0.3, 3: 0.3},
}
SPACES = {
    "published": Space(VP, 5),
    "fitted": Space(VP, 4, statistics=FITTED),
    "wide": Space(VP, 6, **WIDE),
    "one call": Space(VP, 1),
    "named": Space(
        js.DiscreteVP.linear(),
        3,
        assumed=1.0,
        statistics=FITTED,
        relaxations={"dpmsolver-2": 0.5, "unipc-bh1": 0.5},
    ),
    "edm, into 0": Space(js.EDM(0.01, 20.0), 4, statistics=FITTED, **WIDE),
    "flow": Space(js.CondOT(), 4, **WIDE),
}


@jax.jit
def sampled(net, tables, x):
    return jax.vmap(lambda table: js.run(net, table, x))(tables)


def made(space, b, seed=0):
    """Drawn, mutated, crossed and mutated again."""
    rng = np.random.default_rng(seed)
    drawn, others = space.sample(rng, b), space.sample(rng, b)
    crossed = space.cross(rng, space.mutate(rng, drawn), others)
    return join([drawn, crossed, space.mutate(rng, crossed)])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", SPACES)
def test_tables_are_those_of_the_plain_loop(name):
    space = SPACES[name]
    schedules = made(space, 3)
    net = js.Denoiser(NET, space.path, "data")
    x = space.path.prior_std * jax.random.normal(jax.random.key(1), (2, 3), jnp.float64)
    tables = space.tables(schedules)
    assert tables.t.shape == (9, space.nfe) and tables.B.shape == (9, space.nfe, space.nfe + 1)
    got = sampled(net, tables, x)
    for i, s in enumerate(unstack(schedules)):
        steps = usf(space.decisions(s), first="zero_x0" if s.assumed else "none")  # valid, or it raises
        grid = space.grid(s)
        assert len(steps) == space.nfe + s.assumed == len(grid) - 1
        want = js.loop(net, space.path, grid, steps, x)
        np.testing.assert_allclose(got[i], want, rtol=1e-9, atol=1e-9 * float(jnp.abs(want).max()))
        np.testing.assert_array_equal(np.append(tables.t[i], tables.end[i, -1]), grid[int(s.assumed) :])


@pytest.mark.parametrize("name", SPACES)
def test_whatever_is_made_is_valid(name):
    space = SPACES[name]
    schedules = made(space, 15)
    chex.assert_trees_all_equal(schedules, space.valid(schedules))
    ends = {(g[0], g[-1]) for base in space.bases.values() for g in base}
    for s in unstack(schedules):
        grid, decisions = space.grid(s), space.decisions(s)
        assert len(grid) == space.nfe + 1 + s.assumed and (grid[0], grid[-1]) in ends
        assert np.all(np.diff(grid) < 0)
        usf(decisions, first="zero_x0" if s.assumed else "none")
        assert decisions[-1].corrector is None
        assert all(d.order <= i + 1 for i, d in enumerate(decisions))
    assert np.all(np.isfinite(space.tables(join([schedules, known(space)])).B))


PAIRS = {
    "2M": ([1, 2, 2, 2, 2], "dpmsolver-2", "data", 0, S.dpmpp_2m),
    "2M noise": ([1, 2, 2, 2, 2], "dpmsolver-2", "noise", 0, S.dpm_2m),
    "3M": ([1, 2, 3, 3, 3], None, "data", 0, S.dpmpp_3m(form="taylor")),
    "UniPC-3": ([1, 2, 3, 3, 3], None, "data", 1, S.unipc(order=3, variant="vary", lower_order_final=False)),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", PAIRS)
def test_contains(name):
    """And `known` lists it on every grid."""
    orders, relaxation, kind, corrected, solver = PAIRS[name]
    space, grid = Space(VP, 5, assumed=0.0), js.grids.log_snr(VP, 5)
    decisions = [
        Decision(
            p,
            kind,
            relaxation=relaxation if p > 1 else None,
            corrector=p + 1 if corrected and i < 4 else None,
        )
        for i, p in enumerate(orders)
    ]
    one = encode(space, grid, decisions)
    net, x = js.Denoiser(NET, VP, "data"), jax.random.normal(jax.random.key(3), (4, 3), jnp.float64)
    both = js.stack([js.pad(js.tabulate(VP, grid, solver), regs=6), space.table(one)])
    want, got = sampled(net, both, x)
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10)
    same = [
        all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(s), jax.tree.leaves(one)))
        for s in unstack(known(space))
    ]
    assert sum(same) == 1


def test_choices_come_as_often_as_asked():
    """Within 4 standard errors, in the last intervals, where every order can be."""
    b, rng = 4000, np.random.default_rng(0)
    s = Space(VP, 6, assumed=0.3).sample(rng, b)
    assert abs(s.assumed.mean() - 0.3) < 4 * np.sqrt(0.21 / b)
    late = s[~s.assumed]
    for p, share in {1: 0.2, 2: 0.4, 3: 0.3, 4: 0.1}.items():
        assert abs(np.mean(late.order[:, 4] == p) - share) < 4 * np.sqrt(share / len(late))
    assert abs(np.mean(late.corrector[:, 4] > 0) - 0.5) < 4 * np.sqrt(0.25 / len(late))
    assert abs(np.mean(late.nodes[late.order[:, 4] > 1, 4, 0] == 1) - 0.5) < 4 * np.sqrt(
        0.25 / (0.8 * len(late))
    )
    c = late.c[late.order[:, 4] > 1, 4]
    assert abs(np.std(c) / 0.03 - 1) < 4 / np.sqrt(2 * len(c))


def test_times_move_by_a_relative_gaussian():
    space = Space(VP, 2, assumed=0.0, gentle=1.0, grids=[np.array([1.0, 0.5, 0.001])])
    t = space.sample(np.random.default_rng(0), 4000).times[:, 1]
    assert abs(np.std(t / 0.5) / 0.08 - 1) < 4 / np.sqrt(8000) and abs(
        np.mean(t / 0.5) - 1
    ) < 4 * 0.08 / np.sqrt(4000)
    again = space.mutate(np.random.default_rng(1), space.sample(np.random.default_rng(0), 4000)).times[:, 1]
    still = Space(VP, 2, assumed=0.0, grids=space.grids, gentle=1.0, move=0.0).mutate(
        np.random.default_rng(1), space.sample(np.random.default_rng(0), 4000)
    )
    assert abs(np.std(still.times[:, 1] / t) / 0.08 - 1) < 4 / np.sqrt(8000)
    assert np.std(again / t) > 0.15  # a fifth of the points went elsewhere


def test_mutation_changes_what_it_says():
    rest = {"gentle": 1.0, "shift": 0.0, "bend": 0.0, "redraw": 0.0, "move": 0.0}
    source = Space(VP, 5, **WIDE).sample(np.random.default_rng(0), 400)
    still = Space(VP, 5, **WIDE, **rest).mutate(np.random.default_rng(1), source)
    assert all(
        np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
        for a, b in zip(jax.tree.leaves(still), jax.tree.leaves(source))
    )
    moved = Space(VP, 5, **WIDE, **(rest | {"move": 0.2})).mutate(np.random.default_rng(1), source)
    changed = np.array(
        [
            len(np.setdiff1d(a.times, b.times[np.isfinite(b.times)]))
            for a, b in zip(unstack(moved), unstack(source))
        ]
    )
    points = np.array(
        [
            np.sum(~np.isin(a.times[np.isfinite(a.times)], b.times))
            for a, b in zip(unstack(moved), unstack(source))
        ]
    )
    assert set(points) == {0, 1} and abs(points.mean() - 0.2) < 4 * np.sqrt(0.16 / 400) and changed.max() <= 2
    redrawn = Space(VP, 5, **WIDE, **(rest | {"redraw": 0.1})).mutate(np.random.default_rng(1), source)
    same = source.assumed == redrawn.assumed
    assert 0.05 < np.mean(~same) < 0.15
    np.testing.assert_array_equal(redrawn.times[same], source.times[same])
    share = np.mean(redrawn.kind[same, 1] != source.kind[same, 1])
    assert 0.01 < share < 0.1  # of a tenth, half draws what was there


def test_crossing_takes_the_first_intervals_of_one_and_the_last_of_the_other():
    space = Space(VP, 6, orders={1: 1.0}, kinds={"data": 0.5, "noise": 0.5}, corrector=0.0)
    rng = np.random.default_rng(0)
    a, b = space.sample(rng, 200), space.sample(rng, 200)
    a, b = (
        dataclasses.replace(s, kind=np.where(s.order > 0, k, 0).astype(np.int32)) for s, k in ((a, 0), (b, 1))
    )
    child, times = space.cross(rng, space.valid(a), space.valid(b)), 0
    for s, one, two in zip(unstack(child), unstack(a), unstack(b)):
        n = space.nfe + int(s.assumed)
        assert s.assumed == one.assumed
        assert np.all(np.diff(s.kind[:n]) >= 0) and s.kind[0] == 0 and s.kind[n - 1] == 1
        cut = int(np.sum(s.kind[:n] == 0))
        np.testing.assert_array_equal(s.times[:cut], one.times[:cut])
        taken = np.isin(s.times[cut : n + 1], two.times)
        assert taken.all() or np.array_equal(s.times, one.times, equal_nan=True)
        times += taken.all()
    assert times > 50


def test_a_seed_gives_the_same_schedules():
    space = SPACES["wide"]
    first, again, other = made(space, 50), made(space, 50), made(space, 50, seed=1)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again)))
    assert not np.array_equal(first.order, other.order)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nfe": 0}, "at least 1; got 0"),
        ({"kinds": {"fitted": 1.0}}, "none of its kinds has a probability above 0 .*statistics="),
        ({"kinds": {"nose": 1.0}}, "did you mean 'noise'"),
        ({"orders": {}}, "none of its orders"),
        ({"orders": {0: 1.0}}, "orders are whole numbers of at least 1; got 0"),
        ({"orders": {2: -1.0}}, "must be at least 0; got -1"),
        ({"relaxations": {"unipc-bh3": 1.0}}, "did you mean 'unipc-bh"),
        ({"corrector": 1.5}, "corrector is a probability"),
        ({"shift": -0.1}, "at least 0; got -0.1"),
        ({"grids": [js.grids.log_snr(VP, 4)]}, "5 calls need grids of 6 times"),
        (
            {"grids": [js.grids.log_snr(VP, 5)]},
            "5 calls need grids of 7 times.* with assumed=0, 6 times will do",
        ),
        ({"grids": [js.grids.log_snr(VP, 5)[::-1]]}, "decreases"),
        ({"nfe": 2000, "assumed": 0.0}, "no room to search"),
        ({"path": js.CondOT(), "kinds": {"noise": 1.0}}, "starts at alpha = 0, where only the data kind can"),
    ],
)
def test_a_space_with_nothing_in_it_says_why(options, message):
    with pytest.raises(ValueError, match=message):
        Space(**({"path": VP, "nfe": 5} | options))


def test_encode_refuses_what_is_not_there():
    space, grid = Space(VP, 3, assumed=0.0), js.grids.log_snr(VP, 3)
    with pytest.raises(ValueError, match="3 calls need 3 decisions on 4 times; got 2 on 4"):
        encode(space, grid, [Decision()] * 2)
    with pytest.raises(ValueError, match="decision 2 is not in the space: .*0.5exp"):
        encode(space, grid, [Decision(), Decision(), Decision(2, relaxation="0.5exp")])
    with pytest.raises(ValueError, match="not valid here"):
        encode(space, grid, [Decision(2), Decision(), Decision()])


def test_stack_and_one():
    space = SPACES["published"]
    schedules = space.sample(np.random.default_rng(5), 3)
    all_of_them, one = space.tables(schedules), space.table(schedules[1])
    np.testing.assert_array_equal(all_of_them.B[1], one.B)
    again = stack(unstack(schedules))
    assert all(np.array_equal(getattr(again, name), getattr(schedules, name)) for name in CHOICES)
