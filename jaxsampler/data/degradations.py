r"""Ten ways to damage a photo, each a pure function `(key, image, severity) -> degraded`.

Severity runs from 0 (hardly visible) over 0.5 (as in the published test sets) to 1 (worse than any of them):

    motion-blurry   camera shake along a curved path                           [Nah et al. 2017, GoPro]
    hazy            I = J t + A (1 - t), t = exp(-beta depth)                  [Li et al. 2019, RESIDE]
    jpeg-compressed a real codec at quality 60 (5/60)^severity
    low-light       gain J^gamma, sensor noise, 8 bits                         [Wei et al. 2018, LOL]
    noisy           Gaussian noise of standard deviation 90/255 severity, clipped
    raindrop        drops on the lens, showing the scene upside down, blurred  [Qian et al. 2018]
    rainy           bright streaks in two layers                               [Yang et al. 2017, Rain100H]
    shadowed        a soft-edged region lit by the blue sky only               [Qu et al. 2017, SRD]
    snowy           flakes of three sizes, the large ones out of focus         [Liu et al. 2018, Snow100K]
    uncompleted     strokes and boxes cut out, filled black                    [Lugmayr et al. 2022]

Lengths (blur, streaks, flakes, drops, strokes) are in pixels, as the network that undoes them sees pixels.
Depth and shadows are as large as the photo: `view` says which part of a photo a crop is.

Everything runs in numpy on the host, because a codec does. The JAX key only seeds a generator, so the same
key gives the same bits, and no image depends on the others in its batch.
"""

import io
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray
from PIL import Image, ImageDraw

from ..spelling import nearest
from .fields import RgbImage, blur, coordinates, flake, hills, scatter, splat

Key = PRNGKeyArray | int | Sequence[int]
View = tuple[float, float, float, float]  # top, left, bottom, right of the image within its photo, in [0, 1]
WHOLE: View = (0.0, 0.0, 1.0, 1.0)


def generator(key: Key) -> np.random.Generator:
    """numpy's generator for a JAX key, an integer or several; equal keys give equal streams."""
    if isinstance(key, jax.Array):
        typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        words = np.asarray(jax.random.key_data(key) if typed else key)
        key = words.ravel().tolist()
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


def motion_blurry(key: Key, image: RgbImage, severity: float | int, view: View = WHOLE) -> RgbImage:
    """Average the image along a smooth random path of 20 severity pixels."""
    rng = generator(key)
    turn, bend, swing = rng.uniform(0, 2 * np.pi), rng.normal(0, 1.0), rng.normal(0, 1.5)
    s = np.linspace(0, 1, 96)
    heading = turn + bend * s + swing * np.sin(np.pi * (s + rng.uniform()))
    speed = 1 + 0.5 * np.sin(2 * np.pi * (s + rng.uniform()))  # the camera lingers, as a hand does
    velocity = speed / speed.sum() * np.stack([np.sin(heading), np.cos(heading)])
    path = 20 * severity * np.cumsum(velocity, axis=1)
    return np.clip(blur(image, splat(path - path.mean(axis=1, keepdims=True))), 0, 1)


def low_light(key: Key, image: RgbImage, severity: float | int, view: View = WHOLE) -> RgbImage:
    """Expose briefly: gain J^gamma, shot and read noise, rounded to 8 bits as every file is."""
    rng = generator(key)
    gain = np.exp(-1.9 * severity**0.7 * rng.uniform(0.85, 1.15))
    dark = gain * image ** (1 + 0.8 * severity * rng.uniform(0.85, 1.15))
    sigma = np.sqrt((0.003 * dark + 0.00003) * 2 * severity)
    dark = dark + sigma * rng.standard_normal(image.shape, np.float32)
    return (np.round(np.clip(dark, 0, 1) * 255) / 255).astype(np.float32)


def noisy(key: Key, image: RgbImage, severity: float | int, view: View = WHOLE) -> RgbImage:
    """Add white Gaussian noise of standard deviation 90/255 severity and clip to [0, 1]."""
    noise = generator(key).standard_normal(image.shape, np.float32)
    return np.clip(image + np.float32(90 / 255 * severity) * noise, 0, 1)


