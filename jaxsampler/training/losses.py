r"""Matching losses: regress what a network predicts on what was drawn.

With x_t = mu + alpha (x0 - mu) + sigma eps at random times, the minimiser of E w |m(x_t, t) - m|^2 is the
conditional mean of m given x_t, whatever the weight w(t) >= 0 [Vincent 2011; Ho et al. 2020; Karras et al.
2022, section 5]. Here m is data, noise, score, velocity or v: the linear form a (x0 - mu) + b eps of
`predictions`. Because x_t is known, errors of different kinds differ by a factor,

    m_hat - m = (a - b alpha/sigma) (x0_hat - x0),

so a weight, given for data (`weights`), means the same loss for every kind. Without one, the error of m
itself is squared.

`net(x, t)` takes a batch and one time per image; labels are closed over. Times come from `times`, evenly
spread over the batch.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..paths import Path
from . import times as time
from . import weights
from .times import Times
from .weights import Weight

Net = Callable[[Float[Array, "n ..."], Float[Array, " n"]], Float[Array, "n ..."]]
Coupling = Callable[[PRNGKeyArray, Float[Array, "n ..."], Float[Array, "n ..."]], Float[Array, "n ..."]]
UNIFORM = time.uniform(1e-3)  # not 0, where the score and, on some paths, the velocity are infinite


def kind_matching(
    kind: str,
    net: Net,
    path: Path,
    key: PRNGKeyArray,
    x0: Float[Array, "n ..."],
    *,
    times: Times = UNIFORM,
    weight: Weight | None = None,
    coupling: Coupling | None = None,
) -> Float[Array, ""]:
    """Mean of (m_hat - m)^2 for predictions of `kind`; with a weight, of w(lam) (x0_hat - x0)^2.

    `data_matching`, `noise_matching` and `v_matching` are this function with `kind` filled in.

    Args:
        times: distribution of the training times.
        weight: w(lam), see `weights`.
        coupling: pairs x0 with its noise, see `couplings`.

    Example:
        >>> x0, wrong = jnp.full((64, 2), 3.0), lambda x, t: jnp.ones_like(x)
        >>> float(js.training.losses.kind_matching("data", wrong, js.CondOT(), jax.random.key(0), x0))
        4.0
    """
    k_time, k_noise, k_pair = jax.random.split(key, 3)
    t = times(path, stratified(k_time, x0.shape[0], 0.0, 1.0)).astype(x0.dtype)
    eps = path.noise(k_noise, x0)
    if coupling is not None:
        eps = coupling(k_pair, x0, eps)
    wide = t.reshape(-1, *[1] * (x0.ndim - 1))
    a, b = path.form(kind, wide)
    target = a * path.centred(x0) + b * eps
    error = net(path.perturb(x0, wide, eps), t) - (path.uncentred(target) if kind == "data" else target)
    if weight is not None:
        lam = path.lam(wide)
        error = error * jnp.sqrt(weight(lam)) / (a - b * jnp.exp(lam))
    return jnp.square(error).mean()


data_matching = partial(kind_matching, "data")
noise_matching = partial(kind_matching, "noise")
v_matching = partial(kind_matching, "v")


def score_matching(
    net: Net,
    path: Path,
    key: PRNGKeyArray,
    x0: Float[Array, "n ..."],
    *,
    times: Times = UNIFORM,
    weight: Weight = weights.snr,
) -> Float[Array, ""]:
    """Denoising score matching [Vincent 2011]; by default sigma^2 |s_hat - s|^2 [Song & Ermon 2019].

    Example:
        >>> path, x0 = js.CondOT(), jnp.full((64, 2), 0.0)  # all data are 0: the score is -x/sigma^2
        >>> score = lambda x, t: -x / path.sigma(t)[:, None] ** 2
        >>> float(js.training.losses.score_matching(score, path, jax.random.key(0), x0)) < 1e-10
        True
    """
    return kind_matching("score", net, path, key, x0, times=times, weight=weight)


def flow_matching(
    net: Net,
    path: Path,
    key: PRNGKeyArray,
    x0: Float[Array, "n ..."],
    *,
    times: Times = UNIFORM,
    weight: Weight | None = None,
    coupling: Coupling | None = None,
) -> Float[Array, ""]:
    """Velocity matching, E |v_hat - (alpha' x0 + sigma' eps)|^2 [Lipman et al. 2023, eq. 9; time reversed].

    `velocity_matching` is the same function.

    Args:
        coupling: `coupling(key, x0, eps)` reorders the noise (`couplings`): the marginals of the flow stay,
            its paths change.

    Example:
        >>> x0 = jnp.full((64, 2), 3.0)  # all data are 3, so eps - x0 = (x - x0)/t
        >>> velocity = lambda x, t: (x - x0) / t[:, None]
        >>> float(js.training.losses.flow_matching(velocity, js.CondOT(), jax.random.key(0), x0)) < 1e-6
        True
    """
    return kind_matching("velocity", net, path, key, x0, times=times, weight=weight, coupling=coupling)


velocity_matching = flow_matching


def edm(
    denoiser: Net,
    path: Path,
    key: PRNGKeyArray,
    x0: Float[Array, "n ..."],
    *,
    sigma_data: float = 0.5,
    mean: float = -1.2,
    std: float = 1.2,
) -> Float[Array, ""]:
    """EDM's loss: log-normal noise levels, and the weight of the preconditioned network [Karras et al. 2022].

    Args:
        sigma_data: standard deviation of the data.
        mean: of log rho.
        std: of log rho.

    Example:
        >>> x0 = jnp.full((64, 2), 3.0)
        >>> off = lambda x, t: x0 + (0.5 * t / jnp.sqrt(t**2 + 0.25))[:, None]  # an error of c_out
        >>> round(float(js.training.losses.edm(off, js.EDM(), jax.random.key(0), x0)), 3)
        1.0
    """
    return data_matching(
        denoiser, path, key, x0, times=time.log_normal(mean, std), weight=weights.edm(sigma_data)
    )


def matching(
    predict: Net,
    path: Path,
    x0: Float[Array, "n ..."],
    t: Float[Array, " n"],
    key: PRNGKeyArray,
    *,
    weight: Callable[[Float[Array, " n"]], Float[Array, " n"]] | None = None,
) -> Float[Array, ""]:
    """Mean over the batch of (w(t) (predict(x_t, t) - x0))^2, each sample at its given `t`.

    Args:
        predict: data; other kinds are linear forms in data and x_t, so their loss is this one with another
            `weight`.
        weight: w(t), of the error before it is squared.

    Example:
        >>> x0, t = jnp.full((64, 2), 3.0), jnp.linspace(0.1, 0.8, 64)
        >>> loss = js.training.losses.matching(lambda x, t: x0 + 2.0, js.VP(), x0, t, jax.random.key(0))
        >>> float(loss)
        4.0
    """
    eps = path.noise(key, x0)
    wide = t.reshape(-1, *[1] * (x0.ndim - 1))
    error = predict(path.perturb(x0, wide, eps), t) - x0
    return jnp.square(error if weight is None else error * weight(t).reshape(wide.shape)).mean()


def stratified(key: PRNGKeyArray, n: int, low: float, high: float) -> Float[Array, " n"]:
    """Draw n times, each uniform on [low, high], together evenly spread [Kingma et al. 2021, I.1].

    Example:
        >>> t = js.training.losses.stratified(jax.random.key(0), 4, 0.0, 1.0)
        >>> print(jnp.diff(jnp.sort(t)).round(3))
        [0.25 0.25 0.25]
    """
    u = jax.random.uniform(key)
    return low + (high - low) * jnp.mod(u + jnp.arange(n, dtype=u.dtype) / n, 1.0)


def forget(key: PRNGKeyArray, label: Int[Array, " n"], chance: float, null: int) -> Int[Array, " n"]:
    """Replace each label by the null class with this chance: one network learns both predictions of guidance.

    Reference: Ho & Salimans 2022.

    Example:
        >>> labels = jnp.arange(4)
        >>> js.training.losses.forget(jax.random.key(0), labels, chance=0.5, null=10).tolist()
        [0, 1, 10, 10]
    """
    return jnp.where(jax.random.bernoulli(key, chance, label.shape), null, label)
