r"""Gaussian probability paths: x_t = mu + alpha(t) (x_0 - mu) + sigma(t) eps, with eps ~ N(0, I).

t = 0 is data, t = t_max is noise. Notation: lam = log(alpha/sigma) (half log-SNR, falls with t),
rho = sigma/alpha = exp(-lam). mu = 0 on every path but `MeanReverting`. A schedule is static data (floats,
hashable tuples), so it is never traced; formulas are written against `namespace(t)`: numbers give exact
float64 on the host, tracers give a differentiable schedule.

A path of your own is a subclass with `alpha` and `sigma` only:

    class Cubic(js.Path):
        def alpha(self, t):
            return 1 - t**3

        def sigma(self, t):
            return t
"""

import dataclasses
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ..numerics import Key, Like, Scalar, State, Time, axpy, cast, is_traced, namespace, normal, on_host

KINDS = ("data", "noise", "score", "velocity", "v")


def derivative(f: Callable, t: Time) -> Any:
    """df/dt of a scalar schedule: a complex step on the host (exact in float64).

    It is one jvp where t is a jax array or f is written in jax.
    """
    if namespace(t) is np:
        t = np.asarray(t, np.float64)
        if namespace(f(t)) is np:
            return _complex_step(f, t)
        t = jnp.asarray(t)
    return jax.jvp(f, (t,), (jnp.ones_like(t),))[1]


def _complex_step(f: Callable, t: np.ndarray) -> Any:
    """Im f(t + ih)/h, infinite where it grows as h shrinks (sqrt(t) at 0)."""
    try:
        slope, finer = (np.imag(np.asarray(f(t + 1j * h))) / h for h in (1e-20, 1e-24))
    except TypeError:  # interp, floor and python's math refuse complex numbers
        slope = finer = np.nan
    # A formula that drops the imaginary part (abs, real) would give a silent zero: compare with a quotient.
    # Two of them: one is short against t, where sqrt(t) bends; the other is long against rounding.
    wrong = np.ones(np.shape(t), bool)
    for h in (1e-6 * np.abs(t), 1e-6 * np.maximum(np.abs(t), 1e-3)):
        with np.errstate(all="ignore"):
            coarse = (np.asarray(f(t + h)) - np.asarray(f(t - h))) / (2 * h)
            right = np.abs(slope - coarse) <= 1e-2 * (np.abs(slope) + np.abs(coarse)) + 1e-3
        wrong = wrong & ~right & np.isfinite(coarse)
    if np.any(wrong):
        raise ValueError(
            f"the complex-step derivative of {getattr(f, '__qualname__', f)} is wrong: its formula is not "
            "analytic (abs, floor or interp?). Define alpha_dot(t) and sigma_dot(t) on the path."
        )
    return np.where(np.abs(finer) > 2 * np.abs(slope), np.copysign(np.inf, slope), slope)[()]


