r"""Estimates of the statistics of a network for DPM-Solver-v3, from noisy data.

With f of `model_statistics`, f' = df/dlam along the flow, and means over noisy data,

    l = 1 - alpha E[diag dD/dx]        s = Cov(f, f')/Var(f)        b = E[f'] - s E[f]
    f' = -(1 - l)(y - D) - l' y - D',      D' along the flow

f and f' are linear in (y, D, D'), so one pass over samples gathers the moments of these three, whatever l
turns out to be.

Reference: Zheng et al. 2023 (DPM-Solver-v3), sec. 3.1 and app. C.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..numerics import Arr, Key, Real, on_host, wide
from ..paths import Denoiser, Path
from ..scan.progress import Bar, begin, tick
from .model_statistics import Statistics


def ems(
    denoiser: Denoiser,
    data: Float[Arr, "k ..."] | Callable[[Key], Array],
    *,
    key: Key,
    samples: int = 1024,
    n: int = 120,
    batch: int = 128,
    t_max: Real | None = None,
    t_min: Real | None = None,
    progress: bool = True,
) -> Statistics:
    """Estimate the statistics of `denoiser` at n+1 lam from noisy data [Zheng et al. 2023, app. C].

    This costs (n+1) samples network calls, each with two tangents. The same samples and noise serve at every
    lam, so the tables are smooth in lam.

    Args:
        denoiser: called on single samples, `batch` at a time under vmap.
        data: samples x_0 [k, *shape], or a function key -> x_0 of shape [*shape].
        samples: number of samples used; of an array at most this many, drawn without replacement.
        n: number of intervals of the table.
        batch: samples per network call.
        t_max: start of the table. A grid must lie within the table, except for a start at alpha = 0 and an
            end at sigma = 0. The default is the start of the path's default grid if alpha > 0 there, else
            0.99 of it.
        t_min: end of the table. The default is 0 if sigma > 0 there, else the path's t_min, or 0.01 t_max if
            that is 0.
        progress: show a progress bar.

    Raises:
        TypeError: if `denoiser` is not a `js.Denoiser` on one path.
        ValueError: if lam is infinite at an end, or the data are not samples of floats.

    Example:
        >>> denoiser = js.Denoiser(lambda x, t: 0.5 * x, js.VP(), "data")
        >>> data = np.random.default_rng(0).standard_normal((8, 1), np.float32)
        >>> statistics = js.solvers.ems(denoiser, data, key=jax.random.key(0), samples=8, n=3, progress=False)
        >>> alpha = js.VP().alpha(js.VP().time(statistics.lam))
        >>> np.allclose(statistics.l[:, 0], 1 - alpha / 2, atol=1e-4)  # l = 1 - alpha E[dD/dx]
        True
    """
    if not isinstance(denoiser, Denoiser):
        raise TypeError(f"denoiser must be a js.Denoiser(net, path, kind), got {type(denoiser).__name__}")
    if samples < 2 or n < 3 or batch < 1:
        raise ValueError(f"statistics need samples >= 2, n >= 3 and batch >= 1; got {samples}, {n}, {batch}")
    if isinstance(denoiser.path, dict):
        raise TypeError("statistics are of one array on one path; this denoiser's system has a path per part")
    path, (pick, draw) = denoiser.path, jax.random.split(key)
    x0 = draw_data(data, pick, samples)
    with on_host():
        t_max, t_min = finite_ends(path, t_max, t_min)
        ends = float(path.lam(t_max)), float(path.lam(t_min))
        if not (np.all(np.isfinite(ends)) and ends[0] < ends[1]):
            raise ValueError(
                f"statistics need finite lam rising from t_max to t_min, got {ends[0]:g} and {ends[1]:g}: "
                "pass t_max, t_min"
            )
        lam = np.linspace(ends[0], ends[1], n + 1)
        t = np.asarray(path.time(lam), np.float64)
        alpha, sigma = path.alpha(t) + 0 * t, path.sigma(t) + 0 * t
        log_alpha_dot = path.alpha_dot(t) / alpha
        dt = 1 / (log_alpha_dot - path.sigma_dot(t) / sigma)  # dt/dlam
    schedule = [np.asarray(v, np.float64) for v in (t, alpha, sigma, log_alpha_dot * dt, dt)]
    mean, cov = (
        np.asarray(m, np.float64) for m in _moments(denoiser, path, x0, draw, schedule, batch, progress)
    )

    def per_lam(v):
        return v.reshape(-1, *[1] * (x0.ndim - 1))

    l = 1 - per_lam(alpha) * mean[:, 3]
    l_dot = np.gradient(l, lam, axis=0, edge_order=2)
    one, zero = np.ones_like(l), np.zeros_like(l)
    # weights of (y, D, D')
    f, f_dot = np.stack([1 - l, -one, zero], 1), np.stack([l - 1 - l_dot, 1 - l, -one], 1)
    var, scale = (
        np.einsum("ni...,nij...,nj...->n...", f, cov, f),
        np.einsum("ni...,nij...,nj...->n...", abs(f), abs(cov), abs(f)),
    )
    # else f is constant to rounding, as it is for a Gaussian: there is no slope to fit
    known = var > 1e3 * float(jnp.finfo(x0.dtype).eps) * scale
    s = np.where(known, np.einsum("ni...,nij...,nj...->n...", f, cov, f_dot) / np.where(known, var, 1.0), 0.0)
    b = (f_dot * mean[:, :3]).sum(1) - s * (f * mean[:, :3]).sum(1)
    seed = key if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.key_data(key)
    about = (
        ("kind", denoiser.kind),
        ("samples", len(x0)),
        ("key", tuple(np.asarray(seed).tolist())),
        ("t_max", float(t[0])),
        ("t_min", float(t[-1])),
    )
    l, s, b = (a.astype(x0.dtype) for a in (l, s, b))
    return Statistics.of(path, lam, l, s, b, about)


def finite_ends(path: Path, t_max: Real | None, t_min: Real | None) -> tuple[float, float]:
    """Return these ends, by default those of the default grid moved to where alpha and sigma are positive."""
    if t_max is None:
        t_max = path.t_max if path.alpha(path.t_max) > 0 else 0.99 * path.t_max
    if t_min is None:
        t_min = 0.0 if path.sigma(0.0) > 0 else path.t_min or 0.01 * path.t_max
    return float(t_max), float(t_min)


def draw_data(data: Any, key: Key, samples: int) -> Float[Array, "k ..."]:
    """Draw at most `samples` samples, in single precision at least."""
    if callable(data):
        x0 = jax.vmap(data)(jax.random.split(key, samples))
    else:
        x0 = jnp.asarray(data)
        x0 = x0[jax.random.permutation(key, len(x0))[:samples]] if x0.ndim else x0
    if (
        not isinstance(x0, jax.Array)
        or not jnp.issubdtype(x0.dtype, jnp.floating)
        or x0.ndim < 1
        or len(x0) < 2
    ):
        raise ValueError(
            "data must be an array of at least two samples [k, *shape] of floats, or a function key -> sample"
        )
    return x0.astype(wide(x0))


def _moments(
    denoiser: Denoiser,
    path: Path,
    x0: Float[Array, "k ..."],
    key: Key,
    schedule: list,
    batch: int,
    progress: bool,
) -> tuple[Array, Array]:
    """The mean [n+1, 4, ..] of (y, D, D', v dD/dx v), the covariance [n+1, 3, 3, ..] of the first three."""
    k, batch = len(x0), min(batch, len(x0))
    # copies of no weight fill up the last chunk
    chunks = np.arange(-(-k // batch) * batch).reshape(-1, batch)
    bar = Bar(len(schedule[0]), "statistics")

    def predict(x, t):
        return path.centred(denoiser(path.uncentred(x), t, kind="data"))

    def one(x0, i, at):
        t, alpha, sigma, log_alpha_slope, dt = at
        noise, tangent = jax.random.split(jax.random.fold_in(key, i))
        v = jax.random.rademacher(tangent, x0.shape, x0.dtype)
        x = alpha * path.centred(x0) + sigma * jax.random.normal(noise, x0.shape, x0.dtype)
        D, push = jax.linearize(predict, x, t)
        flow = log_alpha_slope * x - (x - alpha * D)  # dx/dlam
        return jnp.stack([x / alpha, D, push(flow, dt), v * push(v, jnp.zeros_like(t))])

    def merged(moments, chunk, at):  # Chan et al. 1979: no cancellation of large means
        count, mean, spread = moments
        weight = jnp.asarray(chunk < k, x0.dtype)
        new = jax.vmap(one, (0, 0, None))(x0[chunk % k], chunk, at)
        mean_new = jnp.tensordot(weight, new, 1) / weight.sum()
        away = (new - mean_new[None])[:, :3]
        spread_new = jnp.einsum("k,ki...,kj...->ij...", weight, away, away)
        total, apart = count + weight.sum(), mean_new - mean
        outer = apart[:3, None] * apart[None, :3]
        return (
            total,
            mean + weight.sum() / total * apart,
            spread + spread_new + count * weight.sum() / total * outer,
        )

    def at_lam(_, row):
        i, at = row
        shape = x0.shape[1:]
        empty = jnp.zeros((), x0.dtype), jnp.zeros((4, *shape), x0.dtype), jnp.zeros((3, 3, *shape), x0.dtype)
        (count, mean, spread), _ = jax.lax.scan(lambda m, chunk: (merged(m, chunk, at), None), empty, chunks)
        if progress:
            tick(i, bar)
        return None, (mean, spread / count)

    @jax.jit
    def run(x0, schedule):
        index = begin(bar, np.arange(bar.total, dtype=np.int32)) if progress else jnp.arange(bar.total)
        return jax.lax.scan(at_lam, None, (index, schedule))[1]

    return run(x0, tuple(jnp.asarray(v, x0.dtype) for v in schedule))
