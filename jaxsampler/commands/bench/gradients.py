r"""What a gradient through sampling costs, and how exact it is: `jaxsampler bench gradients`.

The loss is a quadratic of the samples, the parameters are the means of a closed-form mixture in 16
dimensions, in float64. For each route (solver and adjoint) and number of steps: bytes of compiled
temporaries, time over that of sampling alone, and the relative error of the gradient against the limit of
many fourth-order steps. Exact routes (all but AdjointDPM and LastK) have the error of their sampler only.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from ... import solvers
from ...front_door import sample
from ...ode.adjoint_dpm import AdjointDPM
from ...paths import VP, grids
from ...paths import exact as models
from ...scan import Direct, LastK, RecursiveCheckpoint, Reversible
from .timing import device, fastest

STEPS = (16, 64, 256)
DIMENSION, BATCH = 16, 64


@dataclasses.dataclass
class Gradients:
    """Per route: bytes, time ratio and relative error for each number of steps."""

    device: str
    steps: list[int]
    megabytes: dict[str, list[float]]
    ratio: dict[str, list[float]]
    error: dict[str, list[float]]


def routes() -> dict[str, tuple[Any, Any]]:
    """(solver, adjoint) of each route."""
    second = solvers.dpmpp_2m
    return {
        "Direct()": (second, Direct()),
        "Direct(remat=True)": (second, Direct(remat=True)),
        "RecursiveCheckpoint()": (second, RecursiveCheckpoint()),
        "AdjointDPM()": (second, AdjointDPM()),
        "LastK(4)": (second, LastK(4)),
        "Reversible(), edict": (solvers.edict(), Reversible()),
        "Reversible(), bdia": (solvers.bdia(), Reversible()),
        "Reversible(), obelm": (solvers.obelm(), Reversible()),
        "Reversible(), reversible_heun": (solvers.reversible_heun(), Reversible()),
        "Reversible(), mccallum_foster": (solvers.mccallum_foster(), Reversible()),
    }


def measure(rounds: int = 3, steps: Sequence[int] = STEPS, only: Sequence[str] | None = None) -> Gradients:
    """Measure all routes, or those in `only`."""
    chosen = {name: route for name, route in routes().items() if only is None or name in only}
    with jax.enable_x64(True):
        path, keys = VP(), jax.random.split(jax.random.key(0), 2)
        means = jax.random.normal(keys[0], (8, DIMENSION), jnp.float64)
        means = 0.3 * means  # modes that overlap have no basin boundaries
        x = jax.random.normal(keys[1], (BATCH, DIMENSION), jnp.float64)

        def loss(means, solver, steps, adjoint):
            denoiser = models.gaussian_mixture(means, 0.7, path)
            grid = grids.log_snr(path, steps, t_max=0.9, t_min=0.01)
            return (sample(denoiser, x, x=x, key=None, solver=solver, grid=grid, adjoint=adjoint) ** 2).mean()

        compiled = lambda f, *static: jax.jit(f, static_argnums=(1, 2, 3)).lower(means, *static).compile()
        exact = compiled(jax.grad(loss), solvers.rk_rho(tableau="4rk"), 400, Direct())(means)
        found = Gradients(device(), list(steps), *({name: [] for name in chosen} for _ in range(3)))
        runs = [(name, *route, n) for name, route in chosen.items() for n in steps]
        for name, solver, adjoint, n in tqdm(runs, desc="gradients", unit="route"):
            forward = compiled(loss, solver, n, Direct())
            gradient = compiled(jax.grad(loss), solver, n, adjoint)
            forward_s, gradient_s = fastest([partial(forward, means), partial(gradient, means)], rounds)
            plan: Any = gradient.memory_analysis()
            found.megabytes[name].append(plan.temp_size_in_bytes / 1e6)
            found.ratio[name].append(gradient_s / forward_s)
            error = jnp.linalg.norm(gradient(means) - exact) / jnp.linalg.norm(exact)
            found.error[name].append(float(error))
    return found


def markdown(result: Gradients) -> str:
    """Format the table."""
    n = result.steps
    head = [f"{what}, {k}" for what in ("MB", "time/sampling", "error") for k in n]
    lines = [result.device, "", "| route | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
    for name in result.megabytes:
        cells = [f"{v:.2f}" for v in result.megabytes[name]] + [f"{v:.1f}" for v in result.ratio[name]]
        lines.append(f"| `{name}` | " + " | ".join(cells + [f"{v:.1e}" for v in result.error[name]]) + " |")
    return "\n".join(lines) + "\n"


def figure(result: Gradients) -> Any:
    """Plot memory and error against the number of steps."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    styles = ["-", "--", "-.", ":"]
    for i, name in enumerate(result.megabytes):
        style = dict(marker="o", ms=4, ls=styles[i % 4], label=name)
        left.loglog(result.steps, result.megabytes[name], **style)
        right.loglog(result.steps, np.maximum(result.error[name], 1e-16), **style)
    left.set(xlabel="steps", ylabel="compiled temporaries, MB", title="Memory of the gradient")
    right.set(xlabel="steps", ylabel="relative error of the gradient", title="Error")
    for axes in (left, right):
        axes.set_xticks(result.steps, [str(n) for n in result.steps])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    fig.legend(*left.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    return fig
