r"""Scores of many tables by one compiled function: RMSE to the converged solution, Frechet distance, or any function of one table.

A score takes stacked tables (leading axis b) and returns b numbers, lower is better. `each` makes one from a function of one table:
compiled once, `chunk` tables at a time, the last chunk filled up. Searches call it by the hundred, with tables of one shape.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ..paths.predictions import Denoiser
from ..scan.adjoints import Direct
from ..scan.table_solver import run
from ..tables.table import Table

Score = Callable[[Table], Float[np.ndarray, " b"]]


def each(function: Callable[..., Any], *args: PyTree, chunk: int = 32, together: bool = False) -> Score:
    """The score of stacked tables by `function(table, *args)` -> scalar, traced once for tables of one shape.

    args: what the function needs (networks, noise); arrays in them are arguments of the compiled function, not constants. chunk: tables
    for each call. together: all of them at once by `vmap`, for devices that one table does not fill; else one after another, which is
    faster on a CPU and needs the memory of one.
    """
    if chunk < 1:
        raise ValueError(f"chunk is a number of tables, at least 1; got {chunk}")

    @eqx.filter_jit
    def many(tables: Table, args: PyTree) -> Array:
        one = lambda table: jnp.asarray(function(table, *args))
        return jax.vmap(one)(tables) if together else jax.lax.map(one, tables)

    def score(tables: Table) -> Float[np.ndarray, " b"]:
        if tables.t.ndim != 2:
            raise ValueError("a score takes stacked tables: js.stack([table]) for a single one")
        parts, b = [], len(tables.t)
        for i in range(0, b, chunk):
            rows = np.minimum(np.arange(i, i + chunk), b - 1)  # the last table again, to fill the chunk
            values = np.asarray(
                many(jax.tree.map(lambda a, rows=rows: jnp.asarray(np.asarray(a)[rows]), tables), args)
            )
            if values.shape != (chunk,):
                raise ValueError(
                    f"the function of one table must return one number, got shape {values.shape[1:]}"
                )
            parts.append(values[: b - i].astype(np.float64))
        return np.concatenate(parts)

    return score


def rmse(
    denoiser: Denoiser,
    x: Any,
    reference: Any,
    *,
    batch: int | None = None,
    chunk: int = 32,
    together: bool = False,
) -> Score:
    """Root mean square difference, over samples and their entries, to `reference`: the converged solution from the same x_T = `x`.

    x, reference: [noises, ...]. batch: how many of them the denoiser gets at once (default: all); those that fill no batch are left out.
    """
    x, reference = jnp.asarray(x), jnp.asarray(reference)
    if x.shape != reference.shape:
        raise ValueError(
            f"x {x.shape} and reference {reference.shape} must be alike: one converged solution for every start"
        )
    batch = len(x) if batch is None else batch
    if not 0 < batch <= len(x):
        raise ValueError(f"{len(x)} noises do not fill one batch of {batch}")
    whole = (len(x) // batch, batch, *x.shape[1:])

    def error(table: Table, denoiser: Denoiser, xs: Array, references: Array) -> Array:
        one = lambda pair: jnp.mean((run(denoiser, table, pair[0], adjoint=Direct()) - pair[1]) ** 2)
        return jnp.sqrt(jax.lax.map(one, (xs, references)).mean())

    xs, references = (a[: whole[0] * batch].reshape(whole) for a in (x, reference))
    return each(error, denoiser, xs, references, chunk=chunk, together=together)


def frechet(
    denoiser: Denoiser,
    x: Any,
    features: Callable,
    mean: Any,
    cov: Any,
    *,
    chunk: int = 32,
    together: bool = False,
) -> Score:
    r"""Squared Frechet distance |m - m_s|^2 + tr(C + C_s - 2 (C^{1/2} C_s C^{1/2})^{1/2}) of data and samples, as Gaussians of features.

    x: [noises, ...]; features: [noises, ...] -> [noises, d], traceable; mean [d], cov [d, d]: of the features of real data. Fewer noises
    than d are allowed: the distance is then larger, but ranks.
    """
    mean, cov = np.asarray(mean, np.float64), np.asarray(cov, np.float64)
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
        raise ValueError(f"mean must be [d] and cov [d, d]; got {mean.shape} and {cov.shape}")
    values, vectors = np.linalg.eigh(cov)
    root = vectors * np.sqrt(np.clip(values, 0, None)) @ vectors.T
    moments = [jnp.asarray(a, jnp.result_type(float)) for a in (mean, root, np.trace(cov))]

    def distance(
        table: Table, denoiser: Denoiser, x: Array, features: Callable, mean: Array, root: Array, trace: Array
    ) -> Array:
        f = features(run(denoiser, table, x, adjoint=Direct())).astype(mean.dtype)
        centre = f.mean(0)
        away = (f - centre[None]) / jnp.sqrt(jnp.asarray(len(f) - 1, f.dtype))
        # with C_s = away' away, the trace of the root is the sum of the singular values of away C^{1/2}: no matrix is squared
        cross = jnp.linalg.svd(away @ root, compute_uv=False).sum()
        return jnp.sum((centre - mean) ** 2) + trace + jnp.sum(away**2) - 2 * cross

    return each(distance, denoiser, jnp.asarray(x), features, *moments, chunk=chunk, together=together)
