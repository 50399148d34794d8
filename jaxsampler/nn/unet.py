r"""The restoration network: a small U-Net inside a preconditioner, predicting the clean photograph.

In the centred, rescaled variable y = (x_t - mu)/std the mean-reverting path is variance preserving: y = alpha
y0 + s eps with s = sigma/std and y0 = (x0 - mu)/std. If y0 were N(0, r^2), with r the residual of the task in
units of std, the best estimate would be linear. The U-Net F learns only what is left, scaled to unit variance
[Karras et al. 2022, eq. 7 and appendix B.6, with scaling]:

    x0_hat = mu + std (c_skip y + c_out F(c_in y, mu, t, task))
    c_in = 1/sqrt(V)    c_skip = alpha r^2 / V    c_out = r s / sqrt(V)    V = alpha^2 r^2 + s^2

r is fitted per task (`residual`, in image units), because a JPEG differs from its original by a fiftieth, a
night shot by a half, and an error of F must cost each task in proportion. With r = 1, F is minus the v
prediction. At t = T, F is a plain regression on mu.

The U-Net is convolutional and nothing else (it does not pool over the image), so any size works and a tile
sees what the whole image would. A stem folds 2x2 pixels into channels and the head unfolds them, because
full-resolution convolutions are what costs. Channels are last, as XLA's CPU convolutions prefer. Residual
blocks carry time and task by FiLM [Perez et al. 2018]; block and width follow NAFNet's spirit [Chen et al.
2022]: plain, normalised over the channels of one pixel.
"""

from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..paths import MeanReverting


