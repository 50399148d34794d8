r"""Align Your Steps (AYS): the grid on which the SDE with a frozen denoiser stays nearest the true one.

Stochastic DDIM keeps the data prediction D from the start of each step, rho_i, until the step's end. By
Girsanov's theorem the KL divergence between the laws of the true and the frozen SDE is a sum over the steps.
It is an upper bound (KLUB) of the divergence between their samples. In rho = sigma/alpha,

    KLUB = sum_i int E|D(x_rho) - D(x_i)|^2 drho/rho^3  from rho_{i+1} to rho_i
         = sum_i int E|D(x_rho) - D(x_i)|^2 ds/2,           s = (alpha/sigma)^2 from s_i to s_{i+1},

where x_rho and x_i lie on one path of the forward process. D is evaluated along such paths at K+1 candidate
times only, and the trapezoidal rule in s gives the cost of every step between candidates. The bound says
nothing about a step into sigma = 0, where it is infinite.

The grid of least bound is not the best grid: it minimises the divergence of whole paths and spends its steps
at low noise, where the ODE needs few. The publication therefore starts from a common grid, moves one time
after the other to the best of its neighbours, and stops early, by eye or by a metric of the samples; `sweeps`
counts these rounds. On Gaussian data N(m, c^2 I) the least bound has equal steps in log(1 + c^2/rho^2), but
deterministic DDIM gives its best samples with equal steps in arctan(rho/c), `js.grids.arctan`.

Unlike the publication: all costs are estimated once, on the candidates, where the publication draws new
samples with importance sampling for each move; n steps are optimised directly, where it refines 10 steps to
40 and interpolates.

Reference: Sabour et al. 2024 (Align Your Steps), sec. 3, app. A and B.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..numerics import Arr, Grid, Key, Real
from ..paths import Denoiser
from ..solvers.estimate_statistics import draw_data
from .nodes import candidates, cheapest, levels, path_of

REACH = 5  # a time moves to one of 11 candidates, itself included


def ays(
    denoiser: Denoiser,
    n: int,
    data: Float[Arr, "k ..."] | Callable[[Key], Arr],
    *,
    key: Key,
    sweeps: int | None = 2,
    samples: int = 256,
    among: Grid | int = 100,
    batch: int = 64,
    t_max: Real | None = None,
    t_min: Real | None = None,
) -> Float[np.ndarray, " points"]:
    """Return a grid of n intervals [Sabour et al. 2024], for K+1 network calls per sample.

    Where the grid ends at sigma = 0, n - 1 intervals are optimised, down to the last candidate with noise.

    Args:
        denoiser: called on single samples under vmap.
        n: number of intervals.
        data: samples x_0 [k, *shape], or a function key -> x_0 of shape [*shape].
        key: chooses the samples and draws their noise.
        sweeps: rounds of the publication's search, which starts from evenly chosen candidates; fewer rounds
            stay nearer to those. None: the least bound over all grids.
        samples: how many samples are used at most.
        among: K, the number of candidate intervals, or the candidate times themselves.
        batch: samples that go through the network at once.
        t_max: first candidate, by default that of the path's default grid.
        t_min: last candidate, by default that of the path's default grid.

    Raises:
        ValueError: if the path's noise is not Gaussian, or there are fewer candidates than times.

    Example:
        >>> denoiser = js.models.gaussian_mixture(np.array([[-1.0], [1.0]]), 0.2, js.VP())
        >>> data = np.array([[-1.1], [-0.9], [1.0]], np.float32)
        >>> run = dict(key=jax.random.key(0), sweeps=None, among=[1, 0.9, 0.3, 0.1])
        >>> grid = js.search.ays(denoiser, 2, data, **run)
        >>> grid.tolist()
        [1.0, 0.3, 0.1]
    """
    path = path_of(denoiser)
    if not path.gaussian:
        raise ValueError(
            "the bound is that of Gaussian noise, "
            f"which the noise of {type(path).__name__} is not: use objective='gits'"
        )
    if sweeps is not None and sweeps < 0:
        raise ValueError(f"sweeps must be a whole number from 0, or None for the least bound; got {sweeps}")
    times = candidates(path, among, t_max=t_max, t_min=t_min)
    alpha, sigma = levels(path, times)
    noisy, clean = times[sigma > 0], times[sigma == 0]
    n -= len(clean)
    if n == 0:
        return times[[0, -1]]
    pick, walk = jax.random.split(key)
    change = changes(denoiser, draw_data(data, pick, samples), walk, noisy, batch)
    cost = bound(np.asarray(change, np.float64), (alpha[sigma > 0] / sigma[sigma > 0]) ** 2)
    nodes = cheapest(cost, n)
    if sweeps is not None:
        nodes = swept(cost, np.round(np.linspace(0, len(noisy) - 1, n + 1)).astype(int), sweeps)
    return np.append(noisy[nodes], clean)


def changes(
    denoiser: Denoiser, x0: Float[Array, "k ..."], key: Key, times: Float[np.ndarray, " points"], batch: int
) -> Float[Array, "points points"]:
    """Estimate E|D(x_i) - D(x_j)|^2 on paths of the forward process, at decreasing times with sigma > 0."""
    alpha, sigma = levels(path_of(denoiser), times)
    # In x/alpha the noise is a Brownian motion in rho^2: its correlation between neighbouring times is
    # rho_{i+1}/rho_i, and 0 from alpha = 0.
    kept = np.append(alpha[:-1] * sigma[1:] / (sigma[:-1] * alpha[1:]), 0.0)
    rows = times, alpha, sigma, kept, np.sqrt((1 - kept) * (1 + kept))
    return _changes(
        denoiser, x0, jax.random.split(key, len(x0)), tuple(jnp.asarray(v, x0.dtype) for v in rows), batch
    )


@eqx.filter_jit
def _changes(
    denoiser: Denoiser, x0: Float[Array, "k ..."], keys: Array, rows: tuple[Array, ...], batch: int
) -> Float[Array, "points points"]:
    path = path_of(denoiser)

    def noisier(x0, eps, row):
        (t, alpha, sigma, kept, fresh), key = row
        eps = kept * eps + fresh * jax.random.normal(key, eps.shape, eps.dtype)
        x = path.uncentred(alpha * path.centred(x0) + sigma * eps)
        return eps, path.centred(denoiser.in_loop()(x, t)).reshape(-1)

    def one(pair):
        x0, key = pair
        scanned = rows, jax.random.split(key, len(rows[0]))
        _, D = jax.lax.scan(lambda eps, row: noisier(x0, eps, row), jnp.zeros_like(x0), scanned, reverse=True)
        return jax.lax.map(lambda d: jnp.square(D - d[None]).sum(1), D)

    return jax.lax.map(one, (x0, keys), batch_size=batch).mean(0)


def bound(
    change: Float[np.ndarray, "points points"], snr: Float[np.ndarray, " points"]
) -> Float[np.ndarray, "points points"]:
    """Return the KLUB of every step i -> j > i; entries j < i mean nothing.

    It is int change_i ds/2 over the increasing s, by the trapezoidal rule.
    """
    panels = np.diff(snr) / 4 * (change[:, 1:] + change[:, :-1])
    total = np.pad(np.cumsum(panels, 1), ((0, 0), (1, 0)))
    return total - np.diag(total)[:, None]


def swept(
    cost: Float[np.ndarray, "points points"], nodes: Int[np.ndarray, " nodes"], sweeps: int
) -> Int[np.ndarray, " nodes"]:
    """Move one node after the other to the cheapest place within reach between its neighbours.

    There are at most `sweeps` rounds; a round that moves nothing is the last.
    """
    nodes = nodes.copy()
    for _ in range(sweeps):
        before = nodes.copy()
        for i in range(1, len(nodes) - 1):
            left, right = nodes[i - 1], nodes[i + 1]
            near = np.arange(max(left + 1, nodes[i] - REACH), min(right, nodes[i] + REACH + 1))
            nodes[i] = near[np.argmin(cost[left, near] + cost[near, right])]
        if np.array_equal(nodes, before):
            break
    return nodes
