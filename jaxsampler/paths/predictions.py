r"""What a network predicts, and how any prediction becomes any other.

Every prediction at (x, t) is a linear form a (x_0 - mu) + b eps in the unknown data and noise; so is the
state itself:

    x - mu    (alpha, sigma)          data      (1, 0)  (+ mu)        noise   (0, 1)
    score     (0, -1/sigma)           velocity  (alpha', sigma') = dx/dt
    v         (-sigma, alpha)         (MeanReverting: (-sigma/std, alpha std), in units of x)

Two of these determine (x_0, eps), hence any third: one 2x2 solve converts any kind to any other, conditional
means included. Because a kind is two numbers, the kind a solver wants from a row is data, not code.
"""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ..convolutions import fast
from ..numerics import Key, Like, Scalar, State, Time, axpy, is_traced, namespace
from ..spelling import nearest
from .base import KINDS, Path

ALIASES = {  # what other libraries call the same predictions
    "x0": "data",
    "sample": "data",
    "eps": "noise",
    "epsilon": "noise",
    "flow": "velocity",
    "v_prediction": "v",
}
Kind = str | tuple[Scalar, Scalar] | Callable[[Path, Time], tuple[Scalar, Scalar]]


def kind_of(kind: Any) -> Any:
    """The kind, a name by the one that the library uses.

    Raises:
        ValueError: if there is no such kind.
    """
    if not isinstance(kind, str):
        return kind
    kind = ALIASES.get(kind, kind)
    if kind not in KINDS:
        raise ValueError(f"unknown prediction kind {kind!r}; {nearest(kind, (*KINDS, *ALIASES))}")
    return kind


def linear_form(path: Path, t: Time, kind: Kind) -> tuple[Any, Any]:
    """(a, b) of a kind: its name, the two numbers themselves, or a function (path, t) -> (a, b)."""
    if isinstance(kind, str):
        return path.form(kind, t)
    return kind(path, t) if callable(kind) else kind


def weights(path: Path, t: Time, source: Kind, target: Kind) -> tuple[Any, Any]:
    """(u, w) with target = u (x - mu) + w source, both predictions as linear forms in (x_0 - mu, eps)."""
    alpha, sigma = path.alpha(t), path.sigma(t)
    scaled = source == "score" and target != "score"  # noise = -sigma score is finite where sigma = 0
    known = "noise" if scaled else source
    (sa, sb), (ta, tb) = (linear_form(path, t, k) for k in (known, target))
    xp = namespace(t, alpha, sigma, sa, sb, ta, tb)
    with np.errstate(all="ignore"):
        det = alpha * sb - sigma * sa
        cross = ta * sb - tb * sa
        same = (
            cross == 0
        )  # target is a multiple of source: exact, also where the state alone tells nothing (sigma = 0)
        det = xp.where(same, 1.0, det)
        u = xp.where(same, 0.0, cross / det)
        w = xp.where(same, (ta * sa + tb * sb) / (sa**2 + sb**2), (alpha * tb - sigma * ta) / det)
        w = -sigma * w if scaled else w
    bad = np.zeros(()) if is_traced(u, w) else ~(np.isfinite(u) & np.isfinite(w))
    if np.any(bad):
        raise ValueError(_undetermined(path, source, target, bad, t, alpha, sigma, ta, tb))
    return u, w


def _undetermined(path: Path, source: Kind, target: Kind, where: np.ndarray, *values: Any) -> str:
    """Why `target` cannot be had of `source`, at the first time of those where it cannot."""
    first = int(np.argmax(where))
    t, alpha, sigma, a, b = (float(np.broadcast_to(v, where.shape).flat[first]) for v in values)
    forms = {kind: linear_form(path, t, kind) for kind in ("data", "noise", "velocity", "v")}
    named = [kind for kind, form in forms.items() if np.allclose(np.asarray(form, float), (a, b))]
    target = target if isinstance(target, str) else named[0] if named else f"{a:g} x_0 + {b:g} eps"
    inside = f"end the grid at {path.t_min or 0.01 * path.t_max:g}"
    inside = inside if sigma == 0 else f"start the grid at {0.999 * path.t_max:g}"
    return (
        f"a {source!r} prediction does not determine {target!r} at t={t:g} "
        f"(alpha={alpha:g}, sigma={sigma:g}): keep the grid away from that end ({inside}), "
        "or use a network of another kind"
    )


