"""Low precision: the error of every solver with a bfloat16 network, and states in half precision at the ends
of the paths.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsampler as js
from jaxsampler.commands.bench import precision

S = js.solvers.catalogue()
ROUNDING = 2.0**-9  # of a bfloat16 number, at most

# DEIS in t extrapolates where the cosine schedule is steep (weights of 7 in the first of 20 steps), which
# multiplies every rounding
FRAGILE = {("CosineVP", "deis")}


@functools.cache
def measured(name, steps, samples):
    path = {
        "VP": js.VP(),
        "EDM": js.EDM(),
        "MeanReverting": js.MeanReverting(0.4),
        "CosineVP": js.CosineVP(),
    }[name]
    return precision.measure(steps, samples, path)


def test_error_of_low_precision_per_solver_on_vp():
    """The table of configs/bench/precision.md: float32 is exact to 1e-6, a bfloat16 network costs two or
    three of its roundings, four with fresh noise.
    """
    result = measured("VP", 20, 512)
    assert list(result.errors) == list(S)
    for name, (single, data, noise) in result.errors.items():
        assert 1e-8 < single < 1e-6, name
        assert ROUNDING / 2 < data < (4 if S[name].stochastic else 2) * ROUNDING, name
        assert ROUNDING / 2 < noise < 3 * ROUNDING, name


@pytest.mark.parametrize("path", ["EDM", "MeanReverting", "CosineVP"])
def test_error_of_low_precision_on_other_paths(path):
    """Default grids run from sigma = 80 (EDM) and down to sigma = 0 (EDM, MeanReverting)."""
    for name, errors in measured(path, 16, 128).errors.items():
        fragile = (path, name) in FRAGILE
        assert errors[0] < (1e-4 if fragile else 5e-6), name
        assert ROUNDING / 2 < errors[1] < 12 * ROUNDING, name
        assert ROUNDING / 2 < errors[2] < (1.0 if fragile else 12 * ROUNDING), name


def test_the_markdown_table_states_what_was_measured():
    result = measured("VP", 20, 512)
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in precision.markdown(result).splitlines()
        if line.startswith("|")
    ]
    assert rows[0] == ["solver", "works on", "float32", "bfloat16, data network", "bfloat16, noise network"]
    assert [row[0] for row in rows[2:]] == [f"`{name}`" for name in S]
    for row, errors in zip(rows[2:], result.errors.values(), strict=True):
        np.testing.assert_allclose([float(cell) for cell in row[2:]], errors, rtol=0.06)


ENDS = {  # path, grid, which solvers
    "VP into sigma = 0": (js.VP(), [*js.grids.log_snr(js.VP(), 11), 0.0], lambda s: True),
    "EDM from 80 into sigma = 0": (js.EDM(), js.grids.default(js.EDM(), 12), lambda s: True),
    "CondOT from alpha = 0 into sigma = 0": (
        js.CondOT(),
        np.linspace(1, 0, 13),
        lambda s: s.kind in ("data", "velocity"),
    ),
}


@functools.cache
def single(end):
    """The sampler of an end's path, its tables, start and noise, and the samples in float32."""
    path, grid, served = ENDS[end]
    tables = precision.same_shape({name: js.tabulate(path, grid, s) for name, s in S.items() if served(s)})
    x = path.prior(jax.random.key(0), jnp.zeros((64, 2)))
    noise = jax.random.normal(jax.random.key(1), (26, 64, 2))
    sample = precision.sampler(path, "data", False)
    return sample, tables, x, noise, {name: sample(table, x, noise) for name, table in tables.items()}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_states_in_half_precision_survive_the_ends(end, dtype):
    """State, registers and noise in half precision: nothing overflows (float16 ends at 65504), and samples
    are those of float32.
    """
    sample, tables, x, noise, reference = single(end)
    off = {}
    for name, full in reference.items():
        low = sample(tables[name], x.astype(dtype), noise.astype(dtype))
        assert low.dtype == dtype
        off[name] = float(jnp.std(low.astype(jnp.float32) - full) / jnp.std(full))
    limit = {jnp.float16: 0.02, jnp.bfloat16: 0.08}[dtype]
    assert {name: error for name, error in off.items() if not error < limit} == {}
