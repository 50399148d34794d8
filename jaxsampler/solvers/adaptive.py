r"""Adaptive steps: DPM-Solver-12 and -23, two orders from the same calls, and a step in lam that follows their difference.

A trial from lam to lam + h takes 2 or 3 calls, which give a lower and a higher order result. With the error

    E = || (x_high - x_low) / max(atol, rtol max(|x_low|, |x|)) ||_rms

the step is taken (x = x_high) if E <= 1, and the next trial has h <- theta h E^{-1/order}, but a tenth of h at least, also where a trial
is not finite; or a PID controller decides (k-diffusion's). x is one sample with one step size. A batch is `jax.vmap` of `js.sample`,
where every sample has its own steps and counts; one step size for a batch with its largest error, as published, is `batch_axis`.

The loop is Equinox's checkpointed while loop: reverse mode works, with memory as the square root of `max_steps`; forward mode does not.
Step sizes count as constants in gradients, which then are those of the steps taken.

References: Lu et al. 2022a, app. C; Crowson 2022, k-diffusion (PID control); Jolicoeur-Martineau et al. 2021 (the error norm).
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..numerics import is_traced, on_host, wide
from ..paths.base import Path
from ..paths.predictions import Denoiser
from .exponential import checked_form, dpm_1, dpmpp_1
from .single_step import dpm_2, dpm_3, dpmpp_2s, dpmpp_3s

PAIRS = {  # (lower, higher): the calls of the lower one are the first of the higher one
    ("noise", 2): lambda form: (dpm_1, dpm_2(form=form)),
    ("noise", 3): lambda form: (dpm_2(r=1 / 3, form=form), dpm_3(form=form)),
    ("data", 2): lambda form: (dpmpp_1, dpmpp_2s(form=form)),
    ("data", 3): lambda form: (dpmpp_2s(r=1 / 3, form=form), dpmpp_3s(form=form)),
}


class Adaptive(NamedTuple):
    """What an adaptive solver returns.

    x: the state at time t. reached: whether t is the end of the grid (up to `t_err`); if not, `max_steps` ran out or the step shrank to
    rounding, and x is as far as the tolerance allowed. accepted, rejected: trials. nfe: network calls. Under vmap all are per sample.
    """

    x: PyTree
    t: Float[Array, ""]
    reached: Bool[Array, ""]
    accepted: Int[Array, ""]
    rejected: Int[Array, ""]
    nfe: Int[Array, ""]


class Rows(NamedTuple):
    """One row per grid interval. `plain`: takes one first-order step, as lam is infinite at one end; None if no row does."""

    t: Any
    end: Any
    plain: Any


class _Control(NamedTuple):
    """What is known besides the state."""

    t: Any
    h: Any  # of the next trial
    previous: Any  # published: the lower order result of the last step taken; else None
    errors: Any  # PID: 1/E of the last two steps taken, 0 before the first; else None
    reached: Any
    accepted: Any
    rejected: Any
    nfe: Any


class PID(eqx.Module):
    """k-diffusion's step size controller [Crowson 2022]: h grows by a limited product of powers of the last errors."""

    pcoeff: Any = 0.0
    icoeff: Any = 1.0
    dcoeff: Any = 0.0
    accept_safety: Any = 0.81

    def __call__(self, E: Any, errors: Any, order: int) -> tuple[Any, Any, Any]:
        """(factor of h, whether the step is taken, the errors to remember if so)."""
        now = 1 / (E + 1e-8)
        one, two = (jnp.where(e == 0, now, e) for e in errors)
        powers = self.pcoeff + self.icoeff + self.dcoeff, -(self.pcoeff + 2 * self.dcoeff), self.dcoeff
        factor = jnp.prod(jnp.stack([e ** (b / order) for e, b in zip((now, one, two), powers, strict=True)]))
        factor = 1 + jnp.arctan(factor - 1)
        return factor, factor >= self.accept_safety, (now, one)


