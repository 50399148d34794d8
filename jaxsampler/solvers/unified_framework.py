r"""The unified sampling framework (USF): a step with every choice free, and schedules of them to search over.

The step from a point t to the next grid time is the Taylor step of `exponential` (or `fitted_kind`), and a
`Decision` says how to take it:

    kind         what is extrapolated in lam: data, noise, or a `FittedKind`; past outputs are converted to it
    start        the state it starts from: -1 the latest, -k the k-th latest (single-step methods go back)
    order        p, the number of Taylor terms F, F', .., F^(p-1)
    nodes        m_k >= k: F^(k) is that of the polynomial through the start and m_k other outputs, newer ones
                 (nearest first), then older ones
    relaxation   a factor on F' that is 1 + O(h)
    corrector    pseudo-corrector: once the output at the new point is known, redo the step to it with that
                 output among the nodes. The state is replaced, the output stays, nothing is called again;
                 the end of the grid is not corrected.

2M, 2S, UniPC and their mixtures are points of this space. The first step may be analytic: it takes the output
at T as known (x0 = 0), which saves a call.

Reference: Liu et al. 2023 (USF: a unified sampling framework for solver searching of diffusion probabilistic
models), sec. 4.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ..numerics import Scalar, State, Time, axpy, namespace
from ..paths import Denoiser, Path
from ..paths.predictions import linear_form, weights
from ..spelling import nearest
from ..tables import Step
from .exponential import Times, Value, taylor
from .fitted_kind import FittedKind
from .predictor_corrector import derivatives, exponent, increment, relaxed

RELAXATIONS: dict[str, Callable] = {  # of z = h for noise, -h for data
    "dpmsolver-2": lambda z: relaxed("bh2", z),
    "unipc-bh2": lambda z: relaxed("bh2", z),
    "unipc-bh1": lambda z: relaxed("bh1", z),
    "0.5exp": lambda z: 1 + namespace(z).expm1(z) / 2,
    "-0.5exp": lambda z: 1 - namespace(z).expm1(z) / 2,
}


@dataclasses.dataclass(frozen=True)
class Decision:
    """How to take one step of the unified framework [Liu et al. 2023, sec. 4].

    The i-th step of a schedule admits orders up to i and starts down to -i.

    Attributes:
        order: p, the number of Taylor terms F, F', .., F^(p-1).
        kind: what is extrapolated in lam, "data", "noise" or a `FittedKind`.
        start: the state it starts from, -1 the latest, -k the k-th latest.
        nodes: (m_1, .., m_{p-1}), the number of outputs that each derivative uses; None is all p - 1 ("full
            order").
        relaxation: factor on F'. None, a name (dpmsolver-2, unipc-bh1, unipc-bh2, 0.5exp, -0.5exp; data and
            noise only), or ("linear", c) for 1 + c h, where c may be traced.
        corrector: order (2 or more) of the pseudo-corrector of the state that this step leads to; None is no
            corrector.

    Example:
        >>> plan = [js.solvers.Decision(), js.solvers.Decision(order=2, relaxation="dpmsolver-2")]
        >>> table = js.tabulate(js.CondOT(), [0.9, 0.5, 0.1], js.solvers.usf(plan))
        >>> two_m = js.tabulate(js.CondOT(), [0.9, 0.5, 0.1], js.solvers.dpmpp_2m)
        >>> np.allclose(sorted(table.B[-1]), sorted(two_m.B[-1]))
        True
    """

    order: int = 1
    kind: str | FittedKind = "data"
    start: int = -1
    nodes: tuple[int, ...] | None = None
    relaxation: Any = None
    corrector: int | None = None

    def __post_init__(self):
        if self.order < 1 or self.start > -1:
            raise ValueError(
                f"a decision has order >= 1 and start <= -1 (the latest state); got order={self.order}, "
                f"start={self.start}"
            )
        if not isinstance(self.kind, FittedKind) and self.kind not in ("data", "noise"):
            raise ValueError(f"a decision's kind is 'data', 'noise' or a FittedKind, got {self.kind!r}")
        if len(self.counts) != self.order - 1 or any(m < k for k, m in enumerate(self.counts, 1)):
            raise ValueError(
                f"order={self.order} needs nodes (m_1, ..) for {self.order - 1} derivatives, m_k >= k; got "
                f"{self.nodes}"
            )
        if self.corrector is not None and self.corrector < 2:
            raise ValueError(
                "a corrector is of order 2 or more (order 1 does not use the new output); got "
                f"{self.corrector}"
            )
        self._check_relaxation()

    def _check_relaxation(self):
        chosen = self.relaxation
        if chosen is None:
            return
        if self.order == 1:
            raise ValueError("a relaxation scales F', which a decision of order 1 does not use: leave it out")
        if isinstance(chosen, tuple) and len(chosen) == 2 and chosen[0] == "linear":
            return
        if chosen not in RELAXATIONS:
            hint = nearest(str(chosen), [*RELAXATIONS, "('linear', c)"])
            raise ValueError(f"unknown relaxation {chosen!r}; {hint}")
        if isinstance(self.kind, FittedKind):
            raise ValueError(
                f"relaxation {chosen!r} belongs to the weights of data and noise; a FittedKind takes "
                "('linear', c)"
            )

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of nodes of each derivative."""
        return (self.order - 1,) * (self.order - 1) if self.nodes is None else self.nodes

    @property
    def points(self) -> list[int]:
        """Grid points that it uses, as numbers of steps back, the start first."""
        start, count = -self.start - 1, max(self.counts, default=0)
        newer = list(range(start - 1, -1, -1))
        return [start, *(newer + [start + j for j in range(1, count + 1)])[:count]]


