"""Array-namespace helpers that every formula of the core shares.

One formula serves two uses. Given numbers or numpy arrays it is evaluated on the host in float64 (exact
coefficient tables); given a jax array or a tracer it is staged (differentiable grids). `namespace` makes that
choice and nothing else does.
"""

import contextlib
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PRNGKeyArray, PyTree

Real = float | int
Arr = np.ndarray | jax.Array
Scalar = Real | np.number | Arr
Time = Scalar  # one time, or an array of them
Grid = Arr | Sequence[Real]  # decreasing times
Key = PRNGKeyArray  # typed, or a raw uint32 key
State = PyTree[Arr | Real]  # a pytree of floats: x, or a prediction shaped like it
Like = PyTree[Arr | Real | jax.ShapeDtypeStruct]  # what a state is to be shaped like


def namespace(*args: Any):
    """`jax.numpy` if any argument is a jax array or tracer, else `numpy`; a python float is numpy."""
    return jnp if any(isinstance(a, jax.Array) for a in args) else np


def is_traced(*args: Any) -> bool:
    """True if any leaf of the arguments is a tracer: its value cannot be looked at."""
    return any(isinstance(a, Tracer) for a in jax.tree.leaves(args))


@contextlib.contextmanager
def on_host():
    """Exact host arithmetic: what is written in jax.numpy is evaluated at once, in float64, under jit too."""
    with jax.ensure_compile_time_eval(), jax.enable_x64(True), np.errstate(all="ignore"):
        yield


def phi(k: int, z: Any) -> Any:
    r"""phi_k(z) = int_0^1 e^{(1-u) z} u^{k-1}/(k-1)! du;  phi_0 = e^z,  phi_k(0) = 1/k!.

    The source is [Hochbruck & Ostermann 2010, eq. 2.10].

    The recursion phi_{k+1} = (phi_k - 1/k!)/z cancels for small z, where the Taylor series takes over.
    phi_k(-inf) = 0.
    """
    if k == 0:
        return namespace(z).exp(z)
    return _traced_phi(k, z) if namespace(z) is jnp else _phi(k, z)


def _phi(k: int, z: Any) -> Any:
    xp = namespace(z)
    near = xp.abs(z) < 0.5
    z_near = xp.where(near, z, 0.0)
    z_far = xp.where(near, -1.0, z)
    series = 0.0
    for j in range(14 if xp.asarray(z).dtype.itemsize > 4 else 8)[::-1]:
        series = series * z_near + 1 / math.factorial(j + k)
    value = xp.expm1(z_far) / z_far
    for j in range(1, k):
        value = (value - 1 / math.factorial(j)) / z_far
    return xp.where(near, series, value)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _traced_phi(k: int, z: Any) -> Any:
    return _phi(k, z)


@_traced_phi.defjvp
def _phi_slope(k: int, primals: tuple, tangents: tuple) -> tuple:
    """phi_k' = phi_k - k phi_{k+1}: less to compile than the derivative of the series, and as exact."""
    (z,), (dz,) = primals, tangents
    value = _traced_phi(k, z)
    return value, (value - k * _traced_phi(k + 1, z)) * dz


def root(x: Any) -> Any:
    """sqrt(x), with the derivative 0 where x = 0: what is at its end there does not move."""
    xp = namespace(x)
    return xp.sqrt(x) if xp is np else xp.where(x == 0, 0.0, xp.sqrt(xp.where(x == 0, 1.0, x)))


def hypotenuse(square: Any, b: Any) -> Any:
    """sqrt(square + b^2) for b >= 0, with the derivatives of b where both are 0."""
    xp = namespace(square, b)
    total = square + b**2
    at_zero = xp.where(square == 0, b, 0.0 * b)
    return xp.where(total == 0, at_zero, xp.sqrt(xp.where(total == 0, 1.0, total)))


def power(x: Any, p: Any) -> Any:
    """x^p for x >= 0, with finite derivatives: at x = 0 those of x for p = 1, else 0."""
    xp = namespace(x, p)
    if xp is np:
        return x**p
    base = xp.where(x == 0, 1.0, x)
    return xp.where(x == 0, xp.where(p == 0, 1.0, xp.where(p == 1, x, 0.0)), base**p)


def cast(a: Scalar, like: Arr) -> jax.Array:
    """The scalar `a` in the dtype of `like`, so that strict promotion never widens or refuses a state."""
    return jnp.asarray(a).astype(like.dtype)


