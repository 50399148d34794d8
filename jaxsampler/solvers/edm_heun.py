r"""Runge-Kutta methods on dy/drho = eps, and churn: EDM's sampler and rhoRK-DEIS.

In y = (x - mu)/alpha and rho = sigma/alpha every Gaussian path has the same probability flow, dy/drho =
eps(x, t), which is straight where eps is constant. An explicit tableau (A, b, c) steps it from rho_t by h =
rho_s - rho_t:

    k_i = eps(alpha_i (y + h sum_j a_ij k_j), t_i),  rho(t_i) = rho_t + c_i h,  y_s = y + h sum_i b_i k_i

A tableau has order p if b . Phi(tree) = 1/gamma(tree) for every rooted tree of at most p nodes [Butcher
1963]. Phi of a tree is the product over its branches of A Phi(branch); gamma is its number of nodes times the
gammas of its branches.

Churn [Karras et al. 2022, alg. 2] first raises the noise level, y + sqrt(hat^2 - rho^2) z at hat = (1 +
gamma) rho, and steps down from there. It keeps the law of y whatever gamma is, so earlier errors are
forgotten at no cost in order.

References: Karras et al. 2022 (EDM); Zhang & Chen 2023 (DEIS, rhoRK); Butcher 1963.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..numerics import Scalar, Time, namespace, on_host, root
from ..paths import EDM, Path
from ..spelling import nearest
from ..tables import Step
from ..tables.authoring import variants
from .exponential import Value, dpm_1, dpmpp_1

HIGHEST = 8  # order up to which the conditions are checked: 200 trees

TABLEAUS = {  # rows of A below the diagonal, b; c are the sums of the rows
    "euler": ([[]], [1]),
    "midpoint": ([[], [1 / 2]], [0, 1]),
    "2heun": ([[], [1]], [1 / 2, 1 / 2]),
    "3kutta": ([[], [1 / 2], [-1, 2]], [1 / 6, 4 / 6, 1 / 6]),
    "3heun": ([[], [1 / 3], [0, 2 / 3]], [1 / 4, 0, 3 / 4]),
    "3ralston": ([[], [1 / 2], [0, 3 / 4]], [2 / 9, 1 / 3, 4 / 9]),
    "3vdh": ([[], [8 / 15], [1 / 4, 5 / 12]], [1 / 4, 0, 3 / 4]),
    "3ssprk": ([[], [1], [1 / 4, 1 / 4]], [1 / 6, 1 / 6, 2 / 3]),
    "4rk": ([[], [1 / 2], [0, 1 / 2], [0, 0, 1]], [1 / 6, 1 / 3, 1 / 3, 1 / 6]),
}

Tableau = tuple[np.ndarray, np.ndarray, np.ndarray]
Given = str | Sequence[Any]  # a name, or (A, b, c) with A square or as its rows below the diagonal


def _tableau(given: Given) -> Tableau:
    """(A, b, c) as arrays."""
    if isinstance(given, str):
        if given not in TABLEAUS:
            raise ValueError(
                f"unknown tableau {given!r}; {nearest(given, TABLEAUS)} Or give a tuple (A, b, c)"
            )
        given = (*TABLEAUS[given], [sum(row) for row in TABLEAUS[given][0]])
    if not isinstance(given, tuple | list) or len(given) != 3:
        raise TypeError(f"a tableau is a name ({', '.join(TABLEAUS)}) or a tuple (A, b, c), got {given!r}")
    b, c = (np.asarray(v, np.float64) for v in given[1:])
    stages = len(b)
    if c.shape != (stages,) or len(given[0]) != stages or any(len(row) > stages for row in given[0]):
        raise ValueError(
            f"a tableau of {stages} stages (the length of b) has {stages} rows of A and {stages} numbers c"
        )
    A = np.array([[*row, *[0.0] * (stages - len(row))] for row in given[0]], np.float64)
    if np.any(np.triu(A) != 0):
        raise ValueError("only explicit tableaus: A must be zero on and above its diagonal")
    if not np.allclose(A.sum(1), c, atol=1e-12):
        raise ValueError(f"c must be the row sums of A, {A.sum(1).tolist()}; got {c.tolist()}")
    return A, b, c


def _trees(nodes: int) -> list[tuple]:
    """Rooted trees with this many nodes, each the sorted tuple of its branches."""

    @functools.cache
    def forests(nodes: int, largest: int) -> list[tuple]:
        """Multisets of trees of at most `largest` nodes each."""
        if nodes == 0:
            return [()]
        found = {
            tuple(sorted((*f, t)))
            for m in range(1, min(nodes, largest) + 1)
            for t in _trees(m)
            for f in forests(nodes - m, m)
        }
        return sorted(found)

    return forests(nodes - 1, nodes - 1)


def _phi_and_gamma(tree: tuple, A: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Elementary weight of each stage, density and number of nodes of a tree."""
    weight, density, nodes = np.ones(len(A)), 1, 1
    for branch in tree:
        phi, gamma, size = _phi_and_gamma(branch, A)
        weight, density, nodes = weight * (A @ phi), density * gamma, nodes + size
    return weight, density * nodes, nodes


