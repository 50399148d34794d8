r"""First-order samplers that step with the Gaussian posterior q(x_s | x_t, x0): DDIM, DDPM, IR-SDE.

    x_s = alpha_s x0 + sqrt(sigma_s^2 - d^2) (x_t - alpha_t x0)/sigma_t + d z,
    v   = sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2,        d^2 = sigma_s^2 v/sigma_t^2 for the variance of q.

Grids are arbitrary: a step leads to the next grid time. The released IR-SDE baselines instead move one
training index per call whatever the grid (`published=True`), so they fail with few calls.

References: Song et al. 2021a (DDIM, eq. 12, 16); Ho et al. 2020 (DDPM, eq. 6, 7); Luo et al. 2024 (Refusion,
posterior sampling).
"""

from ..numerics import Scalar, Time, hypotenuse, namespace, root
from ..paths import Path
from ..tables import Step, step
from ..tables.authoring import variants
from .exponential import Times


def variance(path: Path, t: Time, s: Time) -> Scalar:
    """Variance of x_t given x_s, s < t."""
    return path.sigma(t) ** 2 - (path.alpha(t) / path.alpha(s)) ** 2 * path.sigma(s) ** 2


def unrescaled(path: Path, ts: Times, published: bool) -> tuple[Time, Time]:
    """Return (t, s) of the step; as published, s is one index below t, whatever the next grid time."""
    if published and path.centre is None:
        raise ValueError(
            "published=True steps by training indices, as IR-SDE does: it needs a MeanReverting path"
        )
    return (ts[-2], ts[-2] - 1) if published else (ts[-2], ts[-1])


def _ddim(path, ts, x, past, model, z, eta: Scalar = 0.0):
    t, s = ts[-2:]
    ratio = path.alpha(t) / path.alpha(s) * (path.sigma(s) / path.sigma(t))
    m = model(x, t)
    kept = (
        path.sigma(s) / path.sigma(t) * hypotenuse(1 - eta**2, eta * ratio)
    )  # sqrt(sigma_s^2 - d^2)/sigma_t
    x = path.alpha(s) * m + kept * (x - path.alpha(t) * m)
    return x if isinstance(z, tuple) else x + eta * path.sigma(s) * root(1 - ratio**2) * z


@variants
def ddim(eta: Scalar = 0.0) -> Step:
    """DDIM [Song et al. 2021a, eq. 12].

        x_s = alpha_s x0 + sqrt(sigma_s^2 - d^2) (x - alpha_t x0)/sigma_t + d z,
        d   = eta sigma_s sqrt(v)/sigma_t

    Options:
        eta: from the ODE (0) to DDPM (1); at 0 nothing is drawn.

    Example:
        >>> table = js.tabulate(js.CondOT(), [0.9, 0.5, 0.1], js.solvers.ddim)
        >>> table.A.round(4), table.B[:, 0].round(4)
        (array([0.5556, 0.2   ]), array([0.4444, 0.8   ]))
        >>> js.tabulate(js.CondOT(), [0.9, 0.5, 0.1], js.solvers.ddim(eta=0.5)).C.round(4)
        array([0.2485, 0.0497])
    """
    if isinstance(eta, int | float) and not 0 <= eta <= 1:
        raise ValueError(f"eta scales the noise from none (0) to that of DDPM (1); got {eta}")
    fixed = isinstance(eta, int | float) and eta == 0

    def formula(path, ts, x, past, model, z):
        return _ddim(path, ts, x, past, model, z, 0.0 if fixed else eta)

    return Step(formula, "ddim", kind="data", order=1, noises=0 if fixed else 1)


@step(kind="data", order=1, noises=1)
def ddpm(path, ts, x, past, model, z, *, variance_type: str = "fixed_small"):
    """DDPM ancestral sampling [Ho et al. 2020, alg. 2].

        x_s = (alpha_t/alpha_s) (sigma_s/sigma_t)^2 x + alpha_s v/sigma_t^2 x0 + sd z

    Options:
        variance_type: sd^2 is that of the posterior, v sigma_s^2/sigma_t^2 ("fixed_small"), or of the forward
            step, v ("fixed_large").

    Example:
        >>> table = js.tabulate(js.CondOT(), [0.9, 0.5, 0.1], js.solvers.ddpm)
        >>> table.A.round(4), table.B[:, 0].round(4), table.C.round(4)
        (array([0.0617, 0.0222]), array([0.4938, 0.8889]), array([0.4969, 0.0994]))
    """
    if variance_type not in ("fixed_small", "fixed_large"):
        raise ValueError(f"unknown variance_type {variance_type!r}; valid: fixed_small, fixed_large")
    t, s = ts[-2:]
    v, shrink = variance(path, t, s), (path.sigma(s) / path.sigma(t)) ** 2
    mean = path.alpha(t) / path.alpha(s) * shrink * x + path.alpha(s) * v / path.sigma(t) ** 2 * model(x, t)
    if variance_type == "fixed_small":
        return mean + path.sigma(s) / path.sigma(t) * root(v) * z
    last = path.sigma(s) == 0  # no noise enters clean data, whatever the variance type
    return mean + namespace(v).where(last, 0.0, root(v)) * z


@step(kind="data", order=1, noises=1)
def posterior(path, ts, x, past, model, z, *, published: bool = False):
    """IR-SDE posterior sampling [Luo et al. 2024, eq. 9].

        x_s = (k sigma_s^2 x + alpha_s v x0)/sigma_t^2 + (sigma_s/sigma_t) sqrt(v) z,    k = alpha_t/alpha_s

    To the next grid time this is `mr_sde(order=1)`.

    Options:
        published: step one training index, as the released code does, whatever the grid.

    Example:
        >>> table = js.tabulate(js.CondOT(), [0.9, 0.5, 0.1], js.solvers.posterior)
        >>> table.A.round(4), table.C.round(4)
        (array([0.0617, 0.0222]), array([0.4969, 0.0994]))
    """
    t, s = unrescaled(path, ts, published)
    v, kept = variance(path, t, s), path.alpha(t) / path.alpha(s)
    mean = (kept * path.sigma(s) ** 2 * x + path.alpha(s) * v * model(x, t)) / path.sigma(t) ** 2
    return mean + path.sigma(s) / path.sigma(t) * root(v) * z
