r"""How corrections are fitted: what an iteration does, in which stages, and how a run is kept.

An iteration is two compiled calls. The network's part, the gradient of the loss in the numbers of a table, takes the table as an argument:
all parents with as many rows share that program, which is the slow one to compile. The parent's part pulls the gradient back to the
corrections, moves them, and makes the next table. Iterations are dispatched one by one, not scanned: inside a loop XLA runs convolutions
and their gradients several times slower on CPUs.
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
from tqdm import tqdm

from .. import checkpoint
from ..numerics import Real
from ..paths.predictions import Denoiser
from ..scan.adjoints import Adjoint, Direct
from ..scan.table_solver import run
from ..tables.table import Table
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
BLOCKS = 12  # validations in a run
_adam = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(b2=0.99))


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which leaves are free in each stage with which rates, when stages end (in blocks), and how many iterations a block has."""

    free: tuple[tuple[str, ...], ...]
    rates: tuple[dict[str, float], ...]
    ends: tuple[int, ...]
    per: int

    @staticmethod
    def of(
        stages: Sequence[tuple[str, ...]],
        split: Sequence[Real] | None,
        iterations: int,
        rows: int,
        rates: dict | None,
    ) -> "Plan":
        """Stages add to what those before them freed."""
        if not stages or len(stages) > BLOCKS:
            raise ValueError(f"vary names 1 to {BLOCKS} stages, got {len(stages)}")
        parts = (
            np.asarray((1, 2) if len(stages) == 2 else (1,) * len(stages))
            if split is None
            else np.asarray(split, float)
        )
        if len(parts) != len(stages) or not np.all(parts > 0):
            raise ValueError(
                f"split needs a positive share for each of the {len(stages)} stages, got {split}"
            )
        at = np.arange(len(parts))  # every stage has a block at least
        ends = np.clip(
            np.round(np.cumsum(parts) / parts.sum() * BLOCKS).astype(int), 1 + at, BLOCKS - at[::-1]
        )
        free = tuple(tuple(dict.fromkeys(itertools.chain(*stages[: i + 1]))) for i in range(len(stages)))
        chosen = [default_rates(rows, i) | (rates or {}) for i in range(len(stages))]
        speeds = tuple({name: chosen[i][name] for name in names} for i, names in enumerate(free))
        return Plan(free, speeds, tuple(int(e) for e in ends), max(round(iterations / BLOCKS), 1))

    def stage(self, block: int) -> tuple[int, int, int]:
        """The stage of a block, its first block, and how many it has."""
        stage = next(i for i, end in enumerate(self.ends) if block < end)
        first = self.ends[stage - 1] if stage else 0
        return stage, first, self.ends[stage] - first


def default_rates(rows: int, stage: int) -> dict[str, float]:
    """Measured rates: smaller from 5 rows on (0.4 times at 10), the grid and the relaxation slower from the second stage on."""
    shrink = min(max(1 - 0.12 * (rows - 5), 0.4), 1.0)
    later = 0.6 if stage else 1.0
    return {
        name: rate * shrink * (1.0 if name in ("amplitude", "weights") else later)
        for name, rate in RATES.items()
    }


class Objective(eqx.Module):
    """The loss of a table on batch i."""

    denoiser: Denoiser
    data: Any  # (x_T, x_0), each [noises, ...], or the teacher itself: fresh noise
    key: Any
    radius: float = eqx.field(static=True)
    batch: int = eqx.field(static=True)
    loss: Callable = eqx.field(static=True)
    like: Any = eqx.field(static=True)
    adjoint: Adjoint = eqx.field(static=True)

    def drawn(self, i: Any) -> tuple[Any, Any]:
        """Batch i. Position p in it holds one of the noises p, p + batch, ..: networks may have a condition for each position."""
        key = jax.random.fold_in(self.key, i)
        if not isinstance(self.data, tuple):
            x = self.denoiser.prior(
                key, jax.ShapeDtypeStruct((self.batch, *self.like.shape), self.like.dtype)
            )
            teacher = self.data
            out = (
                run(self.denoiser, teacher, x, adjoint=Direct()) if isinstance(teacher, Table) else teacher(x)
            )
            return x, jax.lax.stop_gradient(out)
        x, reference = self.data
        which = jax.random.randint(key, (self.batch,), 0, len(x) // self.batch) * self.batch + jnp.arange(
            self.batch
        )
        return x[which], reference[which]

    def __call__(self, table: Table, i: Any) -> Any:
        """Scalar."""
        x, reference = self.drawn(i)
        sample = lambda x: run(self.denoiser, table, x, adjoint=self.adjoint)
        if self.radius:
            x = self.nearest(sample, x, reference)
        return self.loss(sample(x), reference)

    def nearest(self, sample: Callable, x: Any, reference: Any) -> Any:
        """x', at most `radius` |x| from x, where the sample is nearer to the reference: one step of that length against the gradient."""
        error = lambda x: squared(sample(x), reference)
        before, pull = jax.vjp(error, x)
        (slope,) = pull(jnp.ones_like(before))
        norm = lambda a: jnp.sqrt((a.reshape(len(a), -1) ** 2).sum(1)).reshape(-1, *[1] * (a.ndim - 1))
        moved = x - self.radius * norm(x) * slope / jnp.maximum(norm(slope), 1e-30)
        better = error(moved) < before
        return jax.lax.stop_gradient(jnp.where(better.reshape(-1, *[1] * (x.ndim - 1)), moved, x))