def wide(x: PyTree) -> Any:
    """The dtype that solvers compute in: that of the state, float32 at least."""
    return max([jnp.dtype(jnp.float32), *[a.dtype for a in jax.tree.leaves(x)]], key=lambda d: d.itemsize)


def widened(a: Arr) -> jax.Array:
    """`a` in float32 at least: half precision stores states, but sums with large weights overflow in it."""
    a = jnp.asarray(a)
    return a.astype(jnp.float32) if a.dtype.itemsize < 4 else a


def axpy(a: Scalar, x: PyTree, b: Scalar, y: PyTree) -> PyTree:
    """a x + b y, leaf by leaf, in the dtype of x (summed in float32 at least)."""

    def leaf(u, v):
        wider = widened(u)
        total = cast(a, wider) * wider + cast(b, wider) * v.astype(wider.dtype)
        return total.astype(u.dtype)

    return jax.tree.map(leaf, x, y)


def normal(key: Any, like: PyTree) -> PyTree:
    """Standard normal noise shaped like `like` (arrays or ShapeDtypeStructs), one folded key per leaf.

    With JAX's default (partitionable threefry) bits an element depends on the key and its flat index only:
    the noise of sample i of a leading batch axis is the same whatever the batch size, and sharded batches
    need no communication.
    """
    leaves, treedef = jax.tree.flatten(like)
    return jax.tree.unflatten(
        treedef,
        [
            jax.random.normal(jax.random.fold_in(key, i), a.shape, a.dtype, **_beside(a))
            for i, a in enumerate(leaves)
        ],
    )


def varying_like(tree: PyTree, x: PyTree) -> PyTree:
    """The arrays, marked as differing between the devices of a `jax.shard_map` wherever x does.

    Loops want the state that they start with marked like the one they end with.
    """
    axes = frozenset().union(*map(_varies_over, jax.tree.leaves(x)))
    if not axes:
        return tree

    def mark(a: Any) -> Any:
        missing = tuple(sorted(axes - _varies_over(jnp.asarray(a))))
        return jax.lax.pcast(jnp.asarray(a), missing, to="varying") if missing else a

    return jax.tree.map(mark, tree)


def summed_like(cotangent: PyTree, primal: PyTree) -> PyTree:
    """Cotangents, summed over the devices of a `jax.shard_map` that share the value they belong to."""

    def leaf(ct: Any, value: Any) -> Any:
        axes = tuple(sorted(_varies_over(ct) - _varies_over(value)))
        return jax.lax.psum(ct, axes) if axes else ct

    return jax.tree.map(leaf, cotangent, primal)


def common(a: Any) -> Any:
    """The least of a number over the devices of a `jax.shard_map`; itself elsewhere."""
    axes = tuple(sorted(_varies_over(a)))
    return jax.lax.pmin(a, axes) if axes else a


def _varies_over(a: Any) -> frozenset:
    """The axes of a `shard_map` over which an array differs."""
    aval: Any = jax.typeof(a)
    if hasattr(aval, "vma"):  # up to jax 0.9
        return aval.vma
    return frozenset() if aval.manual_axis_type is None else aval.manual_axis_type.varying


def _beside(a: Any) -> dict:
    """Under `jax.set_mesh` with explicit axes, lay out what is drawn for `a` like it."""
    if not isinstance(a, jax.Array) or jax.sharding.get_abstract_mesh().empty:
        return {}
    sharding = jax.typeof(a).sharding
    explicit = (
        jax.sharding.AxisType.Explicit in sharding.mesh.axis_types
        and sharding.mesh == jax.sharding.get_abstract_mesh()
    )
    return {"out_sharding": sharding.spec} if explicit else {}


def interpolate(t: Any, knots: Any, values: Any) -> Any:
    """Piecewise linear interpolation, constant outside the knots, in the namespace and dtype of t."""
    if namespace(t) is jnp:
        return jnp.interp(t, jnp.asarray(knots, t.dtype), jnp.asarray(values, t.dtype))
    return np.interp(t, knots, values)


def segment_slope(t: Any, knots: Any, values: Any) -> Any:
    """Slope of the linear segment that ends at or contains t (the left derivative at a knot)."""
    xp = namespace(t)
    slopes = np.diff(values) / np.diff(knots)
    if xp is jnp:
        knots, slopes = jnp.asarray(knots, t.dtype), jnp.asarray(slopes, t.dtype)
    i = xp.clip(xp.searchsorted(knots, t, side="left") - 1, 0, len(slopes) - 1)
    return xp.asarray(slopes)[i]