def jpeg_compressed(key: Key, image: RgbImage, severity: float | int, view: View = WHOLE) -> RgbImage:
    """Encode with Pillow's JPEG codec (colour at half resolution) and decode."""
    file = io.BytesIO()
    pixels = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
    Image.fromarray(pixels).save(file, format="JPEG", quality=jpeg_quality(severity))
    return np.asarray(Image.open(file), np.float32) / 255


def jpeg_quality(severity: float | int) -> int:
    """60, 17 and 5 at severity 0, 1/2 and 1."""
    return round(60 * (5 / 60) ** severity)


def hazy(key: Key, image: RgbImage, severity: float | int, view: View = WHOLE) -> RgbImage:
    """Add haze over a random smooth depth that mostly grows towards the top; beta = 1.2 severity."""
    rng = generator(key)
    air = rng.uniform(0.75, 0.98) + rng.uniform(-0.02, 0.02, 3)
    y, x = coordinates(image.shape, view)
    slope, tilt = rng.uniform(0.2, 0.9), rng.uniform(-0.2, 0.2)
    depth = 0.85 + slope * (0.5 - y) + tilt * (x - 0.5) + 0.12 * hills(rng, y, x, 3)
    return haze(image, np.clip(depth, 0.15, 1.5), 1.2 * severity, air)


def haze(image: RgbImage, depth: np.ndarray, beta: float, air: np.ndarray) -> RgbImage:
    """Koschmieder's law, I = J t + A (1 - t) with t = exp(-beta depth)."""
    t = np.exp(-beta * depth)[..., None]
    return np.clip(image * t + air * (1 - t), 0, 1).astype(np.float32)


def rainy(key: Key, image: RgbImage, severity: float | int, view: View = WHOLE) -> RgbImage:
    """Add streaks in one direction: a far layer (many, thin), a near one (few, long), and a faint veil."""
    from scipy.signal import fftconvolve  # slow to import

    rng = generator(key)
    lean = rng.uniform(-0.6, 0.6)
    light = np.zeros(image.shape[:2], np.float32)
    for density, length, width, strength in ((0.016, 12, 0.45, 0.8), (0.004, 26, 0.7, 1.0)):
        length *= (0.6 + 0.8 * severity) * rng.uniform(0.8, 1.2)
        angle = lean + rng.uniform(-0.06, 0.06)
        s = np.linspace(-0.5, 0.5, 2 * int(length) + 2) * length
        streak = splat(np.stack([s * np.cos(angle), s * np.sin(angle)]), width)
        drops = scatter(rng, image.shape, streak.shape, 1.6 * severity * density)
        light += strength * np.minimum(fftconvolve(drops, streak / streak.max(), "valid"), 1)
    light = np.clip((0.6 + 0.2 * severity) * light + 0.06 * severity, 0, 0.85)[..., None]
    return np.clip(image + light * (0.92 - image), 0, 1).astype(np.float32)


def snowy(key: Key, image: RgbImage, severity: float | int, view: View = WHOLE) -> RgbImage:
    """Add drifting flakes: many small sharp ones, some larger, a few large and blurred."""
    from scipy.signal import fftconvolve  # slow to import

    rng = generator(key)
    clear = np.ones(image.shape[:2], np.float32)
    drift = rng.uniform(-0.8, 0.8)
    for density, radius, soft in ((0.009, 1.0, 0.7), (0.0022, 1.9, 0.9), (0.0005, 4.0, 2.2)):
        radius *= (0.8 + 0.4 * severity) * rng.uniform(0.85, 1.15)
        disc = flake(radius, soft, stretch=1 + rng.uniform(0, 0.6), angle=drift)
        seeds = scatter(rng, image.shape, disc.shape, 2 * severity * density)
        clear *= 1 - np.clip(fftconvolve(seeds, disc, "valid"), 0, 0.97)
    cover = 1 - clear[..., None] * (1 - 0.06 * severity)
    return np.clip(image + cover * (0.97 - image), 0, 1).astype(np.float32)


