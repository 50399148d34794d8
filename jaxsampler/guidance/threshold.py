r"""Dynamic thresholding: keep predicted pixels within their range by shrinking the sample, not by clipping.

    q = max(quantile(|x0|, ratio), max_value),      x0 <- clip(x0, -q, q)/q

Strong guidance drives x0 out of [-1, 1]; this pulls saturated pixels inwards with the rest. It is for pixel
models only, because x0 of a latent has no such range. The quantile interpolates linearly.

Reference: Saharia et al. 2022 (Imagen), sec. 2.3.
"""

from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp

from ..numerics import Scalar, State, Time, wide
from ..paths import Denoiser


class _Thresholded(eqx.Module):
    denoiser: Denoiser
    ratio: Scalar
    max_value: Scalar
    axes: tuple[int, ...] | None = eqx.field(static=True)

    def __call__(self, x: State, t: Time | dict[str, Time], *entry: State) -> State:
        x0 = self.denoiser(x, t, "data", *entry)
        if self.axes is not None:
            return jax.tree.map(lambda a: self._shrunk(a, self._level(jnp.abs(a), self.axes)), x0)
        level = self._level(
            jnp.concatenate([jnp.abs(a).ravel().astype(wide(a)) for a in jax.tree.leaves(x0)]), None
        )
        return jax.tree.map(lambda a: self._shrunk(a, level), x0)

    def _level(self, size: jax.Array, axes: tuple[int, ...] | None) -> jax.Array:
        """q, with the axes of the sample kept."""
        size = size.astype(wide(size))
        ratio, least = (jnp.asarray(v, size.dtype) for v in (self.ratio, self.max_value))
        return jnp.maximum(jnp.quantile(size, ratio, axis=axes, keepdims=axes is not None), least)

    def _shrunk(self, x0: jax.Array, level: jax.Array) -> jax.Array:
        level = level.astype(wide(x0))
        return (jnp.clip(x0.astype(level.dtype), -level, level) / level).astype(x0.dtype)


def dynamic_threshold(
    denoiser: Callable,
    ratio: Scalar = 0.995,
    max_value: Scalar = 1.0,
    axes: int | Sequence[int] | None = None,
) -> Denoiser:
    """Threshold x0 dynamically: a data Denoiser on the same path [Saharia et al. 2022, sec. 2.3].

    Args:
        ratio: share of |x0| that stays unclipped, in [0, 1].
        max_value: lower bound of the threshold; a sample within it is only divided by it.
        axes: those of one sample, if x is a batch; None takes the whole x (all leaves of a pytree together)
            as one sample, as under vmap.

    Example:
        >>> denoiser = js.Denoiser(lambda x, t: jnp.array([1.0, 2.0, -4.0]), js.CondOT(), "data")
        >>> limited = js.guidance.dynamic_threshold(denoiser, ratio=0.5)
        >>> jax.jit(lambda x: limited(x, 0.5))(jnp.zeros(3)).tolist()
        [0.5, 1.0, -1.0]
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
