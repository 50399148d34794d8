r"""Exact log-densities: the change of volume along the probability flow.

In y = (x - mu)/alpha and the level l = rho = sigma/alpha (see `probability_flow`) the flow is dy/dl = eps,
hence d log p(y)/dl = -div eps, and from the data x at t_min up to t_max

    log p(x) = log p_T(x_T) + D log(alpha_T/alpha_min) + int div_y eps dl.

Integral and flow are one system in (y, L), dL/dl = div eps, so whatever solves the one solves both: a
noise-kind table of ours on a rising grid, or diffrax, adaptively. Where alpha = 0 at t_max (CondOT) the
variable is t: y = x - mu, the divergence is that of the velocity, and there is no stretch by alpha.

log p_T is the density that samplers draw x_T from. The true p_T differs a little; `prior=` takes another. In
nats per number, KL(p_T || prior) for data N(1, 1) (for MeanReverting x_0 - mu):

    CondOT 0    VP, SubVP, DiscreteVP.linear 2e-5    CosineVP 4e-5    EDM 8e-5    VE 2e-4
    MeanReverting 3e-4    DiscreteVP.scaled_linear 2e-3

The density is that at t_min, by default the path's. Default grids of samplers go on to t = 0 on CondOT, EDM
and VE; on CondOT a velocity network takes t_min=0 here too.

Reference: Song et al. 2021b (likelihood of the flow).
"""

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...numerics import Grid, Key, Scalar, State, on_host, varying_like, wide
from ...paths import EDM, Denoiser, grids
from ...paths.grids.checks import intervals
from ...scan import run
from ...solvers import rk_rho
from ...tables import Step, Table
from ...tables.scheduling import schedule
from ...tables.tabulation import TABLES, assemble
from ..probability_flow import Flow, Times, begin, lenient
from .divergence import Volume, draw_probes

if TYPE_CHECKING:
    import diffrax