def raindrop(key: Key, image: RgbImage, severity: float | int, view: View = WHOLE) -> RgbImage:
    """Put drops on the lens: each shows its surroundings upside down, wide-angle and out of focus."""
    rng = generator(key)
    height, width, _ = image.shape
    blurred = blur(image, flake(2.5, 1.5))
    out = image.astype(np.float32)
    for _ in range(rng.poisson(2 * severity * 0.0011 * height * width)):
        radius = np.exp(rng.uniform(np.log(2.5), np.log(11.0))) * (0.8 + 0.4 * severity)
        cy, cx = rng.uniform(-4, height + 4), rng.uniform(-4, width + 4)
        wobble, phase = rng.uniform(0, 0.18), rng.uniform(0, 2 * np.pi, 2)
        zoom, light = rng.uniform(1.5, 3.5), rng.normal()
        top, left = max(int(cy - 1.4 * radius), 0), max(int(cx - 1.4 * radius), 0)
        y = np.arange(top, min(int(cy + 1.4 * radius) + 2, height))[:, None] - cy
        x = np.arange(left, min(int(cx + 1.4 * radius) + 2, width)) - cx
        if not (y.size and x.size):
            continue
        r, theta = np.hypot(y, x), np.arctan2(y, x)
        outline = np.cos(2 * theta + phase[0]) + 0.5 * np.cos(3 * theta + phase[1])
        edge = radius * (1 + wobble * outline)
        alpha = np.clip((edge - r) / 1.5, 0, 1)[..., None]  # a rim 1.5 pixels soft
        rows = np.clip(np.abs(cy - zoom * y).astype(int), 0, height - 1)
        columns = np.clip(np.abs(cx - zoom * x).astype(int), 0, width - 1)
        inside = r / np.maximum(edge, 1e-3)
        # A dark rim; bright below, where the drop shows the sky.
        shade = 1.05 + 0.08 * light + 0.25 * y / radius - 0.45 * inside**6
        glint = np.exp(-(((y + 0.45 * radius) ** 2 + (x + 0.35 * radius) ** 2) / (0.02 * radius**2 + 0.3)))
        drop = blurred[rows, columns] * shade[..., None] + 0.5 * glint[..., None]
        part = out[top : top + y.shape[0], left : left + x.shape[0]]
        part += alpha * (np.clip(drop, 0, 1) - part)
    return out


def shadowed(key: Key, image: RgbImage, severity: float | int, view: View = WHOLE) -> RgbImage:
    """Cast a shadow over a quarter to three fifths of the photo, with a round or a straight outline."""
    rng = generator(key)
    rounded, turns, shifts = rng.uniform() < 0.6, rng.uniform(0, 2 * np.pi, 2), rng.uniform(-0.2, 0.2, 2)
    seed = int(rng.integers(2**31))

    def field(y, x):  # the shadow is where it exceeds a level, on the whole photo as on a part of it
        if rounded:
            return 0.25 * hills(generator(seed), y, x, 4)
        planes = x * np.cos(turns)[:, None, None] + y * np.sin(turns)[:, None, None] + shifts[:, None, None]
        return planes.min(axis=0)

    level = np.quantile(field(*coordinates((24, 24), WHOLE)), 1 - rng.uniform(0.25, 0.6))
    penumbra = rng.uniform(0.01, 0.05)
    depth = (field(*coordinates(image.shape, view)) - level) / penumbra
    shade = 1 / (1 + np.exp(-np.clip(4 * depth, -30, 30)))
    sky = np.array([-0.1, 0.0, 0.2])  # its light still reaches the shadow
    tint = sky + rng.uniform(-0.05, 0.05, 3)
    keep = np.exp(-1.3 * severity * rng.uniform(0.85, 1.15))
    shadowed = image * (1 - shade[..., None] * (1 - keep * (1 + severity * tint)))
    return np.clip(shadowed, 0, 1).astype(np.float32)


def uncompleted(
    key: Key, image: RgbImage, severity: float | int, view: View = WHOLE, mask: np.ndarray | None = None
) -> RgbImage:
    """Blacken the image where `mask` is dark; without a mask, strokes and boxes over 0.4 severity of it.

    Args:
        mask: bool, uint8 or float in [0, 1]: white is known, black is cut out.

    Raises:
        ValueError: mask and image differ in size.
    """
    mask = random_mask(key, image.shape[:2], severity) if mask is None else np.asarray(mask)
    if mask.shape != image.shape[:2]:
        sizes = [" x ".join(map(str, shape)) for shape in (mask.shape, image.shape[:2])]
        raise ValueError(f"the mask is {sizes[0]}, the image {sizes[1]} (height x width): make them equal")
    known = mask if mask.dtype == bool else mask > (127 if mask.dtype == np.uint8 else 0.5)
    return np.where(known[..., None], image, np.float32(0)).astype(np.float32)


