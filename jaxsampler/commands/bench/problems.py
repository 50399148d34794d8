r"""The problems on which samplers are judged and searched: denoiser, starts, exact solutions, real data.

    mixture       8 Gaussians in 64 dimensions, means N(0, I), stds 0.1-0.5 (log-uniform) for each axis, on
                  VP: sharp, multimodal, exact
    empirical     the posterior mean of 2,000 training photos of Fashion-MNIST, on EDM: what a perfect network
                  would learn by heart
    smoothed      the same photos, each the centre of a Gaussian of std 0.3: closer to what networks do
    fashion_edm   our class-conditional U-Net (data prediction on EDM); sample i is of class i mod 10
    fashion_flow  the same network as a velocity on CondOT

Sample i depends on (seed, i) only. A `Problem` runs tables in chunks of one size, the last one padded; the
table is an argument of the compiled function, so that all tables of one shape share one compilation.
`converged` is the solution that every deterministic solver approximates, at path.t_min (on EDM grids may go
on to 0, which moves a sample by about t_min = 0.002). Its RMSE to that of 800-3000 steps is 1e-5 on
`mixture`, 5e-5 on `smoothed`, and 1e-6 on `empirical`, except for about one sample in a hundred that ends at
another photo.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable
from functools import cached_property
from pathlib import Path as FilePath
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, PyTree
from tqdm import tqdm

from ... import pretrained, solvers
from ...data import fashion
from ...files import memory
from ...numerics import Arr, Grid, Key
from ...paths import EDM, VP, CondOT, Denoiser, Path, grids
from ...paths import exact as models
from ...scan import Direct, Solver, run
from ...scan.driver import drive
from ...scan.protocol import Watch
from ...spelling import nearest
from ...tables import Table, tabulate

Samples = Float[np.ndarray, "n ..."]
IMAGES, CLASSES = 2000, len(fashion.CLASSES)  # photos of the empirical model; classes of the networks
COPIES = 8  # start, samples and converged ones, in float32 and float64
FINE = solvers.unipc(order=3)  # the nearest of five families to 800 steps, on every problem
PATHS: dict[str, Path] = {
    "mixture": VP(),
    "empirical": EDM(),
    "smoothed": EDM(),
    "fashion_edm": EDM(),
    "fashion_flow": CondOT(),
}


@eqx.filter_jit
def _run(denoiser: Denoiser, table: Table, x: jax.Array, key: Key) -> jax.Array:
    return run(denoiser, table, x, key=key, adjoint=Direct())


@eqx.filter_jit
def _drive(denoiser: Denoiser, solver_rows: tuple[Solver, PyTree], x: jax.Array, key: Key) -> jax.Array:
    return drive(*solver_rows, denoiser, x, key=key, watch=Watch(adjoint=Direct()))


@dataclasses.dataclass(frozen=True)
class Problem:
    """A denoiser of batches [chunk, *shape], and what its samples are compared with.

    Args:
        single: the denoiser of one sample, of any class.
        fine: the table of the converged solution.
        real: (split, n) -> n real samples, split "train" or "test", the classes in turn.
        features: samples [n, *shape] -> features [n, d], between which Frechet distances are measured.
    """

    name: str
    denoiser: Denoiser
    single: Denoiser
    shape: tuple[int, ...]
    chunk: int
    fine: Table
    real: Callable[[str, int], Samples]
    features: Callable[[Arr], Float[np.ndarray, "n d"]]

    @property
    def path(self) -> Path:
        """The path of its denoiser."""
        return cast(Path, self.denoiser.path)

    @property
    def bound(self) -> bool:
        """Whether the denoiser takes batches of `chunk` only, each place in them with its own condition."""
        return self.denoiser is not self.single

    def sized(self, batch: int) -> Denoiser:
        """The denoiser of batches of another size; their entry i has the class of sample i."""
        if not self.bound:
            return self.denoiser
        if batch % CLASSES:
            turns = f"a batch of {self.name} holds {CLASSES} classes in turn"
            raise ValueError(f"{turns}: its size must be a multiple of {CLASSES}, got {batch}")
        return self.single.bind(label=np.arange(batch, dtype=np.int32) % CLASSES)

    def fingerprint(self, *settings: Any) -> str:
        """Hash of the model's numbers and of settings, which the results depend on."""
        digest = hashlib.sha256(repr(settings).encode())
        for leaf in jax.tree.leaves(eqx.filter(self.denoiser, eqx.is_array_like)):
            digest.update(np.asarray(leaf).tobytes() if hasattr(leaf, "dtype") else repr(leaf).encode())
        return digest.hexdigest()[:8]

    def start(self, n: int, seed: int = 0) -> Samples:
        """x_T [n, *shape], float32; sample i is the same for every n."""
        affordable(n, self.shape)
        like = jax.ShapeDtypeStruct((n, *self.shape), jnp.float32)
        return np.asarray(self.denoiser.prior(jax.random.key(seed), like))

    def run(self, table: Table, x: Arr, seed: int = 0, label: str | None = None) -> Samples:
        """Sample by `table` from x_T [n, *shape], any n; a stochastic table draws noise from (seed, i).

        With a label there is a progress bar.
        """
        return self._in_chunks(_run, jax.tree.map(jnp.asarray, table), x, seed, label)

    def drive(self, solver: Solver, grid: Grid, x: Arr, seed: int = 0) -> Samples:
        """Sample by a solver without a table, compiled for it."""
        return self._in_chunks(_drive, (solver, solver.rows(self.path, grid)), x, seed)

    def _in_chunks(
        self, compiled: Callable, sampler: Table | tuple, x: Arr, seed: int, label: str | None = None
    ) -> Samples:
        x, parts = np.asarray(x, np.float32), []
        for i in tqdm(range(0, len(x), self.chunk), desc=label, unit="batch", disable=label is None):
            part = x[i : i + self.chunk]
            padded = np.concatenate([part, np.zeros((self.chunk - len(part), *self.shape), np.float32)])
            key = jax.random.fold_in(jax.random.key(seed), i)
            parts.append(np.asarray(compiled(self.denoiser, sampler, jnp.asarray(padded), key))[: len(part)])
        return np.concatenate(parts)

    def converged(self, x: Arr) -> Samples:
        """The solution of the probability flow from x_T = x at path.t_min."""
        return self.run(self.fine, x)