def advance(
    path: Path,
    s: Time,
    x: Value,
    points: Sequence[tuple],
    counts: Sequence[int],
    kind: Any,
    relax: Callable | None = None,
) -> Value:
    """Return the state at s by a Taylor step from state x; points: (time, output), that of x first."""
    (t, F), *_ = points
    if isinstance(kind, FittedKind):
        points = [(q, kind.factor(path, t, q) * f) for q, f in points]
    at, *nodes = [(path.lam(q), f) for q, f in points]
    slopes = [derivatives(at, nodes[:m])[k] for k, m in enumerate(counts)]
    if relax is not None:
        slopes[0] = relax(*exponent(path, t, s, kind)) * slopes[0]
    if isinstance(kind, FittedKind):
        return kind.step(path, t, s, x, [F, *slopes])
    return taylor(path, t, s, x, [F], kind) + increment(path, t, s, slopes, kind)


def predict(
    d: Decision, path: Path, s: Time, x: Value, times: Times, outputs: Sequence[Value], c: Scalar | None
) -> Value:
    """Take the step of `d` from state x; times and outputs of the points, newest first."""
    relax = None
    if isinstance(d.relaxation, tuple):
        relax = lambda h, z: 1 + c * h
    elif d.relaxation is not None:
        relax = lambda h, z: RELAXATIONS[d.relaxation](z)
    return advance(path, s, x, [(times[j], outputs[j]) for j in d.points], d.counts, d.kind, relax)


def _step(d: Decision, before: Decision) -> Step:
    """Correct the state that `before` led to, if it says so, then take the step of `d`."""
    order = before.corrector or 0
    foreign = order > 0 and before.kind != d.kind

    def correct(path, x, past, times, outputs, c):
        """Redo the step of `before` from its own start, with outputs[0]; its prediction was x."""
        if foreign:  # in the kind that was extrapolated
            pairs = [weights(path, t, d.kind, before.kind) for t in times[: reads + 1]]
            outputs = [u * y + w * m for (u, w), y, m in zip(pairs, [x, *past.inputs], outputs, strict=False)]
        points = [(times[j], outputs[j]) for j in (1, 0, *range(2, order))]
        counts = (order - 1,) * (order - 1)
        if before.start < -1:
            return advance(path, times[0], past.x[0], points, counts, before.kind)
        # both steps start from one state: only their difference counts, and the state need not be kept
        predicted = predict(before, path, times[0], 0.0 * x, times[1:], outputs[1:], c)
        return x + (advance(path, times[0], 0.0 * x, points, counts, before.kind) - predicted)

    def formula(path, ts, x, past, model, z, *, c=None, c_before=None):
        times, outputs = ts[-2::-1], [model(x, ts[-2]), *past]
        if order:
            x = correct(path, x, past, times, outputs, c_before)
        return predict(d, path, ts[-1], [x, *past.x][d.points[0]], times, outputs, c), x

    reads, states = 0, d.points[0]  # past outputs and states that `correct` reads
    if order:
        reads = max(order - 1, *(j + 1 for j in before.points)) if before.start == -1 else order - 1
        states = max(states, int(before.start < -1))
    made = Step(
        formula,
        f"usf_{d.order}",
        kind=d.kind,
        order=d.order,
        past=max(*d.points, reads),
        states=states,
        inputs=reads if foreign else 0,
    )
    constants = {"c": d.relaxation, "c_before": before.relaxation if order else None}
    return made(**{name: r[1] for name, r in constants.items() if isinstance(r, tuple)})


