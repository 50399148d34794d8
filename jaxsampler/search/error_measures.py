r"""How far samples are from where they should end, and whether one sampler is surely nearer than another.

The error of sample i is e_i = mean over its numbers of (x_i - reference_i)^2; the RMSE of a sampler is
sqrt(mean_i e_i). Two samplers on the same noises are compared by the ratio of their RMSE, with a bootstrap
interval over noises. Most of the squared error may come from the few noises that end in another mode than the
reference, so the ratio is also given without the worst hundredth of the noises of each.
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from tqdm import tqdm

from ..numerics import Arr
from ..paths import Denoiser
from ..scan import Direct, run
from ..tables import Table


@eqx.filter_jit
def endpoints(denoiser: Denoiser, table: Table, x: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
    """Return the samples of a deterministic table; table and network are arguments, not constants."""
    return run(denoiser, table, x, adjoint=Direct())


def in_chunks(
    function: Callable[[Array], Arr], x: Float[Arr, "n ..."], chunk: int, *, label: str | None = None
) -> np.ndarray:
    """Return function(x), evaluated on chunks of one size along the leading axis.

    The last chunk is padded with its last entry. With a label there is a progress bar.
    """
    x = np.asarray(x)
    parts = []
    for i in tqdm(range(0, len(x), chunk), desc=label, disable=label is None, unit="batch"):
        part = x[i : i + chunk]
        full = np.concatenate([part, np.repeat(part[-1:], chunk - len(part), 0)])
        parts.append(np.asarray(function(jnp.asarray(full)))[: len(part)])
    return np.concatenate(parts)


def squared(x: Float[Arr, "n ..."], reference: Float[Arr, "n ..."]) -> Float[Arr, " n"]:
    """Return e_i, the mean square over everything but the leading axis."""
    return ((x - reference) ** 2).reshape(len(x), -1).mean(1)


def errors(
    denoiser: Denoiser, table: Table, x: Float[Arr, "n ..."], reference: Float[Arr, "n ..."], *, chunk: int
) -> Float[np.ndarray, " n"]:
    """Return the mean squared error of each sample of a deterministic table from x_T = x.

    `chunk` samples go through the network at once.

    Example:
        >>> point = js.Denoiser(lambda x, t: 0 * x + 3.0, js.VP(), "data")
        >>> table = js.tabulate(js.VP(), [1.0, 0.5, 0.0], js.solvers.ddim)  # ends at 3, the only data
        >>> x = np.zeros((2, 1), np.float32)
        >>> js.search.errors(point, table, x, x + 2, chunk=2).round(5).tolist()
        [1.0, 1.0]
    """
    table = jax.tree.map(jnp.asarray, table)
    samples = in_chunks(lambda x: endpoints(denoiser, table, x), x, chunk)
    return np.asarray(squared(samples.astype(np.float64), np.asarray(reference, np.float64)))


class Ratio(NamedTuple):
    """RMSE of one sampler over that of another."""

    ratio: float
    low: float  # of the bootstrap 95% interval
    high: float
    trimmed: float  # the ratio without the worst 1% of the errors of each


def ratio(
    ours: Float[np.ndarray, " n"], theirs: Float[np.ndarray, " m"], *, seed: int = 0, resamples: int = 1000
) -> Ratio:
    """Compare two samplers by their errors e_i on the same noises (see `errors`).

    Args:
        ours: errors of the sampler in the numerator.
        theirs: errors of the other sampler.
        seed: that of the bootstrap.
        resamples: number of the bootstrap's samples.

    Example:
        >>> theirs = np.random.default_rng(0).chisquare(3, 200)
        >>> found = js.search.ratio(0.25 * theirs, theirs)
        >>> round(found.ratio, 6), round(found.low, 6), round(found.high, 6)
        (0.5, 0.5, 0.5)
    """
    if ours.shape != theirs.shape:
        raise ValueError(
            f"both samplers must start from the same noises: got {len(ours)} and {len(theirs)} errors"
        )
    rng, n = np.random.default_rng(seed), len(ours)
    both = np.stack([ours, theirs])
    drawn = np.array([both[:, rng.integers(0, n, n)].mean(1) for _ in range(resamples)])
    low, high = np.quantile(np.sqrt(drawn[:, 0] / drawn[:, 1]), [0.025, 0.975])
    keep = max(int(0.99 * n), 1)
    trimmed = np.sort(both, 1)[:, :keep].mean(1)
    values = np.sqrt(ours.mean() / theirs.mean()), low, high, np.sqrt(trimmed[0] / trimmed[1])
    return Ratio(*map(float, values))