def convert(m: State, x: State, t: Time, path: Path, *, source: Kind, target: Kind) -> State:
    """Turn the prediction `m` of kind `source`, made at state x and scalar time t, into one of kind `target`.

    Args:
        source: "data", "noise", "score", "velocity" or "v", or another word for one of them.
        target: one of these, or numbers (a, b) for a (x_0 - mu) + b eps, or a function (path, t) -> (a, b).

    Example:
        >>> x_0, eps, path = jnp.array([1.0]), jnp.array([3.0]), js.CondOT()
        >>> x = path.perturb(x_0, 0.25, eps)
        >>> js.convert(x_0, x, 0.25, path, source="data", target="velocity").tolist()  # eps - x_0
        [2.0]
    """
    source, target = kind_of(source), kind_of(target)
    if isinstance(source, str) and source == target:
        return m
    u, w = weights(path, t, source, target)
    m = path.centred(m) if source == "data" else m
    out = axpy(u, path.centred(x), w, m)
    return path.uncentred(out) if isinstance(target, str) and target == "data" else out


def _opened(net: Callable) -> Callable:
    """A functools.partial as a pytree: weights and conditioning bound by it are leaves for gradients."""
    return (
        eqx.Partial(_opened(net.func), *net.args, **net.keywords) if type(net) is functools.partial else net
    )


def _named(kind: str) -> str:
    return ALIASES.get(kind, kind)


class Denoiser(eqx.Module):
    """A network with the path it was trained on and the kind of prediction that it makes.

    Weights and conditioning are leaves of the network (a pytree, as equinox and Flax NNX modules are), bound
    by `functools.partial(apply, params)`, or closed over; what differs from step to step comes as a third
    argument (`per_step` of `run`). The network may compute in another float precision: its output is cast to
    the dtype of x.

    A system of diffusions is one network with a path per part: x is a dict, `path` a dict of paths with the
    same names, and `net` gets a dict of times.

    Args:
        net: any callable (x, t) with x a pytree and t a scalar in the dtype of x (float32 at least).
        path: the `js.Path` it was trained on, or a dict of them.
        kind: "data" ("x0", "sample"), "noise" ("eps", "epsilon"), "score", "velocity" ("flow") or "v"
            ("v_prediction").

    Example:
        >>> denoiser = js.Denoiser(lambda x, t: 0 * x, js.CondOT(), "noise")
        >>> denoiser(jnp.ones(2), 0.5).tolist()  # x_0 = (x - t eps)/(1 - t)
        [2.0, 2.0]
        >>> denoiser
        Denoiser(net=<lambda>, path=CondOT(), kind='noise')
    """

    net: Callable = eqx.field(converter=_opened)
    path: Path | dict[str, Path]
    kind: str = eqx.field(static=True, converter=_named)

    def __check_init__(self):
        kind_of(self.kind)
        for path in self.path.values() if isinstance(self.path, dict) else [self.path]:
            if isinstance(path, type) and issubclass(path, Path):
                raise TypeError(f"path is the class {path.__name__}: make one, js.{path.__name__}()")
            if not isinstance(path, Path):
                raise TypeError(
                    "path must be a js.Path (or a dict of them, one for each part of the state), got "
                    f"{type(path).__name__}"
                )

    def __repr__(self) -> str:
        """Return one line: the network by name only."""
        net: Any = self.net
        while isinstance(net, eqx.Partial | functools.partial):
            net = net.func
        name, path = getattr(net, "__name__", type(net).__name__), repr(self.path)
        if isinstance(self.path, dict) and len(path) > 100:
            path = f"<{len(self.path)} paths>"
        return f"{type(self).__name__}(net={name}, path={path}, kind={self.kind!r})"

    def __call__(
        self, x: State, t: Time | dict[str, Time], kind: Kind = "data", *extra: State | None
    ) -> State:
        """Return the prediction of the wanted kind at x and scalar time t; the network gets `extra` too."""
        m = called(self.net, x, t, *extra)
        return self.each(lambda path, m, x, t: convert(m, x, t, path, source=self.kind, target=kind), m, x, t)

    def in_loop(self) -> "Denoiser":
        """Return the denoiser for use inside a loop: its convolutions are fast there on CPUs too."""
        return Denoiser(fast(self.net), self.path, self.kind)

    def bind(self, **conditions: Any) -> "Denoiser":
        """Return the denoiser under conditions, keywords of its network: `denoiser.bind(label=7)`.

        Bound again, they change.
        """
        net = self.net if isinstance(self.net, eqx.Partial) else eqx.Partial(self.net)
        return Denoiser(
            eqx.Partial(net.func, *net.args, **{**net.keywords, **conditions}), self.path, self.kind
        )

    def each(self, f: Callable, *trees: PyTree) -> PyTree:
        """Return f(path, tree, ..) for each part of a system; a plain denoiser has one part."""
        return each(self.path, f, *trees)

    def spread(self, value: Any) -> Any:
        """The same value for each part of a system, unless it is a dict already."""
        return spread(self.path, value)

    def centred(self, x: State) -> State:
        """x - mu."""
        return self.each(lambda path, x: path.centred(x), x)

    def uncentred(self, y: State) -> State:
        """y + mu."""
        return self.each(lambda path, y: path.uncentred(y), y)

    def prior(self, key: Key, like: Like, t: Time | dict[str, Time] | None = None) -> State:
        """x_T, shaped like `like`; x_t, as far as it is noise, at another time than t_max."""

        def draw(path, key, like, t):
            at_end = t is None or (not is_traced(t) and float(t) == path.t_max)
            return path.prior(key, like) if at_end else path.prior(key, like, t)

        return self._drawn(draw, key, like, self.spread(t))

    def noise(self, key: Key, like: Like) -> State:
        """eps of x_t, shaped like `like`."""
        return self._drawn(lambda path, key, like: path.noise(key, like), key, like)

    def _drawn(self, draw: Callable, key: Key, *trees: PyTree) -> State:
        """draw(path, key, *trees), with a key of its own for each part of a system."""
        if not isinstance(self.path, dict):
            return draw(self.path, key, *trees)
        keys = dict(zip(sorted(self.path), jax.random.split(key, len(self.path)), strict=True))
        return self.each(draw, keys, *trees)


