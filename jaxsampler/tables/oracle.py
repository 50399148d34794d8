"""The oracle: textbook steps on arrays, one after the other, in numpy float64.

No table, no scan, no jit: what `run` computes must equal this to rounding. Slow, and meant to be read.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree

from ..numerics import normal, on_host
from ..paths import Denoiser, Path, grids
from ..paths.predictions import match, weights
from .scheduling import schedule
from .units import Past, one_or_all


def loop(
    model: Callable,
    path: Path,
    grid: Any,
    solver: Any,
    x: PyTree,
    key: Any = None,
    noise: PyTree | None = None,
) -> PyTree:
    """Return x at the last grid time by the textbook steps of `solver`, one after the other.

    Args:
        model: a `Denoiser`, or a callable (x, t) that returns the kind that the steps ask for.
        path: the schedule.
        grid: decreasing times.
        solver: a step, or a list with one step per interval.
        x: the state at the first time.
        key: draws the noise, as in `run`.
        noise: array [draws, *x.shape] instead.

    Example:
        >>> js.loop(lambda x, t: x, js.CondOT(), [1.0, 0.5, 0.25], js.solvers.euler, jnp.ones(1)).tolist()
        [0.375]
    """
    grid = grids.checked(path, grid)
    with on_host():
        to_zero, from_noise = (
            bool(np.asarray(path.sigma(grid[-1])) == 0),
            bool(np.asarray(path.alpha(grid[0])) == 0),
        )
    steps = schedule(solver, len(grid) - 1, to_zero=to_zero, from_noise=from_noise)
    like = jax.tree.map(jnp.asarray, x)
    centre = model if isinstance(model, Denoiser) else None
    start, unravel = ravel_pytree(like if centre is None else centre.centred(like))
    state, draws = np.asarray(start, np.float64), 0
    history: list[tuple] = []  # (output, state, time, step) of the first call of each interval
    before: list[np.ndarray] = []  # the state at the start of each interval, as corrected by its step

    def flat(tree):
        return np.asarray(ravel_pytree(tree)[0], np.float64)

    def predict(y, t, kind):
        y = unravel(jnp.asarray(y, start.dtype))
        if centre is None:
            return flat(match(model(y, t), y))
        m = centre(centre.uncentred(y), t, kind=kind)
        return flat(centre.centred(m) if kind == "data" else m)

    def draw(i):
        if noise is None:
            return flat(normal(jax.random.fold_in(key, i), like))
        return flat(jax.tree.map(lambda z: z[i], noise))

    for i, step in enumerate(steps):
        calls: list[tuple] = []

        def record(y, t, step=step, calls=calls):
            m = predict(y, t, step.kind) if step.assumed is None else step.assumed(path, t, step.kind) * y
            calls.append((m, y, t, step))
            return m

        def seen(m, y, t, by, kind=step.kind):
            """A past output in the kind of this step."""
            if by.assumed is not None:
                return by.assumed(path, t, kind) * y
            if by.kind == kind:
                return m
            u, w = weights(path, t, by.kind, kind)
            return u * y + w * m

        past = Past(
            [seen(*call) for call in reversed(history[i - step.past : i])],
            before[i - step.states : i][::-1],
            [y for _, y, _, _ in reversed(history[i - step.inputs : i])],
        )
        zs = tuple(draw(draws + j) for j in range(step.noises))
        draws += step.noises
        with np.errstate(all="ignore"):  # singular ends: lam is infinite there, and the steps cope
            result = step.formula(path, grid[: i + 2], state, past, record, one_or_all(zs))
        state, corrected = result if isinstance(result, tuple) else (result, state)
        before.append(corrected)
        history.append(calls[0] if calls else (None, None, None, step))
    out = unravel(jnp.asarray(state, start.dtype))
    return out if centre is None else centre.uncentred(out)
