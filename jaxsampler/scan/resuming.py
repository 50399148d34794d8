"""Go on with a run that has stopped."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx

from ..numerics import State
from ..paths import Denoiser
from .driver import drive
from .protocol import Adjoint, StepEnd, Stopped

_SAME: Any = object()  # as in the run so far


def resume(
    stopped: Stopped,
    *,
    denoiser: Denoiser | None = None,
    stop: int | None = None,
    adjoint: Adjoint | None = _SAME,
    hook: Callable[[StepEnd], State] | None = _SAME,
    progress: bool = _SAME,
    check: bool = _SAME,
) -> Any:
    """Return what the run would have returned without the stop, or another `Stopped` if `stop` is given.

    The rows, the solver's memory, the numbers of its draws and the states saved so far are those of one
    run. In between, the state may be changed (`stopped.replace(x)`) and the network exchanged, for example
    for a refiner. Adjoints that count rows (`LastK`) count those of each part.

    Args:
        stopped: of `js.sample` or `js.run`.
        denoiser: another network for the rest, with the path and kind of the first.
        stop: a later grid point to stop at.
        adjoint, hook, progress, check: by default those of the run so far.

    Raises:
        ValueError: the denoiser has another path or kind, or `stop` is not ahead.

    Example:
        >>> denoiser = js.models.gaussian_mixture(jnp.array([[2.0], [-2.0]]), 0.1, js.VP())
        >>> run = dict(like=jnp.zeros((4, 1)), key=jax.random.key(0), solver=js.solvers.dpmpp_2m_sde, steps=8)
        >>> half = js.sample(denoiser, stop=4, **run)
        >>> bool((js.resume(half) == js.sample(denoiser, **run)).all())
        True
    """
    if not isinstance(stopped, Stopped):
        raise TypeError(
            f"resume takes what js.sample(.., stop=i) returned, a js.Stopped; got {type(stopped).__name__}"
        )
    given = {"adjoint": adjoint, "hook": hook, "progress": progress, "check": check}
    given = {name: value for name, value in given.items() if value is not _SAME}
    watch = dataclasses.replace(stopped.watch, stop=stop, **given)
    model, known = stopped.model, stopped.denoiser
    if denoiser is not None:
        model, known = _exchanged(stopped, denoiser)
    return drive(
        stopped.solver,
        stopped.rows,
        model,
        stopped.carry,
        key=stopped.key,
        watch=watch,
        denoiser=known,
        observe=stopped.observe,
        first=stopped.row,
    )


def _exchanged(stopped: Stopped, denoiser: Denoiser) -> tuple[Callable, Denoiser | None]:
    """The model of the rest with another network, and the denoiser whose mu the state leaves out."""
    plain = isinstance(stopped.model, Denoiser)
    old = stopped.model if plain else stopped.denoiser
    if not isinstance(denoiser, Denoiser) or old is None:
        raise TypeError(
            f"denoiser= takes the place of a js.Denoiser; got {type(denoiser).__name__} "
            f"for a run of {type(stopped.model if old is None else old).__name__}"
        )
    if denoiser.kind != old.kind or not eqx.tree_equal(denoiser.path, old.path):
        raise ValueError(
            f"the run is of {old.kind!r} predictions on {old.path!r}: the rest of it needs a denoiser "
            f"with this kind and path, not {denoiser.kind!r} on {denoiser.path!r}"
        )
    if plain:
        return denoiser, stopped.denoiser
    model: Any = stopped.model
    return dataclasses.replace(model, model=denoiser), denoiser
