r"""Adams-Bashforth in rho = sigma/alpha: DEIS (tAB, rhoAB) and the linear multistep method of k-diffusion.

In y = x/alpha the probability flow is dy/drho = eps, so a step from t to s is a DDIM step with the noise
averaged over it,

    x_s = DDIM(x_t, sum_j c_j eps_j),    c_j = 1/(rho_s - rho_t) int L_j drho from rho_t to rho_s,

where L_j are the Lagrange polynomials of the times of the last outputs: polynomials in rho for rhoAB, in t
for tAB. Because drho = g^2/(2 sigma alpha) dt this is eq. 15 of the paper. All integrals are Gaussian
quadrature. It is exact for rhoAB; for tAB it runs over lam, because t(lam) is analytic in a strip, panel by
panel between the knots of a tabulated schedule. The released code sums 10^4 left rectangles
(`published=True`), with errors of 1e-4 to 6e-2 in the weights. `order` counts accuracy: order 3 is tAB2.

References: Zhang & Chen 2023 (DEIS); Crowson 2022 (k-diffusion).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..numerics import Arr, Scalar, Time, namespace
from ..paths import Path
from ..tables import Step
from ..tables.authoring import ramp, variants
from .exponential import Times, Value, dpm_1, taylor

RECTANGLES = 10_000
MOST = 10.0  # to which the sizes of the weights of a step into sigma = 0 may add up


@functools.cache
def gauss(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of Gauss-Legendre quadrature for the mean over [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(n)
    return (1 + x) / 2, w / 2


def lagrange(nodes: Sequence[Value], j: int, u: Value) -> Value:
    """L_j(u): 1 at node j, 0 at the others."""
    return math.prod((u - v) / (nodes[j] - v) for i, v in enumerate(nodes) if i != j)


def over(values: Arr, like: Scalar) -> Arr:
    """Return numbers as an axis of their own, ahead of those of `like`."""
    xp = namespace(like)
    return xp.asarray(values, xp.asarray(like).dtype).reshape(-1, *[1] * np.ndim(like))


def quadrature(path: Path, t: Any, s: Any) -> tuple[Arr, Arr]:
    """Return times t_k and weights: sum_k w_k f(t_k) is the mean of f over the step with respect to rho."""
    xp = namespace(path.lam(t), path.lam(s))
    x, w = (over(v, path.lam(t))[None] for v in gauss(16 if len(path.knots) else 64))
    between = xp.clip(over(path.knots[::-1], path.lam(t)), s, t)  # those outside the step give empty panels
    lam = path.lam(xp.concatenate([t[None], between, s[None]]))
    left, h = lam[:-1, None], xp.diff(lam, axis=0)[:, None]
    nodes = (left + h * x).reshape(-1, *np.shape(t))
    mass = (h * w).reshape(-1, *np.shape(t)) * xp.exp(-nodes)  # drho = -rho dlam
    return path.time(nodes), mass / mass.sum(0)


def rectangles(path: Path, t: Time, s: Time) -> tuple[Arr, Arr]:
    """The same by the released code's left rectangles, equal in t."""
    xp = namespace(t, s)
    tau = xp.linspace(t, s, RECTANGLES, endpoint=False)
    alpha, sigma = path.alpha(tau), path.sigma(tau)
    rate = (path.sigma_dot(tau) * alpha - sigma * path.alpha_dot(tau)) / alpha**2
    return tau, rate * (s - t) / RECTANGLES / (path.rho(s) - path.rho(t))


def ddim_of_average(
    path: Path, ts: Times, x: Value, eps: Sequence[Value], nodes: Sequence[Value], u: Arr, w: Arr
) -> Value:
    """Step with the polynomial through (nodes_j, eps_j), averaged over the points u with weights w."""
    mean = sum((w * lagrange(nodes, j, u)).sum(0) * e for j, e in enumerate(eps))
    return taylor(path, ts[-2], ts[-1], x, [mean], "noise")


