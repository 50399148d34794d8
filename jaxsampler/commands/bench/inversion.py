r"""The error of an inversion: `jaxsampler bench inversion`.

Samples of a closed-form mixture are inverted and sampled again; measured is the root mean square of what does
not come back, in float64, so that exact schemes show.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

from ... import solvers
from ...ode import inversion
from ...paths import VP, CondOT
from ...paths import exact as models
from ...paths.grids import log_snr, uniform
from .timing import device

STEPS = (10, 20, 40, 80)


@dataclasses.dataclass
class RoundTrips:
    """Root mean square of x0 - regenerate(invert(x0)), for each way and number of steps."""

    device: str
    steps: list[int]
    error: dict[str, list[float]]


def ways() -> dict[str, tuple[Any, dict]]:
    """Solver and options of each way."""
    s = solvers
    return {
        "ddim": (s.ddim, {}),
        "ddim, refine=5": (s.ddim, {"refine": 5}),
        "dpm_2m": (s.dpm_2m, {}),
        "dpmpp_2m": (s.dpmpp_2m, {}),
        "rk_rho (Heun)": (s.rk_rho, {}),
        "heun in t, flow": (s.heun, {}),
        "rf_solver, flow": (s.rf_solver, {}),
        "edict": (s.edict(), {}),
        "bdia": (s.bdia(), {}),
        "obelm": (s.obelm(), {}),
        "reversible_heun": (s.reversible_heun(), {}),
        "mccallum_foster": (s.mccallum_foster(), {}),
    }


def measure(steps: Sequence[int] = STEPS, only: Sequence[str] | None = None) -> RoundTrips:
    """Measure all ways, or those in `only`, on 256 samples in 2 dimensions."""
    chosen = {name: way for name, way in ways().items() if only is None or name in only}
    found = RoundTrips(device(), list(steps), {name: [] for name in chosen})
    with jax.enable_x64(True):
        means = jnp.asarray([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.5]], jnp.float64)
        keys = jax.random.split(jax.random.key(0))
        noise = jax.random.normal(keys[1], (256, 2), jnp.float64)
        x = means[jax.random.randint(keys[0], (256,), 0, 3)] + 0.3 * noise
        runs = [(name, *way, n) for name, way in chosen.items() for n in steps]
        for name, solver, options, n in tqdm(runs, desc="inversion", unit="round trip"):
            path = CondOT() if "flow" in name else VP()
            denoiser = models.gaussian_mixture(means, 0.3, path)
            grid = uniform(path, n, t_max=0.999, t_min=0.01) if "flow" in name else log_snr(path, n)
            inverted = inversion.invert(denoiser, x, solver=solver, grid=grid, **options)
            back = inversion.regenerate(denoiser, inverted)
            found.error[name].append(float(jnp.sqrt(((back - x) ** 2).mean())))
    return found


def markdown(result: RoundTrips) -> str:
    """Format the table."""
    lines = [
        f"| round trip error | {' | '.join(f'{n} steps' for n in result.steps)} |",
        "|---" * (len(result.steps) + 1) + "|",
    ]
    lines += [
        f"| {name} | {' | '.join(f'{e:.0e}' for e in errors)} |" for name, errors in result.error.items()
    ]
    return "\n".join(lines) + "\n"


def figure(result: RoundTrips) -> Any:
    """Plot the error against steps."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for i, (name, errors) in enumerate(result.error.items()):
        style = dict(marker="o", ms=4, ls=["-", "--", "-.", ":"][i % 4], label=name)
        axes.loglog(result.steps, [max(e, 1e-17) for e in errors], **style)
    axes.set(xlabel="steps", ylabel="RMS of x0 - regenerate(invert(x0))")
    axes.set_xticks(result.steps, [str(n) for n in result.steps])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    fig.legend(loc="outside right upper", fontsize=8)
    return fig