def tableau_order(tableau: Given) -> int:
    """Order of accuracy of an explicit tableau, up to 8 [Butcher 1963]; 0 if b does not sum to 1."""
    A, b, _ = _tableau(tableau)
    for order in range(1, min(len(b), HIGHEST) + 1):  # an explicit method has no more orders than stages
        for phi, gamma, _ in (_phi_and_gamma(tree, A) for tree in _trees(order)):
            if abs(b @ phi - 1 / gamma) > 1e-10:
                return order - 1
    return min(len(b), HIGHEST)


def _explicit(path: Path, t: Time, s: Time, x: Value, model: Callable, tableau: Tableau) -> Value:
    """One step of the tableau on dy/drho = eps from t to s."""
    A, b, c = tableau
    y, rho, h = x / path.alpha(t), path.rho(t), path.rho(s) - path.rho(t)
    slopes = [model(x, t)]
    for i in range(1, len(b)):
        at = t if c[i] == 0 else s if c[i] == 1 else path.time(-namespace(h).log(rho + c[i] * h))
        slopes.append(
            model(path.alpha(at) * (y + h * sum(a * k for a, k in zip(A[i], slopes, strict=False))), at)
        )
    return path.alpha(s) * (y + h * sum(w * k for w, k in zip(b, slopes, strict=True)))


@variants
def rk_rho(tableau: Given = "2heun", order: int | None = None) -> Step:
    """An explicit Runge-Kutta method on dy/drho = eps [Zhang & Chen 2023, rhoRK-DEIS].

        k_i = eps(alpha_i (y + h sum_j a_ij k_j), t_i),  rho(t_i) = rho_t + c_i h,  y_s = y + h sum_i b_i k_i

    It makes one call per stage. Steps out of alpha = 0 and into sigma = 0 are those of Euler, because later
    stages would lie at that end.

    Options:
        tableau: euler, midpoint, 2heun, 3kutta, 3heun, 3ralston, 3vdh, 3ssprk, 4rk, or (A, b, c).
        order: what the tableau must reach; ValueError if it does not.

    Example:
        >>> js.solvers.rk_rho(tableau="4rk").order
        4
        >>> js.tabulate(js.CondOT(), [0.9, 0.5, 0.1], js.solvers.rk_rho(tableau="midpoint")).t.round(4)
        array([0.9   , 0.8333, 0.5   , 0.3571])
    """
    chosen, reached = _tableau(tableau), tableau_order(tableau)
    if reached < (1 if order is None else order):
        wanted = 1 if order is None else order
        raise ValueError(f"the order conditions of this tableau hold to order {reached} only, not {wanted}")

    def formula(path, ts, x, past, model, z):
        return _explicit(path, ts[-2], ts[-1], x, model, chosen)

    return Step(formula, "rk_rho", kind="noise", order=reached, to_zero=dpm_1, from_noise=dpmpp_1)


