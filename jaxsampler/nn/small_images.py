r"""Networks for small images of known classes: one U-Net F, as a denoiser or a velocity, and a classifier.

`EDMNet` predicts data from x = x0 + s eps [Karras et al. 2022, eq. 7]. If the data had mean 0 and standard
deviation d in every pixel, F would see and be asked for unit variance at every noise level, and its error
would never be amplified:

    x0_hat = c_skip x + c_out F(c_in x, log s, label)
    c_skip = d^2/(s^2 + d^2)    c_out = s d/sqrt(s^2 + d^2)    c_in = 1/sqrt(s^2 + d^2)

`FlowNet` predicts the velocity eps - x0 on x_t = (1-t) x0 + t eps [Liu et al. 2022; Lipman et al. 2023]; its
scales are near 1 as they are.

A label is a class number or, for "any class", the number of classes: the null class, which makes guidance
possible [Ho & Salimans 2022]. `Classifier` is trained on noisy images too and is told how noisy they are: its
gradient guides samplers at every level [Dhariwal & Nichol 2021], its penultimate features (`features`)
compare sets of images.
"""

from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .unet import Block, Conv, Linear, UNet, fold, normalise, waves

Label = Int[Array, "..."] | int | None
LEAST_NOISE = 1e-3  # below it log s tells a network nothing more; keeps s = 0 finite


class ClassUNet(eqx.Module):
    """F(x, level, label): a U-Net with time and class by FiLM; `level` spans about 100.

    Example:
        >>> make = lambda key: js.nn.ClassUNet(1, 10, widths=(8, 16), depth=1, embedding=16, key=key)
        >>> net = jax.eval_shape(make, jax.random.key(0))
        >>> net.labels.shape  # ten classes and "any class"
        (11, 16)
    """

    unet: UNet
    labels: Float[Array, "classes1 d"]
    time_in: Linear
    time_out: Linear
    classes: int = eqx.field(static=True)

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        widths: tuple[int, ...],
        depth: int,
        embedding: int,
        key: PRNGKeyArray,
    ):
        k1, k2, k3, k4 = jax.random.split(key, 4)
        self.unet = UNet(channels, channels, tuple(widths), depth, embedding, key=k1)
        self.labels = jax.random.normal(k2, (classes + 1, embedding))
        self.time_in = Linear(64, embedding, gain=2**0.5, key=k3)
        self.time_out = Linear(embedding, embedding, key=k4)
        self.classes = classes

    def __call__(
        self, x: Float[Array, "n h w c"], level: Float[Array, " n"], label: Int[Array, " n"]
    ) -> Float[Array, "n h w c"]:
        e = self.time_out(jax.nn.silu(self.time_in(waves(level, 64)))) + self.labels[label]
        return self.unet(x, jax.nn.silu(e))


class EDMNet(eqx.Module):
    """`net(x, t, label)`: the data predicted from x = x0 + t eps (kind "data" on `EDM`).

    Args:
        unet: F.
        sigma_data: standard deviation of the training images.

    Example:
        >>> make = lambda key: js.nn.ClassUNet(1, 10, widths=(4,), depth=1, embedding=4, key=key)
        >>> zeros = jax.tree.map(lambda a: jnp.zeros(a.shape), jax.eval_shape(make, jax.random.key(0)))
        >>> net = jax.jit(js.nn.EDMNet(zeros, sigma_data=0.5).__call__)
        >>> float(net(jnp.ones((2, 2, 1)), 0.5)[0, 0, 0])  # F = 0, and c_skip = 1/2 at t = sigma_data
        0.5
    """

    unet: ClassUNet
    sigma_data: float = eqx.field(static=True)

    def __call__(
        self, x: Float[Array, "..."], t: Float[Array, "..."] | float, label: Label = None
    ) -> Float[Array, "..."]:
        """Predict for an image (h, w, c) or a batch; one `t` and `label`, or one each; None: any class."""
        xs, s, label = batched(self.unet, x, t, label)
        variance = s**2 + self.sigma_data**2
        c_skip, c_out, c_in = (
            self.sigma_data**2 / variance,
            s * self.sigma_data * jax.lax.rsqrt(variance),
            jax.lax.rsqrt(variance),
        )
        wide = lambda c: c[:, None, None, None]
        f = self.unet(wide(c_in) * xs, noise_level(s), label)
        return jnp.reshape(wide(c_skip) * xs + wide(c_out) * f, x.shape)


