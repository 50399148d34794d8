r"""How gradients flow through the scan over rows.

An adjoint stands in for `lax.scan`: `loop(step, carry, rows) -> carry`, where `step(carry, row) -> carry` is a module whose leaves are what
is differentiated. The values it computes never depend on the choice; memory and time of the backward pass do. With N rows, state
size d, network activations A:

    Direct()                    N (A + d)                             network calls: 1 per row
    Direct(remat=True)          N d + A                               2 per row
    RecursiveCheckpoint(c)      (c d + g) ceil(log_c N) + A           1 + ceil(log_c N) per row   [Griewank 1992]
    Reversible()                2 d + g + A                           2 per row, and the solver's inverse
    LastK(k)                    k (A + d)                             1 per row; biased: exact only where k is all intervals
    AdjointDPM()                2 d + g + A                           1 per row, then those of its own backward solver; approximate

where g is the size of the gradient with respect to the weights, of which each level holds one. The default c = sqrt(N) has two levels.

The first three and `LastK` also work in forward mode; they trace the network once. `AdjointDPM` has a file of its own.
"""

import math
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ..numerics import axpy, is_traced, normal


@runtime_checkable
class Adjoint(Protocol):
    """A stand-in for `lax.scan` without per-row outputs."""

    def loop(self, step: Any, carry: PyTree, rows: PyTree) -> PyTree:
        """Fold `step` over the leading axis of `rows`."""
        ...


def _shared(step: Any) -> Any:
    """`step` as a function of (leaves, carry, row) that is traced once however many scans call it."""
    leaves, static = eqx.partition(step, eqx.is_array)
    return leaves, jax.jit(lambda leaves, carry, row: eqx.combine(leaves, static)(carry, row))


class Direct(eqx.Module):
    """Plain reverse mode through the scan; `remat` recomputes each row's network call instead of storing its activations.

    unroll: the rows one after another instead of a loop. The network is still traced once, but compiled once per row: for few rows only.
    It pays on CPUs, where gradients of convolutions inside a loop are several times slower than outside: keep it out
    of loops of your own as well.
    """

    remat: bool = eqx.field(static=True, default=False)
    unroll: bool = eqx.field(static=True, default=False)

    def loop(self, step: Any, carry: PyTree, rows: PyTree) -> PyTree:
        """One scan."""
        leaves, body = _shared(step)
        body = jax.checkpoint(body) if self.remat else body
        return jax.lax.scan(lambda c, row: (body(leaves, c, row), None), carry, rows, unroll=self.unroll)[0]