def churn(
    solver: Step,
    s_churn: Scalar,
    s_min: Scalar = 0.0,
    s_max: Scalar = math.inf,
    s_noise: Scalar = 1.0,
    n: int | None = None,
) -> Step:
    """Return a one-step solver that raises the noise level before every step [Karras et al. 2022, alg. 2].

        y <- y + sqrt(hat^2 - rho^2) z,    hat = (1 + gamma) rho,        gamma = min(s_churn/n, sqrt(2) - 1)

    On `EDM`, where time is the noise level, the raised level may exceed t_max, as published; on other paths
    it stops at rho(t_max).

    Args:
        solver: a deterministic one-step solver, such as `edm`, `rk_rho` or `dpm_2`.
        s_churn: total churn of the grid.
        s_min: lowest rho = sigma/alpha at which the level is raised; the step draws its z outside the range
            too.
        s_max: highest such rho.
        s_noise: standard deviation of z.
        n: number of intervals that s_churn is spread over, by default those of the grid; a list of steps
            needs it.

    Example:
        >>> solver = js.solvers.churn(js.solvers.dpm_2, s_churn=1.0)
        >>> table = js.tabulate(js.EDM(), [2.0, 1.0, 0.5], solver)
        >>> table.t.round(4), table.start.round(4)  # the first call is at 2 sqrt(2), after noise is added
        (array([2.8284, 1.6818, 1.4142, 0.8409]), array([1., 2.]))
    """
    if solver.past or solver.states or solver.noises or solver.rule:
        raise ValueError(
            "churn wraps deterministic one-step solvers (edm, rk_rho, dpm_2, dpmpp_2s, ..), not "
            f"{solver.name}"
        )

    def formula(path, ts, x, past, model, z):
        if n is None:
            raise ValueError(
                f"in a list of steps {solver.name} needs the number of intervals that s_churn is spread "
                "over: give n=..."
            )
        t, s = ts[-2:]
        rho = path.rho(t)
        xp = namespace(rho, s_churn, s_min, s_max)
        churned, gamma = (s_min <= rho) & (rho <= s_max), xp.minimum(s_churn / n, math.sqrt(2) - 1)
        with on_host():
            end = math.inf if isinstance(path, EDM) else float(path.rho(path.t_max))
        churned = churned & (rho < end)
        # any positive numbers where there is no churn: what is not used stays differentiable
        rho = xp.where(churned, rho, 1.0)
        gamma = xp.where(churned, gamma if math.isinf(end) else xp.minimum(gamma, end / rho - 1), 1.0)
        raised = xp.where(churned, path.time(-xp.log((1 + gamma) * rho)), t)
        y = x / path.alpha(t) + xp.where(churned, s_noise * rho * root(gamma * (2 + gamma)), 0.0) * z
        return solver.formula(path, [raised, s], path.alpha(raised) * y, past, model, ())

    options = (s_churn, s_min, s_max, s_noise)
    names = ("s_churn", "s_min", "s_max", "s_noise")
    return solver.replace(
        formula=formula,
        noises=1,
        churn=True,
        to_zero=None if solver.to_zero is None else churn(solver.to_zero, *options, n),
        rule=None if n is not None else lambda intervals, _: [churn(solver, *options, intervals)] * intervals,
        make=None,
        given=(*solver.given, *zip(names, options, strict=True)),
        origin=(churn, (solver, *options, n)),
    )


@variants
def edm(
    order: int = 2,
    s_churn: Scalar = 0.0,
    s_min: Scalar = 0.0,
    s_max: Scalar = math.inf,
    s_noise: Scalar = 1.0,
    n: int | None = None,
) -> Step:
    """EDM: Heun's method in (y, rho) with churn, on any path [Karras et al. 2022, alg. 2].

        y_s = y + (rho_s - rho) (eps(y) + eps(y'))/2,        y' = y + (rho_s - rho) eps(y); y' into sigma = 0

    Options:
        order: 2 is Heun, 1 Euler.
        s_churn: total churn; 0 is the deterministic sampler and draws nothing.
        s_min: lowest rho = sigma/alpha at which noise is added.
        s_max: highest such rho.
        s_noise: standard deviation of the draws.
        n: number of intervals that s_churn is spread over, by default those of the grid.

    Example:
        >>> table = js.tabulate(js.EDM(), [2.0, 1.0, 0.5], js.solvers.edm)
        >>> table.t, table.B[-1]
        (array([2. , 1. , 1. , 0.5]), array([-0.25,  1.  , -0.25]))
    """
    if order not in (1, 2):
        raise ValueError(f"edm has orders 1 (Euler) and 2 (Heun), got {order}; rk_rho has more")
    solver = rk_rho(tableau="2heun" if order == 2 else "euler").replace(name="edm", make=None)
    if isinstance(s_churn, int | float) and s_churn == 0:
        return solver
    return churn(solver, s_churn, s_min, s_max, s_noise, n)