class Conv(eqx.Module):
    """k x k convolution, channels last, zero padding.

    Args:
        gain: scales He's initial deviation; 0 starts a branch as the zero map.
    """

    weight: Float[Array, "k k cin cout"]
    bias: Float[Array, " cout"]
    stride: int = eqx.field(static=True)

    def __init__(
        self, cin: int, cout: int, size: int = 3, *, stride: int = 1, gain: float = 1.0, key: PRNGKeyArray
    ):
        scale = gain * (size * size * cin) ** -0.5
        self.weight = scale * jax.random.normal(key, (size, size, cin, cout))
        self.bias = jnp.zeros(cout)
        self.stride = stride

    def __call__(self, x: Float[Array, "n h w cin"]) -> Float[Array, "n h2 w2 cout"]:
        strides = (self.stride, self.stride)
        y = lax.conv_general_dilated(
            x, self.weight, strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y + self.bias[None, None, None]


class Linear(eqx.Module):
    """Affine map of the last axis."""

    weight: Float[Array, "cin cout"]
    bias: Float[Array, " cout"]

    def __init__(self, cin: int, cout: int, *, gain: float = 1.0, key: PRNGKeyArray):
        self.weight = gain * cin**-0.5 * jax.random.normal(key, (cin, cout))
        self.bias = jnp.zeros(cout)

    def __call__(self, x: Float[Array, "n cin"]) -> Float[Array, "n cout"]:
        return x @ self.weight + self.bias[None]


def normalise(x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    """Normalise to zero mean and unit variance over the channels of each pixel."""
    x = x - x.mean(-1, keepdims=True)
    return x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def fold(x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c4"]:
    """Fold 2x2 pixels into channels."""
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(n, h // 2, w // 2, 4 * c)


def unfold(x: Float[Array, "n h w c4"]) -> Float[Array, "n h2 w2 c"]:
    """Unfold channels into 2x2 pixels: the inverse of `fold`."""
    n, h, w, c = x.shape
    return x.reshape(n, h, w, 2, 2, c // 4).transpose(0, 1, 3, 2, 4, 5).reshape(n, 2 * h, 2 * w, c // 4)


class Block(eqx.Module):
    """x + conv(silu(FiLM(norm(conv x)))): the identity at the start of training."""

    conv_in: Conv
    conv_out: Conv
    film: Linear

    def __init__(self, width: int, embedding: int, *, key: PRNGKeyArray):
        k1, k2, k3 = jax.random.split(key, 3)
        self.conv_in = Conv(width, width, key=k1)
        self.conv_out = Conv(width, width, gain=0.0, key=k2)
        self.film = Linear(embedding, 2 * width, gain=0.1, key=k3)

    def __call__(self, x: Float[Array, "n h w c"], e: Float[Array, "n d"]) -> Float[Array, "n h w c"]:
        scale, shift = jnp.split(self.film(e)[:, None, None], 2, axis=-1)
        h = normalise(self.conv_in(x)) * (1 + scale) + shift
        return x + self.conv_out(jax.nn.silu(h))


class UNet(eqx.Module):
    """Encoder and decoder of residual blocks, with added skips; sides are multiples of `2 ** len(widths)`.

    Args:
        widths: channels at 1/2, 1/4, 1/8 ... of the resolution.
        depth: blocks per level on each side.
    """

    stem: Conv
    encoder: list[list[Block]]
    down: list[Conv]
    up: list[Conv]
    decoder: list[list[Block]]
    head: Conv

    def __init__(
        self, cin: int, cout: int, widths: tuple[int, ...], depth: int, embedding: int, *, key: PRNGKeyArray
    ):
        levels = len(widths)
        keys = iter(jax.random.split(key, 2 + 2 * (levels - 1) + depth * (2 * levels - 1)))
        self.stem = Conv(4 * cin, widths[0], key=next(keys))
        self.encoder = [[Block(w, embedding, key=next(keys)) for _ in range(depth)] for w in widths]
        self.down = [Conv(a, b, 2, stride=2, key=next(keys)) for a, b in pairwise(widths)]
        self.up = [Conv(b, 4 * a, 1, key=next(keys)) for a, b in pairwise(widths)]
        self.decoder = [[Block(w, embedding, key=next(keys)) for _ in range(depth)] for w in widths[:-1]]
        self.head = Conv(widths[0], 4 * cout, gain=0.0, key=next(keys))

    def __call__(self, x: Float[Array, "n h w cin"], e: Float[Array, "n d"]) -> Float[Array, "n h w cout"]:
        h = self.stem(fold(x))
        skips = []
        for level, blocks in enumerate(self.encoder):
            if level:
                skips.append(h)
                h = self.down[level - 1](h)
            for block in blocks:
                h = block(h, e)
        for level in reversed(range(len(self.decoder))):
            h = unfold(self.up[level](h)) + skips.pop()
            for block in self.decoder[level]:
                h = block(h, e)
        return unfold(self.head(h))


class RestorationNet(eqx.Module):
    """The denoiser of a mean-reverting path: `net(x, t, mu, task)` predicts the clean photo (kind "data").

    What belongs to the path is static: weights are only good for the path they were trained on.

    Args:
        residual: the root mean square of x0 - mu for each task, in image units.
        std: of the path, in image units; `T` and `eps` belong to its cosine schedule.

    Example:
        >>> sizes = dict(std=0.5, widths=(4,), depth=1, embedding=4)
        >>> make = lambda key: js.nn.RestorationNet((0.1,), **sizes, key=key)
        >>> net = jax.tree.map(lambda a: jnp.zeros(a.shape), jax.eval_shape(make, jax.random.key(0)))
        >>> mu = jnp.full((2, 2, 3), 0.5)
        >>> float(jax.jit(net.__call__)(mu, 100.0, mu, 0)[0, 0, 0])  # F = 0 restores x = mu as mu
        0.5
    """

    unet: UNet
    tasks: Float[Array, "tasks d"]
    time_in: Linear
    time_out: Linear
    residual: tuple[float, ...] = eqx.field(static=True)
    std: float = eqx.field(static=True)
    T: int = eqx.field(static=True)
    eps: float = eqx.field(static=True)
    levels: int = eqx.field(static=True)

    def __init__(
        self,
        residual: tuple[float, ...],
        *,
        std: float,
        T: int = 100,
        eps: float = 0.005,
        widths: tuple[int, ...] = (48, 80, 128),
        depth: int = 2,
        embedding: int = 128,
        key: PRNGKeyArray,
    ):
        k1, k2, k3, k4 = jax.random.split(key, 4)
        self.unet = UNet(6, 3, tuple(widths), depth, embedding, key=k1)
        self.tasks = jax.random.normal(k2, (len(residual), embedding))
        self.time_in = Linear(64, embedding, gain=2**0.5, key=k3)
        self.time_out = Linear(embedding, embedding, key=k4)
        self.residual = tuple(float(r) for r in residual)
        self.std, self.T, self.eps, self.levels = float(std), int(T), float(eps), len(widths)

    def path(self, mu: Float[Array, "..."]) -> MeanReverting:
        """The path that the weights were trained on, towards the degraded image `mu`."""
        return MeanReverting(mu, std=self.std, schedule="cosine", T=self.T, eps=self.eps)

    def scales(self, t: Float[Array, " n"], task: Int[Array, " n"]) -> tuple[Float[Array, " n"], ...]:
        """(c_in, c_skip, c_out) of the module docstring."""
        path = self.path(jnp.zeros(()))
        r = jnp.asarray(np.array(self.residual) / self.std, t.dtype)[task]
        alpha, s = jnp.asarray(path.alpha(t)), jnp.asarray(path.sigma(t)) / self.std
        variance = (alpha * r) ** 2 + s**2
        return lax.rsqrt(variance), alpha * r**2 / variance, r * s * lax.rsqrt(variance)

    def raw(
        self,
        y: Float[Array, "n h w 3"],
        t: Float[Array, " n"],
        mu: Float[Array, "n h w 3"],
        task: Int[Array, " n"],
    ) -> Float[Array, "n h w 3"]:
        """F: the U-Net on scaled input, which is mirrored up to whole cells and cut back."""
        h, w = y.shape[1:3]
        cell = 2**self.levels
        image = jnp.concatenate([y, (mu - 0.5) * 4], axis=-1)
        image = jnp.pad(image, ((0, 0), (0, -h % cell), (0, -w % cell), (0, 0)), mode="symmetric")
        e = self.time_out(jax.nn.silu(self.time_in(waves(t, 64)))) + self.tasks[task]
        return self.unet(image, jax.nn.silu(e))[:, :h, :w]

    def __call__(
        self,
        x: Float[Array, "..."],
        t: Float[Array, "..."] | float,
        mu: Float[Array, "..."],
        task: Int[Array, "..."] | int,
    ) -> Float[Array, "..."]:
        """Predict x0 for an image (h, w, 3) or a batch (n, h, w, 3) at time index `t` in [0, T].

        A batch may share one `t` and one `task` or bring one per image.

        Raises:
            ValueError: x and mu are not images of one shape.
        """
        if x.ndim not in (3, 4) or x.shape[-1] != 3 or x.shape != mu.shape:
            shapes = f"got {x.shape} and {mu.shape}"
            raise ValueError(f"x and mu must be images of one shape (h, w, 3) or (n, h, w, 3); {shapes}.")
        xs, mus = jnp.reshape(x, (-1, *x.shape[-3:])), jnp.reshape(mu, (-1, *x.shape[-3:]))
        t = jnp.broadcast_to(jnp.asarray(t, xs.dtype), xs.shape[:1])
        task = jnp.broadcast_to(jnp.asarray(task, jnp.int32), xs.shape[:1])
        c_in, c_skip, c_out = (c[:, None, None, None] for c in self.scales(t, task))
        y = (xs - mus) / self.std
        y = c_skip * y + c_out * self.raw(c_in * y, t, mus, task)
        return jnp.reshape(mus + self.std * y, x.shape)


def waves(t: Float[Array, " n"], size: int) -> Float[Array, "n size"]:
    """Sines and cosines of t, periods from 2 pi to 2000 pi [Vaswani et al. 2017]."""
    rate = jnp.asarray(np.exp(-np.log(1000.0) * np.arange(size // 2) / (size // 2 - 1)), t.dtype)
    angle = t[:, None] * rate[None]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
