r"""Euler, Heun and Euler-Maruyama in t: the generic baselines.

    flow:          dx/dt = velocity(x, t)
    reverse SDE:   dx = (f x - g^2 score) dt + g dw,    f = alpha'/alpha,   g^2 = (sigma^2)' - 2 f sigma^2      (dt < 0)

where score = -eps/sigma: the solver asks for eps, which keeps its size as sigma -> 0.

References: Song et al. 2021b, eq. 6, 13 (reverse SDE, probability flow); Maruyama 1955. IR-SDE's released code steps one training index per
call whatever the grid (`published=True`) and subtracts the noise.
"""

from typing import Any

from ..numerics import namespace
from ..tables.steps import step
from .ancestral import unrescaled


@step(kind="velocity", order=1)
def euler(path, ts, x, past, model, z, *, published: bool = False):
    """Euler's method on the flow, in t [Euler 1768]."""
    t, s = unrescaled(path, ts, published)
    return x + (s - t) * model(x, t)


@step(kind="velocity", order=2, to_zero=euler)
def heun(path, ts, x, past, model, z, *, a: Any = 1.0):
    """Second order on the flow, in t [Heun 1900]; second slope at the fraction `a` of the step: 1 Heun, 2/3 Ralston, 1/2 midpoint.

    Karras et al. 2022, eq. 19. `edm` is Heun in (x/alpha, rho).
    """
    t, s = ts[-2:]
    slope = model(x, t)
    inner = model(x + a * (s - t) * slope, s + (1 - a) * (t - s))
    return x + (s - t) * ((1 - 1 / (2 * a)) * slope + 1 / (2 * a) * inner)


@step(kind="velocity", order=2, to_zero=euler)
def rf_solver(path, ts, x, past, model, z):
    """RF-Solver [Wang et al. 2024, eq. 9]: its Taylor step x + h v + h^2/2 v', v' from half a step, is the midpoint rule on the flow."""
    return heun.formula(path, ts, x, past, model, z, a=0.5)


@step(kind="noise", order=1, noises=1)
def euler_maruyama(path, ts, x, past, model, z, *, published: bool = False):
    """Euler-Maruyama on the reverse SDE, in t [Song et al. 2021b, app. D]."""
    t, s = unrescaled(path, ts, published)
    f = path.alpha_dot(t) / path.alpha(t)
    g2_over_sigma = 2 * (path.sigma_dot(t) - f * path.sigma(t))
    noise = namespace(t).sqrt(g2_over_sigma * path.sigma(t) * (t - s)) * z
    return x + (s - t) * (f * x + g2_over_sigma * model(x, t)) + (-noise if published else noise)
