"""Closed-form denoisers: exact predictions of known data distributions, for tests, examples and studies."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..numerics import Arr, Scalar, Time, cast, is_traced, widened
from .base import Path
from .predictions import Denoiser


class _Mixture(eqx.Module):
    """E[x_0 | x_t] of sum_k w_k N(means_k, diag(stds_k^2)) on a path."""

    means: Float[Array, "k d"]
    stds: Float[Array, "k axes"]  # one for all axes, or one each
    weights: Float[Array, " k"]
    path: Path

    def __call__(self, x: Float[Array, "*batch d"], t: Time) -> Float[Array, "*batch d"]:
        if x.dtype.itemsize < 4:  # squares of large sigma overflow in half precision
            return self(widened(x), t).astype(x.dtype)
        if x.ndim > 1:
            return jax.vmap(lambda y: self(y, t))(x)
        y = self.path.centred(x)
        means = jax.vmap(self.path.centred)(self.means.astype(x.dtype))
        stds, weights = self.stds.astype(x.dtype), self.weights.astype(x.dtype)
        alpha, sigma = cast(self.path.alpha(t), x), cast(self.path.sigma(t), x)
        var = alpha**2 * stds**2 + sigma**2
        away = y[None, :] - alpha * means
        logits = jnp.log(weights) - (away**2 / var + jnp.log(var)).sum(1) / 2
        data = means + alpha * stds**2 / var * away
        return self.path.uncentred(jax.nn.softmax(logits) @ data)


def gaussian_mixture(
    means: Arr | Sequence, stds: Scalar | Sequence, path: Path, weights: Scalar | Sequence | None = None
) -> Denoiser:
    """Return the exact denoiser of a mixture of Gaussians; states are vectors [d] or batches [..., d].

    Args:
        means: [k, d].
        stds: a number, [k], or [k, d] (per axis); 0 is a point.
        weights: [k]; equal if None.

    Raises:
        ValueError: means are not finite, stds negative or weights not positive, as far as they are known.

    Example:
        >>> denoiser = js.models.gaussian_mixture([[-1.0], [1.0]], 0.1, js.CondOT())
        >>> x = jax.jit(lambda x: denoiser(x, 0.5))(jnp.array([0.5]))  # E[x_0 | x_t]
        >>> print(f"{x[0]:.3f}")
        0.760
    """
    means = jnp.atleast_2d(jnp.asarray(means, float))
    k = means.shape[0]
    for name, value, shapes in (("stds", stds, ((), (k,), means.shape)), ("weights", weights, ((k,),))):
        if value is not None and np.shape(value) not in shapes:
            raise ValueError(
                f"{name} must have one entry for each of the {k} means; got shape {np.shape(value)}"
            )
    _refuse("means", means, np.isfinite, "finite")
    _refuse("stds", stds, lambda v: np.isfinite(v) & (v >= 0), "finite, 0 or more")
    if weights is not None:
        _refuse("weights", weights, lambda v: np.isfinite(v) & (v > 0), "positive: leave a component out")
    stds = jnp.asarray(stds, means.dtype)
    stds = stds if stds.ndim == 2 else jnp.broadcast_to(stds, (k,))[:, None]
    weights = jnp.full((k,), 1 / k, means.dtype) if weights is None else jnp.asarray(weights, means.dtype)
    return Denoiser(_Mixture(means, stds, weights / weights.sum(), path), path, "data")


def _refuse(name: str, values: Any, right: Callable, what: str) -> None:
    """ValueError if numbers that are known are not right."""
    if not is_traced(values) and not np.all(right(np.asarray(values, np.float64))):
        raise ValueError(f"{name}={np.asarray(values).tolist()}: {name} must be {what}")


CHUNK, NEAR = 1000, 8  # images at a time, and how many of them are measured exactly


class _Empirical(eqx.Module):
    """E[x_0 | x_t] of n equally likely images, each blurred by std, by a softmax over chunks of them."""

    images: Float[Array, "n ..."]
    std: Float[Array, ""]
    path: Path

    def __call__(self, x: Float[Array, "..."], t: Time) -> Float[Array, "..."]:
        if x.dtype.itemsize < 4:
            return self(widened(x), t).astype(x.dtype)
        shape = self.images.shape[1:]
        if x.shape[x.ndim - len(shape) :] != shape:
            raise ValueError(
                f"x must be an image of shape {shape}, as those given, or a batch of them; got {x.shape}"
            )
        data = jax.vmap(self.path.centred)(self.images.astype(x.dtype)).reshape(len(self.images), -1)
        chunk = min(CHUNK, len(data))
        data = jnp.pad(data, ((0, -len(data) % chunk), (0, 0)))
        there = jnp.arange(len(data)) < len(self.images)
        chunks = data.reshape(-1, chunk, data.shape[1]), there.reshape(-1, chunk)
        alpha, sigma = cast(self.path.alpha(t), x), cast(self.path.sigma(t), x)
        spread = alpha * cast(self.std, x)  # x_t - alpha image = alpha std n + sigma eps
        var = spread**2 + sigma**2
        y = jax.vmap(self.path.centred)(x.reshape(-1, *shape)).reshape(-1, data.shape[1])
        mean = jax.lax.map(
            lambda one: _posterior_mean(one, chunks, alpha, var), y, batch_size=min(256, len(y))
        )
        mean = mean + spread * cast(self.std, x) / jnp.maximum(var, 1e-30) * (y - alpha * mean)
        return jax.vmap(self.path.uncentred)(mean.reshape(-1, *shape)).reshape(x.shape)


def _posterior_mean(
    y: Float[Array, " d"], chunks: tuple[Array, Array], alpha: Float[Array, ""], var: Float[Array, ""]
) -> Float[Array, " d"]:
    """sum_i w_i x_i with w = softmax(-|y - alpha x_i|^2 / (2 var)), chunk by chunk with a running maximum."""

    def add(carry, part):
        top, total, mean = carry
        images, there = part
        # One product gives all the distances, to some 1e-6 of |y|^2: too coarse for small sigma, when only
        # the nearest matter.
        distance = (y * y).sum() - 2 * alpha * (images @ y) + alpha**2 * (images * images).sum(1)
        _, near = jax.lax.top_k(
            jax.lax.stop_gradient(jnp.where(there, -distance, -jnp.inf)), min(NEAR, len(there))
        )
        distance = distance.at[near].set(jnp.square(y[None] - alpha * images[near]).sum(1))
        logits = jnp.where(
            there, -distance / (2 * jnp.maximum(var, 1e-30)), -jnp.inf
        )  # var = 0: the nearest image
        new = jax.lax.stop_gradient(jnp.maximum(top, logits.max()))
        w, shrink = jnp.exp(logits - new), jnp.exp(top - new)
        return (new, shrink * total + w.sum(), shrink * mean + w @ images), None

    zero = jnp.zeros_like(y[0])
    (_, total, mean), _ = jax.lax.scan(add, (zero - jnp.inf, zero, jnp.zeros_like(y)), chunks)
    return mean / total


def empirical(images: Arr | Sequence, path: Path, std: Scalar = 0.0) -> Denoiser:
    """Return the exact denoiser of equally likely images: a real-image model without training.

    Its samples are the images themselves; between noise and them it predicts what a perfectly trained network
    would. States are images, or batches with any leading axes. One call costs two products of the states with
    all the images; sigma = 0 gives the nearest.

    Args:
        images: [n, ...].
        std: each image is the mean of a Gaussian of this standard deviation; smoother in x, as networks are.

    Example:
        >>> denoiser = js.models.empirical(jnp.array([[0.0, 0.0], [1.0, 1.0]]), js.EDM())
        >>> x = jax.jit(lambda x: denoiser(x, 0.3))(jnp.array([0.9, 0.7]))  # mostly the second
        >>> print(f"{x[0]:.3f}")
        0.999
    """
    images = jnp.asarray(images)
    if images.ndim < 2 or not len(images):
        raise ValueError(
            f"images must be an array [n, ...] with at least one image; got shape {images.shape}"
        )
    images = images if jnp.issubdtype(images.dtype, jnp.floating) else images.astype(float)
    return Denoiser(_Empirical(images, jnp.asarray(std, images.dtype), path), path, "data")
