r"""Exponential integrators of the reverse SDE, multistep: SDE-DPM-Solver++, SDE-DPM-Solver and MR Sampler (SDE).

With h = lam_s - lam_t, r = rho_s/rho_t = e^{-h}, z ~ N(0, I), and eta between the ODE (0) and the reverse SDE (1):

    data    x_s = (sigma_s/sigma_t) r^eta x_t + alpha_s (1 - r^{1+eta}) F + .. + sigma_s sqrt(1 - r^{2 eta}) z
    noise   x_s = (alpha_s/alpha_t) x_t - 2 sigma_s (e^h - 1) F - .. + sigma_s sqrt(e^{2h} - 1) z                 (eta = 1)

The integrals are exact when the network is constant over the step; slopes in lam are added as in `exponential`. Weak orders (measured on
Gaussian data, where moments follow a closed recursion): 1 for the first, 2 for the higher ones, and the mean of data-kind solvers
is exact. Noise-kind solvers amplify errors at few steps (one point as data, uniform lam: stable for h < 1.10 at first and h < 0.54
at second order only), which is why data is the default.

References: Lu et al. 2022b (SDE-DPM-Solver++); Li et al. 2025 (MR Sampler).
"""

from typing import Any

from ..numerics import namespace, phi
from ..paths.base import Path
from ..tables.steps import Step, step, variants
from .exponential import checked_form, dpm_1, pick, published_mr_steps, third


def _data(path: Path, ts: Any, x: Any, F: Any, z: Any, eta: Any) -> tuple[Any, Any, Any]:
    """First order; also h and (1 + eta) h for the terms that follow."""
    t, s = ts[-2:]
    h, ratio = path.lam(s) - path.lam(t), path.rho(s) / path.rho(t)
    xp = namespace(h, eta)
    mean = path.sigma(s) / path.sigma(t) * ratio**eta * x - path.alpha(s) * xp.expm1(-(1 + eta) * h) * F
    return mean + path.sigma(s) * xp.sqrt(1 - ratio ** (2 * eta)) * z, h, (1 + eta) * h


@step(kind="data", order=1, noises=1)
def dpmpp_sde_1(path, ts, x, past, model, z, *, eta: Any = 1.0):
    """SDE-DPM-Solver++(1) [Lu et al. 2022b, eq. 16]; eta = 1 is DDPM with the posterior variance."""
    return _data(path, ts, x, model(x, ts[-2]), z, eta)[0]


@step(kind="data", order=2, past=1, noises=1, start=(dpmpp_sde_1,), to_zero=dpmpp_sde_1)
def dpmpp_2m_sde(path, ts, x, past, model, z, *, form: str = "dpmsolver", eta: Any = 1.0):
    """SDE-DPM-Solver++(2M) [Lu et al. 2022b, eq. 18]; form "dpmsolver" is k-diffusion's "midpoint", "taylor" its "heun"."""
    q, t, s = ts[-3:]
    m = model(x, t)
    x, h, H = _data(path, ts, x, m, z, eta)
    slope = (m - past[0]) / (path.lam(t) - path.lam(q))
    weight = H * phi(2, -H) if checked_form(form) == "taylor" else -namespace(H).expm1(-H) / 2
    return x + path.alpha(s) * weight * h * slope


@step(
    kind="data",
    order=2,
    past=2,
    noises=1,
    start=(dpmpp_sde_1, dpmpp_2m_sde(form="taylor")),
    to_zero=dpmpp_sde_1,
)
def dpmpp_3m_sde(path, ts, x, past, model, z, *, eta: Any = 1.0, published: bool = False):
    """SDE-DPM-Solver++(3M) [Crowson 2023, k-diffusion]; `published` halves F'' as there."""
    m = model(x, ts[-2])
    x, h, H = _data(path, ts, x, m, z, eta)
    _, F1, F2 = third(path, ts, [m, *past], published)
    return x + path.alpha(ts[-1]) * H * (phi(2, -H) * h * F1 + phi(3, -H) * h**2 * F2)


def _noise(path: Path, ts: Any, x: Any, F: Any, z: Any) -> Any:
    t, s = ts[-2:]
    ratio = path.alpha(s) / path.alpha(t)
    grown = ratio * path.sigma(t)  # sigma_s e^h
    return (
        ratio * x - 2 * (grown - path.sigma(s)) * F + namespace(grown).sqrt(grown**2 - path.sigma(s) ** 2) * z
    )


@step(kind="noise", order=1, noises=1, to_zero=dpm_1)
def _dpm_sde_1(path, ts, x, past, model, z):
    return _noise(path, ts, x, model(x, ts[-2]), z)


@step(kind="noise", order=2, past=1, noises=1, start=(_dpm_sde_1,), to_zero=dpm_1)
def _dpm_2m_sde(path, ts, x, past, model, z):
    q, t, s = ts[-3:]
    h, m = path.lam(s) - path.lam(t), model(x, t)
    slope = (m - past[0]) / (path.lam(t) - path.lam(q))
    return _noise(path, ts, x, m, z) - 2 * path.sigma(s) * h**2 * phi(2, h) * slope


@variants
def mr_sde(order: int = 2, kind: str = "data", published: bool = False) -> Step:
    """MR Sampler, reverse SDE, orders 1 and 2 [Li et al. 2025]; `published`: the code's order schedule below 10 steps."""
    family = {
        (1, "data"): dpmpp_sde_1,
        (2, "data"): dpmpp_2m_sde(form="taylor"),
        (1, "noise"): _dpm_sde_1,
        (2, "noise"): _dpm_2m_sde,
    }
    chosen = pick(family, order, kind, "mr_sde")
    return (
        chosen.replace(rule=published_mr_steps(chosen), order=order)
        if published
        else chosen.replace(order=order)
    )