class FlowNet(eqx.Module):
    """`net(x, t, label)`: the velocity eps - x0 at x = (1-t) x0 + t eps (kind "velocity" on `CondOT`).

    Example:
        >>> make = lambda key: js.nn.ClassUNet(1, 10, widths=(4,), depth=1, embedding=4, key=key)
        >>> zeros = jax.tree.map(lambda a: jnp.zeros(a.shape), jax.eval_shape(make, jax.random.key(0)))
        >>> denoiser = js.Denoiser(js.nn.FlowNet(zeros), js.CondOT(), "velocity")
        >>> float(jax.jit(denoiser.__call__)(jnp.ones((2, 2, 1)), 0.5)[0, 0, 0])  # velocity 0, so x0_hat = x
        1.0
    """

    unet: ClassUNet

    def __call__(
        self, x: Float[Array, "..."], t: Float[Array, "..."] | float, label: Label = None
    ) -> Float[Array, "..."]:
        """Predict for an image (h, w, c) or a batch; one `t` and `label`, or one each; None: any class."""
        xs, t, label = batched(self.unet, x, t, label)
        return jnp.reshape(self.unet(xs, 100 * t, label), x.shape)


class Classifier(eqx.Module):
    """log p(class | x0 + s eps): residual blocks at 1/2, 1/4, ... of the resolution, averaged over the image.

    Example:
        >>> sizes = dict(widths=(8, 16), depth=1, embedding=16, features=32)
        >>> net = jax.eval_shape(lambda key: js.nn.Classifier(1, 10, **sizes, key=key), jax.random.key(0))
        >>> images = jax.ShapeDtypeStruct((5, 32, 32, 1), jnp.float32)
        >>> jax.eval_shape(js.nn.Classifier.features, net, images).shape
        (5, 32)
    """

    stem: Conv
    blocks: list[list[Block]]
    down: list[Conv]
    time: Linear
    last: Linear
    head: Linear

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        widths: tuple[int, ...],
        depth: int,
        embedding: int,
        features: int,
        key: PRNGKeyArray,
    ):
        keys = iter(jax.random.split(key, 4 + len(widths) * (depth + 1)))
        self.stem = Conv(4 * channels, widths[0], key=next(keys))
        self.blocks = [[Block(w, embedding, key=next(keys)) for _ in range(depth)] for w in widths]
        self.down = [Conv(a, b, 2, stride=2, key=next(keys)) for a, b in pairwise(widths)]
        self.time = Linear(64, embedding, gain=2**0.5, key=next(keys))
        self.last = Linear(widths[-1], features, key=next(keys))
        self.head = Linear(features, classes, key=next(keys))

    def features(
        self, x: Float[Array, "n h w c"], s: Float[Array, "..."] | float = 0.0
    ) -> Float[Array, "n d"]:
        """Penultimate features of images with noise of standard deviation `s` (one for all, or one each)."""
        e = jax.nn.silu(
            self.time(waves(noise_level(jnp.broadcast_to(jnp.asarray(s, x.dtype), x.shape[:1])), 64))
        )
        h = self.stem(fold(x * jax.lax.rsqrt(1 + jnp.square(jnp.asarray(s, x.dtype)).reshape(-1, 1, 1, 1))))
        for level, blocks in enumerate(self.blocks):
            if level:
                h = self.down[level - 1](h)
            for block in blocks:
                h = block(h, e)
        return jax.nn.silu(self.last(normalise(h).mean((1, 2))))

    def __call__(
        self, x: Float[Array, "n h w c"], s: Float[Array, "..."] | float = 0.0
    ) -> Float[Array, "n classes"]:
        """Logits of the classes, for images with noise of standard deviation `s`."""
        return self.head(self.features(x, s))


def noise_level(s: Float[Array, " n"]) -> Float[Array, " n"]:
    """10 log s: from -69 to 44 at the noise levels that networks see."""
    return 10 * jnp.log(jnp.maximum(s, LEAST_NOISE))


def batched(
    net: ClassUNet, x: Float[Array, "..."], t: Float[Array, "..."] | float, label: Label
) -> tuple[Float[Array, "n h w c"], Float[Array, " n"], Int[Array, " n"]]:
    """Make x a batch, with a time and a label for each of its images."""
    cell, channels = 2 ** len(net.unet.encoder), net.unet.head.bias.shape[0] // 4
    if x.ndim not in (3, 4) or x.shape[-1] != channels or x.shape[-3] % cell or x.shape[-2] % cell:
        image = f"x must be an image (h, w, {channels}) or a batch of them"
        raise ValueError(f"{image}, with sides that are multiples of {cell}; got {x.shape}.")
    xs = jnp.reshape(x, (-1, *x.shape[-3:]))
    try:
        t = jnp.broadcast_to(jnp.asarray(t, xs.dtype), xs.shape[:1])
        label = jnp.broadcast_to(
            jnp.asarray(net.classes if label is None else label, jnp.int32), xs.shape[:1]
        )
    except ValueError:
        raise ValueError(
            f"{xs.shape[0]} images need one time and one label for all, or one for each"
        ) from None
    return xs, t, label
