r"""How gradients flow through the scan over rows.

An adjoint stands in for `lax.scan`: `loop(step, carry, rows) -> carry`, where `step(carry, row) -> carry` is a module whose leaves are what
is differentiated. The values it computes never depend on the choice; memory and time of the backward pass do. With N rows, state
size d, network activations A:

    Direct()                    N (A + d)                             network calls: 1 per row
    Direct(remat=True)          N d + A                               2 per row
    RecursiveCheckpoint(c)      (c d + g) ceil(log_c N) + A           1 + ceil(log_c N) per row   [Griewank 1992]

where g is the size of the gradient with respect to the weights, of which each level holds one. The default c = sqrt(N) has two levels.

Forward mode works through all of these, and each traces the step once.
"""

import math
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
from jaxtyping import PyTree


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
    """Plain reverse mode through the scan; `remat` recomputes each row's network call instead of storing its activations."""

    remat: bool = eqx.field(static=True, default=False)

    def loop(self, step: Any, carry: PyTree, rows: PyTree) -> PyTree:
        """One scan."""
        leaves, body = _shared(step)
        body = jax.checkpoint(body) if self.remat else body
        return jax.lax.scan(lambda c, row: (body(leaves, c, row), None), carry, rows)[0]


class RecursiveCheckpoint(eqx.Module):
    """Nested checkpointed scans: `checkpoints` states are stored per level, everything in between is recomputed.

    None stores ceil(sqrt(N)): two levels, the memory optimum for two network calls per row and one more recomputation.
    """

    checkpoints: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.checkpoints is not None and self.checkpoints < 2:
            raise ValueError(f"checkpoints must be at least 2, got {self.checkpoints}; Direct(remat=True) stores every state")

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
