r"""Exact log-densities: the change of volume along the probability flow.

In y = (x - mu)/alpha and the level l = rho = sigma/alpha (see `flow.py`) the flow is dy/dl = eps, hence d log p(y)/dl = -div eps, and
from the data x at t_min up to t_max

    log p(x) = log p_T(x_T) + D log(alpha_T/alpha_min) + int div_y eps dl.

Integral and flow are one system in (y, L), dL/dl = div eps, so whatever solves the one solves both: a noise-kind table of ours on a
rising grid, or diffrax, adaptively. Where alpha = 0 at t_max (CondOT) the variable is t: y = x - mu, the divergence is that of the
velocity, and there is no stretch by alpha.

The divergence is the trace of the Jacobian J: exactly, in D products with J; by Hutchinson, the mean of z'J z over probes z with
E zz' = I that stay fixed along the flow; or by Hutch++: on the range Q of J S the trace is exact, and Hutchinson serves the rest only,

    tr J = tr Q'J Q + E g'J g,    g = (I - QQ')z.

log p_T is the density that samplers draw x_T from. The true p_T differs a little (0.002 nats for unit-sized data under VP): `prior=`
takes another.

References: Song et al. 2021b (likelihood of the flow); Grathwohl et al. 2019 (FFJORD); Hutchinson 1990; Meyer et al. 2021 (Hutch++);
Theis et al. 2016 (dequantisation).
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from ..numerics import Real, cast, on_host, wide
from ..paths import grids
from ..paths.gaussian import EDM
from ..paths.predictions import Denoiser
from ..scan.table_solver import run
from ..solvers.edm_heun import rk_rho
from ..tables.steps import Step, schedule
from ..tables.tabulation import assemble
from .probability_flow import Flow, begin, lenient

TRACES = ("exact", "hutchinson", "hutch++")


class _Volume(eqx.Module):
    """d(y, L)/dl: the flow towards noise, and its divergence; probes: [k, D] (of Hutch++: S and z, half each)."""

    flow: Flow
    trace: str = eqx.field(static=True)
    probes: Any

    def __call__(self, state: tuple, l: Any) -> tuple:
        return self.slope(l, state)

    def slope(self, l: Any, state: tuple, args: Any = None) -> tuple:
        """As diffrax calls it."""
        y, _ = state
        flat, unravel = ravel_pytree(y)
        slope, product = jax.linearize(lambda v: -ravel_pytree(self.flow(-l, unravel(v)))[0], flat)
        return unravel(slope), self._divergence(product, flat)

    def _divergence(self, product: Callable, like: Array) -> Array:
        quadratic = jax.vmap(lambda v: v @ product(v))
        if self.trace == "exact":
            index = jnp.arange(like.size)
            return jax.lax.map(
                lambda i: product(jnp.zeros_like(like).at[i].set(1))[i], index, batch_size=min(like.size, 64)
            ).sum()
        if self.trace == "hutchinson":
            return quadratic(self.probes).mean()
        S, z = jnp.split(self.probes, 2)
        # any fixed Q gives an unbiased estimate, with an unbiased gradient: none through the QR, which has none where J S is rank deficient
        Q = jax.lax.stop_gradient(jnp.linalg.qr(jax.vmap(product)(S).T)[0])
        return quadratic(Q.T).sum() + quadratic(z - (z @ Q) @ Q.T).mean()


def _draw(trace: str, noise: Any, probes: int | None, key: Any, y: PyTree) -> Any:
    """Probe vectors [k, D]."""
    if trace not in TRACES:
        raise ValueError(f"unknown trace {trace!r}; valid: {', '.join(TRACES)}")
    if trace == "exact":
        return None
    flat, count = ravel_pytree(y)[0], (3 if trace == "hutch++" else 1) if probes is None else probes
    if not isinstance(noise, str):
        if jax.tree.map(lambda z: jnp.shape(z)[1:], noise) != jax.tree.map(jnp.shape, y):
            raise ValueError(
                f"probes must be arrays like x with one more leading axis, got shapes {jax.tree.map(jnp.shape, noise)}"
            )
        drawn = jax.vmap(lambda z: ravel_pytree(z)[0])(noise).astype(flat.dtype)
        if trace == "hutch++" and len(drawn) % 2:
            raise ValueError(
                f"probes of hutch++ are S, then as many z: give an even number of them, got {len(drawn)}"
            )
        count = len(drawn) if trace == "hutchinson" else len(drawn) // 2 * 3
    if count < 1 or (trace == "hutch++" and (count % 3 or count > 3 * flat.size)):
        raise ValueError(
            f"hutch++ splits its products with J in three: probes must be 3, 6, .. up to 3 D = {3 * flat.size}, got {count}"
        )
    if not isinstance(noise, str):
        return drawn
    if key is None:
        raise ValueError(f"trace={trace!r} draws probes: pass key=jax.random.key(seed), or trace='exact'")
    shape = (count if trace == "hutchinson" else count // 3 * 2, flat.size)
    if noise == "rademacher":
        return jax.random.rademacher(key, shape, flat.dtype)
    if noise == "gaussian":
        return jax.random.normal(key, shape, flat.dtype)
    raise ValueError(f"unknown noise {noise!r}; valid: rademacher, gaussian, or an array of probes")


def log_prob(
    denoiser: Callable,
    x: PyTree,
    *,
    key: Any = None,
    trace: str = "exact",
    noise: Any = "rademacher",
    probes: int | None = None,
    steps: int = 64,
    grid: Any = None,
    t_max: Any = None,
    t_min: Any = None,
    solver: Any = None,
    controller: Any = None,
    adjoint: Any = None,
    prior: Any = "path",
) -> Float[Array, ""]:
    """log p(x) in nats of one sample x at t_min (by default the path's), a pytree of D numbers [Song et al. 2021b]; vmap for a batch.

    trace: "exact" (D products with the Jacobian per call), "hutchinson" or "hutch++", of `probes` products (1, or 3) with `noise`
    "rademacher", "gaussian" or your own probes [k, *x.shape] (of Hutch++ two thirds of `probes`: S, then z), drawn from `key`.

    By default a table integrates: solver, any deterministic noise-kind step (default RK4, `rk_rho(tableau="4rk")`), over `steps` intervals
    of a `karras` grid (uniform in t where alpha(t_max) = 0, in lam for a system), or over your own grid of decreasing times. With
    a diffrax solver or step size controller, diffrax does, adaptively. adjoint: one of ours for a table, else one of diffrax's.

    prior: "path", N(mu, prior_std^2) as samplers draw it, or a function x_T -> log p_T(x_T). Gradients flow to x, weights and mu.
    """
    if isinstance(prior, str) and prior != "path":
        raise ValueError(f"prior must be 'path' or a function x_T -> log density, got {prior!r}")
    if grid is not None:
        if isinstance(getattr(denoiser, "path", {}), dict) or t_max is not None or t_min is not None:
            raise ValueError(
                "grid= has its own ends, and is for one path: leave out t_max and t_min; a system takes steps="
            )
        grid = grids.checked(denoiser.path, grid)
        t_max, t_min = float(grid[0]), float(grid[-1])
    flow, high, low = _between(denoiser, t_max, t_min)
    x = jax.tree.map(jnp.asarray, x)
    dtype = wide(x)
    x = jax.tree.map(lambda a: a.astype(dtype), x)
    y = flow.enter(x, low)
    field = _Volume(flow, trace, _draw(trace, noise, probes, key, y))
    with on_host():
        bottom, top = (-float(flow.s(t)) for t in (low, high))
        if grid is None and flow.variable == "rho":
            grid = grids.karras(denoiser.path, steps, t_max=high, t_min=low)
        levels = (
            np.linspace(bottom, top, steps + 1)
            if grid is None
            else -np.asarray(flow.s(grid), np.float64)[::-1]
        )
    if controller is None and (solver is None or isinstance(solver, Step)):
        table = assemble(
            EDM(), levels, _schedule(solver, len(levels) - 1)
        )  # with alpha = 1 and sigma = l the table's state is y
        y, volume = run(field, table, (y, jnp.zeros((), dtype)), adjoint=adjoint)
    else:
        y, volume = _adaptive(field, y, (bottom, top), solver, controller, adjoint)
    x_T = flow.leave(y, high)
    return (
        (prior_log_prob(denoiser, x_T) if isinstance(prior, str) else prior(x_T))
        + _stretch(flow, x, high, low)
        + volume
    )


def _between(denoiser: Any, t_max: Any, t_min: Any) -> tuple[Flow, Any, Any]:
    """The flow, in t where alpha = 0, and its ends."""
    if not isinstance(denoiser, Denoiser):
        raise TypeError(
            f"the likelihood belongs to a flow: give a js.Denoiser(net, path, kind), not {type(denoiser).__name__}"
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
            "at sigma = 0 this network does not determine the flow: give t_min > 0, the noise level that the density is of"
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
                f"{step.name} is stochastic: only the probability flow has a likelihood, so take a deterministic solver"
            )
        if step.kind != "noise":
            raise ValueError(
                f"{step.name} works on {step.kind!r}: the likelihood integrates dy/drho = eps, by rk_rho, dpm_2, deis_rho, .."
            )
    return steps


def _adaptive(
    field: _Volume, y: PyTree, span: tuple, solver: Any, controller: Any, adjoint: Any
) -> tuple[PyTree, Array]:
    """(y, L) at the top level by diffrax."""
    import diffrax

    solver = diffrax.Tsit5() if solver is None else solver
    if not isinstance(solver, diffrax.AbstractSolver):
        raise TypeError(f"solver must be a noise-kind step of js.solvers or a diffrax solver, got {solver!r}")
    if solver.term_structure is not diffrax.AbstractTerm:
        raise ValueError(
            f"{type(solver).__name__} is stochastic (or for split fields): only the probability flow has a likelihood"
        )
    zero = jnp.zeros((), wide(y))
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


def _stretch(flow: Flow, x: PyTree, high: Any, low: Any) -> Any:
    """D log(alpha_T/alpha_min), the volume of y against that of x; 0 in t, where y = x - mu."""
    if flow.variable == "t":
        return 0.0

    def part(path, x, high, low):
        with on_host():
            each = float(np.log(path.alpha(high)) - np.log(path.alpha(low)))
        return sum(a.size for a in jax.tree.leaves(x)) * each

    return sum(jax.tree.leaves(flow.denoiser.each(part, x, high, low)))


def prior_log_prob(denoiser: Any, x: PyTree) -> Float[Array, ""]:
    """log density of N(mu, prior_std^2), which samplers draw x_T from."""

    def part(path, x):
        std = path.prior_std
        normal = lambda a: -((a / std) ** 2).sum() / 2 - a.size * math.log(std * math.sqrt(2 * math.pi))
        return sum(normal(a) for a in jax.tree.leaves(path.centred(x)))

    return functools.reduce(jnp.add, jax.tree.leaves(denoiser.each(part, x)))


def bits_per_dim(
    denoiser: Callable,
    images: Any,
    key: Any,
    *,
    low: Real = -1.0,
    high: Real = 1.0,
    density: Callable | None = None,
    dtype: Any = jnp.float32,
    batch_size: int | None = None,
) -> Float[Array, " n"]:
    """Bits per dimension of each of the 8-bit `images` [n, ...], uniformly dequantised: x = low + (high - low)(k + u)/256, u ~ U[0, 1).

    low, high: what pixel values 0 and 256 are to the network. density: (denoiser, x, key=) -> log p(x) in nats, by default `log_prob` with
    one Hutchinson probe. batch_size: images at a time (default all). The bits are those of -log2 p(x) per number plus 8 - log2(high - low)
    for the size of a cell (7 for [-1, 1]); by Jensen's inequality their mean over u bounds those of the discrete model [Theis et al. 2016].
    """
    images = jnp.asarray(images)
    if images.dtype != jnp.uint8 or images.ndim < 2 or not high > low:
        raise ValueError(
            f"images must be uint8 [n, ...], and low < high; got {images.dtype}{list(images.shape)}, {low}, {high}"
        )
    density = functools.partial(log_prob, trace="hutchinson") if density is None else density
    size = math.prod(images.shape[1:])

    def bits(numbered):
        i, image = numbered
        uniform, probe = jax.random.split(jax.random.fold_in(key, i))
        u = jax.random.uniform(uniform, image.shape, dtype)
        x = cast(low, u) + cast((high - low) / 256, u) * (image.astype(dtype) + u)
        return -density(denoiser, x, key=probe) / (size * math.log(2)) + 8 - math.log2(high - low)

    return jax.lax.map(bits, (jnp.arange(len(images)), images), batch_size=batch_size or len(images))
