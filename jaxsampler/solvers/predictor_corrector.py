r"""UniPC: an exponential multistep predictor, corrected by the output that the next step needs anyway.

UniP-p is the Taylor step of `exponential` with the derivatives of the polynomial in lam through the outputs
at t and at p - 1 earlier times. UniC-p adds the output at the new time s to them. The step is then one order
more accurate and costs no call, because the next step starts with the output at the *predicted* x_s. An
interval therefore runs: call at the predicted state, correct it, predict the next,

    x_c = x_pred + (step from t to s with the new output) - (step without it)

The two steps differ in their derivatives only, and the end of the grid is never corrected. With one earlier
node bh1 and bh2 replace the exact weight of F' (`vary` keeps it):

    z = h (noise), -h (data)     exact  h^2 phi_2(z)        bh1  h^2/2        bh2  h^2 phi_1(z)/2

An infinite step (out of alpha = 0, into sigma = 0) keeps its first-order part only.

Reference: Zhao et al. 2023 (UniPC), alg. 1 to 4.
"""

import itertools
import math
from collections.abc import Callable, Sequence

from ..numerics import Scalar, Time, namespace, phi
from ..paths import Path
from ..tables import Step
from ..tables.authoring import variants
from .exponential import Value, scaled, taylor

Node = tuple[Scalar, Value]  # lam and the output there


def lagrange(r: Sequence[Scalar], j: int) -> list[Scalar]:
    """Coefficients, constant first, of the polynomial that is 1 at 1/r[j] and 0 at the other 1/r[i].

    One of r may be 0. In reciprocals a node at infinity is a number like any other, also for gradients.
    """
    c: list[Scalar] = [1.0]
    for i, other in enumerate(r):
        if i != j:
            c = [(a - b * other) * (r[j] / (r[j] - other)) for a, b in zip([*c, 0.0], [0.0, *c], strict=True)]
    return c


def parts(at: Node, nodes: Sequence[Node]) -> list[list[Value]]:
    """What each node adds to F', F'', .. at `at` of the polynomial through all of them: [derivative][node].

    g(d) = (F(lam + d) - F(lam))/d is a polynomial with known values at the nodes, and F^(k) = k! [d^(k-1)] g.
    A node at infinite lam drops out.
    """
    lam, value = at
    r = [1 / (lam_j - lam) for lam_j, _ in nodes]
    g = [(F - value) * r_j for r_j, (_, F) in zip(r, nodes, strict=True)]
    basis = [lagrange(r, j) for j in range(len(r))]
    return [[math.factorial(k) * basis[j][k - 1] * g[j] for j in range(len(r))] for k in range(1, len(r) + 1)]


def derivatives(at: Node, nodes: Sequence[Node]) -> list[Value]:
    """[F', F'', ..] at `at` of the polynomial through it and the nodes, one for each node."""
    return [sum(terms) for terms in parts(at, nodes)]


def exponent(path: Path, t: Time, s: Time, kind: str | Callable) -> tuple[Scalar, Scalar]:
    """Return the step in lam and the z of its weights phi_k(z); both are 0 for an infinite step."""
    h = path.lam(s) - path.lam(t)
    h = namespace(h).where(namespace(h).isinf(h), 0.0, h)
    return h, -h if kind == "data" else h


def increment(path: Path, t: Time, s: Time, slopes: Sequence[Value], kind: str) -> Value:
    """What the derivatives [F', F'', ..] at t add to the first-order step to s."""
    h, z = exponent(path, t, s, kind)
    scale = path.alpha(s) if kind == "data" else -path.sigma(s)
    return sum(scale * h ** (k + 1) * phi(k + 1, z) * d for k, d in enumerate(slopes, 1))


def relaxed(variant: str, z: Scalar) -> Scalar:
    """Factor on F' that turns its exact weight h^2 phi_2(z) into that of bh1 or bh2."""
    return {"bh1": 1.0, "bh2": phi(1, z), "vary": 2 * phi(2, z)}[variant] / (2 * phi(2, z))


def _published_corrector(terms: list[list[Value]], h: Scalar) -> list[Value]:
    """As released: the new node enters the highest derivative only, by its share in the one below."""
    return [sum(old) for _, *old in terms[:-1]] + ([terms[-2][0] / h] if len(terms) > 1 else [terms[0][0]])


