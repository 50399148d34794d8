r"""Training: a pure update, batches that are functions of the iteration, and state that fits in one file.

Nothing but the state (model, average, optimiser, iterations made) depends on history: iteration k uses the
batch `data(k)` and the key `fold_in(key(seed), k)`. A run that is killed and started again therefore ends
with the same bits as one that was not.

The weights to use are the running average, ema <- d ema + (1-d) model. For a `decay` of about 0.999, d =
min(decay, (1+k)/(10+k)): this warm-up forgets the random start, which a fixed 0.999 remembers for thousands
of iterations. `power` gives the profile whose memory is always the same fraction of what has been trained
[Karras et al. 2024, section 3.1].

With several devices every batch is spread over them by its leading axis, if their number divides it; the
weights are on all. The loss is that of the whole batch either way. Devices of several processes are one such
set: each process prepares the same batch and uses its rows, and the first writes the files.
"""

import csv
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PyTree
from tqdm import tqdm

from .. import checkpoint, processes
from ..convolutions import fast
from ..files import write
from ..numerics import Key
from .lost import Watch

M = TypeVar("M")
Loss = Callable[[Any, Any, Key], Float[Array, ""]]
Profile = Callable[[Float[Array, ""]], Float[Array, ""]]  # iteration k -> d
Batch = PyTree[np.ndarray | Array | float | int]
Data = Callable[[int], Batch]  # iteration k -> batch
Numbers = dict[str, Float[Array, ""]]


SAVING = 1800.0  # seconds that a checkpoint may take


class State(eqx.Module, Generic[M]):
    """All that a training carries from one iteration to the next.

    `step` counts the updates made; `ema` is the running average of the model, the weights to use.

    Example:
        >>> import optax
        >>> loss = lambda w, batch, key: jnp.square(w - batch).mean()
        >>> state = js.training.fit(
        ...     jnp.zeros(()), loss, lambda k: jnp.ones(()), optax.sgd(0.5), steps=3, seed=0, progress=False
        ... )
        >>> isinstance(state, js.training.State), int(state.step), float(state.model)
        (True, 3, 1.0)
    """

    model: M
    ema: M
    optimiser: Any
    step: Int[Array, ""]


def start(model: M, optimiser: optax.GradientTransformation) -> State[M]:
    """The state before the first iteration; the average begins as the model.

    `update` donates the arrays of its state, so both are copies.
    """
    model, average = (jax.tree.map(lambda x: jnp.array(x) if eqx.is_array(x) else x, model) for _ in range(2))
    return State(
        model, average, optimiser.init(eqx.filter(model, eqx.is_inexact_array)), jnp.zeros((), jnp.int32)
    )


def warmed(decay: float) -> Profile:
    """d = min(decay, (1+k)/(10+k))."""
    return lambda k: jnp.minimum(decay, (1 + k) / (10 + k))


def power(width: float) -> Profile:
    r"""d = (1 - 1/(k+1))^{gamma+1}: the weights of iteration i are averaged in proportion to i^gamma.

    width^2 = (gamma+1)/((gamma+2)^2 (gamma+3)) [Karras et al. 2024, eq. 3 and 126].

    Args:
        width: standard deviation of that profile as a fraction of the training so far: 0.05 to 0.2 are usual,
            0.288 (gamma = 0) is the limit.

    Raises:
        ValueError: the width is not between 0 and 0.288.

    Example:
        >>> decay = js.training.power(0.05)
        >>> [round(float(decay(jnp.asarray(k))), 4) for k in (1.0, 100.0, 10_000.0)]
        [0.0, 0.8362, 0.9982]
    """
    if not 0 < width < 12**-0.5:
        raise ValueError(f"the width of a power-function average is {width}: choose one between 0 and 0.288")
    roots = np.roots([1, 7, 16 - width**-2, 12 - width**-2])
    gamma = float(roots.real[np.abs(roots.imag) < 1e-9].max())
    return lambda k: (k / (k + 1)) ** jnp.asarray(gamma + 1, k.dtype)


