r"""How far samples are from where they should end, and how sure one may be that one sampler is nearer than another.

The error of sample i is e_i = mean over its numbers of (x_i - reference_i)^2; the RMSE of a sampler is sqrt(mean_i e_i). Two samplers on
the same noises are compared by the ratio of their RMSE, with a bootstrap interval over noises. Most of the squared error may sit in the
few noises that end in another mode than the reference does, so the ratio without the worst hundredth of the noises of each is given
beside it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from ..paths.predictions import Denoiser
from ..scan.adjoints import Direct
from ..scan.table_solver import run
from ..tables.table import Table


@eqx.filter_jit
def endpoints(denoiser: Denoiser, table: Table, x: Any) -> Any:
    """The samples of a deterministic table, its numbers and the network as arguments of one compiled function."""
    return run(denoiser, table, x, adjoint=Direct())


def in_chunks(function: Callable, x: Any, chunk: int, *, label: str | None = None) -> np.ndarray:
    """function(x) on chunks of one size along the leading axis, the last one padded with its last entry; `label`: a progress bar's."""
    x = np.asarray(x)
    parts = []
    for i in tqdm(range(0, len(x), chunk), desc=label, disable=label is None, unit="batch"):
        part = x[i : i + chunk]
        full = np.concatenate([part, np.repeat(part[-1:], chunk - len(part), 0)])
        parts.append(np.asarray(function(jnp.asarray(full)))[: len(part)])
    return np.concatenate(parts)


def squared(x: Any, reference: Any) -> Any:
    """e_i, the mean square over everything but the leading axis."""
    return ((x - reference) ** 2).reshape(len(x), -1).mean(1)


def errors(
    denoiser: Denoiser, table: Table, x: Any, reference: Any, *, chunk: int
) -> Float[np.ndarray, " n"]:
    """e_i of a deterministic table from x_T = x [n, ...], against `reference` [n, ...]; the network gets `chunk` at once."""
    table = jax.tree.map(jnp.asarray, table)
    return squared(
        in_chunks(lambda x: endpoints(denoiser, table, x), x, chunk).astype(np.float64),
        np.asarray(reference, np.float64),
    )


class Ratio(NamedTuple):
    """RMSE of one sampler over that of another: the ratio, its bootstrap 95% interval, and the ratio without the worst 1% of each."""

    ratio: float
    low: float
    high: float
    trimmed: float


def ratio(
    ours: Float[np.ndarray, " n"], theirs: Float[np.ndarray, " m"], *, seed: int = 0, resamples: int = 1000
) -> Ratio:
    """Compare two samplers by their errors e_i on the same noises."""
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
    return Ratio(
        *(
            float(v)
            for v in (np.sqrt(ours.mean() / theirs.mean()), low, high, np.sqrt(trimmed[0] / trimmed[1]))
        )
    )
