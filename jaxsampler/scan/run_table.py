r"""Run a table: check what can be known beforehand, centre the state, and drive the scan.

The table is an argument of the jitted function, never a constant in it, so another solver, grid or order of
the same shape reuses the compilation.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ..eager import Latest, staged
from ..numerics import Arr, Key, State, Time, axpy, is_traced, on_host, wide
from ..paths import Denoiser, Path
from ..paths.predictions import called, each, weights
from ..tables import Table
from .brownian import Brownian
from .brownian import spans as brownian_spans
from .driver import drive
from .other_paths import check_path
from .protocol import Adjoint, Save, StepEnd, Watch
from .table_solver import TableSolver, parts_of, rows_of, seen


def run(
    model: Callable,
    table: Table | dict[str, Table],
    x: State,
    *,
    key: Key | None = None,
    noise: PyTree | None = None,
    adjoint: Adjoint | None = None,
    save: Save = None,
    progress: bool = False,
    hook: Callable[[StepEnd], State] | None = None,
    check: bool = False,
    per_step: PyTree | None = None,
    jit: bool = True,
    stop: int | None = None,
) -> Any:
    """Run `table` from x_T = `x` and return x at the last grid time, or a `Trajectory` if `save` is given.

    A dict of tables runs a system: x is a dict with the same names, each part on its own grid, and the model
        gets a dict of times.
    A traced table cannot be seen to draw noise: without a key or a noise array its samples are NaN.

    Args:
        model: a `Denoiser`, asked for the kind that each row wants; or a callable (x, t) that returns that
            kind.
        table: one table, or a dict of them for a system.
        x: the state at the first grid time, any pytree of floats.
        key: draws the noise, folded in per draw.
        noise: an array [draws, *x.shape] (or a pytree of them) in order of use instead of a key; or
            "brownian": increments of one Brownian path, the same whatever the grid.
        adjoint: how gradients flow, by default `RecursiveCheckpoint()`.
        save: "all", or indices of grid points (0 is the start), whose states come back as a `Trajectory`.
            "data": in place of all states the x_0 that the network predicted at each of them (previews, at no
            further call). It is NaN where the prediction does not tell (noise at alpha = 0).
        progress: show a bar on stderr.
        hook: `hook(StepEnd) -> x`, called at the end of every grid interval.
        check: report the first row with a non-finite network output or state, and its time, as an error.
            Costs a host callback.
        per_step: a pytree of arrays with one entry for each grid interval (guidance weights, prompts); the
            network is then called as net(x, t, entry).
        jit: keep the compiled loop for the next call with the same network. It does not see a Python value
            that the network reads and that changes in between; jit=False does.
        stop: a grid point (1 is the end of the first interval) to stop at. The result is then a `Stopped`
            run, for `js.resume`.

    Raises:
        TypeError: `table` is not a table, or the state is not floating point.
        ValueError: the table draws noise and has none; shapes or kinds do not fit.

    Example:
        >>> denoiser = js.models.gaussian_mixture(jnp.array([[2.0], [-2.0]]), 0.1, js.VP())
        >>> table = js.tabulate(js.VP(), js.grids.log_snr(js.VP(), 10), js.solvers.dpmpp_2m)
        >>> js.run(denoiser, table, jnp.array([[1.0], [-1.0]])).round().ravel()
        Array([ 2., -2.], dtype=float32)
    """
    watch = Watch(adjoint, save, progress, hook, check, per_step, jit, stop)
    return run_watched(model, table, x, key=key, noise=noise, watch=watch)


def run_watched(
    model: Callable,
    table: Table | dict[str, Table],
    x: State,
    *,
    key: Key | None = None,
    noise: PyTree | None = None,
    watch: Watch,
) -> Any:
    """`run`, with all options of the scan in one."""
    check_tables(table)
    x = _float_state(x)
    denoiser = model if isinstance(model, Denoiser) else None
    dtype = wide(x)
    brownian = isinstance(noise, str) and noise == "brownian"
    _check_noise(table, key, None if brownian else noise, x)

    # concrete tables stay numpy, also under jit, so that what depends on them (saved points, messages) is
    # known
    pairs = None
    if denoiser is not None:
        if isinstance(table, dict) and not isinstance(denoiser.path, dict):
            raise ValueError(
                f"tables for {sorted(table)}, but the denoiser has one path: give js.Denoiser a dict of "
                "paths with these names"
            )
        each(denoiser.path, check_path, table)
        known = lambda path, table: _unless((0, 1), row_weights(denoiser.kind, path, table))
        pairs = each(denoiser.path, known, table)
    parts, structure = parts_of(table)
    spans = None
    if brownian:
        if denoiser is None or key is None:
            raise ValueError(
                "noise='brownian' needs key=, and a Denoiser: its path tells how noise runs with time"
            )
        spans = [span.astype(dtype) for span in _brownian_spans(parts, denoiser)]
        noise = [Brownian(jax.random.fold_in(key, p)) for p in range(len(parts))]
    elif not (is_traced(table) or any(part.draws for part in parts) or _needs_key(watch)):
        key = None  # nothing to draw
    draws: list | None = None
    if watch.hook is None and watch.save is None and watch.stop is None:  # nobody sees the ends of intervals
        parts = [dataclasses.replace(part, lift=None) for part in parts]
    else:
        parts, draws = (list(a) for a in zip(*map(seen, parts), strict=True))
    starts: list = [_unless((1, 0), part.start.astype(dtype)) for part in parts]
    if key is None and noise is None and is_traced(table):
        noisy = jnp.stack([(part.C != 0).any() | (part.start[1] != 0) for part in parts]).any()
        starts = [jnp.where(noisy, jnp.nan, part.start.astype(dtype)) for part in parts]
    return drive(
        TableSolver(starts, key, noise, structure),
        cast_floats(rows_of(structure.unflatten(parts), spans, pairs, draws), dtype),
        Prediction(model),
        x,
        key=key,
        watch=watch,
        denoiser=denoiser,
        observe=True,
    )


def _unless(trivial: tuple[int, int], pairs: Arr) -> Arr | None:
    """None where all pairs are known to be the trivial one, for a program that is made for this table alone.

    Programs that `once` keeps take any table of their shape, so they get the pairs.
    """
    alone = staged() and not is_traced(pairs)
    return None if alone and np.all(np.asarray(pairs) == trivial) else pairs


def _needs_key(watch: Watch) -> bool:
    """Whether something beside the table draws: a hook, or an adjoint that averages over noise."""
    return watch.hook is not None or bool(getattr(watch.adjoint, "variance_reduction", 0))


def _brownian_spans(parts: list[Table], denoiser: Denoiser) -> list:
    """The angles of the Brownian path that each draw runs over, part by part."""
    path = denoiser.path
    paths = [path] if isinstance(path, Path) else [path[name] for name in sorted(path)]
    return [brownian_spans(part, path) for part, path in zip(parts, paths, strict=True)]


def check_tables(tables: Any) -> None:
    if not isinstance(tables, Table) and not (
        isinstance(tables, dict) and all(isinstance(v, Table) for v in tables.values())
    ):
        raise TypeError(
            f"run takes a Table (js.tabulate makes one), got {type(tables).__name__}; js.sample runs other "
            "solvers"
        )
    parts = parts_of(tables)[0]
    if any(part.t.ndim != 1 for part in parts):
        raise ValueError(
            "a stack of tables runs under vmap: jax.vmap(lambda table, x: js.run(model, table, x))(tables, "
            "xs)"
        )
    if len({part.nfe for part in parts}) > 1:
        raise ValueError(
            f"the parts of a system share their network calls: tables of {[part.nfe for part in parts]} rows "
            "cannot run together"
        )
    if not is_traced(parts) and len({np.isnan(part.end).tobytes() for part in parts}) > 1:
        raise ValueError(
            "the tables of a system must end their intervals in the same rows: use solvers of equal calls "
            "per step"
        )


def cast_floats(tree: PyTree, dtype: Any) -> PyTree:
    """The floats in this dtype."""
    return jax.tree.map(lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)


_known_weights = Latest(256)


def row_weights(kind: str, path: Path, table: Table) -> Arr:
    """The weights of x - mu and of the network's output in the prediction that each row wants.

    Raises:
        ValueError: a prediction of this kind does not determine it (noise at alpha = 0); a traced table
            cannot be looked at, and gives NaN.
    """
    forms = table.form[..., 0], table.form[..., 1]
    if is_traced(table):
        return jnp.stack(weights(path, table.t, kind, forms), -1)

    def made() -> np.ndarray:
        with on_host():
            a, b = (np.asarray(form) for form in forms)
            pair = weights(path, np.asarray(table.t), kind, (a, b))
            return np.stack([np.broadcast_to(np.asarray(w), table.t.shape) for w in pair], -1)

    key = path.law, kind, np.asarray(table.t).tobytes(), np.asarray(table.form).tobytes()
    return _known_weights.made(key, made)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a row wants of the network."""

    model: Any  # a callable; JAX puts other things in its place, too

    def __call__(self, y: State, t: Time | dict, pair: PyTree, *extra: PyTree) -> State:
        """The prediction, at the centred state y."""
        model = self.model
        if not isinstance(model, Denoiser):
            return called(model, y, t, *extra)
        x = model.uncentred(y)
        m = called(model.net, x, t, *extra)
        m = model.centred(m) if model.kind == "data" else m
        made = lambda path, m, y, pair: m if pair is None else axpy(pair[0], y, pair[1], m)
        return model.each(made, m, y, pair)