@eqx.filter_jit(donate="all-except-first")
def update(
    fixed: tuple[Loss, optax.GradientTransformation, Profile, Key, int], state: State[M], batch: Batch
) -> tuple[State[M], Numbers]:
    """Make one update; return the state, and the loss with the gradient's norm.

    Args:
        fixed: loss, optimiser, profile of the average, key of the run, number of parts of a batch.
    """
    loss, optimiser, profile, key, parts = fixed
    key = jax.random.fold_in(key, state.step)
    value, grad = gradient(loss, state.model, batch, key, parts)
    with jax.numpy_dtype_promotion("standard"):  # optax raises its rates of decay to an integer power
        change, memory = optimiser.update(
            grad, state.optimiser, eqx.filter(state.model, eqx.is_inexact_array)
        )
    model = eqx.apply_updates(state.model, change)
    keep = profile(state.step.astype(value.dtype))
    average = jax.tree.map(
        lambda e, m: (
            (keep.astype(e.dtype) * e + (1 - keep).astype(e.dtype) * m) if eqx.is_inexact_array(e) else e
        ),
        state.ema,
        model,
    )
    return State(model, average, memory, state.step + 1), {"loss": value, "gradient": optax.tree.norm(grad)}


def gradient(
    loss: Loss, model: PyTree, batch: Batch, key: Key, parts: int
) -> tuple[Float[Array, ""], PyTree]:
    """Loss and gradient: the mean over `parts` parts of the batch, one after another, in less memory."""
    both = eqx.filter_value_and_grad(loss)
    if parts == 1:
        return both(model, batch, key)
    if any(size % parts for size in (x.shape[0] for x in jax.tree.leaves(batch))):
        size = jax.tree.leaves(batch)[0].shape[0]
        raise ValueError(f"accumulate={parts} does not divide a batch of {size}: choose a divisor")
    pieces = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)

    arrays, static = eqx.partition(model, eqx.is_array)
    one = fast(lambda arrays, *piece: both(eqx.combine(arrays, static), *piece))

    def add(total, piece):
        return jax.tree.map(jnp.add, total, one(arrays, *piece)), None

    zero = jnp.zeros(()), jax.tree.map(jnp.zeros_like, eqx.filter(model, eqx.is_inexact_array))
    total, _ = jax.lax.scan(add, zero, (pieces, jax.random.split(key, parts)))
    return jax.tree.map(lambda x: x / parts, total)


def fit(
    model: M,
    loss: Loss,
    data: Data,
    optimiser: optax.GradientTransformation,
    *,
    steps: int,
    seed: int,
    decay: float | Profile = 0.999,
    accumulate: int = 1,
    folder: str | Path | None = None,
    card: checkpoint.Card | None = None,
    minutes: float = 5.0,
    log_every: int = 50,
    progress: bool = True,
) -> State[M]:
    """Train until `steps` updates are made; return the final state, of which `ema` is to be used.

    Args:
        loss: `loss(model, batch, key)`, a scalar.
        data: `data(k)` is the batch of iteration k, prepared in a background thread.
        steps: iterations of the optimiser.
        decay: of the running average: a number, or a profile such as `power(0.05)`.
        accumulate: compute the gradient in this many parts of the batch.
        folder: save the state here, log the losses in log.csv, and go on from a state found here. Several
            processes must share it.
        card: describes the run; a state with another card is refused.
        minutes: between two checkpoints; 0: after every iteration.
        log_every: a line of the log is a mean over this many iterations.

    Raises:
        ValueError: the folder holds a run with another card, or `accumulate` does not divide the batch. Or
            the loss or its gradient is not finite: the error names the iteration; the folder keeps the last
            good state and, as best.safetensors, that of the lowest loss.

    Example:
        >>> import optax
        >>> loss = lambda w, batch, key: jnp.square(w * batch["x"] - batch["y"]).mean()
        >>> data = lambda k: {"x": jnp.arange(1.0, 3.0), "y": 2 * jnp.arange(1.0, 3.0)}
        >>> state = js.training.fit(
        ...     jnp.zeros(()), loss, data, optax.sgd(0.1), steps=30, seed=0, decay=0.5, progress=False
        ... )
        >>> round(float(state.ema), 3)
        2.0
    """
    state = start(model, optimiser)
    file = None if folder is None else Path(folder) / "state.safetensors"
    settings = card or {}
    state = state if file is None else checkpoint.resume(file, state, settings)
    first = int(state.step)
    processes.agree({"number of iterations made": first})
    leads = jax.process_index() == 0
    file = file if leads else None
    log = None if folder is None or not leads else Log(Path(folder) / "log.csv", first)
    fixed = (loss, optimiser, decay if callable(decay) else warmed(decay), jax.random.key(seed), accumulate)
    state, place = spread(state)
    saved, sums, count = time.monotonic(), None, 0
    watch = Watch(file, settings, first)
    bar = tqdm(
        prefetch(data, first, steps),
        total=steps,
        initial=first,
        disable=not (progress and leads),
        unit="iteration",
        mininterval=1,
    )
    for k, batch in bar:
        state, numbers = update(fixed, state, place(batch))
        sums = numbers if sums is None else jax.tree.map(jnp.add, sums, numbers)
        count += 1
        logs = (k + 1) % log_every == 0 or k + 1 == steps
        saves = folder is not None and (time.monotonic() - saved >= 60 * minutes or k + 1 == steps)
        saves = processes.from_first(saves)
        early = k + 1 < log_every and (k + 1) & k == 0  # 1, 2, 4, ..: before the first line of the log
        with processes.first_to_fail():
            watch.see(k + 1, numbers, all_now=logs or saves or early)
        if early:
            watch.keep(k + 1, state, float(numbers["loss"]))
        if logs:
            means = {name: float(x) / count for name, x in sums.items()}
            sums, count = None, 0
            bar.set_postfix(loss=f"{means['loss']:.4f}", refresh=False)
            if log is not None:
                log.add(k + 1, means)
            watch.keep(k + 1, state, means["loss"])
        if saves:
            if file is not None:
                checkpoint.save(file, state, settings)
            processes.gather(seconds=SAVING)  # who waits in a collective instead may be taken for lost
            saved, watch.saved = time.monotonic(), k + 1
    return state


