"""A step run on unit vectors: what it makes of each value that it may combine.

The result of a step is linear in x, past outputs and states, its draws and its outputs. Give each of them a
unit vector of its own, and every state that the step computes is the vector of its own coefficients.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..numerics import Time, is_traced

MAX_CALLS = 16  # of one step; it only sizes the unit vectors


class Past(tuple):
    """Model outputs of earlier intervals, newest first.

    `x` has the states at the starts of these intervals, `inputs` the states that the outputs were made at
    (before correction).
    """

    x: tuple
    inputs: tuple

    def __new__(cls, outputs: Sequence, states: Sequence = (), inputs: Sequence = ()):
        made = super().__new__(cls, outputs)
        made.x, made.inputs = tuple(states), tuple(inputs)
        return made


class UnitRun(NamedTuple):
    """What a step did: inputs and times of its calls, its result, and the state it was given as it corrected
    it.
    """

    inputs: list
    times: list
    result: Any
    corrected: Any


def basis_size(step: Any) -> int:
    """Number of values that a step may combine: x, past outputs, past states, inputs of past outputs, draws,
    outputs.
    """
    return 1 + step.past + step.states + step.inputs + step.noises + MAX_CALLS


def unit_run(step: Any, path: Any, ts: Any, basis: list) -> UnitRun:
    """Run a step on `basis` = [x, past.., states.., inputs.., z.., outputs..], in place of arrays."""
    cuts = np.cumsum([1, step.past, step.states, step.inputs, step.noises])
    past = Past(*(basis[a:b] for a, b in itertools.pairwise(cuts[:4])))
    zs, model = tuple(basis[cuts[3] : cuts[4]]), _Model(step, path, basis[cuts[4] :])
    result = step.formula(path, ts, basis[0], past, model, one_or_all(zs))
    result, corrected = result if isinstance(result, tuple) else (result, basis[0])
    return UnitRun(model.inputs, model.times, result, corrected)


def checked_run(step: Any, path: Any, ts: Any) -> tuple[list, UnitRun]:
    """(unit vectors, the run on them) of a step on known times, numbers or columns [n, 1] of them.

    Behind each unit vector follow its entries of some random vectors. What a linear step makes of these is
    the combination of its unit responses (superposition).

    Raises:
        ValueError: the step is not linear.
    """
    size = basis_size(step)
    scales = np.array([1e-3, 1.0, 1e3])  # a clip or an offset shows at one of them
    random = np.random.default_rng(0).standard_normal((size, 3)) * scales
    given = list(np.hstack([np.eye(size), random]))
    run = unit_run(step, path, ts, given)
    if is_traced(run):
        return given, run
    basis = list(np.eye(size))

    def response(vector: Any) -> Any:
        for k, unit in enumerate(given):
            if vector is unit:
                return basis[k]
        vector = np.asarray(vector)
        unit, got = vector[..., :size], vector[..., size:] / scales
        known = np.isfinite(unit).all(-1, keepdims=True)  # a singular end is named once the table is made
        want = np.where(known, unit, 0.0) @ random / scales
        off = np.abs(got - want) - 1e-6 * np.abs(want) - 1e-9 * np.abs(unit).max(-1, keepdims=True)
        if np.any(~(off <= 0) & known):
            raise ValueError(
                f"{step.name} is not linear in (x, past, model outputs, z), so it has no table; "
                "implement the four functions of js.Solver (rows, init, step, final) instead"
            )
        return unit

    return basis, UnitRun(
        [response(v) for v in run.inputs], run.times, response(run.result), response(run.corrected)
    )


class _Model:
    """Stands in for the network: notes its calls and answers with one unit vector after the other."""

    def __init__(self, step: Any, path: Any, outputs: list):
        self.step, self.path, self.outputs = step, path, outputs
        self.inputs: list = []
        self.times: list = []

    def __call__(self, x: Any, t: Time) -> Any:
        if self.step.assumed is not None:
            return self.step.assumed(self.path, t, self.step.kind) * x
        if len(self.inputs) == MAX_CALLS:
            raise ValueError(
                f"{self.step.name} calls the model more than {MAX_CALLS} times in one step; split it into "
                "several steps"
            )
        self.inputs.append(x)
        self.times.append(t)
        return self.outputs[len(self.inputs) - 1]


def one_or_all(zs: tuple) -> Any:
    """The draws as a step gets them: a single one as it is, else a tuple."""
    return zs[0] if len(zs) == 1 else zs


def count_calls(step: Any, path: Any) -> int:
    """Network calls of one full step on `path`."""
    ts = path.t_max * np.linspace(0.9, 0.5, max(step.past, step.states) + 2)
    run: Callable = unit_run
    return len(run(step, path, ts, list(np.eye(basis_size(step)))).inputs)