@variants
def deis(order: int = 4, published: bool = False) -> Step:
    """DEIS tAB: Adams-Bashforth with polynomials in t [Zhang & Chen 2023, eq. 15].

        x_s = DDIM(x_t, sum_j c_j eps_j),    c_j the mean over the step of the Lagrange polynomial in t

    Options:
        order: 1 to 4, the number of outputs used; order 3 is the paper's tAB2.
        published: integrate by the released code's Riemann sums.

    Example:
        >>> js.tabulate(js.CondOT(), [0.9, 0.5, 0.1], js.solvers.deis(order=2)).B.round(4)
        array([[-4.    ,  0.    ],
               [ 0.3225, -1.1225]])
    """

    def formula(path, ts, x, past, model, z):
        eps = [model(x, ts[-2]), *past]
        nodes = [ts[-2 - j] for j in range(len(eps))]
        u, w = (rectangles if published else quadrature)(path, ts[-2], ts[-1])
        return ddim_of_average(path, ts, x, eps, nodes, u, w)

    return ramp("deis", formula, order, kind="noise", to_zero=dpm_1)


@variants
def deis_rho(order: int = 4, published: bool = False) -> Step:
    """DEIS rhoAB: Adams-Bashforth with polynomials in rho [Zhang & Chen 2023, eq. 17].

        x_s = DDIM(x_t, sum_j c_j eps_j),    c_j the mean over the step of the j-th Lagrange polynomial in rho

    A step into sigma = 0 that is long against those before it extrapolates: with many steps its c_j grow like
    their number to the power of order - 1 (8,800 at 1,000 Karras steps of EDM) and multiply the rounding of
    the network's outputs. Where their sizes add up to more than 10, from some 100 steps on, this one step is
    of order 2. It gives up accuracy that rounding would have taken: its error is of third order in the last
    rho, 2e-3 on EDM.

    Options:
        order: 1 to 4, the number of outputs used.
        published: integrate by the released code's Riemann sums.

    Example:
        >>> js.tabulate(js.CondOT(), [0.9, 0.5, 0.1], js.solvers.deis_rho(order=2)).B.round(4)
        array([[-4.    ,  0.    ],
               [ 0.0444, -0.8444]])
    """

    u, w = gauss(2)
    if published:
        u, w = np.arange(RECTANGLES) / RECTANGLES, np.ones(RECTANGLES) / RECTANGLES

    def averages(nodes: list, new: Scalar) -> list:
        """c_j of the outputs at these rho."""
        at = nodes[0] + (new - nodes[0]) * over(u, new)
        return [(over(w, new) * lagrange(nodes, j, at)).sum(0) for j in range(len(nodes))]

    def update(path: Path, ts: Times, x: Value, past: Sequence, model: Callable, bounded: bool) -> Value:
        eps = [model(x, ts[-2]), *past]
        new, *nodes = [path.rho(ts[-1 - j]) for j in range(len(eps) + 1)]
        c = averages(nodes, new)
        if bounded:
            xp = namespace(*c)
            low = [*averages(nodes[:2], new), *[0.0] * (len(eps) - 2)]
            large = sum(xp.abs(v) for v in c) > MOST
            c = [xp.where(large, a, b) for a, b in zip(low, c, strict=True)]
        return taylor(path, ts[-2], ts[-1], x, [sum(v * e for v, e in zip(c, eps, strict=True))], "noise")

    def formula(path, ts, x, past, model, z):
        return update(path, ts, x, past, model, bounded=False)

    def into_zero(path, ts, x, past, model, z):
        return update(path, ts, x, past, model, bounded=True)

    steps = ramp("deis_rho", formula, order, kind="noise").family
    last = lambda p: Step(into_zero, "deis_rho", kind="noise", order=p, past=p - 1) if p > 2 else None
    family: list[Step] = []
    for p, member in enumerate(steps, 1):
        family.append(dataclasses.replace(member, start=tuple(family), to_zero=last(p)))
    return family[-1]


@variants
def lms(order: int = 4) -> Step:
    """Linear multistep method of k-diffusion [Crowson 2022].

    It is Adams-Bashforth in rho with exact integrals, which is `deis_rho`, its last step included.

    Options:
        order: 1 to 4, the number of outputs used.

    Example:
        >>> js.tabulate(js.CondOT(), [0.9, 0.6, 0.3, 0.1], js.solvers.lms).B[-1].round(4)
        array([-0.0009,  0.0496, -0.3344])
    """
    return deis_rho(order=order)
