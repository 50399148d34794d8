r"""Dynamic thresholding: keep predicted pixels within their range by shrinking the sample, not by clipping it.

    q = max(quantile(|x0|, ratio), max_value),      x0 <- clip(x0, -q, q)/q

Strong guidance drives x0 out of [-1, 1]; saturated pixels are pulled inwards with the rest. For pixel models only: x0 of a latent has no
such range. The quantile interpolates linearly.

Reference: Saharia et al. 2022 (Imagen), sec. 2.3.
"""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ..numerics import wide
from ..paths.predictions import Denoiser


class _Thresholded(eqx.Module):
    denoiser: Denoiser
    ratio: Any
    max_value: Any
    axes: tuple[int, ...] | None = eqx.field(static=True)

    def __call__(self, x: PyTree, t: Any, *entry: PyTree) -> PyTree:
        x0 = self.denoiser(x, t, "data", *entry)
        if self.axes is not None:
            return jax.tree.map(lambda a: self._shrunk(a, self._level(jnp.abs(a), self.axes)), x0)
        level = self._level(
            jnp.concatenate([jnp.abs(a).ravel().astype(wide(a)) for a in jax.tree.leaves(x0)]), None
        )
        return jax.tree.map(lambda a: self._shrunk(a, level), x0)

    def _level(self, size: Any, axes: tuple[int, ...] | None) -> Any:
        """q, with the axes of the sample kept."""
        size = size.astype(wide(size))
        ratio, least = (jnp.asarray(v, size.dtype) for v in (self.ratio, self.max_value))
        return jnp.maximum(jnp.quantile(size, ratio, axis=axes, keepdims=axes is not None), least)

    def _shrunk(self, x0: Any, level: Any) -> Any:
        level = level.astype(wide(x0))
        return (jnp.clip(x0.astype(level.dtype), -level, level) / level).astype(x0.dtype)


def dynamic_threshold(
    denoiser: Callable, ratio: Any = 0.995, max_value: Any = 1.0, axes: int | Sequence[int] | None = None
) -> Denoiser:
    """A data Denoiser on the same path whose x0 is dynamically thresholded [Saharia et al. 2022, sec. 2.3].

    ratio: of |x0| that stays unclipped, in [0, 1]. max_value: the threshold's lower bound; a sample within it is divided by it, no more.
    axes: those of one sample, if x is a batch; None takes the whole x (all leaves of a pytree together) as one sample, as under vmap.
    """
    if not isinstance(denoiser, Denoiser):
        raise TypeError(
            f"dynamic_threshold wraps a js.Denoiser, whose x0 it limits, not {type(denoiser).__name__}"
        )
    for name, value, valid in (
        ("ratio", ratio, lambda v: 0 <= v <= 1),
        ("max_value", max_value, lambda v: v > 0),
    ):
        if isinstance(value, int | float) and not valid(value):
            raise ValueError(f"{name}={value} is out of range: ratio lies in [0, 1], max_value is positive")
    axes = None if axes is None else (axes,) if isinstance(axes, int) else tuple(axes)
    return Denoiser(_Thresholded(denoiser, ratio, max_value, axes), denoiser.path, "data")
