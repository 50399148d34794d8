r"""The probability flow and the reverse SDE of a denoiser, in the variables that ODE and SDE solvers like.

A solver's time s rises from noise to data: s = -l(t), where the level l is t, rho = sigma/alpha, or
log rho = -lam. State and slope, with eta = 0 for the probability flow, eta = 1 for the reverse SDE (all eta
have the same marginals):

    variable  state y         dy/dl as a form in (x_0 - mu, eps)   variance of the noise per unit of l
    "t"       x - mu          (alpha', sigma' + eta^2 d)           2 eta^2 sigma d
    "rho"     (x - mu)/alpha  (0, 1 + eta^2)                       2 eta^2 rho
    "lam"     (x - mu)/alpha  (0, (1 + eta^2) rho)                 2 eta^2 rho^2

with d = sigma' - sigma alpha'/alpha.

Why rho is not stiff: x = alpha y takes the linear drift out exactly. For the exact eps, what is left has the
Jacobian (I - Cov(x_0|x)/rho^2)/rho: towards the data nothing decays faster than 1/rho, so steps that shrink
like rho are stable whatever the data and the schedule, and accuracy alone sets their number. In lam the same
bound is 1 and steps are nearly equal, so an adaptive solver rejects few: at a tolerance of 1e-5 it takes half
the calls that it takes in rho. Where alpha = 0 (CondOT at t = 1) y is infinite, and "t" is the variable.

A system (a dict of paths) goes from s = -1 to 0. The level of each part goes in proportion from its own t_max
to its own t_min.

References: Song et al. 2021b; Karras et al. 2022, eq. 6; Zhang & Chen 2023 (dy/drho = eps).
"""

import contextlib
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ..convolutions import fast
from ..numerics import Key, Like, Real, Scalar, State, Time, cast, namespace, on_host
from ..paths import Denoiser, Path, convert, grids
from ..paths.predictions import match, weights

if TYPE_CHECKING:
    import diffrax

VARIABLES = ("t", "rho", "lam")
Times = PyTree[Scalar]  # one time, or a dict with one for each part of a system


def level(path: Path, t: Time, variable: str) -> Any:
    return t if variable == "t" else path.rho(t) if variable == "rho" else -path.lam(t)


def _time(path: Path, level: Scalar, variable: str) -> Any:
    """The t of a level; rho = 0 is t = 0, with a finite gradient."""
    if variable == "t":
        return level
    if variable == "lam":
        return path.time(-level)
    xp = namespace(level)
    return xp.where(level > 0, path.time(-xp.log(xp.where(level > 0, level, 1.0))), 0.0)


def _slope(path: Path, t: Time, variable: str, eta: float) -> tuple[Any, Any]:
    if variable != "t":
        return 0.0, (1 + eta**2) * (1.0 if variable == "rho" else path.rho(t))
    a, b = path.alpha_dot(t), path.sigma_dot(t)
    return a, b if eta == 0 else b + eta**2 * (b - path.sigma(t) * a / path.alpha(t))


def _variance(path: Path, t: Time, variable: str, eta: float) -> Any:
    if variable != "t":
        return 2 * eta**2 * path.rho(t) ** (1 if variable == "rho" else 2)
    return (
        2 * eta**2 * path.sigma(t) * (path.sigma_dot(t) - path.sigma(t) * path.alpha_dot(t) / path.alpha(t))
    )


def determined(path: Path, t: float, kind: str, variable: str, eta: float = 0.0) -> bool:
    """Whether a network of this kind determines the slope at t, and the level is finite there."""
    with on_host():
        try:
            weights(path, t, kind, functools.partial(_slope, variable=variable, eta=eta))
        except ValueError:
            return False
        return bool(np.isfinite(level(path, t, variable)))


