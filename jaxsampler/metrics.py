r"""How far samples are from the exact solution, one by one, and from real data, as a distribution.

    rmse        sqrt E|a_i - b_i|^2 over pairs, per entry
    frechet     |m_a - m_b|^2 + tr S_a + tr S_b - 2 tr (S_a S_b)^(1/2): the squared 2-Wasserstein
                distance between two Gaussians
    sliced      2-Wasserstein distance between one-dimensional projections, root mean square over directions

With centred data A, S_a = A^T A/(n-1), the last trace is the sum of the singular values of A B^T: it needs no
matrix square root, and the covariances may be singular. With R factors of A and B that product is as small as
the features.

References: Dowson & Landau 1982 (Frechet distance between Gaussians); Heusel et al. 2017 (its use on features
of images); Rabin et al. 2011 (sliced Wasserstein).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from .numerics import Arr

Features = Float[np.ndarray, "n d"]


class Gaussian(NamedTuple):
    """Mean, and a root of the covariance, S = root^T root: all that `frechet` needs of a set."""

    mean: Float[np.ndarray, " d"]
    root: Float[np.ndarray, "r d"]


def gaussian(x: Arr) -> Gaussian:
    """Fit a Gaussian to features [n, d] with n > 1 (unbiased covariance), in float64."""
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"features must be an array [n, d] of at least two samples; got shape {x.shape}")
    if not np.all(np.isfinite(x)):
        bad = int((~np.isfinite(x)).any(1).sum())
        raise ValueError(f"features are not finite in {bad} of {len(x)} samples")
    mean = x.mean(0)
    return Gaussian(mean, np.asarray(np.linalg.qr((x - mean) / np.sqrt(len(x) - 1), mode="r")))


def frechet(a: Arr | Gaussian, b: Arr | Gaussian) -> float:
    """Frechet distance (squared, as usual) between the Gaussians of features [n, d] and [m, d]."""
    a, b = (x if isinstance(x, Gaussian) else gaussian(x) for x in (a, b))
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of {a.mean.size} and {b.mean.size} dimensions cannot be compared")
    overlap = np.linalg.svd(a.root @ b.root.T, compute_uv=False).sum()
    return float(
        np.square(a.mean - b.mean).sum() + np.square(a.root).sum() + np.square(b.root).sum() - 2 * overlap
    )


def project(x: Arr, *, directions: int = 128, seed: int = 0) -> Float[np.ndarray, "n k"]:
    """Project samples [n, ...] on random unit vectors, the same ones for each (seed, dimension)."""
    x = np.asarray(x, np.float64).reshape(len(x), -1)
    vectors = np.random.default_rng(seed).standard_normal((x.shape[1], directions))
    return x @ (vectors / np.linalg.norm(vectors, axis=0, keepdims=True))


class Quantiles(NamedTuple):
    """Quantile functions of k columns on n equal parts of [0, 1]: mean on each, mean variance within."""

    mean: Float[np.ndarray, "n k"]
    within: Float[np.ndarray, " k"]


def quantiles(x: Float[np.ndarray, "m k"], n: int) -> Quantiles:
    """All that `wasserstein` needs of x to compare it with n samples."""
    x, at = np.sort(x, 0), np.linspace(0, len(x), n + 1)
    low = np.minimum(at.astype(int), len(x) - 1)

    def means(v):  # by the integral of a step function
        total = np.concatenate([np.zeros_like(v[:1]), np.cumsum(v, 0)])
        return np.diff(total[low] + (at - low)[:, None] * v[low], axis=0) * n / len(x)

    mean = means(x)
    return Quantiles(mean, np.maximum(means(x**2) - mean**2, 0.0).mean(0))


def wasserstein(a: Float[np.ndarray, "n k"], b: Float[np.ndarray, "m k"] | Quantiles) -> float:
    """2-Wasserstein distance between columns of a and b, exact for any n, m; root mean square over columns.

    Args:
        b: samples, or their `Quantiles` for n samples.
    """
    b = b if isinstance(b, Quantiles) else quantiles(b, len(a))
    if b.mean.shape != a.shape:
        raise ValueError(
            f"columns of shape {a.shape} cannot be compared with quantiles of shape {b.mean.shape}"
        )
    return float(np.sqrt((np.square(np.sort(a, 0) - b.mean).mean(0) + b.within).mean()))


def sliced_wasserstein(a: Arr, b: Arr, *, directions: int = 128, seed: int = 0) -> float:
    """Sliced 2-Wasserstein distance between samples; about |m|/sqrt(d) for N(0, I) and N(m, I) in R^d."""
    return wasserstein(
        project(a, directions=directions, seed=seed), project(b, directions=directions, seed=seed)
    )


def squares(a: Arr, b: Arr) -> Float[np.ndarray, " n"]:
    """Mean squared difference of each pair of samples [n, ...], in float64."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"paired samples must have one shape; got {a.shape} and {b.shape}")
    return np.square(a - b).reshape(len(a), -1).mean(1)


def rmse(a: Arr, b: Arr) -> float:
    """Root mean square difference of paired samples, over samples and entries."""
    return float(np.sqrt(squares(a, b).mean()))


def interval(
    statistic: Callable[..., float],
    *samples: np.ndarray,
    resamples: int = 200,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Bootstrap interval of statistic(*samples), each set resampled with replacement along its first axis.

    The quantiles of the resampled values about *their* mean are put around the value itself, because
    resamples repeat points, which biases a distance between distributions up but leaves its spread. The
    interval is that of the statistic at this number of samples. For pairs pass one set, what each pair gives:
    `interval(lambda s: np.sqrt(s.mean()), squares(a, b))`.
    """
    rng = np.random.default_rng(seed)
    values = [statistic(*(x[rng.integers(0, len(x), len(x))] for x in samples)) for _ in range(resamples)]
    low, high = (
        np.quantile(values, [(1 - level) / 2, (1 + level) / 2]) - np.mean(values) + statistic(*samples)
    )
    return float(low), float(high)
