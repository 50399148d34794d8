"""Restore a photograph: a diffusion reverts to the degraded image, and a few network calls lead back.

`restore` is the whole method. Only the network's call is compiled at length, and for a size of image only:
another solver, order or number of calls recompiles little, and the next process finds it in the compilation
cache. `Restorer` wraps it for photos of any size, with a mask if pixels are missing.
"""

from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from tqdm import tqdm

from ... import checkpoint, solvers
from ...data import TASKS, task_name
from ...nn.unet import RestorationNet
from ...numerics import Key
from ...paths import MeanReverting, grids
from ...pretrained import samplers
from ...scan.by_rows import ByRows
from ...tables import Step, Table, tabulate
from ...threefry import elementwise
from ..compilations import waiting
from .tiles import Tiled, fitting

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


def restore(
    net: RestorationNet | Tiled,
    table: Table,
    mu: Float[Array, "n h w 3"],
    task: Int[Array, " n"],
    key: Key,
    *,
    progress: str | None = None,
) -> Float[Array, "n h w 3"]:
    """Restore images `mu` degraded by `task`, an index of `data.TASKS`; values may leave [0, 1] a little.

    x_T depends on `key` only. `progress` labels a bar that counts the network's calls, or its windows.
    """
    prior_key, noise_key = jax.random.split(key)
    path, windows = net.path(mu), net.windows(*mu.shape[1:3]) if isinstance(net, Tiled) else []
    rows = ByRows(table, path, "data", key=noise_key)
    x, state = rows.begin(_start(path, prior_key, mu))
    total, unit = table.nfe * max(len(windows), 1), "window" if windows else "call"
    with tqdm(total=total, unit=unit, desc=progress, disable=progress is None) as bar:
        for i, t in enumerate(rows.times):
            out = jnp.zeros_like(x) if windows else None
            for window in windows or [None]:
                # calls that wait in a queue would hold their memory at the same time
                out = jax.block_until_ready(_look((net, x, t, mu, task, window), out))
                bar.update()
            x, state = rows.advance(i, state, out)
    return x


def prepare(net: RestorationNet | Tiled, mu: Float[Array, "n h w 3"], task: Int[Array, " n"]) -> None:
    """Compile the network for images of this size."""
    windows = net.windows(*mu.shape[1:3]) if isinstance(net, Tiled) else []
    seen = (net, mu, np.float32(0), mu, task, windows[0] if windows else None)
    with waiting("the network for images of this size"):
        _look.lower(seen, jnp.zeros_like(mu) if windows else None).compile()


@eqx.filter_jit(donate="all-except-first")
def _look(seen: tuple, out: Float[Array, "n h w 3"] | None) -> Float[Array, "n h w 3"]:
    """A call of the network: on the whole images, or on a window, whose share is added to `out`."""
    net, x, t, mu, task, window = seen
    if isinstance(net, Tiled) and out is not None:
        return net.add(out, x, t, mu, task, window)
    return (net.net if isinstance(net, Tiled) else net)(x, t, mu, task)


@eqx.filter_jit
def _start(path: MeanReverting, key: Key, mu: Float[Array, "n h w 3"]) -> Float[Array, "n h w 3"]:
    return path.prior(elementwise(key), mu)


class Restorer:
    """`restorer(image, task)` restores a photo of any size; equal arguments give equal bits.

    Args:
        net: looks at the whole photo if half of the memory holds its call, else through windows; a `Tiled`
            one as it says itself.
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
        self.net, self.seed = net if isinstance(net, Tiled) else fitting(net), seed
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
        mus, bar = jnp.asarray(mu[None]), task if progress else None
        prepare(self.net, mus, index)
        out = restore(self.net, self.table, mus, index, self.key, progress=bar)
        out = np.clip(np.asarray(out[0, :height, :width]), 0, 1)
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