def spread(state: State[M]) -> tuple[State[M], Callable[[Batch], Batch]]:
    """Put the state on all devices; return it with the function that spreads a batch over them."""
    devices = jax.devices()
    if len(devices) == 1:
        return state, lambda batch: batch
    mesh = Mesh(np.array(devices), ("batch",))
    everywhere, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("batch"))

    def put(x, where):
        if jax.process_count() == 1:
            return jax.device_put(x, where)
        whole = np.asarray(x)  # of which this process's devices take their parts
        return jax.make_array_from_callback(whole.shape, where, lambda part: whole[part])

    def place(batch: Batch) -> Batch:
        def one(x):
            even = np.ndim(x) > 0 and np.shape(x)[0] % len(devices) == 0
            return put(x, split if even else everywhere)

        return jax.tree.map(one, batch)

    return jax.tree.map(lambda x: put(x, everywhere) if eqx.is_array(x) else x, state), place


def prefetch(data: Data, first: int, stop: int, ahead: int = 3) -> Iterator[tuple[int, Batch]]:
    """Yield (k, data(k)) for k in [first, stop), computed by one thread up to `ahead` batches early."""
    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(data, k) for k in range(first, min(first + ahead, stop))]
        try:
            for k in range(first, stop):
                batch = waiting.pop(0).result()
                if k + ahead < stop:
                    waiting.append(pool.submit(data, k + ahead))
                yield k, batch
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class Log:
    """Log of losses, as CSV. A continued run drops the lines past its checkpoint."""

    def __init__(self, path: Path, step: int):
        self.path, self.began = path, time.monotonic()
        try:
            rows = [r for r in csv.DictReader(path.open()) if int(r["step"]) <= step] if path.exists() else []
            self.spent = float(rows[-1]["seconds"]) if rows else 0.0
        except (KeyError, TypeError, ValueError):
            raise ValueError(
                f"{path} is not the log of a training: delete it, or use another folder"
            ) from None
        write(path, "".join(self._line(r) for r in [None, *rows]).encode())

    @staticmethod
    def _line(row: dict[str, str | int] | None) -> str:
        names = ("step", "seconds", "loss", "gradient")
        return ",".join(names if row is None else [str(row[n]) for n in names]) + "\n"

    def add(self, step: int, means: dict[str, float]) -> None:
        row = {"step": step, "seconds": f"{self.spent + time.monotonic() - self.began:.1f}"}
        with open(self.path, "a") as f:
            f.write(self._line(row | {name: f"{x:.6g}" for name, x in means.items()}))