class Path(eqx.Module):
    """x_t = mu + alpha(t) (x_0 - mu) + sigma(t) eps on t in [0, t_max].

    A subclass defines `alpha` and `sigma`; everything else follows, and may be overridden. `t_min` is only
    where default grids stop; any decreasing grid within [0, t_max] is legal.

    Example:
        >>> class Cubic(js.Path):
        ...     def alpha(self, t):
        ...         return 1 - t**3
        ...
        ...     def sigma(self, t):
        ...         return t
        >>> path = Cubic()
        >>> float(path.alpha_dot(0.5)), round(float(path.time(path.lam(0.3))), 6)
        (-0.75, 0.3)
    """

    t_min: ClassVar[float] = 1e-3
    t_max: ClassVar[float] = 1.0
    gaussian: ClassVar[bool] = True  # whether eps is: what solvers that draw noise take for granted

    @abstractmethod
    def alpha(self, t: Time) -> Any:
        """Signal scale at time t."""

    @abstractmethod
    def sigma(self, t: Time) -> Any:
        """Noise standard deviation at time t."""

    def alpha_dot(self, t: Time) -> Any:
        """d alpha/dt."""
        return derivative(self.alpha, t)

    def sigma_dot(self, t: Time) -> Any:
        """d sigma/dt."""
        return derivative(self.sigma, t)

    def lam(self, t: Time) -> Any:
        """Half log-SNR log(alpha/sigma): +inf where sigma = 0, -inf where alpha = 0."""
        alpha, sigma = self.alpha(t), self.sigma(t)
        xp = namespace(alpha, sigma)
        with np.errstate(divide="ignore"):
            return xp.log(alpha) - xp.log(sigma)

    def rho(self, t: Time) -> Any:
        """Noise-to-signal ratio sigma/alpha, the sigma of EDM: inf where alpha = 0."""
        return divide(self.sigma(t), self.alpha(t))

    def time(self, lam: Scalar) -> Any:
        """The t with lam(t) = lam: 64 bisections, then one Newton step, which carries the gradient."""
        if namespace(lam) is np:
            lam = np.asarray(lam, np.float64)
            low, high = np.zeros_like(lam), np.full_like(lam, self.t_max)
            for _ in range(64):
                mid = 0.5 * (low + high)
                high_snr = self.lam(mid) > lam
                low, high = np.where(high_snr, mid, low), np.where(high_snr, high, mid)
            return 0.5 * (low + high)

        def halve(_, bracket):
            low, high = bracket
            mid = 0.5 * (low + high)
            high_snr = self.lam(mid) > lam
            return jnp.where(high_snr, mid, low), jnp.where(high_snr, high, mid)

        bracket = jnp.zeros_like(lam), jnp.full_like(lam, self.t_max)
        low, high = jax.lax.fori_loop(0, 64, halve, jax.lax.stop_gradient(bracket))
        t = jax.lax.stop_gradient(0.5 * (low + high))
        newton = (self.lam(t) - lam) / jax.lax.stop_gradient(derivative(self.lam, t))
        return t - jnp.where(jnp.isfinite(newton), newton, 0.0)  # lam = +-inf is an end of the bracket

    @property
    def centre(self) -> State | None:
        """mu, the mean that the path reverts to; None means zero."""
        return None

    def form(self, kind: str, t: Time) -> tuple[Any, Any]:
        """(a, b) with prediction = a (x_0 - mu) + b eps; see `predictions`."""
        if kind == "data":
            return 1.0, 0.0
        if kind == "noise":
            return 0.0, 1.0
        if kind == "score":
            return 0.0, divide(-1.0, self.sigma(t))
        if kind == "velocity":
            return self.alpha_dot(t), self.sigma_dot(t)
        if kind == "v":
            return -self.sigma(t), self.alpha(t)
        raise ValueError(f"unknown prediction kind {kind!r}; valid: {', '.join(KINDS)}")

    @property
    def law(self) -> tuple:
        """What alpha and sigma depend on, mu left out: equal for paths that have equal tables.

        It has no hash, so that nothing is looked up, for a class of a user's (its formulas may read what
        changes), and if a leaf is a traced or a large array.
        """
        if not type(self).__module__.startswith(f"{__package__}."):
            return ([],)
        leaves, structure = jax.tree.flatten(self)
        centre = [id(leaf) for leaf in jax.tree.leaves(self.centre)]
        return structure, tuple(_content(leaf) for leaf in leaves if id(leaf) not in centre)

    @property
    def knots(self) -> np.ndarray:
        """Rising times at which the speed of a tabulated schedule jumps: quadrature over t splits there."""
        return np.empty(0)

    @property
    def prior_std(self) -> float:
        """Standard deviation of x - mu at t_max, as samplers draw it."""
        with on_host():
            return float(self.sigma(self.t_max))

    def prior_std_at(self, t: Time) -> Any:
        """Standard deviation of x - mu at time t, as samplers draw it: that of the noise alone.

        A path that assumes the spread of its data counts it in: 1 on variance-preserving ones.
        """
        return self.sigma(t)

    def prior(self, key: Key, like: Like, t: Time | None = None) -> Any:
        """x_t = mu + prior_std_at(t) eps, shaped like `like` (array, ShapeDtypeStruct or a pytree of them).

        Without t it is x_T, at t_max. Below t_max x holds alpha (x_0 - mu) too, which no prior knows.
        """
        if t is None:
            std = self.prior_std
        elif is_traced(t):
            std = self.prior_std_at(t)
        else:
            with on_host():
                std = float(self.prior_std_at(t))
        return self.uncentred(jax.tree.map(lambda a: cast(std, a) * a, self.noise(key, like)))

    def noise(self, key: Key, like: Like) -> Any:
        """eps of x_t = mu + alpha (x_0 - mu) + sigma eps: standard normal on every path but `PFGMpp`."""
        return normal(key, like)

    def perturb(self, x0: State, t: Time, eps: State) -> Any:
        """x_t = mu + alpha (x_0 - mu) + sigma eps at scalar time t."""
        return self.uncentred(axpy(self.alpha(t), self.centred(x0), self.sigma(t), eps))

    def centred(self, x: State) -> Any:
        """x - mu."""
        return x if self.centre is None else _shift(x, self.centre, -1)

    def uncentred(self, y: State) -> Any:
        """y + mu."""
        return y if self.centre is None else _shift(y, self.centre, 1)

    def __repr__(self) -> str:
        """Return one line: the fields that are not the defaults, arrays by shape, long tables by size."""
        shown = [(f, getattr(self, f.name)) for f in dataclasses.fields(self) if f.repr]
        given = [f"{f.name}={short(value)}" for f, value in shown if value is not f.default]
        return f"{type(self).__name__}({', '.join(given)})"


