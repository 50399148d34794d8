r"""First-order samplers that step with the Gaussian posterior q(x_s | x_t, x0): DDIM, DDPM and IR-SDE's posterior sampling.

    x_s = alpha_s x0 + sqrt(sigma_s^2 - d^2) (x_t - alpha_t x0)/sigma_t + d z,      q's own variance:  d^2 = sigma_s^2 v/sigma_t^2,
    v = sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2.

Any grid: the jump is rescaled to the interval. The released IR-SDE baselines instead move one training index per call whatever the grid
(`published=True`), which is why they fail at few calls.

References: Song et al. 2021a (DDIM, eq. 12, 16); Ho et al. 2020 (DDPM, eq. 6, 7); Luo et al. 2024 (Refusion, posterior sampling).
"""

from typing import Any

from ..numerics import namespace
from ..paths.base import Path
from ..tables.steps import Step, step, variants


def variance(path: Path, t: Any, s: Any) -> Any:
    """Variance of x_t given x_s, s < t."""
    return path.sigma(t) ** 2 - (path.alpha(t) / path.alpha(s)) ** 2 * path.sigma(s) ** 2


def unrescaled(path: Path, ts: Any, published: bool) -> tuple[Any, Any]:
    """(t, s) of the step; as published, s is one index below t and the next call is made wherever the grid says."""
    if published and path.centre is None:
        raise ValueError(
            "published=True is IR-SDE's stepping by training indices: it needs a MeanReverting path"
        )
    return (ts[-2], ts[-2] - 1) if published else (ts[-2], ts[-1])


def _ddim(path, ts, x, past, model, z, eta=0.0):
    t, s = ts[-2:]
    xp = namespace(path.sigma(s), eta)
    sd = eta * path.sigma(s) / path.sigma(t) * xp.sqrt(xp.maximum(variance(path, t, s), 0.0))
    m = model(x, t)
    x = path.alpha(s) * m + xp.sqrt(path.sigma(s) ** 2 - sd**2) / path.sigma(t) * (x - path.alpha(t) * m)
    return x if isinstance(z, tuple) else x + sd * z


@variants
def ddim(eta: Any = 0.0) -> Step:
    """DDIM [Song et al. 2021a, eq. 12]; eta scales the noise from the ODE (0) to DDPM (1)."""
    if isinstance(eta, int | float) and not 0 <= eta <= 1:
        raise ValueError(f"eta scales the noise from none (0) to DDPM's (1); got {eta}")
    fixed = isinstance(eta, int | float) and eta == 0

    def formula(path, ts, x, past, model, z):
        return _ddim(path, ts, x, past, model, z, 0.0 if fixed else eta)

    return Step(formula, "ddim", kind="data", order=1, noises=0 if fixed else 1)


@step(kind="data", order=1, noises=1)
def ddpm(path, ts, x, past, model, z, *, variance_type: str = "fixed_small"):
    """DDPM ancestral sampling [Ho et al. 2020, alg. 2]; noise variance of the posterior ("fixed_small") or of the forward step."""
    if variance_type not in ("fixed_small", "fixed_large"):
        raise ValueError(f"unknown variance_type {variance_type!r}; valid: fixed_small, fixed_large")
    t, s = ts[-2:]
    v, shrink = variance(path, t, s), (path.sigma(s) / path.sigma(t)) ** 2
    mean = path.alpha(t) / path.alpha(s) * shrink * x + path.alpha(s) * v / path.sigma(t) ** 2 * model(x, t)
    xp = namespace(v)
    last = path.sigma(s) == 0  # no noise on the way to clean data, whatever the variance type
    return mean + xp.where(last, 0.0, xp.sqrt(v * (shrink if variance_type == "fixed_small" else 1.0))) * z


@step(kind="data", order=1, noises=1)
def posterior(path, ts, x, past, model, z, *, published: bool = False):
    """IR-SDE posterior sampling [Luo et al. 2024, eq. 9]; fair jumps equal `mr_sde(order=1)`, `published` ones are one index long."""
    t, s = unrescaled(path, ts, published)
    v, kept = variance(path, t, s), path.alpha(t) / path.alpha(s)
    mean = (kept * path.sigma(s) ** 2 * x + path.alpha(s) * v * model(x, t)) / path.sigma(t) ** 2
    return mean + path.sigma(s) / path.sigma(t) * namespace(v).sqrt(v) * z