def _float_state(x: State) -> State:
    x = jax.tree.map(jnp.asarray, x)
    if not jax.tree.leaves(x):
        raise TypeError(
            "the state x is empty: give x, or an array (or pytree of arrays) shaped like a sample"
        )
    for leaf in jax.tree.leaves(x):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"the state must be floating point, got {leaf.dtype}; cast x with x.astype(jnp.float32)"
            )
    return x


def _check_noise(table: Table | dict[str, Table], key: Key | None, noise: Any, x: State) -> None:
    draws = 0 if is_traced(table) else max(part.draws for part in parts_of(table)[0])
    if noise is None:
        if key is None and draws:
            raise ValueError(
                "this solver draws noise: pass key=jax.random.key(seed), or noise=array of shape [draws, "
                "*x.shape]"
            )
        return
    if isinstance(noise, str) or jax.tree.structure(noise) != jax.tree.structure(x):
        raise ValueError(
            f"noise must be 'brownian', or arrays like the state, {jax.tree.structure(x)}, each with a "
            "leading axis of draws"
        )
    for z, a in zip(jax.tree.leaves(noise), jax.tree.leaves(x), strict=True):
        if jnp.shape(z)[1:] != a.shape or len(z) < draws:
            raise ValueError(
                f"noise must have shape [{draws} or more, {', '.join(map(str, a.shape))}], got "
                f"{list(jnp.shape(z))}"
            )
