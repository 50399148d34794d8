"""The same small MLP sampled here and by diffusers, side by side, where torch and diffusers are installed.

Weights, width, batch and number of calls are equal; so is the solver (DDIM; DPM-Solver++ of second order).
Whole sampling runs are timed, in turns.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ... import solvers
from ...paths import Denoiser, DiscreteVP, grids
from ...scan import Direct, run
from ...tables import Step, tabulate
from .timing import fastest

BATCH, WIDTH, CALLS = 256, 256, 20


def measure() -> dict[str, float]:
    """Seconds of each sampler over those of our `dpmpp_2m`; empty if torch or diffusers is missing."""
    try:
        import diffusers  # type: ignore
        import torch  # type: ignore
    except ImportError:
        return {}
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) / WIDTH**0.5 for _ in range(3)]
    x = rng.standard_normal((BATCH, WIDTH)).astype(np.float32)

    path = DiscreteVP.linear()
    jax_weights = [jnp.asarray(w) for w in weights]
    denoiser = Denoiser(partial(_mlp, jax_weights, jnp.tanh), path, "noise")
    sample = jax.jit(lambda table, x: run(denoiser, table, x, adjoint=Direct()))
    grid = grids.leading(path, CALLS)

    def ours(solver: Step) -> Callable:
        return partial(sample, jax.tree.map(jnp.asarray, tabulate(path, grid, solver)), jnp.asarray(x))

    torch_weights = [torch.from_numpy(w) for w in weights]
    start = torch.from_numpy(x)

    def theirs(scheduler) -> Callable:
        def run_scheduler():
            with torch.no_grad():
                scheduler.set_timesteps(CALLS)
                y = start
                for t in scheduler.timesteps:
                    y = scheduler.step(_mlp(torch_weights, torch.tanh, y, t / 1000), t, y).prev_sample
            return np.asarray(y)

        return run_scheduler

    functions = {
        "jaxsampler `dpmpp_2m`": ours(solvers.dpmpp_2m),
        "jaxsampler `ddim`": ours(solvers.ddim),
        "diffusers DPMSolverMultistepScheduler": theirs(diffusers.DPMSolverMultistepScheduler()),
        "diffusers DDIMScheduler": theirs(diffusers.DDIMScheduler(clip_sample=False)),
    }
    seconds = fastest(list(functions.values()), rounds=7, label="side by side")
    return {name: s / seconds[0] for name, s in zip(functions, seconds, strict=True)}


def _mlp(weights: list, tanh: Callable, x, t):
    """Three layers of tanh; the time scales the input."""
    x = x * (1 + t)
    for w in weights:
        x = tanh(x @ w)
    return x
