r"""How gradients flow through the scan over rows.

An adjoint folds a body over what is scanned: `loop(body, carry, scanned) -> carry` (`protocol`). The values
it computes never depend on the choice; memory and time of the backward pass do. With N rows, state size d,
network activations A:

    Direct()                    N (A + d)                             network calls: 1 per row
    Direct(remat=True)          N d + A                               2 per row
    RecursiveCheckpoint(c)      (c d + g) ceil(log_c N) + A           1 + ceil(log_c N) per row   [Griewank
                                                                                                  1992]
    Reversible()                2 d (1 + k) + g + A                   2 per row, and the solver's inverse; k
                                                                      states kept against rounding, often 0
    LastK(k)                    k (A + d)                             1 per row; biased: exact only where k is
                                                                      all intervals
    AdjointDPM()                8 d + 2 g + A                         1 per row, then 2 per interval
                                                                      backwards; approximate

where g is the size of the gradient with respect to the weights, of which each level holds one. The default c
= sqrt(N) has two levels. The first three and `LastK` also work in forward mode; they trace the network once.
`AdjointDPM` is in `ode/`.
"""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ..numerics import State, axpy, is_traced, normal, wide
from .protocol import Body, Carry, Scanned


def _shared(body: Body) -> tuple[PyTree, Callable]:
    """The leaves of `body`, and it as a function of (leaves, carry, row), traced once however many scans call
    it.
    """
    leaves, static = eqx.partition(body, eqx.is_array)
    return leaves, jax.jit(lambda leaves, carry, row: eqx.combine(leaves, static)(carry, row))


class Direct(eqx.Module):
    """Plain reverse mode through the scan.

    Args:
        remat: recompute the network call of each row on the way back instead of storing its activations.
        unroll: run the rows one after another instead of in a loop. The network is still traced once, but
            compiled once per row: for few rows only.

    Example:
        >>> denoiser = js.Denoiser(lambda x, t: 0.5 * x, js.CondOT(), "data")
        >>> draw = lambda x: js.sample(denoiser, x, x=x, key=None, grid=[1.0, 0.5, 0.0], adjoint=js.Direct())
        >>> float(jax.grad(draw)(1.0))  # x0 = 0.5 (0.5 + 0.5 / 2)... of a linear sampler: its own factor
        0.375
    """

    remat: bool = eqx.field(static=True, default=False)
    unroll: bool = eqx.field(static=True, default=False)

    def loop(self, body: Body, carry: Carry, scanned: Scanned) -> Carry:
        """One scan."""
        leaves, shared = _shared(body)
        shared = jax.checkpoint(shared) if self.remat else shared
        return jax.lax.scan(
            lambda c, row: (shared(leaves, c, row), None), carry, scanned, unroll=self.unroll
        )[0]


