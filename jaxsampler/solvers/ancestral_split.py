r"""Ancestral steps of higher order: an ODE step below the next noise level, then fresh noise back up to it.

In y = x/alpha and rho = sigma/alpha, from t to s, the next level is split into two variances, rho_s^2 =
down^2 + up^2, with

    up = eta sqrt(rho_s^2 (rho_t^2 - rho_s^2)/rho_t^2)    eta = 1: the posterior's own noise, eta = 0: the ODE

The probability flow dy/drho = eps leads from rho_t to `down`, and `up z` leads to s. With an exact flow the
marginal at s is exact whatever eta, so the marginals have the order of the flow's step. With Euler's step
this is DDIM and its eta. A DDIM step to level l, exact if x0 is constant, is

    y_l = (l/rho_t) y_t + (1 - l/rho_t) x0.

For eta = 1, down = rho_s^2/rho_t, and the midpoint in lam between t and `down` is s itself.

References: Song et al. 2021a, eq. 16 (eta); Crowson 2022, k-diffusion (the samplers).
"""

from ..numerics import Scalar, Time, hypotenuse, namespace, root
from ..paths import Path
from ..tables import step
from .exponential import Value, dpm_1, dpmpp_1


def split(path: Path, t: Time, s: Time, eta: Scalar) -> tuple[Scalar, Scalar]:
    """Return (down, up): the level that the ODE leads to, and the deviation of the noise back up to rho_s."""
    ratio = path.rho(s) * (path.alpha(t) / path.sigma(t))  # rho_t may be infinite
    xp = namespace(ratio, eta)
    up = xp.minimum(eta * root(1 - ratio**2), 1.0)  # in units of rho_s: there is no room for more noise
    rest = xp.maximum(1 - eta**2, -((eta * ratio) ** 2))
    down = hypotenuse(rest, eta * ratio)  # 1 - up^2 without cancellation
    return path.rho(s) * down, path.rho(s) * up


def _level(path: Path, t: Time, x: Value, x0: Value, level: Scalar) -> Value:
    """y at `level` by one DDIM step from x at t; finite out of alpha_t = 0."""
    return level / path.sigma(t) * x + (1 - level * path.alpha(t) / path.sigma(t)) * x0


def _between(path: Path, t: Time, level: Scalar, r: Scalar) -> tuple[Scalar, Time]:
    """The level that lies r of the way in lam from t to `level`, and its time."""
    xp = namespace(level, r)
    lam = (1 - r) * path.lam(t) - r * xp.log(level)
    return xp.exp(-lam), path.time(lam)


@step(kind="data", order=1, noises=1, to_zero=dpmpp_1)
def euler_ancestral(path, ts, x, past, model, z, *, eta: Scalar = 1.0):
    """Euler's step in (y, rho), ancestral [Crowson 2022, k-diffusion].

        y_s = (down/rho_t) y + (1 - down/rho_t) x0 + up z

    Options:
        eta: from the ODE (0) to DDPM with the posterior variance (1).

    Example:
        >>> table = js.tabulate(js.CondOT(), [0.9, 0.5, 0.1], js.solvers.euler_ancestral)
        >>> table.A.round(4), table.B[:, 0].round(4), table.C.round(4)
        (array([0.0617, 0.0222]), array([0.4938, 0.8889]), array([0.4969, 0.0994]))
    """
    t, s = ts[-2:]
    down, up = split(path, t, s, eta)
    return path.alpha(s) * (_level(path, t, x, model(x, t), down) + up * z)


@step(kind="data", order=2, noises=1, to_zero=dpmpp_1, from_noise=euler_ancestral)
def dpmpp_2s_ancestral(path, ts, x, past, model, z, *, eta: Scalar = 1.0):
    """DPM-Solver++(2S), ancestral [Crowson 2022, k-diffusion].

        y_s = (down/rho_t) y + (1 - down/rho_t) x0(u) + up z,    u by DDIM at the midpoint in lam to down

    Options:
        eta: size of the noise, 0 (the ODE) to 1.

    Example:
        >>> table = js.tabulate(js.CondOT(), [0.9, 0.5, 0.1], js.solvers.dpmpp_2s_ancestral(eta=0.5))
        >>> table.t.round(4), table.C.round(4)
        (array([0.9   , 0.7365, 0.5   , 0.2369]), array([0.    , 0.2485, 0.    , 0.0497]))
    """
    t, s = ts[-2:]
    down, up = split(path, t, s, eta)
    middle, mid = _between(path, t, down, 0.5)
    u = path.alpha(mid) * _level(path, t, x, model(x, t), middle)
    return path.alpha(s) * (_level(path, t, x, model(u, mid), down) + up * z)


@step(kind="noise", order=2, noises=1, to_zero=dpm_1)
def dpm_2_ancestral(path, ts, x, past, model, z, *, eta: Scalar = 1.0):
    """DPM-Solver-2, ancestral [Crowson 2022, k-diffusion].

        y_s = y + (down - rho_t) eps(u) + up z,        u the DDIM step to the midpoint in lam of t and down

    Options:
        eta: size of the noise, 0 (the ODE) to 1.

    Example:
        >>> table = js.tabulate(js.CondOT(), [0.9, 0.5, 0.1], js.solvers.dpm_2_ancestral(eta=0.5))
        >>> table.A.round(4), table.C.round(4)
        (array([2.6353, 0.    , 1.5261, 0.    ]), array([0.    , 0.2485, 0.    , 0.0497]))
    """
    t, s = ts[-2:]
    down, up = split(path, t, s, eta)
    middle, mid = _between(path, t, down, 0.5)
    y = x / path.alpha(t)
    u = path.alpha(mid) * (y + (middle - path.rho(t)) * model(x, t))
    return path.alpha(s) * (y + (down - path.rho(t)) * model(u, mid) + up * z)


@step(kind="data", order=1, noises=2, to_zero=dpmpp_1, from_noise=euler_ancestral)
def dpmpp_sde(path, ts, x, past, model, z, *, eta: Scalar = 1.0, r: Scalar = 0.5):
    """DPM-Solver++ SDE, two stages, each with its own split and noise [Crowson 2022, k-diffusion].

        u   = (down/rho_t) y + (1 - down/rho_t) x0 + up z_0          to the time r of the way in lam
        y_s = (down/rho_t) y + (1 - down/rho_t) m + up z_1,          m = x0 + (x0(u) - x0)/(2r)

    Options:
        eta: size of the noise, 0 (the ODE) to 1.
        r: where the second call is made, as a fraction of the step in lam.

    Example:
        >>> table = js.tabulate(js.CondOT(), [0.9, 0.5, 0.1], js.solvers.dpmpp_sde)
        >>> table.t.round(4), table.C.round(4)
        (array([0.9 , 0.75, 0.5 , 0.25]), array([0.7071, 0.4969, 0.2357, 0.0994]))
    """
    t, s = ts[-2:]
    mid = path.time((1 - r) * path.lam(t) + r * path.lam(s))
    down, up = split(path, t, mid, eta)
    m = model(x, t)
    u = path.alpha(mid) * (_level(path, t, x, m, down) + up * z[0])
    m = m + (model(u, mid) - m) / (2 * r)
    down, up = split(path, t, s, eta)
    return path.alpha(s) * (_level(path, t, x, m, down) + up * z[1])