class dpm_adaptive(eqx.Module):
    """DPM-Solver-12/23 (and ++) with adaptive steps, a `js.Solver`: `js.sample` returns an `Adaptive` [Lu et al. 2022a, app. C].

    The grid's inner points are points that the steps land on, for `save` and hooks: `[t_max, t_end]` integrates in one go, and needs no
    more. An interval to sigma = 0 or from alpha = 0 is one first-order step. order: 2 (12) or 3 (23), the calls of a trial. kind: "noise"
    (DPM-Solver) or "data" (++). h_init: first step in lam. theta: safety factor of the default control; `pid=PID(..)` replaces it.
    t_err: stop when t is this near to the end of an interval (1e-5 in the released code). batch_axis: None, or the axis of x whose
    largest error counts. max_steps: trials per grid interval. published: compares with the lower order result of the step before
    instead of with the state itself and does not limit how h shrinks, as the released codes do.
    """

    order: int = eqx.field(static=True, default=3)
    kind: str = eqx.field(static=True, default="noise")
    atol: Any = 0.0078
    rtol: Any = 0.05
    theta: Any = 0.9
    h_init: Any = 0.05
    t_err: Any = 0.0
    pid: PID | None = None
    form: str = eqx.field(static=True, default="dpmsolver")
    batch_axis: int | None = eqx.field(static=True, default=None)
    max_steps: int = eqx.field(static=True, default=1000)
    published: bool = eqx.field(static=True, default=False)

    calls: ClassVar[str] = "2 or 3 a trial"
    stochastic: ClassVar[bool] = False

    def __check_init__(self):
        if (self.kind, self.order) not in PAIRS:
            raise ValueError(
                f"dpm_adaptive has order 2 or 3 and kind 'noise' or 'data'; got order={self.order!r}, kind={self.kind!r}"
            )
        if self.max_steps < 1:
            raise ValueError(f"max_steps counts trials per grid interval, at least one; got {self.max_steps}")
        checked_form(self.form)

    def rows(self, path: Path, grid: Any) -> Rows:
        """Intervals; those with an infinite lam (of a concrete grid) are plain."""
        if not isinstance(path, Path):
            raise TypeError(
                "dpm_adaptive takes steps in the lam of one path; a system of paths has several: use a step such as dpmpp_2m"
            )
        if is_traced(grid):
            return Rows(grid[:-1], grid[1:], None)
        with on_host():
            finite = np.isfinite(np.asarray(path.lam(np.asarray(grid)), np.float64))
        plain = ~(finite[:-1] & finite[1:])
        if plain.all():
            raise ValueError(
                f"lam is infinite at an end of every interval of the grid {grid}, which leaves nothing to adapt; end it above sigma = 0 "
                "and start it below alpha = 0, as in [t_max, path.t_min, 0]"
            )
        return Rows(grid[:-1], grid[1:], plain if plain.any() else None)

    def init(self, x: PyTree, rows: Rows) -> tuple:
        """The state, and nothing done yet."""
        dtype = wide(x)
        number, zero = (lambda v: jnp.asarray(v, dtype)), jnp.zeros((), jnp.int32)
        previous = jax.tree.map(lambda a: a.astype(dtype), x) if self.published else None
        errors = None if self.pid is None else (number(0.0), number(0.0))
        return x, _Control(
            number(rows.t[0]), number(self.h_init), previous, errors, jnp.asarray(True), zero, zero, zero
        )

    def step(self, model: Denoiser, state: tuple, row: Rows, key: Any = None) -> tuple:
        """Integrate to the end of one interval."""
        if row.plain is None:
            return self._integrate(model, row, state)
        plain = lambda state: self._first_order(model, row, state)
        return jax.lax.cond(row.plain, plain, lambda state: self._integrate(model, row, state), state)

    def final(self, state: tuple) -> Adaptive:
        """The state, how far it came, and what that took."""
        x, c = state
        return Adaptive(x, c.t, c.reached, c.accepted, c.rejected, c.nfe)

    def _integrate(self, model: Denoiser, row: Rows, state: tuple) -> tuple:
        x, c = state
        path: Any = model.path  # one path: `rows` has seen to it
        end, start = row.end.astype(c.t.dtype), row.t.astype(c.t.dtype)
        lam_end, tiny = path.lam(end), 100 * jnp.finfo(c.t.dtype).eps
        y, whole, call = _flat(model, x)
        lower, higher = PAIRS[self.kind, self.order](self.form)

        def going(carry):
            _, c = carry
            return (c.t - end > self._number(self.t_err, c)) & (c.h > tiny * (1 + jnp.abs(path.lam(c.t))))

        def trial(carry):
            y, c = carry
            live = going(
                carry
            )  # under vmap samples that have arrived idle on a step from the start: no 0/0 in their gradients
            t, h = (
                jnp.where(live, c.t, start),
                jax.lax.stop_gradient(jnp.where(live, c.h, self._number(self.h_init, c))),
            )
            lam = path.lam(t)
            last = lam + h >= lam_end - tiny * (1 + jnp.abs(lam_end))
            s = jnp.where(last, end, path.time(jnp.where(last, lam_end, lam + h)))
            outputs: list = []

            def fresh(y, t):
                outputs.append(call(y, t, self.kind))
                return outputs[-1]

            high = higher.formula(path, (t, s), y, (), fresh, None)
            known = iter(outputs)
            low = lower.formula(path, (t, s), y, (), lambda y, t: next(known), None)

            E = self._error(whole(high), whole(low), c.previous if self.published else whole(y), c)
            (factor, taken, errors), finite = self._control(E, c), jnp.isfinite(E)
            factor = jnp.where(finite, jnp.maximum(factor, 0.0 if self.published else 0.1), 0.1)
            taken = taken & finite & live
            keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(taken, a, b), new, old)
            used = jax.lax.stop_gradient(jnp.minimum(h, lam_end - lam))
            return keep(high, y), _Control(
                t=keep(s, c.t),
                h=jnp.where(live, factor * used, c.h),
                previous=keep(whole(low), c.previous) if self.published else None,
                errors=keep(errors, c.errors),
                reached=c.reached,
                accepted=c.accepted + jnp.where(taken, 1, 0),
                rejected=c.rejected + jnp.where(live & ~taken, 1, 0),
                nfe=c.nfe + jnp.where(live, self.order, 0),
            )

        y, c = eqxi.while_loop(going, trial, (y, c), max_steps=self.max_steps, kind="checkpointed")
        return _like(whole(y), x), c._replace(reached=c.t - end <= self._number(self.t_err, c))

    def _first_order(self, model: Denoiser, row: Rows, state: tuple) -> tuple:
        x, c = state
        end = row.end.astype(c.t.dtype)
        y, whole, call = _flat(model, x)
        new = dpmpp_1.formula(model.path, (c.t, end), y, (), lambda y, t: call(y, t, "data"), None)
        y, t = (
            jnp.where(c.reached, new, y),
            jnp.where(c.reached, end, c.t),
        )  # no leap from where an interval before got stuck
        return _like(whole(y), x), c._replace(
            t=t, accepted=c.accepted + jnp.where(c.reached, 1, 0), nfe=c.nfe + 1
        )

    def _number(self, value: Any, c: _Control) -> Any:
        return jnp.asarray(value, c.t.dtype)

    def _error(self, high: PyTree, low: PyTree, previous: PyTree, c: _Control) -> Any:
        """E, the largest over the batch axis if there is one."""
        atol, rtol = self._number(self.atol, c), self._number(self.rtol, c)

        def scaled(a, b, p):
            error = (a - b) / jnp.maximum(atol, rtol * jnp.maximum(jnp.abs(b), jnp.abs(p)))
            axis = self.batch_axis
            return (
                error.reshape(1, -1)
                if axis is None
                else jnp.moveaxis(error, axis, 0).reshape(a.shape[axis], -1)
            )

        errors = jnp.concatenate(jax.tree.leaves(jax.tree.map(scaled, high, low, previous)), axis=1)
        return jax.lax.stop_gradient(jnp.sqrt((errors**2).mean(axis=1)).max())

    def _control(self, E: Any, c: _Control) -> tuple[Any, Any, Any]:
        if self.pid is None:
            return self._number(self.theta, c) * E ** (-1 / self.order), E <= 1, None
        return jax.tree.map(lambda a: self._number(a, c), self.pid)(E, c.errors, self.order)


def _like(tree: PyTree, x: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: a.astype(b.dtype), tree, x)


def _flat(model: Denoiser, x: PyTree) -> tuple[Any, Callable, Callable]:
    """x - mu as one vector, the way back to x, and the model (y, t, kind) on such vectors."""
    path: Any = model.path
    dtype = wide(x)
    y, unravel = ravel_pytree(jax.tree.map(lambda a: a.astype(dtype), path.centred(x)))

    def whole(y):
        return path.uncentred(unravel(y))

    def call(y, t, kind):
        m = model(_like(whole(y), x), t, path.form(kind, t))  # as a linear form: without mu
        return ravel_pytree(jax.tree.map(lambda a: a.astype(dtype), m))[0]

    return y, whole, call
