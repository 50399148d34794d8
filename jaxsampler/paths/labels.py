r"""Networks that were trained in discrete time: the path's t as the "timestep" of each checkpoint family.

A path of this library has t in (0, 1] with noise level n of N at t = (n+1)/N; a network knows the label that
its training code used. With `scale` = N labels are training indices; it is 1000 for networks that rescale N
other levels to 1000 labels.

    index       scale max(t - 1/N, 0)    DDPM, ADM, Stable Diffusion; DPM-Solver's type 1
    stretched   scale (N-1)/N t          all labels 0 .. scale (N-1)/N over all of (0, 1]; DPM-Solver's type 2
    time        t                        networks of continuous time; type 0
    score_sde   999 t                    continuous VP networks of Song et al. 2021; type 3
    flow        1000 t                   SD3, Flux [Esser et al. 2024]

References: Lu et al. 2022a, app. D and released code; Song et al. 2021, released code; Ho et al. 2020.
"""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp

from ..numerics import Real, State, Time, namespace
from ..spelling import nearest
from .base import Path
from .predictions import Denoiser

CONVENTIONS: dict[str, Callable] = {
    "index": lambda t, N, scale: scale * namespace(t).maximum(t - 1 / N, 0.0),
    "stretched": lambda t, N, scale: scale * (N - 1) / N * t,
    "time": lambda t, N, scale: t,
    "score_sde": lambda t, N, scale: 999 * t,
    "flow": lambda t, N, scale: 1000 * t,
}


def label(t: Time, convention: str = "index", N: int | None = None, scale: Real | None = None) -> Time:
    """Return the network's time label, real-valued, at path time t: see the table of the module.

    Args:
        convention: "index", "stretched", "time", "score_sde" or "flow".
        N: number of noise levels, which "index" and "stretched" count.
        scale: labels of the whole schedule; N if None.

    Example:
        >>> [round(float(js.paths.label(t, "index", N=1000)), 6) for t in (1.0, 0.5, 0.001)]
        [999.0, 499.0, 0.0]
        >>> js.paths.label(0.5, "flow")
        500.0
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"unknown convention {convention!r}; {nearest(convention, CONVENTIONS)}")
    if N is None and convention in ("index", "stretched"):
        raise ValueError(
            f"convention {convention!r} counts the N noise levels of a discrete schedule: "
            "use a js.DiscreteVP path (or give N)"
        )
    return CONVENTIONS[convention](t, N, N if scale is None else scale)


class Discrete(eqx.Module):
    """`net(x, label)` of a discrete-time checkpoint as a network of the path's time; see `js.discrete`."""

    net: Callable
    levels: int | None = eqx.field(static=True)
    convention: str = eqx.field(static=True)
    scale: float | None = eqx.field(static=True)
    rounded: bool = eqx.field(static=True)

    def __call__(self, x: State, t: Time) -> State:
        n = label(t, self.convention, self.levels, self.scale)
        return self.net(x, jnp.round(n).astype(jnp.int32) if self.rounded else n)


def discrete(
    net: Callable,
    path: Path,
    kind: str,
    convention: str = "index",
    *,
    scale: Real | None = None,
    rounded: bool = False,
) -> Denoiser:
    """Make a Denoiser from a network that takes time labels, `net(x, label)`; its arrays remain leaves.

    Args:
        convention: how labels follow from t: "index", "stretched", "time", "score_sde" or "flow".
        scale: labels of the whole schedule; N if None.
        rounded: labels as the nearest int32, for networks that look them up in a table.

    Example:
        >>> path = js.DiscreteVP.linear(1000)
        >>> denoiser = js.discrete(lambda x, n: n * x, path, "noise")
        >>> denoiser(jnp.ones(1), 0.5, "noise").round(2).tolist()
        [499.0]
    """
    table = getattr(path, "alphas_cumprod", None)  # DiscreteVP
    levels = None if table is None else len(table)
    label(0.5, convention, levels, scale)  # report a wrong convention here
    return Denoiser(
        Discrete(net, levels, convention, None if scale is None else float(scale), rounded), path, kind
    )
