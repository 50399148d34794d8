r"""How corrections are fitted: what an iteration does, which stages there are, and how a run is kept.

An iteration is two compiled calls. The network's part, the gradient of the loss in the numbers of a table,
takes the table as an argument: all parents with as many rows share that program, which is the slow one to
compile. The parent's part pulls the gradient back to the corrections, moves them, and makes the next table.
Iterations are dispatched one by one, not scanned: a run can then be stopped and watched between any two.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path as FilePath
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from .. import checkpoint
from ..numerics import Arr, Key, Real
from ..paths import Denoiser
from ..scan import Adjoint, Direct, run
from ..tables import Table
from .error_measures import squared
from .parametrisation import Learnable, replaced

RATES = {
    "nodes": 0.03,
    "shifts": 0.02,
    "relaxation": 0.02,
    "amplitude": 0.0025,
    "weights": 0.0025,
    "scale": 0.03,
    "compensation": 0.02,
}
BLOCKS = 12  # of iterations in a run, each followed by a validation
Corrections = dict[str, Arr]  # by leaf
_adam = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(b2=0.99))


@dataclasses.dataclass(frozen=True)
class Plan:
    """The stages of a run: one entry per stage, but for `per`."""

    free: tuple[tuple[str, ...], ...]  # leaves
    rates: tuple[dict[str, float], ...]  # of these leaves
    ends: tuple[int, ...]  # in blocks
    per: int  # iterations in a block

    @staticmethod
    def of(
        stages: Sequence[tuple[str, ...]],
        split: Sequence[Real] | None,
        iterations: int,
        rows: int,
        rates: dict | None,
    ) -> "Plan":
        """Make the plan of stages in which each frees its leaves and those of the stages before."""
        if not stages or len(stages) > BLOCKS:
            raise ValueError(f"vary names 1 to {BLOCKS} stages, got {len(stages)}")
        even = (1, 2) if len(stages) == 2 else (1,) * len(stages)
        parts = np.asarray(even) if split is None else np.asarray(split, float)
        if len(parts) != len(stages) or not np.all(parts > 0):
            raise ValueError(
                f"split needs a positive share for each of the {len(stages)} stages, got {split}"
            )
        at = np.arange(len(parts))
        ends = np.round(np.cumsum(parts) / parts.sum() * BLOCKS).astype(int)
        ends = np.clip(ends, 1 + at, BLOCKS - at[::-1])  # every stage has at least one block
        free = tuple(tuple(dict.fromkeys(itertools.chain(*stages[: i + 1]))) for i in range(len(stages)))
        chosen = [default_rates(rows, i) | (rates or {}) for i in range(len(stages))]
        speeds = tuple({name: chosen[i][name] for name in names} for i, names in enumerate(free))
        return Plan(free, speeds, tuple(int(e) for e in ends), max(round(iterations / BLOCKS), 1))

    def stage(self, block: int) -> tuple[int, int, int]:
        """Return the stage of a block, the stage's first block, and its number of blocks."""
        stage = next(i for i, end in enumerate(self.ends) if block < end)
        first = self.ends[stage - 1] if stage else 0
        return stage, first, self.ends[stage] - first


def default_rates(rows: int, stage: int) -> dict[str, float]:
    """Return the measured learning rates of a stage.

    They shrink from 5 rows on (by 0.4 at 10); from the second stage on, all but those of the table are
    smaller.
    """
    shrink = min(max(1 - 0.12 * (rows - 5), 0.4), 1.0)
    later = 0.6 if stage else 1.0
    return {
        name: rate * shrink * (1.0 if name in ("amplitude", "weights") else later)
        for name, rate in RATES.items()
    }


