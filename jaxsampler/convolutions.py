"""Convolutions inside loops, on CPUs.

XLA brings convolutions to the layout that its CPU backend runs fast only where they stand outside loops. In a
scan over rows they run as JAX labels them, ten times slower: all of an NCHW network's, and the two in the
gradient of any. `fast` traces a function once and puts a primitive of our own in the place of each
convolution. It has the same values and derivatives, and on CPUs it is compiled as a convolution in the fast
layout between two transposes. On accelerators, and outside our loops, nothing changes.

The rules of the primitive (derivatives, `vmap`) are those of the convolution, traced, with the primitive put
in again: no formula is repeated here.

`JAXSAMPLER_CONVOLUTIONS=plain` in the environment switches it off.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir
from jax.lax import conv_general_dilated_p as plain_p

VARIABLE = "JAXSAMPLER_CONVOLUTIONS"
convolution_p = Primitive("convolution_in_loop")


def fast(function: Callable) -> Callable:
    """`function` of arrays, with convolutions that are fast in loops on CPUs too.

    Example:
        >>> from jaxsampler.convolutions import fast
        >>> conv = eqx.nn.Conv2d(3, 8, 3, key=jax.random.key(0))
        >>> x = jnp.ones((3, 16, 16))
        >>> many = lambda x: jax.lax.map(fast(conv), jnp.stack([x, 2 * x]))
        >>> bool(jnp.allclose(jax.jit(many)(x)[0], conv(x), atol=1e-6))
        True
    """

    def traced_once(*args: Any) -> Any:
        if not wanted():
            return function(*args)
        closed, out = jax.make_jaxpr(function, return_shape=True)(*args)
        values = jaxpr_as_fun(_swapped(closed, {}))(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(out), values)

    return traced_once


def wanted() -> bool:
    """Whether programs run on CPUs and the layout has not been switched off."""
    how = os.environ.get(VARIABLE, "fast")
    if how not in ("fast", "plain"):
        raise ValueError(f"unknown {VARIABLE}={how!r}; valid: fast (the default), plain")
    return how == "fast" and jax.default_backend() == "cpu"


def _swapped(part: Any, known: dict) -> Any:
    """A parameter of an equation, its convolutions replaced wherever it holds a program.

    Programs without convolutions stay the objects they are, and one that is called twice becomes one.
    """
    if isinstance(part, tuple | list) and any(isinstance(p, ClosedJaxpr | Jaxpr) for p in part):
        new = [_swapped(p, known) for p in part]
        return part if all(a is b for a, b in zip(new, part, strict=True)) else type(part)(new)
    if not isinstance(part, ClosedJaxpr | Jaxpr):
        return part
    if id(part) not in known:
        known[id(part)] = part
        if isinstance(part, Jaxpr):  # in newer JAX closed ones are, too
            equations = [_equation(e, known) for e in part.eqns]
            if any(new is not old for new, old in zip(equations, part.eqns, strict=True)):
                known[id(part)] = part.replace(eqns=equations)
        elif (inner := _swapped(part.jaxpr, known)) is not part.jaxpr:
            known[id(part)] = part.replace(jaxpr=inner)
    return known[id(part)]


def _equation(e: JaxprEqn, known: dict) -> JaxprEqn:
    if e.primitive is plain_p:
        return e.replace(primitive=convolution_p)
    params = {name: _swapped(value, known) for name, value in e.params.items()}
    return e if all(params[name] is e.params[name] for name in params) else e.replace(params=params)


def _again(rule: Callable, *args: Any) -> Any:
    """A rule of the convolution, with our primitive in it."""
    return jaxpr_as_fun(_swapped(jax.make_jaxpr(rule)(*args), {}))(*args)


def _convolve(lhs: Any, rhs: Any, **params: Any) -> Any:
    return plain_p.bind(lhs, rhs, **params)


def _in_fast_layout(lhs: Any, rhs: Any, **params: Any) -> Any:
    """The convolution as batch, space, features by space, inputs, outputs, between transposes."""
    l, r, o = params["dimension_numbers"]
    n = lhs.ndim
    space = tuple(range(1, n - 1))
    layout = jax.lax.ConvDimensionNumbers(
        (0, n - 1, *space), (n - 1, n - 2, *range(n - 2)), (0, n - 1, *space)
    )
    unknown = lhs.dtype not in (jnp.float32, jnp.float16) or params.get("out_sharding") is not None
    if unknown or (l, r, o) == tuple(layout) or params["batch_group_count"] != 1:
        return _convolve(lhs, rhs, **params)
    lhs = jnp.transpose(lhs, (l[0], *l[2:], l[1]))
    rhs = jnp.transpose(rhs, (*r[2:], r[1], r[0]))
    out = _convolve(lhs, rhs, **{**params, "dimension_numbers": layout})
    place = {dimension: i for i, dimension in enumerate((o[0], *o[2:], o[1]))}
    return jnp.transpose(out, [place[i] for i in range(n)])


def _jvp(primals: tuple, tangents: tuple, **params: Any) -> tuple:
    (lhs, rhs), (dl, dr) = primals, tangents
    terms = [] if isinstance(dl, ad.Zero) else [convolution_p.bind(dl, rhs, **params)]
    terms += [] if isinstance(dr, ad.Zero) else [convolution_p.bind(lhs, dr, **params)]
    return convolution_p.bind(lhs, rhs, **params), sum(terms[1:], terms[0])


def _transpose(ct: Any, lhs: Any, rhs: Any, **params: Any) -> list:
    rule, first = ad.primitive_transposes[plain_p], ad.is_undefined_primal(lhs)
    if isinstance(ct, ad.Zero):
        return [ad.Zero(lhs.aval), None] if first else [None, ad.Zero(rhs.aval)]
    if first:
        return [*_again(lambda ct, rhs: rule(ct, lhs, rhs, **params)[0], ct, rhs), None]
    return [None, *_again(lambda ct, lhs: rule(ct, lhs, rhs, **params)[1], ct, lhs)]


def _batch(args: tuple, axes: tuple, **params: Any) -> tuple:
    batched = jax.vmap(lambda lhs, rhs: _convolve(lhs, rhs, **params), in_axes=axes)
    return _again(batched, *args)[0], 0


convolution_p.def_impl(_convolve)
convolution_p.abstract_eval = plain_p.abstract_eval
ad.primitive_jvps[convolution_p] = _jvp
ad.primitive_transposes[convolution_p] = _transpose
batching.primitive_batchers[convolution_p] = _batch
mlir.register_lowering(convolution_p, mlir.lower_fun(_convolve, multiple_results=False))
mlir.register_lowering(convolution_p, mlir.lower_fun(_in_fast_layout, multiple_results=False), platform="cpu")