class Flow(eqx.Module):
    """dy/ds = flow(s, y) without its noise, which is `diffusion`.

    `enter`, `leave`, `s` and `t` map states and times in and out.

    Args:
        spans: for a system, (name, level at its t_min, level at its t_max) of each part; None on one path.
    """

    denoiser: Any  # a Denoiser: __check_init__ says so
    variable: str = eqx.field(static=True, default="rho")
    eta: float = eqx.field(static=True, converter=float, default=0.0)
    spans: tuple | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if not isinstance(self.denoiser, Denoiser):
            raise TypeError(
                "the flow depends on the path: give a js.Denoiser(net, path, kind), not "
                f"{type(self.denoiser).__name__}"
            )
        if self.variable not in VARIABLES:
            raise ValueError(f"unknown variable {self.variable!r}; valid: {', '.join(VARIABLES)}")
        if isinstance(self.denoiser.path, dict) and self.spans is None:
            raise ValueError(
                "a system needs the range of each of its parts: make its Flow by js.bridge.begin"
            )

    def s(self, t: Times) -> Any:
        """Return the solver time of the path's time t; of a system's dict it reads the first by name."""
        if self.spans is None:
            return -level(self.denoiser.path, t, self.variable)
        name, low, high = self.spans[0]
        return (low - level(self.denoiser.path[name], t[name], self.variable)) / (high - low)

    def t(self, s: Scalar) -> Any:
        """Return the path's time at solver time s; a dict for a system."""
        levels = (
            -s if self.spans is None else {name: low - s * (high - low) for name, low, high in self.spans}
        )
        return self.denoiser.each(lambda path, l: _time(path, l, self.variable), levels)

    def enter(self, x: State, t: Times) -> State:
        """y of the state x at time t."""
        return self._scaled(jnp.divide, self.denoiser.centred(x), t)

    def leave(self, y: State, t: Times) -> State:
        """x of the state y at time t."""
        return self.denoiser.uncentred(self._scaled(jnp.multiply, y, t))

    def _scaled(self, f: Callable, y: State, t: Times) -> State:
        if self.variable == "t":
            return y
        return self.denoiser.each(
            lambda path, y, t: jax.tree.map(lambda a: f(a, cast(path.alpha(t), a)), y), y, t
        )

    def denoised(self, x: State, t: Times, end: Times) -> State:
        """Return the data prediction at (x, t), taken to time `end`, where sigma = 0."""
        to_end = lambda path, data, end: path.uncentred(
            jax.tree.map(lambda a: cast(path.alpha(end), a) * a, path.centred(data))
        )
        return self.denoiser.each(to_end, self.denoiser(x, t), end)

    @property
    def _speed(self) -> Any:
        """-dl/ds of each part."""
        return 1.0 if self.spans is None else {name: high - low for name, low, high in self.spans}

    def __call__(self, s: Scalar, y: State, args: Any = None) -> State:
        t = self.t(s)
        x = self.leave(y, t)

        def slope(path, m, x, t, speed):
            a, b = _slope(path, t, self.variable, self.eta)
            return convert(m, x, t, path, source=self.denoiser.kind, target=(-speed * a, -speed * b))

        return self.denoiser.each(slope, match(fast(self.denoiser.net)(x, t), x), x, t, self._speed)

    def diffusion(self, s: Scalar, y: State, args: Any = None) -> Any:
        """Return the diagonal of the noise, the same whatever y, as a lineax operator."""
        import lineax

        def diagonal(path, y, t, speed):
            g = jnp.sqrt(jnp.asarray(_variance(path, t, self.variable, self.eta) * speed))
            return jax.tree.map(lambda a: jnp.full(a.shape, cast(g, a)), y)

        return lineax.DiagonalLinearOperator(self.denoiser.each(diagonal, y, self.t(s), self._speed))


class Ends(NamedTuple):
    """Times of one part: the start, where a solver stops, and the end asked for.

    If stop > end, one data prediction leads there.
    """

    start: float
    stop: float
    end: float


def _ends(path: Path, t_max: Time | None, t_min: Time | None, kind: str, variable: str, eta: float) -> Ends:
    asked = [path.t_max if t_max is None else t_max, path.t_min if t_min is None else t_min]
    start, end = (float(t) for t in grids.checked(path, [float(t) for t in asked]))
    with on_host():
        form = functools.partial(_slope, variable=variable, eta=eta)
        if variable != "t" and path.alpha(start) == 0:
            raise ValueError(
                f"alpha = 0 at t={start:g}, so x/alpha is infinite there: "
                "use variable='t', or a smaller t_max"
            )
        weights(path, start, kind, form)
        if determined(path, end, kind, variable, eta):
            return Ends(start, end, end)
        if path.sigma(end) > 0:
            weights(path, end, kind, form)  # its error says what is missing
        regular = end < path.t_min < start and path.sigma(path.t_min) > 0
        return Ends(start, float(path.t_min) if regular else end + 0.01 * (start - end), end)


def begin(
    denoiser: Callable,
    variable: str,
    eta: float = 0.0,
    t_max: Times | None = None,
    t_min: Times | None = None,
) -> tuple[Flow, Any]:
    """Return the flow between two times, and the `Ends` of its path or of each part of a system.

    The times are by default the path's; of a system each may be a dict. At sigma = 0, where data networks do
    not determine eps, a solver stops at the path's t_min, or at a hundredth of the way.
    """
    paths = getattr(denoiser, "path", None)
    if not isinstance(denoiser, Denoiser) or not isinstance(paths, dict):
        flow = Flow(denoiser, variable, eta)
        return flow, _ends(flow.denoiser.path, t_max, t_min, flow.denoiser.kind, variable, flow.eta)
    each = lambda a: a if isinstance(a, dict) else dict.fromkeys(paths, a)
    ends = denoiser.each(
        lambda path, high, low: _ends(path, high, low, denoiser.kind, variable, eta), each(t_max), each(t_min)
    )
    with on_host():
        at = lambda name, t: float(level(paths[name], t, variable))
        spans = tuple((name, at(name, ends[name].stop), at(name, ends[name].start)) for name in sorted(ends))
    return Flow(denoiser, variable, eta, spans), ends


def brownian_tree(
    solver: "diffrax.AbstractSolver",
    key: Key,
    like: Like,
    s0: Real | jax.Array,
    s1: Real | jax.Array,
    tol: Real | jax.Array,
) -> "diffrax.VirtualBrownianTree":
    """A tree shaped like `like` over solver times [s0, s1], with the Levy area that `solver` needs."""
    import diffrax

    shape = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), like)
    area = diffrax.SpaceTimeLevyArea if hasattr(solver, "minimal_levy_area") else diffrax.BrownianIncrement
    return diffrax.VirtualBrownianTree(s0, s1, tol, shape, key, area)


@contextlib.contextmanager
def lenient():
    """diffrax is written for standard promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