class Objective(eqx.Module):
    """The loss of a table on batch i."""

    denoiser: Denoiser
    data: Any  # (x_T, x_0), each [noises, ...], or the teacher itself, for fresh noise
    key: Key
    radius: float = eqx.field(static=True)
    batch: int = eqx.field(static=True)
    loss: Callable = eqx.field(static=True)
    like: jax.ShapeDtypeStruct = eqx.field(static=True)
    first: float = eqx.field(static=True)  # the time of x_T
    adjoint: Adjoint = eqx.field(static=True)

    def drawn(self, i: Int[Array, ""]) -> tuple[Array, Array]:
        """Draw batch i.

        Position p in it holds one of the noises p, p + batch, ..: a network may have a condition for each
        position.
        """
        key = jax.random.fold_in(self.key, i)
        if not isinstance(self.data, tuple):
            like = jax.ShapeDtypeStruct((self.batch, *self.like.shape), self.like.dtype)
            x, teacher = self.denoiser.prior(key, like, self.first), self.data
            table = isinstance(teacher, Table)
            out = run(self.denoiser, teacher, x, adjoint=Direct()) if table else teacher(x)
            return x, jax.lax.stop_gradient(out)
        x, reference = self.data
        block = jax.random.randint(key, (self.batch,), 0, len(x) // self.batch)
        which = block * self.batch + jnp.arange(self.batch)
        return x[which], reference[which]

    def __call__(self, table: Table, i: Int[Array, ""]) -> Array:
        x, reference = self.drawn(i)
        sample = lambda x: run(self.denoiser, table, x, adjoint=self.adjoint)
        if self.radius:
            x = self.nearest(sample, x, reference)
        return self.loss(sample(x), reference)

    def nearest(self, sample: Callable[[Array], Array], x: Array, reference: Array) -> Array:
        """Return x', `radius` |x| from x against the gradient, where its sample is nearer; else x."""
        error = lambda x: squared(sample(x), reference)
        before, pull = jax.vjp(error, x)
        (slope,) = pull(jnp.ones_like(before))
        norm = lambda a: jnp.sqrt((a.reshape(len(a), -1) ** 2).sum(1)).reshape(-1, *[1] * (a.ndim - 1))
        moved = x - self.radius * norm(x) * slope / jnp.maximum(norm(slope), 1e-30)
        better = error(moved) < before
        return jax.lax.stop_gradient(jnp.where(better.reshape(-1, *[1] * (x.ndim - 1)), moved, x))


@eqx.filter_jit
def _slope(objective: Objective, table: Table, i: Int[Array, ""]) -> tuple[Array, Table]:
    """Return the loss of batch i and its gradient in the table's numbers."""
    return eqx.filter_value_and_grad(lambda table: objective(table, i))(table)


def _table(model: Learnable, free: Corrections) -> Table:
    return jax.tree.map(jnp.asarray, replaced(model, free).table())


def _move(
    model: Learnable,
    state: tuple,
    slope: Table,
    loss: Float[Array, ""],
    share: Float[Array, ""],
    rates: dict[str, Float[Array, ""]],
    decay: Float[Array, ""],
    penalty: Float[Array, ""],
) -> tuple:
    """Return the state after an iteration of Adam, `share` of the stage done; rate 0 freezes a leaf."""
    free, average, memory, total = state
    _, pull = jax.vjp(lambda free: eqx.filter(_table(model, free), eqx.is_inexact_array), free)
    (push,) = pull(slope)
    push = {
        name: g + 2 * penalty * free[name] if name in ("amplitude", "weights") else g
        for name, g in push.items()
    }
    push = {name: jnp.where(rates[name] > 0, g, 0.0) for name, g in push.items()}
    with jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
        change, memory = cast(tuple[dict, Any], _adam.update(push, memory))
    cosine = 0.02 + 0.98 * (1 + jnp.cos(jnp.pi * share)) / 2
    free = {name: a - (cosine * rates[name]).astype(a.dtype) * change[name] for name, a in free.items()}
    average = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, average, free)
    return free, average, memory, total + loss


@functools.cache
def _compiled(function: Callable) -> Callable:
    """Jit a function; on CPUs without fusion, which takes most of a minute here and saves a millisecond."""
    options = {"xla_disable_hlo_passes": "fusion"} if jax.default_backend() == "cpu" else {}
    return cast(Any, eqx.filter_jit)(function, compiler_options=options)


