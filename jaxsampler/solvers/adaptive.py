r"""Adaptive steps: DPM-Solver-12 and -23, two orders from the same calls, steps in lam by their difference.

A trial from lam to lam + h makes 2 or 3 calls, which give a result of lower and one of higher order. With the
error

    E = || (x_high - x_low) / max(atol, rtol max(|x_low|, |x|)) ||_rms

the step is taken (x = x_high) if E <= 1. The next trial has h <- theta h E^{-1/order}, but a tenth of h at
least, also after a trial that is not finite; or k-diffusion's PID controller decides. x is one sample with
one step size. A batch is `jax.vmap` of `js.sample`: every sample then has its own steps and counts.
`batch_axis` gives a batch one step size by its largest error, as published.

The loop is Equinox's checkpointed while loop: reverse mode works, with memory as the square root of
`max_steps`; forward mode does not. Gradients take step sizes as constants, so they are those of the steps
taken.

References: Lu et al. 2022a, app. C; Crowson 2022, k-diffusion (PID control); Jolicoeur-Martineau et al. 2021
(the error norm).
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from ..numerics import Grid, Key, Scalar, State, is_traced, on_host, varying_like, wide
from ..paths import Denoiser, Path
from .exponential import checked_form, dpm_1, dpmpp_1
from .factories import factory
from .single_step import dpm_2, dpm_3, dpmpp_2s, dpmpp_3s

PAIRS = {  # (lower, higher): the calls of the lower one are the first of the higher one
    ("noise", 2): lambda form: (dpm_1, dpm_2(form=form)),
    ("noise", 3): lambda form: (dpm_2(r=1 / 3, form=form), dpm_3(form=form)),
    ("data", 2): lambda form: (dpmpp_1, dpmpp_2s(form=form)),
    ("data", 3): lambda form: (dpmpp_2s(r=1 / 3, form=form), dpmpp_3s(form=form)),
}


class Adaptive(NamedTuple):
    """What an adaptive solver returns; under vmap each field has one entry per sample.

    Attributes:
        x: the state at time t.
        t: the time reached.
        reached: whether t is the end of the grid (up to `t_err`). If not, `max_steps` ran out or the step
            shrank to rounding.
        accepted: number of trials taken.
        rejected: number of trials not taken.
        nfe: number of network calls.

    Example:
        >>> solver = js.solvers.dpm_adaptive()
        >>> start = solver.init(jnp.ones(1), solver.rows(js.VP(), [0.9, 0.1]))
        >>> out = solver.final(start)  # before the first trial
        >>> round(float(out.t), 2), int(out.nfe)
        (0.9, 0)
    """

    x: State
    t: Float[Array, ""]
    reached: Bool[Array, ""]
    accepted: Int[Array, ""]
    rejected: Int[Array, ""]
    nfe: Int[Array, ""]


class Rows(NamedTuple):
    """One row per grid interval; `plain` ones are one first-order step, because lam is infinite at an end."""

    t: Any
    end: Any
    plain: Any


class _Control(NamedTuple):
    t: Array
    h: Array  # of the next trial
    previous: State | None  # published: the lower order result of the last step taken
    errors: tuple | None  # PID: 1/E of the last two steps taken, 0 before the first
    reached: Array
    accepted: Array
    rejected: Array
    nfe: Array


class PID(eqx.Module):
    """k-diffusion's step size controller [Crowson 2022].

        h <- h (1 + atan(f - 1)),        f = e_0^{(p + i + d)/k} e_1^{-(p + 2d)/k} e_2^{d/k}

    with e_j = 1/E of this trial and of the last two steps, and k the order.

    Attributes:
        pcoeff: p.
        icoeff: i.
        dcoeff: d.
        accept_safety: least factor at which a step is taken.

    Example:
        >>> factor, taken, _ = js.solvers.PID()(0.25, (0.0, 0.0), 2)
        >>> round(float(factor), 4), bool(taken)
        (1.7854, True)
    """

    pcoeff: Scalar = 0.0
    icoeff: Scalar = 1.0
    dcoeff: Scalar = 0.0
    accept_safety: Scalar = 0.81

    def __call__(self, E: Scalar, errors: tuple, order: int) -> tuple[Array, Array, tuple]:
        """Return (factor of h, whether the step is taken, the errors to remember if so)."""
        now = 1 / (E + 1e-8)
        one, two = (jnp.where(e == 0, now, e) for e in errors)
        powers = self.pcoeff + self.icoeff + self.dcoeff, -(self.pcoeff + 2 * self.dcoeff), self.dcoeff
        factor = jnp.prod(jnp.stack([e ** (b / order) for e, b in zip((now, one, two), powers, strict=True)]))
        factor = 1 + jnp.arctan(factor - 1)
        return factor, factor >= self.accept_safety, (now, one)


class DPMAdaptive(eqx.Module):
    """DPM-Solver-12/23 (and ++) with adaptive steps [Lu et al. 2022a, app. C].

        x <- x_high if E <= 1,    h <- theta h E^{-1/order},
        E = ||(x_high - x_low)/max(atol, rtol max(|x_low|, |x|))||_rms

    A `js.Solver`; `js.sample` returns an `Adaptive`. The grid `[t_max, t_end]` is enough; steps land on inner
    points of a grid, for `save` and hooks. An interval to sigma = 0 or from alpha = 0 is one first-order
    step. Inside `jax.shard_map` it needs check_vma=False: the loop is equinox's.

    Options:
        order: 2 (12) or 3 (23), the calls of a trial.
        kind: what is extrapolated, "noise" (DPM-Solver) or "data" (++).
        atol: absolute tolerance.
        rtol: relative tolerance.
        theta: safety factor of the default control.
        h_init: first step in lam.
        t_err: stop when t is this near to the end of an interval (1e-5 in the released code).
        pid: a `PID` controller, in place of the default control.
        form: of second order, see `dpm_2`.
        batch_axis: None, or the axis of x whose largest error counts.
        max_steps: trials per grid interval.
        published: as the released codes, compare with the lower-order result of the step before, not with the
            state itself, and do not limit how h shrinks.

    Example:
        >>> denoiser = js.Denoiser(lambda x, t: 0 * x, js.CondOT(), "data")
        >>> solver = js.solvers.dpm_adaptive(order=2, kind="data")
        >>> out = js.sample(denoiser, jnp.ones(1), x=jnp.ones(1), key=None, solver=solver, grid=[0.9, 0.1])
        >>> out.x.round(4), out.nfe.item()  # sigma falls from 0.9 to 0.1
        (Array([0.1111], dtype=float32), 4)
    """

    order: int = eqx.field(static=True, default=3)
    kind: str = eqx.field(static=True, default="noise")
    atol: Scalar = 0.0078
    rtol: Scalar = 0.05
    theta: Scalar = 0.9
    h_init: Scalar = 0.05
    t_err: Scalar = 0.0
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
                f"dpm_adaptive has order 2 or 3 and kind 'noise' or 'data'; got order={self.order!r}, "
                f"kind={self.kind!r}"
            )
        if self.max_steps < 1:
            raise ValueError(f"max_steps counts trials per grid interval, at least one; got {self.max_steps}")
        checked_form(self.form)

    def rows(self, path: Path | dict, grid: Grid) -> Rows:
        """Intervals; those with an infinite lam (of a concrete grid) are plain."""
        if not isinstance(path, Path):
            raise TypeError(
                "dpm_adaptive steps in the lam of one path, and a system of paths has several: use a step "
                "such as dpmpp_2m"
            )
        if is_traced(grid):
            return Rows(grid[:-1], grid[1:], None)
        with on_host():
            finite = np.isfinite(np.asarray(path.lam(np.asarray(grid)), np.float64))
        plain = ~(finite[:-1] & finite[1:])
        if plain.all():
            raise ValueError(
                f"lam is infinite at an end of every interval of the grid {grid}, which leaves nothing to "
                "adapt: end it above "
                "sigma = 0 and start it below alpha = 0, as in [t_max, path.t_min, 0]"
            )
        return Rows(grid[:-1], grid[1:], plain if plain.any() else None)

    def init(self, x: State, rows: Rows) -> tuple:
        """(x, the control before the first trial)."""
        dtype = wide(x)
        number, zero = (lambda v: jnp.asarray(v, dtype)), jnp.zeros((), jnp.int32)
        previous = jax.tree.map(lambda a: a.astype(dtype), x) if self.published else None
        errors = None if self.pid is None else (number(0.0), number(0.0))
        control = _Control(
            number(rows.t[0]), number(self.h_init), previous, errors, jnp.asarray(True), zero, zero, zero
        )
        return x, varying_like(control, x)

    def step(self, model: Denoiser, state: tuple, row: Rows, key: Key | None = None) -> tuple:
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
        path: Any = model.path  # one path, as `rows` made sure
        end, start = row.end.astype(c.t.dtype), row.t.astype(c.t.dtype)
        lam_end, tiny = path.lam(end), 100 * jnp.finfo(c.t.dtype).eps
        y, whole, call = _flat(model, x)
        lower, higher = PAIRS[self.kind, self.order](self.form)

        def going(carry):
            _, c = carry
            return (c.t - end > self._number(self.t_err, c)) & (c.h > tiny * (1 + jnp.abs(path.lam(c.t))))

        def trial(carry):
            y, c = carry
            # under vmap, samples that have arrived idle on a step from the start: no 0/0 in their gradients
            live = going(carry)
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
        # no leap from where an earlier interval got stuck
        y, t = jnp.where(c.reached, new, y), jnp.where(c.reached, end, c.t)
        return _like(whole(y), x), c._replace(
            t=t, accepted=c.accepted + jnp.where(c.reached, 1, 0), nfe=c.nfe + 1
        )

    def _number(self, value: Scalar, c: _Control) -> Array:
        return jnp.asarray(value, c.t.dtype)

    def _error(self, high: State, low: State, previous: State, c: _Control) -> Array:
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

    def _control(self, E: Array, c: _Control) -> tuple[Array, Array, tuple | None]:
        if self.pid is None:
            return self._number(self.theta, c) * E ** (-1 / self.order), E <= 1, None
        return jax.tree.map(lambda a: self._number(a, c), self.pid)(E, c.errors, self.order)


dpm_adaptive = factory("dpm_adaptive", DPMAdaptive)


def _like(tree: State, x: State) -> State:
    return jax.tree.map(lambda a, b: a.astype(b.dtype), tree, x)


def _flat(model: Denoiser, x: State) -> tuple[Array, Callable, Callable]:
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