def problem(
    name: str,
    *,
    data: str | FilePath | None = None,
    weights: str | FilePath | None = None,
    photos: fashion.Photos | None = None,
) -> Problem:
    """Return the problem called `name`.

    Args:
        data: the folder with the files of Fashion-MNIST; None: the user's data folder, filled by download.
        weights: a folder with networks to replace the shipped ones, by the same names.
        photos: the photos of both splits, instead of files.

    Raises:
        ValueError: the name is unknown (the nearest is suggested), or data or weights are missing or corrupt.
    """
    if name not in PROBLEMS:
        raise ValueError(f"unknown problem {name!r}; {nearest(name, PROBLEMS)}")
    return PROBLEMS[name](_Sources(data, weights, photos))


def affordable(n: int, shape: tuple[int, ...]) -> None:
    """Raise a ValueError if n samples do not fit into the memory, as often as they are copied."""
    most = memory() // (COPIES * 4 * math.prod(shape))
    if n > most:
        raise ValueError(f"{n} samples of shape {list(shape)} do not fit into the memory: at most {most} do")


def in_turn(labels: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Order photos so that classes take turns: photo i is of class i mod 10 while every class lasts."""
    rank = np.zeros_like(labels)
    for k in np.unique(labels):
        rank[labels == k] = np.arange((labels == k).sum())
    return np.lexsort((labels, rank))


@dataclasses.dataclass(frozen=True)
class _Sources:
    """Where photos and weights come from; both are read when first needed."""

    data: str | FilePath | None
    weights: str | FilePath | None
    photos: fashion.Photos | None

    def real(self, split: str, n: int) -> Samples:
        photos = fashion.load(split, self.data) if self.photos is None else self.photos
        if n > len(photos):
            raise ValueError(f"{n} {split} photos are requested, only {len(photos)} exist: request fewer")
        return photos[in_turn(photos.labels)[:n]].images

    def network(self, name: str) -> Any:
        file = None if self.weights is None else FilePath(self.weights) / f"{name}.safetensors"
        return pretrained.load(name, path=file)

    @cached_property
    def classifier(self) -> Callable[[Arr], jax.Array]:
        net = self.network("fashion_classifier")
        return eqx.Partial(eqx.filter_jit(lambda net, x: net.features(x)), net)

    def features(self, x: Arr) -> Float[np.ndarray, "n d"]:
        """Penultimate features of our classifier for images, clipped to [-1, 1] as an image file would be."""
        x, chunk = np.clip(np.asarray(x, np.float32), -1, 1), 250
        pad = np.zeros((-len(x) % chunk, *x.shape[1:]), np.float32)
        parts = np.split(np.concatenate([x, pad]), (len(x) + len(pad)) // chunk)
        return np.concatenate([np.asarray(self.classifier(jnp.asarray(part))) for part in parts])[: len(x)]


def _mixture(sources: _Sources) -> Problem:
    rng, k, d = np.random.default_rng(0), 8, 64
    means, stds = rng.standard_normal((k, d)), np.exp(rng.uniform(np.log(0.1), np.log(0.5), (k, d)))
    path = PATHS["mixture"]

    def real(split: str, n: int) -> Samples:
        rng = np.random.default_rng(["train", "test"].index(split) + 1)
        affordable(n, (d,))
        which = np.arange(n) % k
        return (means[which] + stds[which] * rng.standard_normal((n, d))).astype(np.float32)

    fine = tabulate(path, grids.quadratic(path, 200), FINE)
    flat = lambda x: np.asarray(x, np.float64).reshape(len(x), -1)
    denoiser = models.gaussian_mixture(means, stds, path)
    return Problem("mixture", denoiser, denoiser, (d,), 1024, fine, real, flat)


def _empirical(sources: _Sources, std: float = 0.0) -> Problem:
    name = "smoothed" if std else "empirical"
    path = PATHS[name]
    images = sources.real("train", IMAGES if sources.photos is None else len(sources.photos))
    fine = tabulate(path, grids.karras(path, 120), FINE)
    denoiser = models.empirical(images, path, std)
    return Problem(name, denoiser, denoiser, images.shape[1:], 250, fine, sources.real, sources.features)


def _network(sources: _Sources, name: str, chunk: int = 50) -> Problem:
    single = sources.network(name)
    denoiser, path = single.bind(label=np.arange(chunk, dtype=np.int32) % CLASSES), single.path
    grid = grids.karras(path, 60) if isinstance(path, EDM) else grids.uniform(path, 60)
    fine = tabulate(path, grid, FINE)
    return Problem(name, denoiser, single, (32, 32, 1), chunk, fine, sources.real, sources.features)


PROBLEMS: dict[str, Callable[[_Sources], Problem]] = {
    "mixture": _mixture,
    "empirical": _empirical,
    "smoothed": lambda sources: _empirical(sources, 0.3),
    "fashion_edm": lambda sources: _network(sources, "fashion_edm"),
    "fashion_flow": lambda sources: _network(sources, "fashion_flow"),
}