def _no_data(published: bool) -> Callable:
    """The output if x0 is mu: eps = x/sigma. As released, the data kind is (x - sigma x)/alpha, not 0."""

    def assumed(path, t, kind):
        if published and kind == "data":
            return (1 - path.sigma(t)) / path.alpha(t)
        return linear_form(path, t, kind)[1] / path.sigma(t)

    return assumed


def usf(decisions: Sequence[Decision], *, first: str = "none", published: bool = False) -> list[Step]:
    """Return a list of steps for `js.tabulate`, one for each decision [Liu et al. 2023, sec. 4].

    Args:
        first: "zero_x0" takes the first output as known, x0 = 0 (or mu of the path), and saves its call: n
            intervals cost n - 1 calls, and saved states begin at the second grid point. Data of another mean
            are shifted to 0 by `shift_data`.
        published: the inconsistent first output of the released code.

    Example:
        >>> Decision, usf = js.solvers.Decision, js.solvers.usf
        >>> plan = [Decision(corrector=2), Decision(order=2), Decision(order=2, start=-2)]
        >>> grid = [0.9, 0.6, 0.3, 0.1]
        >>> [js.tabulate(js.CondOT(), grid, usf(plan, first=first)).nfe for first in ("none", "zero_x0")]
        [3, 2]
    """
    if first == "average_x0":
        raise ValueError(
            "average_x0 is first='zero_x0' on data shifted to mean 0: shift it with "
            "js.solvers.shift_data(denoiser, mean)"
        )
    if first not in ("none", "zero_x0"):
        raise ValueError(f"first must be 'none' or 'zero_x0', got {first!r}")
    if published and first == "none":
        raise ValueError("published=True is about the first output of first='zero_x0': leave it out")
    for i, d in enumerate(decisions):
        if max(d.points) > i or (d.corrector or 0) > i + 2:
            reach = (
                f"{max(d.points)} points back" if max(d.points) > i else f"a corrector of order {d.corrector}"
            )
            raise ValueError(
                f"decision {i} wants {reach}, with {i} points before it: lower its order, nodes, start or "
                "corrector"
            )
    steps = [_step(d, before) for d, before in zip(decisions, [Decision(), *decisions], strict=False)]
    if first == "zero_x0" and steps:
        steps[0] = steps[0].replace(assumed=_no_data(published))
    return steps


class _Shifted(eqx.Module):
    denoiser: Denoiser
    by: State

    def __call__(self, x: State, t: Time) -> State:
        path: Any = self.denoiser.path
        kind = self.denoiser.kind
        by = jax.tree.map(lambda b, a: jnp.broadcast_to(jnp.asarray(b), a.shape), self.by, x)
        m = self.denoiser.net(axpy(1.0, x, path.alpha(t), by), t)
        return axpy(1.0, m, -path.form(kind, t)[0], by)


def shift_data(denoiser: Denoiser, by: State) -> Denoiser:
    """Return the denoiser of the data x0 - `by`: its state is x - alpha(t) by, at every t.

    Start it from x_T - alpha(t_max) by, and add alpha(0) by to its sample; the prior is the same.

    Args:
        by: a pytree like the state, or one that broadcasts to it.

    Example:
        >>> denoiser = js.Denoiser(lambda x, t: 0 * x + 3.0, js.CondOT(), "data")
        >>> js.solvers.shift_data(denoiser, jnp.asarray(2.0))(jnp.zeros(2), jnp.asarray(0.5))
        Array([1., 1.], dtype=float32)
    """
    return Denoiser(_Shifted(denoiser, by), denoiser.path, denoiser.kind)
