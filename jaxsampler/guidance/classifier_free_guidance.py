r"""Classifier-free guidance: extrapolate from the unconditional prediction through the conditional one.

    eps = eps_u + w (eps_c - eps_u)          w = 0: unconditional, w = 1: conditional, w > 1: guided

The weights sum to one, so the same holds for x0, v, the score and the velocity: the kind does not matter.
Ho & Salimans count from the conditional prediction: their weight is w - 1.

References: Ho & Salimans 2022, eq. 6.
"""

from collections.abc import Callable

import equinox as eqx
import jax

from ..numerics import Scalar, State, Time, cast, is_traced
from ..paths import Denoiser
from ..paths.predictions import match


class _Guided(eqx.Module):
    cond: Callable
    uncond: Callable
    w: Scalar | None
    kind: str | None = eqx.field(static=True)

    def __call__(self, x: State, t: Time | dict[str, Time], *entry: State) -> State:
        w = self.w
        if w is None:
            if not entry:
                raise TypeError(
                    "classifier_free(w=None) takes its weight per grid interval: "
                    "pass per_step=weights to js.sample or js.run"
                )
            *entry, w = entry
        of = lambda net: net(x, t, *entry) if self.kind is None else net(x, t, self.kind, *entry)
        blend = lambda u, c: u + cast(w, u) * (c - u)
        return jax.tree.map(blend, *(match(of(net), x) for net in (self.uncond, self.cond)))


def classifier_free(cond: Callable, uncond: Callable, w: Scalar | None = None) -> Callable:
    """Guide by eps_u + w (eps_c - eps_u) [Ho & Salimans 2022, eq. 6]; the result is of the kind of `cond`.

    Name the two, `cond=` and `uncond=`: swapped, they guide away from the condition, and nothing tells.

    Args:
        cond: a Denoiser, or a callable (x, t) for a callable.
        uncond: the same without the condition: a Denoiser of any kind on the path of `cond`, or a callable of
            its kind.
        w: the weight, a scalar. None takes it from the third argument of the network, one entry per grid
            interval: `js.sample(.., per_step=weights)`. With a given w both networks get such entries.

    Example:
        >>> cond = js.Denoiser(lambda x, t: 0 * x + 1.0, js.VP(), "noise")
        >>> uncond = js.Denoiser(lambda x, t: 0 * x - 1.0, js.VP(), "noise")
        >>> guided = js.guidance.classifier_free(cond=cond, uncond=uncond, w=3.0)
        >>> guided(jnp.zeros(1), 0.5, "noise").tolist()  # -1 + 3 (1 + 1)
        [5.0]
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