class RecursiveCheckpoint(eqx.Module):
    """Nested checkpointed scans; everything between the stored states is recomputed.

    Args:
        checkpoints: states stored per level. None stores ceil(sqrt(N)): two levels, the least memory for two
            network calls per row and one more recomputation.

    Example:
        >>> denoiser = js.Denoiser(lambda x, t: 0.5 * x, js.CondOT(), "data")
        >>> draw = lambda x, how: js.sample(denoiser, x, x=x, key=None, steps=9, adjoint=how)
        >>> exact = jax.grad(draw)(1.0, js.Direct())
        >>> bool(jnp.isclose(jax.grad(draw)(1.0, js.RecursiveCheckpoint(3)), exact))
        True
    """

    checkpoints: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.checkpoints is not None and self.checkpoints < 2:
            raise ValueError(
                f"checkpoints must be at least 2, got {self.checkpoints}; Direct(remat=True) stores every "
                "state"
            )

    def loop(self, body: Body, carry: Carry, scanned: Scanned) -> Carry:
        """Scans nested until a level has at most `checkpoints` rows; two levels if that is None."""
        n = len(jax.tree.leaves(scanned)[0])
        c = math.isqrt(max(n - 1, 0)) + 1 if self.checkpoints is None else self.checkpoints
        even = [k for k in range(-(-c // 2), c + 1) if n % k == 0] if self.checkpoints is None else []
        leaves, shared = _shared(body)
        shared = jax.checkpoint(shared)

        def fold(leaves, carry, rows, top=False):
            n = len(jax.tree.leaves(rows)[0])
            if n <= c or (self.checkpoints is None and not top):
                return jax.lax.scan(lambda x, row: (shared(leaves, x, row), None), carry, rows)[0]
            # c blocks or fewer, then what is left over: another scan, whose network is compiled once more
            block = n // even[-1] if even else -(-n // c)
            whole = n // block * block
            blocks = jax.tree.map(lambda a: a[:whole].reshape(n // block, block, *a.shape[1:]), rows)
            inner = jax.checkpoint(fold)
            carry = jax.lax.scan(lambda x, row: (inner(leaves, x, row), None), carry, blocks)[0]
            if whole < n:
                carry = inner(leaves, carry, jax.tree.map(lambda a: a[whole:], rows))
            return carry

        return fold(leaves, carry, scanned, top=True)


def explicit(function: Callable, *example: Any) -> tuple[list, Callable]:
    """(hoisted, f) with f(*args, *hoisted) = function(*args): what `function` closes over becomes an
    argument.
    """
    converted, hoisted = jax.closure_convert(function, *example)
    return hoisted, converted


def floats(tree: PyTree) -> tuple[PyTree, PyTree]:
    """The leaves that have derivatives, and all others."""
    return eqx.partition(tree, eqx.is_inexact_array)


def as_arrays(scanned: Scanned) -> Scanned:
    """What is scanned, as jax arrays."""
    return jax.tree.map(jnp.asarray, scanned)


class Reversible(eqx.Module):
    """Reverse mode without a tape: the solver's exact inverse recomputes each state on the way back.

    For edict, bdia, obelm, reversible_heun and mccallum_foster of `js.solvers`. The gradient is that of the
    discrete program up to rounding, which the inverse amplifies: that of obelm by 7e5 in 24 steps in lam on
    VP. So the solver says how much each row adds (`growth`),
    and where it would exceed 1e-5 of the state, states are kept in between that the inverse starts from
    again: 2 d more for each. In float64 that is seldom any. How much the network itself adds is not known
    beforehand; with a doubt, compare with `Direct()`.

    Example:
        >>> denoiser = js.Denoiser(lambda x, t: 0.5 * x, js.VP(), "data")
        >>> draw = lambda x, how: js.sample(denoiser, x, x=x, key=None, solver=js.solvers.bdia(), steps=4,
        ...     adjoint=how)
        >>> exact = jax.grad(draw)(1.0, js.Direct())
        >>> bool(jnp.isclose(jax.grad(draw)(1.0, js.Reversible()), exact, rtol=1e-4))
        True
    """

    blocks: tuple[int, int] | None = eqx.field(static=True, default=None, repr=False)

    def planned(self, body: Body, scanned: Scanned) -> "Reversible":
        """With the number of rows that the inverse may cross in float32 and in float64."""
        growth = getattr(body.solver, "growth", None)
        if growth is None or is_traced(scanned.row):
            return self
        rates = np.log(np.maximum(np.asarray(growth(scanned.row), np.float64), 1e-300))
        eps32, eps64 = (float(np.finfo(dtype).eps) for dtype in (np.float32, np.float64))
        return Reversible((_longest(rates, DRIFT / eps32), _longest(rates, DRIFT / eps64)))

    def loop(self, body: Body, carry: Carry, scanned: Scanned) -> Carry:
        """One scan; backwards, one scan over the rows in reverse."""
        if not hasattr(body.solver, "reverse"):
            raise ValueError(
                f"{type(body.solver).__name__} cannot be run backwards: Reversible() is for edict, bdia, "
                "obelm, reversible_heun and mccallum_foster of js.solvers; "
                "RecursiveCheckpoint() takes any solver"
            )
        if body.hook is not None:
            raise ValueError(
                "a hook cannot be undone: Reversible() needs hook=None; RecursiveCheckpoint() takes hooks"
            )
        if scanned.entry is not None and getattr(body.solver, "carries_slope", False):
            raise ValueError(
                f"{type(body.solver).__name__} carries its slope from one interval to the next, where "
                "per_step entries differ: it cannot be undone; take obelm or mccallum_foster"
            )
        scanned = as_arrays(scanned)
        leaves, static = eqx.partition(body, eqx.is_array)
        first = jax.tree.map(lambda a: a[0], scanned)
        hoisted, forward = explicit(lambda v, c, row: eqx.combine(v, static)(c, row), leaves, carry, first)
        more, backward = explicit(
            lambda v, c, row: eqx.combine(v, static).reverse(c, row), leaves, carry, first
        )

        @jax.custom_vjp
        def fold(values, carry, rows):
            leaves, hoisted, _ = values
            return jax.lax.scan(lambda c, row: (forward(leaves, c, row, *hoisted), None), carry, rows)[0]

        def save(values, carry, rows):
            out = fold(values, carry, rows)
            return out, (values, out, rows)

        def pull(residual, cotangent):
            values, out, rows = residual
            moving, fixed = floats(values)

            def undo(state, row):
                carry, ct, total = state
                leaves, _, more = values
                before = backward(leaves, carry, row, *more)
                (before_f, before_o), (row_f, row_o) = floats(before), floats(row)

                def redo(moving, before_f, row_f):
                    leaves, hoisted, _ = eqx.combine(moving, fixed)
                    return floats(
                        forward(leaves, eqx.combine(before_f, before_o), eqx.combine(row_f, row_o), *hoisted)
                    )[0]

                by_values, by_carry, by_row = jax.vjp(redo, moving, before_f, row_f)[1](ct)
                return (before, by_carry, jax.tree.map(jnp.add, total, by_values)), by_row

            ct = jax.tree.map(lambda a, c: c if eqx.is_inexact_array(a) else None, out, cotangent)
            start = (out, ct, jax.tree.map(jnp.zeros_like, moving))
            (_, by_carry, by_values), by_rows = jax.lax.scan(undo, start, rows, reverse=True)
            return by_values, by_carry, by_rows

        fold.defvjp(save, pull)
        values, n = (leaves, hoisted, more), len(scanned.index)
        block = n if self.blocks is None else self.blocks[wide(carry.state[0]).itemsize > 4]
        if block >= n:
            return fold(values, carry, scanned)
        whole = n // block * block
        apart = jax.tree.map(lambda a: a[:whole].reshape(-1, block, *a.shape[1:]), scanned)
        carry = jax.lax.scan(lambda c, rows: (fold(values, c, rows), None), carry, apart)[0]
        rest = jax.tree.map(lambda a: a[whole:], scanned)
        return fold(values, carry, rest) if whole < n else carry


DRIFT = 1e-5  # of the state: what rounding may grow to before the inverse starts from a kept state


def _longest(rates: np.ndarray, most: float) -> int:
    """Rows of a block, so that in none of them an inverse grows by more than `most`, given log growths."""
    n = len(rates)
    for parts in (2**k for k in range(n.bit_length() + 1)):
        block = -(-n // parts)
        padded = np.append(rates, np.zeros(-n % block)).reshape(-1, block)
        grown = np.cumsum(padded[:, ::-1], axis=1).max()
        if grown <= np.log(most) or block == 1:
            return block
    return 1


class LastK(eqx.Module):
    """Gradients through the last intervals only: DRaFT-K [Clark et al. 2024]. Biased, and cheap: it sees
    detail, not layout.

    Args:
        k: number of intervals, from the end.
        variance_reduction: with k = 1, average the gradient over this many re-noisings of the sample to the
            start of the last interval, all with the cotangent of the sample itself (DRaFT-LV evaluates the
            reward at each of them). Needs a key.

    Example:
        >>> denoiser = js.Denoiser(lambda x, t: 0.5 * x, js.CondOT(), "data")
        >>> draw = lambda x, how: js.sample(denoiser, x, x=x, key=None, steps=4, adjoint=how)
        >>> float(jax.grad(draw)(1.0, js.LastK(2))), bool(jax.grad(draw)(1.0, js.LastK(4)) > 0)
        (0.0, True)
    """

    k: int = eqx.field(static=True)
    variance_reduction: int = eqx.field(static=True, default=0)
    cut: int | None = eqx.field(static=True, default=None, repr=False)

    def __check_init__(self):
        if self.k < 1 or self.variance_reduction < 0 or (self.variance_reduction and self.k != 1):
            raise ValueError(f"k counts intervals from 1, and variance_reduction goes with k=1; got {self}")

    def planned(self, body: Body, scanned: Scanned) -> "LastK":
        """With the number of rows before the last intervals."""
        if is_traced(scanned.is_end):
            raise ValueError(
                "LastK counts grid intervals, which a traced table does not show: close over the table"
            )
        ends = np.flatnonzero(np.asarray(scanned.is_end))
        cut = 0 if self.k >= len(ends) else int(ends[-1 - self.k]) + 1
        return LastK(self.k, self.variance_reduction, cut)

    def loop(self, body: Body, carry: Carry, scanned: Scanned) -> Carry:
        """All but the last intervals under stop_gradient, then plain reverse mode."""
        cut = self.planned(body, scanned).cut if self.cut is None else self.cut
        cuts = slice(None, cut), slice(cut, None)
        head, tail = (jax.tree.map(lambda a, at=at: jnp.asarray(a)[at], scanned) for at in cuts)
        leaves, static = eqx.partition(body, eqx.is_array)
        one = lambda v, c, row: eqx.combine(v, static)(c, row)
        hoisted, step = explicit(one, leaves, carry, jax.tree.map(lambda a: a[0], tail))

        def fold(values, carry, rows):
            return jax.lax.scan(lambda c, row: (step(values[0], c, row, *values[1]), None), carry, rows)[0]

        frozen = jax.lax.stop_gradient
        if cut:
            moving, fixed = floats(((leaves, hoisted), carry))
            values, before = eqx.combine(frozen(moving), fixed)
            carry = frozen(fold(values, before, head))
        out = fold((leaves, hoisted), carry, tail)
        if not self.variance_reduction:
            return out
        return self._averaged(body, lambda carry: fold((leaves, hoisted), carry, tail), carry, out, tail)

    def _averaged(self, body: Body, finish: Callable, carry: Carry, out: Carry, tail: Scanned) -> Carry:
        """`out`, with the gradient of the mean over re-noised starts of the last interval."""
        if body.key is None or body.denoiser is None:
            raise ValueError(
                "variance_reduction draws noise at the path's level: it needs key=, and a Denoiser"
            )
        t, x = tail.row.t[0], jax.lax.stop_gradient(out.state[0])
        mean = jax.tree.map(jnp.zeros_like, x)
        for i in range(self.variance_reduction):
            z = normal(jax.random.fold_in(jax.random.fold_in(body.key, 2**30), i), x)
            noised = body.denoiser.each(lambda path, x, z: axpy(path.alpha(t), x, path.sigma(t), z), x, z)
            again = finish(_with_x(carry, noised)).state[0]
            add = lambda m, a: m + (a - jax.lax.stop_gradient(a)) / self.variance_reduction
            mean = jax.tree.map(add, mean, again)
        return _with_x(out, jax.tree.map(jnp.add, x, mean))


def _with_x(carry: Carry, x: State) -> Carry:
    return carry._replace(state=(x, *carry.state[1:]))