def log_prob(
    denoiser: Callable,
    x: State,
    *,
    key: Key | None = None,
    trace: str = "exact",
    noise: State | str = "rademacher",
    probes: int | None = None,
    steps: int | None = None,
    grid: Grid | None = None,
    t_max: Times | None = None,
    t_min: Times | None = None,
    solver: "Step | diffrax.AbstractSolver | None" = None,
    controller: "diffrax.AbstractStepSizeController | None" = None,
    adjoint: Any = None,
    prior: str | Callable[[State], Scalar] = "path",
    jit: bool = True,
    batch_axis: int | None = None,
) -> Float[Array, "..."]:
    """log p(x) in nats of one sample x, a pytree of D numbers, at t_min [Song et al. 2021b].

    All of x is one sample, unless `batch_axis` says which axis counts samples: the density of a batch as a
    whole would be the product of theirs.

    By default a table integrates; with a diffrax solver or step size controller, diffrax does, adaptively.
    Gradients flow to x, weights and mu.

    Args:
        key: for the probes.
        trace: "exact" (D products with the Jacobian per call), "hutchinson" or "hutch++".
        noise: "rademacher", "gaussian" or your own probes [k, *x.shape] (for Hutch++ two thirds of `probes`:
            S, then z).
        probes: number of products with the Jacobian; by default 1, for Hutch++ 3.
        steps: intervals of a `karras` grid (uniform in t where alpha(t_max) = 0, in lam for a system), by
            default 64.
        grid: your own decreasing times instead.
        t_max, t_min: by default the path's: 1e-3 to 1 on CondOT, whose samplers go on to t = 0.
        solver: any deterministic noise-kind step (default RK4, `rk_rho(tableau="4rk")`), or one of diffrax.
        adjoint: one of ours for a table, else one of diffrax's.
        prior: "path", N(mu, prior_std_at(t_max)^2) as samplers draw it, or a function x_T -> log p_T(x_T).
        jit: keep the compiled loop of a table, as in `run`.
        batch_axis: axis of every leaf of x that counts samples. The network still gets one sample at a time
            (`js.per_sample` makes such a network of one of batches); probes differ from sample to sample.

    Example:
        >>> denoiser = js.models.gaussian_mixture([[0.0, 0.0]], 1.0, js.VP())  # N(0, I) at all times
        >>> value = js.likelihood.log_prob(denoiser, jnp.array([1.0, 2.0]))
        >>> print(f"{value:.3f}", f"{-np.log(2 * np.pi) - 2.5:.3f}")
        -4.338 -4.338
        >>> js.likelihood.log_prob(denoiser, jnp.zeros((3, 2)), batch_axis=0).shape
        (3,)
    """
    if batch_axis is not None:
        options = {"trace": trace, "noise": noise, "probes": probes, "steps": steps, "grid": grid}
        options |= {"t_max": t_max, "t_min": t_min, "solver": solver, "controller": controller}
        options |= {"adjoint": adjoint, "prior": prior, "jit": jit}
        return _each(functools.partial(log_prob, denoiser, **options), x, key, batch_axis)
    n = intervals(steps, grid, 64)
    if isinstance(prior, str) and prior != "path":
        raise ValueError(f"prior must be 'path' or a function x_T -> log density, got {prior!r}")
    if grid is not None:
        if isinstance(getattr(denoiser, "path", {}), dict) or t_max is not None or t_min is not None:
            raise ValueError(
                "grid= has its own ends, and is for one path: leave out t_max and t_min; "
                "a system takes steps="
            )
        grid = grids.checked(denoiser.path, grid)
        t_max, t_min = float(grid[0]), float(grid[-1])
    flow, high, low = _between(denoiser, t_max, t_min)
    x = jax.tree.map(jnp.asarray, x)
    dtype = wide(x)
    x = jax.tree.map(lambda a: a.astype(dtype), x)
    y = flow.enter(x, low)
    field = Volume(flow, trace, draw_probes(trace, noise, probes, key, y))
    with on_host():
        bottom, top = (-float(flow.s(t)) for t in (low, high))
        if grid is None and flow.variable == "rho":
            grid = grids.karras(denoiser.path, n, t_max=high, t_min=low)
        levels = (
            np.linspace(bottom, top, n + 1) if grid is None else -np.asarray(flow.s(grid), np.float64)[::-1]
        )
    if controller is None and (solver is None or isinstance(solver, Step)):
        table = _table(levels, _schedule(solver, len(levels) - 1))
        y, volume = run(field, table, (y, varying_like(jnp.zeros((), dtype), y)), adjoint=adjoint, jit=jit)
    else:
        y, volume = _adaptive(field, y, (bottom, top), solver, controller, adjoint)
    x_T = flow.leave(y, high)
    return (
        (prior_log_prob(flow.denoiser, x_T, high) if isinstance(prior, str) else prior(x_T))
        + _stretch(flow, x, high, low)
        + volume
    )


def _each(density: Callable, x: State, key: Key | None, axis: int) -> Float[Array, " n"]:
    """`density` of each sample along this axis, with keys of their own."""
    sizes = {jnp.shape(a)[axis] if -jnp.ndim(a) <= axis < jnp.ndim(a) else None for a in jax.tree.leaves(x)}
    if len(sizes) != 1 or None in sizes:
        shapes = [jnp.shape(a) for a in jax.tree.leaves(x)]
        raise ValueError(f"batch_axis={axis} must be an axis of every leaf of x, of one length; got {shapes}")
    keys = None if key is None else jax.random.split(key, jnp.shape(jax.tree.leaves(x)[0])[axis])
    return jax.vmap(lambda x, key: density(x, key=key), (axis, None if key is None else 0))(x, keys)


def _between(denoiser: Callable, t_max: Times | None, t_min: Times | None) -> tuple[Flow, Any, Any]:
    """The flow, in t where alpha = 0, and its ends."""
    if not isinstance(denoiser, Denoiser):
        raise TypeError(
            "the likelihood belongs to a flow: give a js.Denoiser(net, path, kind), not "
            f"{type(denoiser).__name__}"
        )
    names = list(denoiser.path) if isinstance(denoiser.path, dict) else []
    system = bool(names)
    tops = t_max if isinstance(t_max, dict) or not system else dict.fromkeys(names, t_max)
    with on_host():
        alphas = denoiser.each(lambda path, t: float(path.alpha(path.t_max if t is None else t)), tops)
    pure = 0 in (alphas.values() if system else [alphas])
    flow, ends = begin(denoiser, "t" if pure else "lam" if system else "rho", 0.0, t_max, t_min)
    if any(e.stop != e.end for e in (ends.values() if system else [ends])):
        raise ValueError(
            "at sigma = 0 this network does not determine the flow: "
            "give t_min > 0, the noise level that the density is of"
        )
    if not system:
        return flow, ends.start, ends.end
    return flow, {k: e.start for k, e in ends.items()}, {k: e.end for k, e in ends.items()}


