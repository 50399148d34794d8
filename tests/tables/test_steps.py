"""Steps as values: equal options are equal and share a compilation; they pickle, and print as one line."""

import functools
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsampler as js
from jaxsampler.tables.identity import identity

S = js.solvers
SOLVERS = js.solvers.catalogue()
GRID = js.grids.log_snr(js.VP(), 5)
OPTIONS = {  # one variant of every way in which options are given
    "deis": {"order": 2, "published": True},
    "ddim": {"eta": 0.3},
    "ddpm": {"variance_type": "fixed_large"},
    "dpmpp_2m": {"form": "taylor", "lower_order_final": True},
    "dpmpp_2s": {"r": 0.3},
    "dpmpp_2m_sde": {"eta": 0.5},
    "edm": {"s_churn": 5.0, "s_noise": 1.1},
    "rk_rho": {"tableau": "3kutta"},
    "heun": {"a": 0.5},
    "mr_ode": {"order": 3, "kind": "noise"},
    "unipc": {"order": 2, "variant": "bh1"},
    "pndm": {"order": 2},
    "dpm_3": {"form": "taylor"},
    "euler_ancestral": {"eta": 0.5},
}
VARIANTS = {
    **{f"{name} {options}": SOLVERS[name](**options) for name, options in OPTIONS.items()},
    "options that add up": S.mr_ode(order=3)(kind="noise"),
    "another rule": S.rk_rho().replace(to_zero=None),
    "churn": S.churn(S.dpm_2, 0.5),
    "relaxed": S.relax(S.dpmpp_2m, np.full((5, 2), 0.7))[1],
    "strided": S.strided(S.ddim(eta=0.3), 0.1, 0.0),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_equal_options_are_equal_steps(name):
    """In any order of the options, and made twice; another value makes another step."""
    options = OPTIONS[name]
    one, two = SOLVERS[name](**options), SOLVERS[name](**dict(reversed(options.items())))
    assert one == two
    assert hash(one) == hash(two)
    assert len({one, two, SOLVERS[name]}) == 2
    assert one != SOLVERS[name]


def test_unequal_steps_differ():
    different = [
        *SOLVERS.values(),
        S.ddim(eta=0.3),
        S.ddim(eta=0.30001),
        S.edm(s_churn=5.0),
        S.edm(s_churn=4.0),
    ]
    assert len(set(different)) == len(different)
    assert S.ddim != "ddim"
    assert S.ddim(eta=0.7)(eta=0.3) == S.ddim(eta=0.3)


def test_equal_steps_share_a_compilation():
    """As static arguments of jit, made anew for each call: one trace for three, another for another
    option.
    """
    net = js.Denoiser(lambda x, t: 0.5 * x, js.VP(), "data")
    sample = lambda x, solver: js.sample(
        net, x, x=x, key=jax.random.key(0), solver=solver, grid=GRID, adjoint=js.Direct()
    )
    run = jax.jit(chex.assert_max_traces(sample, 2), static_argnums=1)
    x = jnp.ones(3)
    first, *others = (run(x, S.ddim(eta=0.3)) for _ in range(3))
    assert run._cache_size() == 1
    for other in others:
        np.testing.assert_array_equal(other, first)
    assert float(jnp.abs(run(x, S.ddim(eta=0.9)) - first).max()) > 0.01
    assert run._cache_size() == 2


@pytest.mark.parametrize("name", [*SOLVERS, *VARIANTS])
def test_steps_pickle(name):
    """By name and options: what comes back is equal, prints the same and makes the same table."""
    step = (SOLVERS | VARIANTS)[name]
    back = pickle.loads(pickle.dumps(step))
    assert back == step
    assert hash(back) == hash(step)
    assert repr(back) == repr(step)
    if name != "relaxed":  # which is the step of one interval
        chex.assert_trees_all_equal(*(js.tabulate(js.VP(), [0.9, 0.5, 0.2], s) for s in (back, step)))


def test_a_step_made_inside_a_function_does_not_pickle():
    @js.step(kind="data", order=1)
    def local(path, ts, x, past, model, z):
        return model(x, ts[-2])

    assert local == local
    elsewhere = S.ddim.replace(formula=lambda *args: args[2])
    for step in (local, local.replace(order=2), elsewhere.replace(name="local")):
        with pytest.raises(
            pickle.PicklingError, match="cannot pickle the step local: .* define it in a module"
        ):
            pickle.dumps(step)


@pytest.mark.parametrize("name", [*SOLVERS, *VARIANTS])
def test_steps_print_as_one_line(name):
    """Name, options, order and calls."""
    step = (SOLVERS | VARIANTS)[name]
    line = repr(step)
    assert "\n" not in line
    assert len(line) < 160
    assert line.startswith(f"<{step.name}")
    assert f"order {step.order}" in line
    assert ("draws noise" in line) == step.stochastic
    assert f"{step.calls} call{'s' if step.calls > 1 else ''} a step" in line


def test_lines_of_steps_and_tables():
    assert repr(S.ddim(eta=0.3)) == "<ddim(eta=0.3): order 1, 1 call a step, draws noise>"
    assert repr(S.edm(s_churn=5.0)) == "<edm(s_churn=5): order 2, 2 calls a step, draws noise>"
    assert repr(S.dpmpp_3s) == "<dpmpp_3s: order 3, 3 calls a step>"
    assert repr(VARIANTS["relaxed"]) == "<dpmpp_2m(relax=array[2]): order 2, 1 call a step>"
    one, two = (js.tabulate(js.VP(), GRID, s) for s in (S.dpmpp_2m, S.dpmpp_sde_1))
    assert repr(one) == "<Table: 5 calls, 2 registers, t = 1 -> 0.001>"
    assert repr(two) == "<Table: 5 calls, 1 register, t = 1 -> 0.001, draws noise>"
    assert repr(js.stack([one, two])) == "<Table: 2 x 5 calls, 2 registers, t = 1 -> 0.001, draws noise>"
    assert repr(jax.tree.map(lambda a: None, one)) == "<Table without its arrays>"
    lines = []
    jax.eval_shape(lambda table: lines.append(repr(table)), one)
    assert lines == ["<Table: 5 calls, 2 registers, traced>"]


def test_identity_of_functions_and_values():
    """Functions of one code over equal values are the same; others are not, whatever their text."""
    make = lambda a, b=2.0: lambda x: a * x + b
    same = [
        (make(0.3), make(0.3)),
        (functools.partial(make, 1), functools.partial(make, 1)),
        ([1, (2.0,)], [1, (2.0,)]),
    ]
    same += [(np.float64(0.3), 0.3), (np.int64(3), 3)]
    same += [(np.arange(3.0), np.arange(3.0)), ({"a": np.ones(2)}, {"a": np.ones(2)}), (js.VP(), js.VP())]
    for a, b in same:
        assert identity(a) == identity(b)
        assert hash(identity(a)) == hash(identity(b))
    other = [(make(0.3), make(0.4)), (make(0.3), make(0.3, 1.0)), (1, 1.0), (True, 1), ([1], (1,))]
    other += [
        (np.arange(3.0), np.arange(3)),
        (np.zeros((2, 3)), np.zeros((3, 2))),
        (js.VP(), js.VP(0.1, 19.0)),
    ]
    other += [(lambda x: x, lambda x: x), (jnp.ones(2), jnp.ones(2))]
    for a, b in other:
        assert identity(a) != identity(b)

    def itself(n):
        return itself(n - 1) if n else 0

    assert hash(identity(itself)) == hash(identity(itself))
