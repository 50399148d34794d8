"""Restore a photograph: a diffusion reverts to the degraded image, and a few network calls lead back.

`restore` is the whole method in one compiled function. The table (solver, grid, order) is an argument, so
another solver of the same shape recompiles nothing. `Restorer` wraps it for photos of any size, with a mask
if pixels are missing.
"""

from functools import partial
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ... import checkpoint, solvers
from ...data import TASKS, task_name
from ...nn.unet import RestorationNet
from ...numerics import Key
from ...paths import Denoiser, grids
from ...pretrained import samplers
from ...scan import Direct, run
from ...tables import Step, Table, tabulate
from ..compilations import waiting
from .tiles import Tiled

# The member of MR Sampler that does best on training photos at 5 and 10 calls: `jaxsampler restore --choose`.
CHOSEN: dict[str, Any] = {"name": "mr_sde", "order": 1}

MOST_STEPS = 10_000
CANVAS = 32  # sides are mirrored up to a multiple of this many pixels, so that few sizes are compiled


def chosen() -> Step:
    """The solver that `jaxsampler restore` uses by default."""
    return cast(Step, solvers.by_name(**CHOSEN))


def table(net: RestorationNet | Tiled, solver: Step, steps: int) -> Table:
    """Tabulate `solver` with `steps` steps uniform in lam, as MR Sampler has them.

    On training photos PSNR hardly depends on the grid. But at 10 calls a second-order ODE step is 3 times
    nearer to the exact solution than a first-order one on this grid, and farther from it on a grid uniform in
    t, whose last steps are too long.
    """
    if steps < 1:
        raise ValueError(f"{solver.name} needs at least 1 step, got {steps}; 5 to 20 are usual")
    if steps > MOST_STEPS:
        raise ValueError(f"{steps} steps are more than {MOST_STEPS}; 5 to 20 are usual")
    path = net.path(jnp.zeros((1, 1, 3)))
    return tabulate(path, grids.log_snr(path, steps), solver)


@eqx.filter_jit
def restore(
    net: RestorationNet | Tiled,
    table: Table,
    mu: Float[Array, "n h w 3"],
    task: Int[Array, " n"],
    key: Key,
    *,
    progress: bool = False,
) -> Float[Array, "n h w 3"]:
    """Restore images `mu` degraded by `task`, an index of `data.TASKS`; values may leave [0, 1] a little.

    x_T depends on `key` only.
    """
    prior_key, noise_key = jax.random.split(key)
    path = net.path(mu)
    denoiser = Denoiser(partial(net, mu=mu, task=task), path, "data")
    return run(denoiser, table, path.prior(prior_key, mu), key=noise_key, progress=progress, adjoint=Direct())


class Restorer:
    """`restorer(image, task)` restores a photo of any size; equal arguments give equal bits.

    Args:
        solver: a step of `js.solvers`, by default the `chosen` one, or a table for the network's path.
        steps: of the solver (10); a table has its own.
        seed: of x_T and of the solver's noise.
    """

    def __init__(
        self,
        net: RestorationNet | Tiled,
        solver: Step | Table | None = None,
        steps: int | None = None,
        seed: int = 0,
    ):
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed must lie in [0, 2^32); got {seed}")
        self.net, self.seed = net if isinstance(net, Tiled) else Tiled(net), seed
        if isinstance(solver, Table):
            if steps is not None:
                calls = f"{solver.nfe} network calls"
                raise ValueError(f"the table has its own steps, {calls}: leave steps={steps} out")
            self.table = samplers.expect(solver, net.path(jnp.zeros((1, 1, 3))))
        else:
            self.table = table(net, chosen() if solver is None else solver, 10 if steps is None else steps)
        self.key = jax.random.key(seed)

    @property
    def settings(self) -> dict[str, Any]:
        """All that determines the bits of a restored photo, beside the photo and its task."""
        return {
            "weights": checkpoint.digest(self.net),
            "solver or steps": checkpoint.digest(self.table),
            "seed": self.seed,
        }

    def __call__(
        self,
        image: Float[np.ndarray, "h w 3"],
        task: str,
        mask: Bool[np.ndarray, "h2 w2"] | None = None,
        *,
        progress: bool = False,
    ) -> Float[np.ndarray, "h w 3"]:
        """Return the restored photo, float32 in [0, 1].

        Args:
            task: its name or the verb that undoes it.
            mask: True where a pixel is known, for inpainting only; known pixels are kept exactly.

        Raises:
            ValueError: the task is unknown, or the mask is missing, of another size, or of no use.
        """
        task = expect_mask(task, mask is not None)
        image = np.asarray(image, np.float32)
        mu = image if mask is None else np.where(_fitting(mask, image)[..., None], image, np.float32(0))
        height, width, _ = image.shape
        mu = np.pad(mu, ((0, -height % CANVAS), (0, -width % CANVAS), (0, 0)), mode="symmetric")
        index = jnp.array([list(TASKS).index(task)])
        with waiting("the network for photos of this size"):
            out = restore(self.net, self.table, jnp.asarray(mu[None]), index, self.key, progress=progress)
        out = np.clip(np.asarray(out[0, :height, :width]), 0, 1)
        jax.effects_barrier()  # the progress bar's last line
        return out if mask is None else np.where(mask[..., None], image, out)


def expect_mask(task: str, given: bool) -> str:
    """Return the task's name; ValueError if it is unknown, or if a mask is missing or of no use."""
    task = task_name(task)
    if task == "uncompleted" and not given:
        raise ValueError("inpainting needs a mask of the photo's size: white is known, black is filled")
    if task != "uncompleted" and given:
        raise ValueError(f"a mask is for inpainting, not for {task}: leave it out")
    return task


def _fitting(mask: np.ndarray, image: np.ndarray) -> np.ndarray:
    if mask.shape != image.shape[:2]:
        theirs, ours = (f"{w}x{h}" for h, w in (mask.shape, image.shape[:2]))
        raise ValueError(f"the mask is {theirs} pixels, the photo {ours}: make them equal")
    return mask