def _step(predictor: int, corrector: int, variant: str, kind: str, published: bool) -> Step:
    """Correct the interval before by UniC-`corrector` (0: not at all), then predict by UniP-`predictor`."""

    def slopes(path, ts, nodes, published=False):
        """[F', F'', ..] at ts[-2] for the step to ts[-1]; nodes: (lam, output), that at ts[-2] first."""
        h, z = exponent(path, ts[-2], ts[-1], kind)
        if len(nodes) == 2:
            return [relaxed(variant, z) * derivatives(nodes[0], nodes[1:])[0]]
        return (
            _published_corrector(parts(nodes[0], nodes[1:]), h)
            if published
            else derivatives(nodes[0], nodes[1:])
        )

    def formula(path, ts, x, past, model, z, *, relax=(), relax_before=()):
        m = model(x, ts[-2])
        new, *old = nodes = list(zip((path.lam(t) for t in ts[:-1][::-1]), [m, *past], strict=False))
        if corrector:
            with_new = slopes(path, ts[:-1], [old[0], new, *old[1:corrector]], published)
            without = slopes(path, ts[:-1], old[:corrector])
            change = [a - b for a, b in itertools.zip_longest(with_new, without, fillvalue=0.0)]
            x = x + increment(path, ts[-3], ts[-2], scaled(change, relax_before), kind)
        ahead = taylor(path, ts[-2], ts[-1], x, [m], kind)
        return ahead + increment(
            path, ts[-2], ts[-1], scaled(slopes(path, ts, nodes[:predictor]), relax), kind
        ), x

    name = f"uni{'pc' if corrector else 'p'}_{predictor}"
    return Step(formula, name, kind=kind, order=predictor, past=max(predictor - 1, corrector))


@variants
def unipc(
    order: int = 3, variant: str = "bh2", kind: str = "data", corrector: bool = True, published: bool = False
) -> Step:
    """UniPC, predictor and corrector of any order [Zhao et al. 2023, alg. 1 and 2].

        x_s = DDIM(x_c) + alpha_s sum_k h^{k+1} phi_{k+1}(-h) F^(k)

    with x_c the corrected state and F^(k) the derivatives of the polynomial through `order` outputs.

    UniPC-p has order p + 1 and UniP-p order p without `lower_order_final` (it is on by default) and with a
    good enough start; with its own lower orders as the start, they reach 3 and 2. Saved states are the
    predicted ones. In a list of steps, which is taken literally, `unipc` corrects what UniP of its order
    predicted.

    Options:
        order: p, any positive integer.
        variant: weight of F', "bh1", "bh2" or "vary" (exact).
        kind: what is extrapolated, "data" or "noise".
        corrector: False is UniP.
        published: the corrector of "vary" as released, which has order 1.
        lower_order_final: end the grid with orders .., 2, 1.

    Example:
        >>> grid = [0.9, 0.7, 0.5, 0.3, 0.1]
        >>> js.tabulate(js.CondOT(), grid, js.solvers.unipc(order=2)).B[-1].round(4)
        array([ 0.7317,  0.0557, -0.1207])
        >>> js.tabulate(js.CondOT(), grid, js.solvers.unipc(order=2, corrector=False)).B[-1].round(4)
        array([0.6667, 0.    ])
    """
    if variant not in ("bh1", "bh2", "vary") or kind not in ("data", "noise"):
        raise ValueError(
            f"unipc has no variant={variant!r}, kind={kind!r}; valid: bh1, bh2, vary and data, noise"
        )
    if not isinstance(order, int) or order < 1:
        raise ValueError(f"the order of unipc is a positive integer, got {order!r}")
    if published and variant != "vary":
        raise ValueError(
            f'published=True is the released corrector of variant="vary"; {variant!r} has no other '
            "corrector: leave it out"
        )

    def pair(p: int, c: int) -> Step:
        return _step(p, c if corrector else 0, variant, kind, published)

    def rule(n: int, lower_order_final: bool) -> list[Step]:
        orders = [min(i + 1, order, n - i if lower_order_final else order) for i in range(n)]
        pairs = list(zip(orders, [0, *orders], strict=False))
        steps = {pc: pair(*pc) for pc in dict.fromkeys(pairs)}
        return [steps[pc] for pc in pairs]

    whole = pair(order, order)
    return Step(
        whole.formula, "unipc", kind=kind, order=order, past=whole.past, rule=rule, lower_order_final=True
    )