def each(path: Path | dict[str, Path], f: Callable, *trees: PyTree) -> PyTree:
    """`Denoiser.each`: eager calls use it, where a method of a module costs more than its work."""
    if not isinstance(path, dict):
        return f(path, *trees)
    for tree in trees:
        if not isinstance(tree, dict) or tree.keys() != path.keys():
            array = "an array" if isinstance(tree, jax.Array) else type(tree).__name__
            names = sorted(tree) if isinstance(tree, dict) else array
            raise ValueError(
                f"the denoiser has paths for {sorted(path)}: give a dict with these names, not {names}"
            )
    return {name: f(one, *(tree[name] for tree in trees)) for name, one in path.items()}


def spread(path: Path | dict[str, Path], value: Any) -> Any:
    """`Denoiser.spread`."""
    return value if isinstance(value, dict) or not isinstance(path, dict) else dict.fromkeys(path, value)


def called(net: Callable, x: State, t: Time | dict[str, Time], *extra: PyTree) -> State:
    """The network's output, in the dtype of the state; what it raises says how it was called."""
    try:
        return match(net(x, t, *extra), x)
    except Exception as e:
        note = _how_called(x, t, *extra)
        if note not in getattr(e, "__notes__", ()):
            e.add_note(note)
        raise


def _how_called(x: State, t: Any, *extra: Any) -> str:
    shown = [eqx.tree_pformat(jax.tree.map(jnp.asarray, a), width=10**6) for a in (x, t)]
    more = "".join(f", {eqx.tree_pformat(a, width=10**6)}" for a in extra)
    batch = jax.tree.leaves(x)[0]
    hint = (
        "t is a scalar; a network that takes one time for each sample gets "
        "lambda x, t: net(x, jnp.full(len(x), t))"
        if jnp.ndim(batch)
        else "x is a single number"
    )
    return f"called as net(x: {shown[0]}, t: {shown[1]}{more}): {hint}"


def match(m: PyTree, x: State) -> State:
    """Return a model output in the dtype of the state.

    Raises:
        TypeError, ValueError: if its structure, shape or type is not that of the state.
    """
    if jax.tree.structure(m) != jax.tree.structure(x):
        raise TypeError(
            f"the network returned a {jax.tree.structure(m)}, the state is a {jax.tree.structure(x)}"
        )

    def leaf(a, b):
        if jnp.shape(a) != jnp.shape(b):
            raise ValueError(
                f"the network returned shape {jnp.shape(a)} for a state of shape {jnp.shape(b)}; "
                "they must be equal"
            )
        a = jnp.asarray(a)
        if not jnp.issubdtype(a.dtype, jnp.floating):
            raise TypeError(
                f"the network returned dtype {a.dtype} for a state of {jnp.asarray(b).dtype}; return floats"
            )
        return a.astype(jnp.asarray(b).dtype)

    return jax.tree.map(leaf, m, x)