@eqx.filter_jit
def _slope(objective: Objective, table: Table, i: Any) -> tuple[Any, Table]:
    """The loss of batch i and its gradient in the table's numbers."""
    return eqx.filter_value_and_grad(lambda table: objective(table, i))(table)


def _table(model: Learnable, free: dict) -> Table:
    return jax.tree.map(jnp.asarray, replaced(model, free).table())


def _move(
    model: Learnable, state: tuple, slope: Table, loss: Any, share: Any, rates: dict, decay: Any, penalty: Any
) -> tuple:
    """One step of Adam on the corrections, a `share` of the stage behind it. Rate 0 freezes a leaf."""
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
    """Jitted; on CPUs without fusion, which takes most of a minute for these thousands of scalar operations and saves a millisecond."""
    options = {"xla_disable_hlo_passes": "fusion"} if jax.default_backend() == "cpu" else {}
    return cast(Any, eqx.filter_jit)(function, compiler_options=options)


class Fit:
    """A run from one start, block by block; `log` [blocks + 1, 3] holds iteration, mean loss and held-out score, `best` the corrections.

    score: of corrections, on held-out noise. card: what the run depends on. taught: the teacher's work, (x_T, x_0). With a `file` the state
    is kept there after each block, and a run of the same card begins where the last one was stopped.
    """

    def __init__(
        self,
        objective: Objective,
        model: Learnable,
        score: Callable[[dict[str, Any]], float],
        plan: Plan,
        *,
        ema: float,
        penalty: float,
        file: FilePath | None,
        card: dict[str, Any],
        taught: tuple[np.ndarray, np.ndarray],
    ):
        self.taught = taught
        self.objective, self.exact, self.score, self.plan, self.file, self.card = (
            objective,
            model,
            score,
            plan,
            file,
            card,
        )
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
                f"{file} is of a run with another loss: its start scored {self.log[0, 2]:.6g}, not {start:.6g}; use another folder"
            )
        if not np.isfinite(self.log[0, 2]):
            raise ValueError(
                f"the start, {model.parent.name} on this grid, scores {self.log[0, 2]} on held-out noise: take a start that works"
            )

    @property
    def best(self) -> dict[str, Any]:
        """The corrections with the best score so far."""
        return self.state["best"]

    @property
    def lowest(self) -> float:
        """The best score so far."""
        return float(np.nanmin(self.log[:, 2].astype(np.float64)))

    def advance(self, until: int = BLOCKS, progress: bool = False) -> None:
        """All blocks before `until` that are not done."""
        per = self.plan.per
        bar = tqdm(
            total=until * per,
            initial=min(self.done, until) * per,
            disable=not progress,
            unit="it",
            desc="learn",
        )
        while self.done < until:
            self._block(bar)
        bar.close()

    def _block(self, bar: tqdm) -> None:
        state, block, per = self.state, self.done, self.plan.per
        stage, first, total = self.plan.stage(block)
        if block == first or not np.isfinite(
            self.log[block, 2]
        ):  # a new stage, or the last block diverged: from the best there is
            state |= {"free": state["best"], "average": state["best"], "memory": _adam.init(state["best"])}
        rates = {
            name: jnp.asarray(self.plan.rates[stage].get(name, 0.0), jnp.float32) for name in self.model.free
        }
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
        bar.set_postfix(
            score=f"{found:.4g}", best=f"{self.lowest:.4g}", start=f"{self.log[0, 2]:.4g}", refresh=False
        )
