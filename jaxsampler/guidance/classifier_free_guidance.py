r"""Classifier-free guidance: extrapolate from the unconditional prediction through the conditional one.

    eps = eps_u + w (eps_c - eps_u)          w = 0: unconditional, w = 1: conditional, w > 1: guided

The weights sum to one, so the same holds for x0, v, the score and the velocity: the kind does not matter. Ho & Salimans count from the
conditional prediction: their weight is w - 1.

References: Ho & Salimans 2022, eq. 6.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTree

from ..numerics import cast, is_traced
from ..paths.predictions import Denoiser, match


class _Guided(eqx.Module):
    cond: Callable
    uncond: Callable
    w: Any
    kind: str | None = eqx.field(static=True)

    def __call__(self, x: PyTree, t: Any, *entry: PyTree) -> PyTree:
        w = self.w
        if w is None:
            if not entry:
                raise TypeError(
                    "classifier_free(w=None) takes its weight per grid interval: pass per_step=weights to js.sample or js.run"
                )
            *entry, w = entry
        of = lambda net: net(x, t, *entry) if self.kind is None else net(x, t, self.kind, *entry)
        blend = lambda u, c: u + cast(w, u) * (c - u)
        return jax.tree.map(blend, *(match(of(net), x) for net in (self.uncond, self.cond)))


def classifier_free(cond: Callable, uncond: Callable, w: Any = None) -> Callable:
    """The guided prediction eps_u + w (eps_c - eps_u) [Ho & Salimans 2022, eq. 6]: a Denoiser of the kind of `cond`.

    cond, uncond: Denoisers of one path, of any kinds; or two callables (x, t) of one kind, for a callable. w: the weight, a scalar; None
    takes it from the third argument of the network, one entry per grid interval: `js.sample(.., per_step=weights)`. Under a given w, such
    entries are passed on to both networks.
    """
    if isinstance(cond, Denoiser) != isinstance(uncond, Denoiser):
        raise TypeError(
            "give two Denoisers, or two callables: a callable alone does not say what it predicts"
        )
    if not (isinstance(cond, Denoiser) and isinstance(uncond, Denoiser)):
        return _Guided(cond, uncond, w, None)
    same = eqx.tree_equal(cond.path, uncond.path)
    if not is_traced(same) and not same:
        raise ValueError(f"both Denoisers must have one path, got {cond.path} and {uncond.path}")
    return Denoiser(_Guided(cond, uncond, w, cond.kind), cond.path, cond.kind)
