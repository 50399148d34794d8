r"""Exponential integrators of the reverse SDE, multistep: SDE-DPM-Solver++, SDE-DPM-Solver, MR Sampler.

With h = lam_s - lam_t, r = rho_s/rho_t = e^{-h}, z ~ N(0, I), and eta between the ODE (0) and the reverse SDE
(1):

    data    x_s = (sigma_s/sigma_t) r^eta x_t + alpha_s (1 - r^{1+eta}) F + .. + sigma_s sqrt(1 - r^{2 eta}) z
    noise   x_s = (alpha_s/alpha_t) x_t - 2 sigma_s (e^h - 1) F - .. + sigma_s sqrt(e^{2h} - 1) z    (eta = 1)

The integrals are exact if the network is constant over the step; slopes in lam are added as in `exponential`.
On Gaussian data, where moments follow a closed recursion, the weak order measures 1 for the first-order
solvers and 2 for the others, and data-kind solvers have the exact mean. Noise-kind solvers amplify errors at
few steps, so data is the default: with one point as data and uniform lam they are stable for h < 1.10 (first
order) and h < 0.54 (second order) only.

References: Lu et al. 2022b (SDE-DPM-Solver++); Li et al. 2025 (MR Sampler).
"""

from ..numerics import Scalar, namespace, phi, power, root
from ..paths import Path
from ..tables import Step, step
from ..tables.authoring import variants
from .exponential import Times, Value, checked_form, dpm_1, pick, published_mr_steps, third


def _data(path: Path, ts: Times, x: Value, F: Value, z: Value, eta: Scalar) -> tuple[Value, Scalar, Scalar]:
    """First order; also h and (1 + eta) h for the terms that follow."""
    t, s = ts[-2:]
    h, shrink = path.lam(s) - path.lam(t), path.sigma(s) / path.sigma(t)
    ratio = shrink * (path.alpha(t) / path.alpha(s))
    mean = shrink * power(ratio, eta) * x + path.alpha(s) * (1 - power(ratio, 1 + eta)) * F
    return mean + path.sigma(s) * root(1 - power(ratio, 2 * eta)) * z, h, (1 + eta) * h


@step(kind="data", order=1, noises=1)
def dpmpp_sde_1(path, ts, x, past, model, z, *, eta: Scalar = 1.0):
    """SDE-DPM-Solver++(1) [Lu et al. 2022b, eq. 16].

        x_s = (sigma_s/sigma_t) r^eta x + alpha_s (1 - r^{1+eta}) F + sigma_s sqrt(1 - r^{2 eta}) z

    with r = e^{-h}.

    Options:
        eta: from the ODE (0) to the reverse SDE (1), which is DDPM with the posterior variance.

    Example:
        >>> table = js.tabulate(js.CondOT(), [0.9, 0.5, 0.1], js.solvers.dpmpp_sde_1)
        >>> table.A.round(4), table.B[:, 0].round(4), table.C.round(4)
        (array([0.0617, 0.0222]), array([0.4938, 0.8889]), array([0.4969, 0.0994]))
    """
    return _data(path, ts, x, model(x, ts[-2]), z, eta)[0]


@step(kind="data", order=2, past=1, noises=1, start=(dpmpp_sde_1,), to_zero=dpmpp_sde_1)
def dpmpp_2m_sde(path, ts, x, past, model, z, *, form: str = "dpmsolver", eta: Scalar = 1.0):
    """SDE-DPM-Solver++(2M) [Lu et al. 2022b, eq. 18].

        x_s = (x_s of `dpmpp_sde_1`) - alpha_s (e^{-H} - 1)/2 h F'

    with H = (1 + eta) h and F' = (F - F_last)/h_last.

    Options:
        form: "dpmsolver" is the equation above and k-diffusion's "midpoint"; "taylor" is its "heun", with H
            phi_2(-H) as the weight.
        eta: from the ODE (0) to the reverse SDE (1).

    Example:
        >>> table = js.tabulate(js.CondOT(), [0.9, 0.5, 0.1], js.solvers.dpmpp_2m_sde)
        >>> table.B[-1].round(4), table.C.round(4)
        (array([-0.4444,  1.3333]), array([0.4969, 0.0994]))
    """
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
def dpmpp_3m_sde(path, ts, x, past, model, z, *, eta: Scalar = 1.0, published: bool = False):
    """SDE-DPM-Solver++(3M) [Crowson 2023, k-diffusion].

        x_s = (x_s of `dpmpp_sde_1`) + alpha_s H (phi_2(-H) h F' + phi_3(-H) h^2 F''),        H = (1 + eta) h

    Options:
        eta: from the ODE (0) to the reverse SDE (1).
        published: halve F'', as the released code does.

    Example:
        >>> table = js.tabulate(js.CondOT(), [0.9, 0.6, 0.3, 0.1], js.solvers.dpmpp_3m_sde)
        >>> table.B[-1].round(4), table.C.round(4)
        (array([ 0.3375, -1.4549,  1.957 ]), array([0.5916, 0.2875, 0.0966]))
    """
    m = model(x, ts[-2])
    x, h, H = _data(path, ts, x, m, z, eta)
    _, F1, F2 = third(path, ts, [m, *past], published)
    return x + path.alpha(ts[-1]) * H * (phi(2, -H) * h * F1 + phi(3, -H) * h**2 * F2)


def _noise(path: Path, ts: Times, x: Value, F: Value, z: Value) -> Value:
    t, s = ts[-2:]
    ratio = path.alpha(s) / path.alpha(t)
    grown = ratio * path.sigma(t)  # sigma_s e^h
    return ratio * x - 2 * (grown - path.sigma(s)) * F + root(grown**2 - path.sigma(s) ** 2) * z


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
    """MR Sampler, reverse SDE [Li et al. 2025].

    On any path these are `dpmpp_sde_1` and `dpmpp_2m_sde(form="taylor")` for data, and for noise

        x_s = (alpha_s/alpha_t) x - 2 sigma_s ((e^h - 1) F + h^2 phi_2(h) F') + sigma_s sqrt(e^{2h} - 1) z

    Options:
        order: 1 or 2.
        kind: what is extrapolated, "data" or "noise".
        published: follow the released code's schedule of orders below 10 steps.

    Example:
        >>> table = js.tabulate(js.MeanReverting(mu=0.5), [80.0, 40.0, 10.0], js.solvers.mr_sde(order=1))
        >>> table.A.round(4), table.C.round(4)
        (array([0.0446, 0.0249]), array([0.161 , 0.0333]))
    """
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
