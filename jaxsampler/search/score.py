r"""Scores of many tables by one compiled function: RMSE, Frechet distance, or any function of a table.

A score takes stacked tables (leading axis b) and returns b numbers, lower is better. `each` makes one from a
function of one table: compiled once, `chunk` tables at a time, the last chunk filled up. Searches call it
hundreds of times, with tables of one shape.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..numerics import Arr, Real
from ..paths import Denoiser
from ..scan import Direct, run
from ..tables import Table

Score = Callable[[Table], Float[np.ndarray, " b"]]


def each(function: Callable[..., Arr | Real], *args: Any, chunk: int = 32, together: bool = False) -> Score:
    """Return the score of stacked tables by a function of one table, traced once for tables of one shape.

    Args:
        function: (table, *args) -> scalar.
        args: what the function needs (networks, noise); arrays in them are arguments of the compiled
            function, not constants.
        chunk: tables in each call.
        together: whether the tables of a chunk run at once, by `vmap`, for devices that one table does not
            fill. One after another is faster on a CPU and needs the memory of one.

    Example:
        >>> score = js.search.each(lambda table, power: jnp.sum(table.B**power), 2)
        >>> tables = [js.tabulate(js.VP(), [1.0, t, 0.1], js.solvers.ddim) for t in (0.5, 0.3)]
        >>> np.allclose(score(js.stack(tables)), [np.sum(table.B**2) for table in tables])
        True
    """
    if chunk < 1:
        raise ValueError(f"chunk is a number of tables, at least 1; got {chunk}")

    @eqx.filter_jit
    def many(tables: Table, args: tuple) -> Array:
        one = lambda table: jnp.asarray(function(table, *args))
        return jax.vmap(one)(tables) if together else jax.lax.map(one, tables)

    def score(tables: Table) -> Float[np.ndarray, " b"]:
        if tables.t.ndim != 2:
            raise ValueError("a score takes stacked tables: js.stack([table]) for a single one")
        parts, b = [], len(tables.t)
        for i in range(0, b, chunk):
            which = np.minimum(np.arange(i, i + chunk), b - 1)  # the last table again, to fill the chunk
            part = jax.tree.map(lambda a, which=which: jnp.asarray(np.asarray(a)[which]), tables)
            values = np.asarray(many(part, args))
            if values.shape != (chunk,):
                raise ValueError(
                    f"the function of one table must return one number, got shape {values.shape[1:]}"
                )
            parts.append(values[: b - i].astype(np.float64))
        return np.concatenate(parts)

    return score


def rmse(
    denoiser: Denoiser,
    x: Float[Arr, "..."],
    reference: Float[Arr, "..."],
    *,
    batch: int | None = None,
    chunk: int = 32,
    together: bool = False,
) -> Score:
    """Return the score of tables by their root mean square error, over samples and their entries.

    Args:
        denoiser: the network.
        x: x_T of each sample, [noises, ...].
        reference: the converged solution from the same x_T, [noises, ...].
        batch: samples that go through the network at once, by default all; those that fill no batch are left
            out.
        chunk: see `each`.
        together: see `each`.

    Example:
        >>> path = js.VP()
        >>> point = js.Denoiser(lambda x, t: 0 * x + 3.0, path, "data")
        >>> tables = js.stack([js.tabulate(path, [1.0, t, 0.0], js.solvers.ddim) for t in (0.5, 0.3)])
        >>> x = jnp.zeros((4, 1))
        >>> js.search.rmse(point, x, x + 1)(tables).round(5).tolist()  # both end at 3
        [2.0, 2.0]
    """
    x, reference = jnp.asarray(x), jnp.asarray(reference)
    if x.shape != reference.shape:
        raise ValueError(
            f"x {x.shape} and reference {reference.shape} must be alike: "
            "give one converged solution for every start"
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
    x: Float[Arr, "n ..."],
    features: Callable[[Array], Array],
    mean: Float[Arr, "..."],
    cov: Float[Arr, "..."],
    *,
    chunk: int = 32,
    together: bool = False,
) -> Score:
    r"""Return the score of tables by the squared Frechet distance between features of data and of samples.

        |m - m_s|^2 + tr(C + C_s - 2 (C^{1/2} C_s C^{1/2})^{1/2})

    Fewer noises than d are allowed: the distance is then larger, but still ranks.

    Args:
        denoiser: the network.
        x: x_T of each sample, [noises, ...].
        features: samples [noises, ...] -> [noises, d], traceable.
        mean: m [d] of the features of real data.
        cov: C [d, d] of the features of real data.
        chunk: see `each`.
        together: see `each`.

    Example:
        >>> path = js.VP()
        >>> point = js.Denoiser(lambda x, t: 0 * x + 3.0, path, "data")
        >>> tables = js.stack([js.tabulate(path, [1.0, 0.5, 0.0], js.solvers.ddim)])
        >>> distance = js.search.frechet(point, jnp.zeros((8, 1)), lambda x: x, np.zeros(1), np.eye(1))
        >>> distance(tables).round(4).tolist()  # from N(0, 1) to a point at 3: 3^2 + 1
        [10.0]
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
        # With C_s = away' away, the trace of the root is the sum of the singular values of away C^{1/2}:
        # no matrix is squared.
        cross = jnp.linalg.svd(away @ root, compute_uv=False).sum()
        return jnp.sum((centre - mean) ** 2) + trace + jnp.sum(away**2) - 2 * cross

    return each(distance, denoiser, jnp.asarray(x), features, *moments, chunk=chunk, together=together)