def _content(leaf: Any) -> Any:
    """The value of a leaf, to compare; a list, which has no hash, if it cannot be had or is large."""
    if not isinstance(leaf, np.ndarray | jax.Array):
        return leaf
    if isinstance(leaf, Tracer) or leaf.size > 4096:
        return []
    return str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes()


def short(value: Any, most: int = 60) -> str:
    """`value` on one line: arrays by dtype and shape, what is longer than `most` characters by its size."""
    text = " ".join(eqx.tree_pformat(value, width=10**6).split())
    if len(text) <= most:
        return text
    count = len(jax.tree.leaves(value))
    return f"<{type(value).__name__} of {count}>" if count > 1 else f"{text[: most - 3]}..."


def _shift(x: State, mu: State, sign: int) -> Any:
    """x + sign * mu; mu is a pytree like x, or one array or number for every leaf."""
    if jax.tree.structure(mu) != jax.tree.structure(x):
        if not jax.tree_util.treedef_is_leaf(jax.tree.structure(mu)):
            raise ValueError(
                f"mu is a {jax.tree.structure(mu)}, the state is a {jax.tree.structure(x)}: make them alike"
            )
        mu = jax.tree.map(lambda _: mu, x)

    def leaf(a, m):
        try:
            return a + sign * jnp.broadcast_to(cast(m, a), a.shape)
        except ValueError:
            raise ValueError(f"mu of shape {jnp.shape(m)} does not fit a state of shape {a.shape}") from None

    return jax.tree.map(leaf, x, mu)


def divide(a: Scalar, b: Scalar) -> Any:
    """a/b, infinite where b = 0, python floats included."""
    with np.errstate(divide="ignore"):
        return namespace(a, b).divide(a, b)


class VariancePreserving(Path):
    r"""alpha^2 + sigma^2 = 1, by `log_alpha`: expm1 keeps sigma exact where alpha is near 1. Prior N(0, I).

    Example:
        >>> class Linear(js.paths.VariancePreserving):
        ...     def log_alpha(self, t):
        ...         return -3.0 * t
        >>> path = Linear()
        >>> round(float(path.alpha(0.4) ** 2 + path.sigma(0.4) ** 2), 12), path.prior_std
        (1.0, 1.0)
        >>> f"{path.sigma(1e-20):.3g}"
        '2.45e-10'
    """

    @abstractmethod
    def log_alpha(self, t: Time) -> Any:
        """log alpha at time t, <= 0."""

    def alpha(self, t):
        return namespace(t).exp(self.log_alpha(t))

    def sigma(self, t):
        xp = namespace(t)
        return xp.sqrt(-xp.expm1(2 * self.log_alpha(t)))

    @property
    def prior_std(self):
        return 1.0

    def prior_std_at(self, t):  # that of data of unit variance, at every t
        return self.prior_std