class RecursiveCheckpoint(eqx.Module):
    """Nested checkpointed scans: `checkpoints` states are stored per level, everything in between is recomputed.

    None stores ceil(sqrt(N)): two levels, the memory optimum for two network calls per row and one more recomputation.
    """

    checkpoints: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.checkpoints is not None and self.checkpoints < 2:
            raise ValueError(
                f"checkpoints must be at least 2, got {self.checkpoints}; Direct(remat=True) stores every state"
            )

    def loop(self, step: Any, carry: PyTree, rows: PyTree) -> PyTree:
        """Scans nested until a level has at most `checkpoints` rows."""
        n = len(jax.tree.leaves(rows)[0])
        c = math.isqrt(max(n - 1, 0)) + 1 if self.checkpoints is None else self.checkpoints
        leaves, shared = _shared(step)
        body = jax.checkpoint(shared)

        def fold(leaves, carry, rows):
            n = len(jax.tree.leaves(rows)[0])
            if n <= c:
                return jax.lax.scan(lambda x, row: (body(leaves, x, row), None), carry, rows)[0]
            block = -(-n // c)  # c blocks or fewer, then what is left over
            whole = n // block * block
            blocks = jax.tree.map(lambda a: a[:whole].reshape(n // block, block, *a.shape[1:]), rows)
            inner = jax.checkpoint(fold)
            carry = jax.lax.scan(lambda x, row: (inner(leaves, x, row), None), carry, blocks)[0]
            if whole < n:
                carry = inner(leaves, carry, jax.tree.map(lambda a: a[whole:], rows))
            return carry

        return fold(leaves, carry, rows)


def explicit(function: Any, *example: PyTree) -> tuple[list, Any]:
    """(hoisted, f) with f(*args, *hoisted) = function(*args): what `function` closes over and may be differentiated becomes an argument."""
    converted, hoisted = jax.closure_convert(function, *example)
    return hoisted, converted


def floats(tree: PyTree) -> tuple[PyTree, PyTree]:
    """(leaves that have derivatives, all others)."""
    return eqx.partition(tree, eqx.is_inexact_array)


def as_arrays(tree: PyTree) -> PyTree:
    """Rows as jax arrays."""
    return jax.tree.map(jnp.asarray, tree)


class Reversible(eqx.Module):
    """Reverse mode without a tape: the solver's exact inverse recomputes each state on the way back.

    For the solvers of `solvers/reversible.py` (edict, bdia, obelm, reversible_heun, mccallum_foster). The gradient is that of the discrete
    program up to rounding, which the inverse may amplify: see there.
    """

    def loop(self, step: Any, carry: PyTree, rows: PyTree) -> PyTree:
        """One scan; backwards, one scan over the rows in reverse."""
        if not hasattr(step.solver, "reverse"):
            raise ValueError(
                f"{type(step.solver).__name__} cannot be run backwards: Reversible() is for edict, bdia, obelm, reversible_heun and "
                "mccallum_foster of js.solvers; RecursiveCheckpoint() takes any solver"
            )
        if step.hook is not None:
            raise ValueError(
                "a hook cannot be undone: Reversible() needs hook=None; RecursiveCheckpoint() takes hooks"
            )
        if rows.entry is not None and getattr(step.solver, "carries_slope", False):
            raise ValueError(
                f"{type(step.solver).__name__} carries its slope from one interval to the next, where per_step entries differ: it cannot "
                "be undone; take obelm or mccallum_foster"
            )
        rows = as_arrays(rows)
        leaves, static = eqx.partition(step, eqx.is_array)
        first = jax.tree.map(lambda a: a[0], rows)
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
        return fold((leaves, hoisted, more), carry, rows)


class LastK(eqx.Module):
    """Gradients through the last `k` grid intervals only: DRaFT-K [Clark et al. 2024]. Biased, and cheap: it sees detail, not layout.

    variance_reduction: with k = 1, the gradient is averaged over so many re-noisings of the sample to the start of the last interval, all
    with the cotangent of the sample itself (DRaFT-LV evaluates the reward at each of them); needs a key.
    """

    k: int = eqx.field(static=True)
    variance_reduction: int = eqx.field(static=True, default=0)

    def __check_init__(self):
        if self.k < 1 or self.variance_reduction < 0 or (self.variance_reduction and self.k != 1):
            raise ValueError(f"k counts intervals from 1, and variance_reduction goes with k=1; got {self}")

    def loop(self, step: Any, carry: PyTree, rows: PyTree) -> PyTree:
        """All but the last intervals under stop_gradient, then plain reverse mode."""
        if is_traced(rows.is_end):
            raise ValueError(
                "LastK counts grid intervals, which a traced table does not show: close over the table"
            )
        ends = np.flatnonzero(np.asarray(rows.is_end))
        cut = 0 if self.k >= len(ends) else int(ends[-1 - self.k]) + 1
        head, tail = (
            jax.tree.map(lambda a, at=at: jnp.asarray(a)[at], rows)
            for at in (slice(None, cut), slice(cut, None))
        )
        leaves, static = eqx.partition(step, eqx.is_array)
        hoisted, body = explicit(
            lambda v, c, row: eqx.combine(v, static)(c, row),
            leaves,
            carry,
            jax.tree.map(lambda a: a[0], tail),
        )

        def fold(values, carry, rows):
            return jax.lax.scan(lambda c, row: (body(values[0], c, row, *values[1]), None), carry, rows)[0]

        frozen = jax.lax.stop_gradient
        if cut:
            moving, fixed = floats(((leaves, hoisted), carry))
            values, before = eqx.combine(frozen(moving), fixed)
            carry = frozen(fold(values, before, head))
        out = fold((leaves, hoisted), carry, tail)
        if not self.variance_reduction:
            return out
        return self._averaged(step, lambda carry: fold((leaves, hoisted), carry, tail), carry, out, tail)

    def _averaged(self, step: Any, finish: Any, carry: PyTree, out: PyTree, tail: PyTree) -> PyTree:
        """`out`, with the gradient of the mean over re-noised starts of the last interval."""
        if step.key is None or step.centre is None:
            raise ValueError(
                "variance_reduction draws noise at the path's level: it needs key=, and a Denoiser"
            )
        (state, saved, fault), t = carry, tail.row.t[0]
        x = jax.lax.stop_gradient(out[0][0])
        mean = jax.tree.map(jnp.zeros_like, x)
        for i in range(self.variance_reduction):
            z = normal(jax.random.fold_in(jax.random.fold_in(step.key, 2**30), i), x)
            noised = step.centre.each(lambda path, x, z: axpy(path.alpha(t), x, path.sigma(t), z), x, z)
            again = finish(((noised, *state[1:]), saved, fault))[0][0]
            mean = jax.tree.map(
                lambda m, a: m + (a - jax.lax.stop_gradient(a)) / self.variance_reduction, mean, again
            )
        x = jax.tree.map(jnp.add, x, mean)
        return ((x, *out[0][1:]), *out[1:])