class Fit:
    """A run from one start, block by block; `log` holds iteration, mean loss and held-out score of each.

    Args:
        objective: the loss.
        model: the start.
        score: of corrections, on held-out noise.
        plan: stages, rates and blocks.
        ema: decay of the running average of the corrections, which is what is scored.
        penalty: on the squares of the table's corrections.
        file: where the state is kept after each block; a run of the same card resumes there. None: nowhere.
        card: what the run depends on.
        taught: the teacher's work (x_T, x_0).
    """

    def __init__(
        self,
        objective: Objective,
        model: Learnable,
        score: Callable[[Corrections], float],
        plan: Plan,
        *,
        ema: float,
        penalty: float,
        file: FilePath | None,
        card: dict[str, Any],
        taught: tuple[np.ndarray, np.ndarray],
    ):
        self.objective, self.exact, self.score, self.plan = objective, model, score, plan
        self.file, self.card, self.taught = file, card, taught
        self.decay, self.penalty = (jnp.asarray(v, jnp.float32) for v in (ema, penalty))
        single = lambda a: jnp.asarray(a, jnp.result_type(float))
        zero = jax.tree.map(single, model.free)
        self.model = dataclasses.replace(model, lam=single(model.lam), ends=single(model.ends), free=zero)
        state = {"free": zero, "average": zero, "memory": _adam.init(zero), "best": zero}
        state |= {"log": jnp.full((BLOCKS + 1, 3), jnp.nan), "done": jnp.zeros((), jnp.int32)}
        self.state = state if file is None else checkpoint.resume(file, state, card)
        self.log, self.done = np.array(self.state["log"]), int(self.state["done"])
        start = score(zero)
        if not self.done:
            self.log[0] = 0, np.nan, start
        elif not np.isclose(start, self.log[0, 2], rtol=1e-3):
            raise ValueError(
                f"{file} is of a run with another loss: "
                f"its start scored {self.log[0, 2]:.6g}, not {start:.6g}; use another folder"
            )
        if not np.isfinite(self.log[0, 2]):
            raise ValueError(
                f"the start, {model.parent.name} on this grid, scores {self.log[0, 2]} on held-out noise: "
                "take a start that works"
            )

    @property
    def best(self) -> Corrections:
        """The corrections with the best score so far."""
        return self.state["best"]

    @property
    def lowest(self) -> float:
        """The best score so far."""
        return float(np.nanmin(self.log[:, 2].astype(np.float64)))

    def advance(self, until: int = BLOCKS, progress: bool = False) -> None:
        """Run the blocks before `until` that are not done."""
        per = self.plan.per
        done = min(self.done, until) * per
        bar = tqdm(total=until * per, initial=done, disable=not progress, unit="it", desc="learn")
        while self.done < until:
            self._block(bar)
        bar.close()

    def _block(self, bar: tqdm) -> None:
        state, block, per = self.state, self.done, self.plan.per
        stage, first, total = self.plan.stage(block)
        if block == first or not np.isfinite(self.log[block, 2]):
            # a new stage, or the last block diverged: start from the best so far
            state |= {"free": state["best"], "average": state["best"], "memory": _adam.init(state["best"])}
        chosen = self.plan.rates[stage]
        rates = {name: jnp.asarray(chosen.get(name, 0.0), jnp.float32) for name in self.model.free}
        carry = state["free"], state["average"], state["memory"], jnp.zeros(())
        table, move = _compiled(_table), _compiled(_move)
        for i in range(block * per, (block + 1) * per):
            loss, slope = _slope(self.objective, table(self.model, carry[0]), jnp.asarray(i))
            share = jnp.asarray((i - first * per) / (total * per), jnp.float32)
            carry = move(self.model, carry, slope, loss, share, rates, self.decay, self.penalty)
            bar.update(1)
        free, average, memory, losses = carry
        found = self.score(average)
        best = average if found < np.nanmin(self.log[: block + 1, 2]) else state["best"]
        self.log[block + 1] = (block + 1) * per, float(losses) / per, found
        self.done = block + 1
        self.state = {"free": free, "average": average, "memory": memory, "best": best}
        self.state |= {"log": jnp.asarray(self.log), "done": jnp.asarray(self.done, jnp.int32)}
        if self.file is not None:
            checkpoint.save(self.file, self.state, self.card)
        shown = {"score": found, "best": self.lowest, "start": self.log[0, 2]}
        bar.set_postfix({name: f"{value:.4g}" for name, value in shown.items()}, refresh=False)