def _schedule(solver: Step | None, n: int) -> list[Step]:
    """One step per interval; ValueError unless they integrate dy/dl = eps."""
    steps = schedule(rk_rho(tableau="4rk") if solver is None else solver, n, to_zero=False, from_noise=False)
    for step in steps:
        if step.noises:
            raise ValueError(
                f"{step.name} is stochastic: only the probability flow has a likelihood, "
                "so take a deterministic solver"
            )
        if step.kind != "noise":
            raise ValueError(
                f"{step.name} works on {step.kind!r}: the likelihood integrates dy/drho = eps, "
                "by rk_rho, dpm_2, deis_rho, .."
            )
    return steps


def _table(levels: np.ndarray, steps: list[Step]) -> Table:
    """On EDM, where alpha = 1 and sigma is the level, the table's state is y."""
    if not all(step.ours for step in steps):
        return assemble(EDM(), levels, steps)
    return TABLES.made((levels.tobytes(), tuple(steps)), lambda: assemble(EDM(), levels, steps))


def _adaptive(
    field: Volume,
    y: State,
    span: tuple,
    solver: "Step | diffrax.AbstractSolver | None",
    controller: "diffrax.AbstractStepSizeController | None",
    adjoint: Any,
) -> tuple[State, Array]:
    """(y, L) at the top level by diffrax."""
    import diffrax

    solver = diffrax.Tsit5() if solver is None else solver
    if not isinstance(solver, diffrax.AbstractSolver):
        raise TypeError(f"solver must be a noise-kind step of js.solvers or a diffrax solver, got {solver!r}")
    if solver.term_structure is not diffrax.AbstractTerm:
        raise ValueError(
            f"{type(solver).__name__} is stochastic (or for split fields): "
            "only the probability flow has a likelihood"
        )
    zero = varying_like(jnp.zeros((), wide(y)), y)
    with lenient():
        solution: Any = diffrax.diffeqsolve(
            diffrax.ODETerm(field.slope),
            solver,
            jnp.asarray(span[0], zero.dtype),
            jnp.asarray(span[1], zero.dtype),
            0.01 * (span[1] - span[0]),
            (y, zero),
            stepsize_controller=diffrax.PIDController(rtol=1e-5, atol=1e-5)
            if controller is None
            else controller,
            adjoint=diffrax.RecursiveCheckpointAdjoint() if adjoint is None else adjoint,
        )
    return jax.tree.map(lambda a: a[-1], solution.ys)


def _stretch(flow: Flow, x: State, high: Times, low: Times) -> Any:
    """D log(alpha_T/alpha_min), the volume of y against that of x; 0 in t, where y = x - mu."""
    if flow.variable == "t":
        return 0.0

    def part(path, x, high, low):
        with on_host():
            each = float(np.log(path.alpha(high)) - np.log(path.alpha(low)))
        return sum(a.size for a in jax.tree.leaves(x)) * each

    return sum(jax.tree.leaves(flow.denoiser.each(part, x, high, low)))


def prior_log_prob(denoiser: Denoiser, x: State, t: Times | None = None) -> Float[Array, ""]:
    """log density of N(mu, prior_std_at(t)^2), which samplers draw x_t from; by default at t_max.

    Example:
        >>> denoiser = js.Denoiser(lambda x, t: x, js.VP(), "noise")
        >>> print(f"{js.likelihood.prior_log_prob(denoiser, jnp.zeros(2)):.3f}")  # -log(2 pi)
        -1.838
    """

    def part(path, x, t):
        with on_host():
            std = path.prior_std if t is None or t == path.t_max else float(path.prior_std_at(t))
        normal = lambda a: -((a / std) ** 2).sum() / 2 - a.size * math.log(std * math.sqrt(2 * math.pi))
        return sum(normal(a) for a in jax.tree.leaves(path.centred(x)))

    each = (
        t if isinstance(t, dict) or not isinstance(denoiser.path, dict) else dict.fromkeys(denoiser.path, t)
    )
    return functools.reduce(jnp.add, jax.tree.leaves(denoiser.each(part, x, each)))