def random_mask(key: Key, shape: tuple[int, int], severity: float | int) -> np.ndarray:
    """Draw a mask, bool (H, W), True = known: boxes and strokes cut out at least 0.4 severity of the image.

    Example:
        >>> mask = js.data.random_mask(0, (64, 64), severity=0.5)
        >>> mask.shape, bool(0.2 <= 1 - mask.mean() < 0.4)
        ((64, 64), True)
    """
    rng = generator(key)
    height, width = shape
    canvas = Image.new("L", (width, height), 255)
    draw = ImageDraw.Draw(canvas)
    target, cut = 0.4 * severity, 0.0
    while cut < target:
        for _ in range(1 + height * width // 40_000):  # few shapes before the next look at the share
            x, y = rng.uniform(0, width), rng.uniform(0, height)
            if rng.uniform() < 0.3:
                w, h = rng.uniform(5, 20, 2)
                draw.rectangle((x - w / 2, y - h / 2, x + w / 2, y + h / 2), fill=0)
                continue
            steps = np.cumsum(rng.normal(0, 0.6, 5)) + rng.uniform(0, 2 * np.pi)
            stride = rng.uniform(5, 14) * np.stack([np.cos(steps), np.sin(steps)], -1)
            points = np.cumsum(stride, axis=0) + (x, y)
            draw.line([tuple(p) for p in points], fill=0, width=int(rng.integers(3, 8)), joint="curve")
        cut = 1 - np.asarray(canvas).mean() / 255
    return np.asarray(canvas) > 127


TASKS = {
    "motion-blurry": motion_blurry,
    "hazy": hazy,
    "jpeg-compressed": jpeg_compressed,
    "low-light": low_light,
    "noisy": noisy,
    "raindrop": raindrop,
    "rainy": rainy,
    "shadowed": shadowed,
    "snowy": snowy,
    "uncompleted": uncompleted,
}
_VERBS = "deblur dehaze dejpeg lowlight denoise deraindrop derain deshadow desnow inpaint"
VERBS: dict[str, str] = dict(zip(_VERBS.split(), TASKS, strict=True))


def task_name(name: str) -> str:
    """Return the name of a task, given its name or the verb that undoes it.

    Raises:
        ValueError: the task is unknown; the nearest one is suggested.

    Example:
        >>> js.data.task_name("deblur"), js.data.task_name("hazy")
        ('motion-blurry', 'hazy')
    """
    if name in TASKS or name in VERBS:
        return VERBS.get(name, name)
    raise ValueError(f"unknown task {name!r}; {nearest(name, [*VERBS, *TASKS])}")


def degrade(
    task: str, key: Key, image: np.ndarray, severity: float | int | None = None, view: View = WHOLE
) -> RgbImage:
    """Damage an image, float32 RGB in [0, 1].

    Args:
        task: one of `TASKS`, or the verb that undoes it (`VERBS`).
        key: equal keys give equal bits.
        severity: in [0, 1]; None draws one from [0.2, 0.8].
        view: which part of a photo the image is: (top, left, bottom, right) in [0, 1].

    Raises:
        ValueError: the task is unknown, the image is not (H, W, 3), or the severity is outside [0, 1].

    Example:
        >>> image = np.full((32, 32, 3), 0.5, np.float32)
        >>> noisy = js.data.degrade("noisy", 0, image, severity=0.5)
        >>> round(float(noisy.std()), 2), round(0.5 * 90 / 255, 2)
        (0.18, 0.18)
    """
    task, image = task_name(task), np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"an image must have shape (H, W, 3) with H, W > 0; got {image.shape}")
    if severity is None:
        severity = generator(key).spawn(1)[0].uniform(0.2, 0.8)
    if not 0 <= severity <= 1:
        raise ValueError(f"severity must lie in [0, 1]; got {severity}")
    return TASKS[task](key, image.astype(np.float32), float(severity), view)
