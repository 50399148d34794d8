r"""Euler, Heun and Euler-Maruyama in t: the generic baselines.

    flow:          dx/dt = velocity(x, t)                                          (dt < 0)
    reverse SDE:   dx = (f x - g^2 score) dt + g dw,    f = alpha'/alpha,  g^2 = (sigma^2)' - 2 f sigma^2

where score = -eps/sigma: the solver asks for eps, which keeps its size as sigma -> 0. The released code of
IR-SDE steps one training index per call whatever the grid, and subtracts the noise (`published=True`).

References: Song et al. 2021b, eq. 6, 13 (reverse SDE, probability flow); Maruyama 1955.
"""

from ..numerics import Scalar, root
from ..tables import step
from .ancestral import unrescaled


@step(kind="velocity", order=1)
def euler(path, ts, x, past, model, z, *, published: bool = False):
    """Euler's method on the flow, in t [Euler 1768].

        x_s = x + (s - t) velocity

    Options:
        published: step one training index of a `MeanReverting` path whatever the grid, as IR-SDE's code does.

    Example:
        >>> js.tabulate(js.CondOT(), [0.9, 0.5, 0.1], js.solvers.euler).B[:, 0]
        array([-0.4, -0.4])
    """
    t, s = unrescaled(path, ts, published)
    return x + (s - t) * model(x, t)


@step(kind="velocity", order=2, to_zero=euler)
def heun(path, ts, x, past, model, z, *, a: Scalar = 1.0):
    """Two-stage second-order method on the flow, in t [Heun 1900].

        x_s = x + (s - t) ((1 - 1/(2a)) v(x, t) + 1/(2a) v(x + a (s - t) v(x, t), t + a (s - t)))

    See also eq. 19 of Karras et al. 2022. `edm` is Heun in (x/alpha, rho).

    Options:
        a: where the second slope is taken, as a fraction of the step: 1 is Heun, 2/3 Ralston, 1/2 the
            midpoint rule.

    Example:
        >>> table = js.tabulate(js.CondOT(), [0.9, 0.5, 0.1], js.solvers.heun(a=2 / 3))
        >>> table.t.round(4), table.B[-1].round(4)
        (array([0.9   , 0.6333, 0.5   , 0.2333]), array([-0.1,  1. , -0.3]))
    """
    t, s = ts[-2:]
    slope = model(x, t)
    inner = model(x + a * (s - t) * slope, s + (1 - a) * (t - s))
    return x + (s - t) * ((1 - 1 / (2 * a)) * slope + 1 / (2 * a) * inner)


@step(kind="velocity", order=2, to_zero=euler)
def rf_solver(path, ts, x, past, model, z):
    """RF-Solver [Wang et al. 2024a, eq. 9].

        x_s = x + h v + h^2/2 v',        h = s - t, v' from half a step

    which is the midpoint rule on the flow, `heun(a=1/2)`.

    Example:
        >>> js.tabulate(js.CondOT(), [0.9, 0.5, 0.1], js.solvers.rf_solver).t.round(4)
        array([0.9, 0.7, 0.5, 0.3])
    """
    return heun.formula(path, ts, x, past, model, z, a=0.5)


@step(kind="noise", order=1, noises=1)
def euler_maruyama(path, ts, x, past, model, z, *, published: bool = False):
    """Euler-Maruyama on the reverse SDE, in t [Song et al. 2021b, app. D].

        x_s = x + (s - t) (f x + g^2/sigma eps) + g sqrt(t - s) z

    Options:
        published: step one training index of a `MeanReverting` path whatever the grid, and subtract the
            noise, as IR-SDE's code does.

    Example:
        >>> table = js.tabulate(js.CondOT(), [0.9, 0.5, 0.1], js.solvers.euler_maruyama)
        >>> table.A.round(4), table.C.round(4)
        (array([5. , 1.8]), array([2.6833, 0.8944]))
    """
    t, s = unrescaled(path, ts, published)
    f = path.alpha_dot(t) / path.alpha(t)
    g2_over_sigma = 2 * (path.sigma_dot(t) - f * path.sigma(t))
    noise = root(g2_over_sigma * path.sigma(t) * (t - s)) * z
    return x + (s - t) * (f * x + g2_over_sigma * model(x, t)) + (-noise if published else noise)
