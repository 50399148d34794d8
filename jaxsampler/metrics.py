r"""How far samples are from what they should be: from the exact solution one by one, from real data as a distribution.

    rmse        sqrt E|a_i - b_i|^2, pairs, per entry
    frechet     |m_a - m_b|^2 + tr S_a + tr S_b - 2 tr (S_a S_b)^(1/2), the squared 2-Wasserstein distance of two Gaussians
    sliced      the 2-Wasserstein distance of one-dimensional projections, root of the mean square over random directions

With centred data A, S_a = A^T A/(n-1), the last trace is the sum of the singular values of A B^T: no matrix square root, and covariances
may be singular. With R factors of A and B that product is as small as the features.

References: Dowson & Landau 1982 (Frechet distance of Gaussians); Heusel et al. 2017 (its use on features of images); Rabin et al. 2011
(sliced Wasserstein).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

Features = Float[np.ndarray, "n d"]


class Gaussian(NamedTuple):
    """Mean and a root of the covariance, S = root^T root: all that `frechet` takes from a set."""

    mean: Float[np.ndarray, " d"]
    root: Float[np.ndarray, "r d"]


def gaussian(x: Any) -> Gaussian:
    """The Gaussian of features [n, d] with n > 1 (unbiased covariance), in float64."""
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"features must be an array [n, d] of at least two samples; got shape {x.shape}")
    if not np.all(np.isfinite(x)):
        raise ValueError(
            f"features are not finite in {int((~np.isfinite(x)).any(1).sum())} of {len(x)} samples"
        )
    mean = x.mean(0)
    return Gaussian(mean, np.asarray(np.linalg.qr((x - mean) / np.sqrt(len(x) - 1), mode="r")))


def frechet(a: Any, b: Any) -> float:
    """Frechet distance (squared, as is the custom) of the Gaussians of two sets of features [n, d], [m, d]; either may be a `Gaussian`."""
    a, b = (x if isinstance(x, Gaussian) else gaussian(x) for x in (a, b))
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of {a.mean.size} and of {b.mean.size} dimensions cannot be compared")
    overlap = np.linalg.svd(a.root @ b.root.T, compute_uv=False).sum()
    return float(
        np.square(a.mean - b.mean).sum() + np.square(a.root).sum() + np.square(b.root).sum() - 2 * overlap
    )


def project(x: Any, *, directions: int = 128, seed: int = 0) -> Float[np.ndarray, "n k"]:
    """Samples [n, ...] on random unit vectors, the same ones for each (seed, dimension)."""
    x = np.asarray(x, np.float64).reshape(len(x), -1)
    vectors = np.random.default_rng(seed).standard_normal((x.shape[1], directions))
    return x @ (vectors / np.linalg.norm(vectors, axis=0, keepdims=True))


class Quantiles(NamedTuple):
    """Quantile functions of k columns on n equal parts of [0, 1]: their mean on each part, and their mean variance within the parts."""

    mean: Float[np.ndarray, "n k"]
    within: Float[np.ndarray, " k"]


def quantiles(x: Float[np.ndarray, "m k"], n: int) -> Quantiles:
    """All that `wasserstein` takes from x when compared with n samples."""
    x, at = np.sort(x, 0), np.linspace(0, len(x), n + 1)
    low = np.minimum(at.astype(int), len(x) - 1)

    def means(v):  # from the integral of a step function
        total = np.concatenate([np.zeros_like(v[:1]), np.cumsum(v, 0)])
        return np.diff(total[low] + (at - low)[:, None] * v[low], axis=0) * n / len(x)

    mean = means(x)
    return Quantiles(mean, np.maximum(means(x**2) - mean**2, 0.0).mean(0))


def wasserstein(a: Float[np.ndarray, "n k"], b: Any) -> float:
    """2-Wasserstein distance of each column of a and b [m, k], exact for any n and m; root of the mean square over the columns.

    b may also be its `Quantiles` for n samples.
    """
    b = b if isinstance(b, Quantiles) else quantiles(b, len(a))
    if b.mean.shape != a.shape:
        raise ValueError(
            f"columns of shape {a.shape} cannot be compared with quantiles of shape {b.mean.shape}"
        )
    return float(np.sqrt((np.square(np.sort(a, 0) - b.mean).mean(0) + b.within).mean()))


def sliced_wasserstein(a: Any, b: Any, *, directions: int = 128, seed: int = 0) -> float:
    """Sliced 2-Wasserstein distance of two sets of samples [n, ...] and [m, ...]; of Gaussians N(0, I), N(m, I) about |m|/sqrt(d)."""
    return wasserstein(
        project(a, directions=directions, seed=seed), project(b, directions=directions, seed=seed)
    )


def squares(a: Any, b: Any) -> Float[np.ndarray, " n"]:
    """Mean squared difference of each pair of samples [n, ...], in float64."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"samples in pairs must have one shape; got {a.shape} and {b.shape}")
    return np.square(a - b).reshape(len(a), -1).mean(1)


def rmse(a: Any, b: Any) -> float:
    """Root mean square difference of samples in pairs, over samples and entries."""
    return float(np.sqrt(squares(a, b).mean()))


def interval(
    statistic: Callable[..., float],
    *samples: np.ndarray,
    resamples: int = 200,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Bootstrap interval of statistic(*samples), every set resampled with replacement along its first axis, each on its own.

    Quantiles of the resampled values about *their* mean, put around the value itself: resamples repeat points, which biases a distance
    between distributions up, not its spread. The interval is of the statistic at this number of samples. For pairs pass one set of what
    each pair gives: `interval(lambda s: np.sqrt(s.mean()), squares(a, b))`.
    """
    rng = np.random.default_rng(seed)
    values = [statistic(*(x[rng.integers(0, len(x), len(x))] for x in samples)) for _ in range(resamples)]
    low, high = (
        np.quantile(values, [(1 - level) / 2, (1 + level) / 2]) - np.mean(values) + statistic(*samples)
    )
    return float(low), float(high)
