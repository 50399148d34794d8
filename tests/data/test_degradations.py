"""Each degradation against something that does not share its code: a closed form, a codec, a statistic."""

import io

import jax
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from jaxsampler.data import (
    TASKS,
    VERBS,
    Photo,
    batch,
    degrade,
    held_out_photos,
    random_mask,
    task_name,
    training_photos,
)
from jaxsampler.data.degradations import haze, jpeg_quality, low_light, motion_blurry, uncompleted
from jaxsampler.data.fields import blur


@pytest.fixture(scope="module")
def photo():
    return held_out_photos()[0].image[20:116, 150:246]


def psnr(a, b):
    return -10 * np.log10(np.mean((np.float64(a) - b) ** 2) + 1e-12)


@pytest.mark.parametrize("task", TASKS)
def test_image_in_image_out(task, photo):
    before = photo.copy()
    for shape in ((96, 96), (1, 1), (3, 50), (65, 7)):
        out = degrade(task, 0, photo[: shape[0], : shape[1]], 0.9)
        assert out.shape == (*shape, 3) and out.dtype == np.float32
        assert np.isfinite(out).all() and 0 <= out.min() and out.max() <= 1
    assert (photo == before).all()  # pure
    assert psnr(degrade(task, 0, photo, 0.5), photo) < 33  # and visible


@pytest.mark.parametrize("task", TASKS)
def test_same_key_same_bits(task, photo):
    keys = jax.random.split(jax.random.key(3), 2)
    one = degrade(task, keys[0], photo)
    assert (one == degrade(task, keys[0], photo)).all()
    assert (one != degrade(task, keys[1], photo)).any()  # jpeg too: the severity is drawn
    assert (degrade(task, jax.random.key_data(keys[0]), photo) == one).all()


@pytest.mark.parametrize("task", TASKS)
def test_severity_is_monotone(task, photo):
    quality = [
        np.mean([psnr(degrade(task, k, photo, s), photo) for k in range(12)]) for s in (0, 0.2, 0.5, 0.8, 1)
    ]
    assert (np.diff(quality) < -0.3).all(), quality
    assert quality[0] > 30  # severity 0 is hardly visible


def test_severity_none_is_spread_around_the_default(photo):
    """The noise tells its severity: sigma = 90/255 severity on grey."""
    grey = np.full((64, 64, 3), 0.5, np.float32)
    drawn = [
        np.abs(degrade("noisy", k, grey) - 0.5).mean() / (np.sqrt(2 / np.pi) * 90 / 255) for k in range(60)
    ]
    assert 0.18 < min(drawn) < 0.3 and 0.7 < max(drawn) < 0.82 and abs(np.mean(drawn) - 0.5) < 0.09


def test_noise_has_the_stated_sigma_and_is_white():
    noise = degrade("noisy", jax.random.key(0), np.full((200, 200, 3), 0.5, np.float32), 0.4) - 0.5
    sigma = 90 / 255 * 0.4  # 3.5 sigma to the clip
    assert abs(noise.std() / sigma - 1) < 4 / np.sqrt(2 * noise.size) + 2e-3
    assert abs(noise.mean()) < 4 * sigma / np.sqrt(noise.size)
    kurtosis = np.mean(noise**4) / np.mean(noise**2) ** 2
    assert abs(kurtosis - 3) < 0.1
    for a, b in ((noise[1:], noise[:-1]), (noise[:, 1:], noise[:, :-1]), (noise[..., 1:], noise[..., :-1])):
        assert abs(np.mean(a * b)) / sigma**2 < 4 / np.sqrt(a.size)


@pytest.mark.parametrize("severity", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_jpeg_is_the_codec(severity, photo):
    file = io.BytesIO()
    pixels = (photo * 255 + 0.5).astype(np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", quality=jpeg_quality(severity))
    decoded = np.asarray(Image.open(io.BytesIO(file.getvalue())))
    assert (np.round(degrade("jpeg-compressed", 0, photo, severity) * 255) == decoded).all()


def test_jpeg_quality_is_typical():
    qualities = [jpeg_quality(s) for s in np.linspace(0, 1, 21)]
    assert qualities == sorted(qualities, reverse=True) and qualities[0] == 60 and qualities[-1] == 5
    assert 10 <= jpeg_quality(0.5) <= 20


@pytest.mark.parametrize("key", range(5))
def test_motion_blur_averages(key):
    constant = np.broadcast_to(np.float32([0.2, 0.5, 0.9]), (40, 30, 3))
    np.testing.assert_allclose(motion_blurry(key, constant, 0.8), constant, atol=2e-6)
    spike = np.zeros((81, 81, 3), np.float32)
    spike[40, 40] = 1
    kernel = motion_blurry(key, spike, 0.8)[..., 0]
    assert abs(kernel.sum() - 1) < 1e-4
    # The path is centred, and no longer than its 16 pixels.
    rows, columns = np.nonzero(kernel > 1e-4)
    assert np.hypot(np.ptp(rows) - 2, np.ptp(columns) - 2) <= 16
    mean = ndimage.center_of_mass(kernel)
    np.testing.assert_allclose(mean, (40, 40), atol=0.1)


def test_motion_blur_of_a_ramp_is_the_ramp():
    """A centred average leaves a linear image as it is (far from the edges, which are mirrored)."""
    ramp = np.broadcast_to(np.linspace(0.2, 0.8, 80, dtype=np.float32)[:, None, None], (80, 80, 3))
    blurred = motion_blurry(7, ramp, 0.5)
    np.testing.assert_allclose(blurred[20:60, 20:60], ramp[20:60, 20:60], atol=1e-4)
    assert np.abs(blurred - ramp).max() > 1e-3


@pytest.mark.parametrize("shape", [(9, 12), (300, 280), (2, 3), (1, 5)])
def test_blur_is_scipys_mirrored_convolution(shape):
    rng = np.random.default_rng(0)
    image, kernel = rng.random((*shape, 3), np.float32), rng.random((7, 11), np.float32)
    weights = kernel.astype(np.float64) / kernel.sum(dtype=np.float64)
    for c in range(3):
        expected = ndimage.convolve(image[..., c].astype(np.float64), weights, mode="mirror")
        np.testing.assert_allclose(blur(image, kernel)[..., c], expected, atol=2e-6)


def test_haze_of_constant_depth_is_a_blend(photo):
    """exp(-beta d) = 1/4 at beta d = 2 ln 2."""
    hazed = haze(photo, np.full(photo.shape[:2], 2.0), np.log(2), np.float32([0.8, 0.9, 1.0]))
    np.testing.assert_allclose(hazed, 0.25 * photo + np.float32([0.6, 0.675, 0.75]), atol=1e-6)


def test_haze_thickens_upwards_and_hides_colour(photo):
    black = np.zeros((60, 60, 3), np.float32)
    veils = np.mean([degrade("hazy", k, black, 0.5) for k in range(20)], axis=0)
    assert veils[:10].mean() > veils[-10:].mean() + 0.05
    assert degrade("hazy", 0, photo, 0.8).std() < 0.6 * photo.std()


def test_views_are_parts_of_one_photo():
    """Haze and shadow of the lower right quarter, rendered alone, are that quarter of the whole."""
    flat = np.full((64, 64, 3), 0.5, np.float32)
    for task in ("hazy", "shadowed"):
        for key in range(4):
            whole = degrade(task, key, flat, 0.6)
            part = degrade(task, key, flat[:32, :32], 0.6, view=(0.5, 0.5, 1.0, 1.0))
            np.testing.assert_allclose(part, whole[32:, 32:], atol=1e-5)
            assert np.ptp(whole) > 0.02


def test_low_light_is_dark_quantised_and_keeps_the_order(photo):
    ramp = np.broadcast_to(np.linspace(0, 1, 64, dtype=np.float32)[None, :, None], (400, 64, 3))
    dark = low_light(0, ramp, 0.5)
    levels = dark * 255
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-3)
    curve = dark.mean(axis=(0, 2))
    assert (np.diff(curve[8:]) > 0).all() and curve[-1] < 0.45
    assert curve[32] < 0.45 * curve[-1]  # gamma > 1 darkens the middle further than the gain does
    assert 6 < psnr(degrade("low-light", 0, photo, 0.5), photo) < 12


@pytest.mark.parametrize("task", ["rainy", "snowy"])
def test_rain_and_snow_brighten_a_dark_scene(task):
    black = np.zeros((128, 128, 3), np.float32)
    out = degrade(task, 5, black, 0.5)
    assert out.max() > 0.4 and 0.02 < (out > 0.25).mean() < 0.5
    assert (out[..., 0] == out[..., 2]).all()  # white light


def test_rain_falls_in_streaks_of_one_direction():
    """The structure tensor of rain has one dominant direction, near the vertical; that of snow has not."""

    def tensor(task, key):
        light = degrade(task, key, np.zeros((128, 128, 3), np.float32), 0.5)[..., 0]
        gy, gx = np.gradient(light.astype(np.float64))
        values, vectors = np.linalg.eigh(
            [[np.mean(gx * gx), np.mean(gx * gy)], [np.mean(gx * gy), np.mean(gy * gy)]]
        )
        along = vectors[:, 0]  # least change: (x, y)
        return values[1] / values[0], np.degrees(np.arctan2(abs(along[0]), abs(along[1])))

    for key in range(4):
        ratio, lean = tensor("rainy", key)
        assert ratio > 5 and lean < 45
        assert tensor("snowy", key)[0] < 2.5


def test_raindrops_leave_the_rest_alone(photo):
    out = degrade("raindrop", 1, photo, 0.5)
    touched = np.abs(out - photo).max(axis=-1) > 0
    assert 0.03 < touched.mean() < 0.6
    _, drops = ndimage.label(touched)
    assert 2 <= drops < 40


def test_raindrops_are_lenses():
    """A wall red on the left, green on the right: drops near the border show the other side."""
    wall = np.zeros((96, 96, 3), np.float32)
    wall[:, :48, 0] = wall[:, 48:, 1] = 0.8
    foreign = np.zeros(96)
    for key in range(10):
        out = degrade("raindrop", key, wall, 0.5)
        excess = np.where(np.arange(96) < 48, 1, -1) * (out[..., 1] - out[..., 0])  # a glint is white
        foreign += (excess > 0.2).mean(axis=0) / 10
    assert foreign[30:66].mean() > 0.01
    assert foreign[:12].max() == foreign[84:].max() == 0  # farther than any drop of 11 pixels can look


def test_shadow_darkens_part_and_spares_part():
    flat = np.full((90, 90, 3), 0.6, np.float32)
    for key in range(8):
        ratio = degrade("shadowed", key, flat, 0.7) / flat
        red, blue = ratio[..., 0], ratio[..., 2]
        assert ratio.max() < 1.001 and 0.05 < (red < 0.7).mean() < 0.8 and (red > 0.99).mean() > 0.1
        assert (blue >= red - 1e-6).all() and (blue - red).max() > 0.03  # skylight


@pytest.mark.parametrize("severity", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(64, 64), (300, 200)])
def test_inpainting_keeps_what_is_known(severity, shape):
    image = np.random.default_rng(0).uniform(0.1, 1, (*shape, 3)).astype(np.float32)
    mask = random_mask(4, shape, severity)
    out = degrade("uncompleted", 4, image, severity)
    assert (out[mask] == image[mask]).all() and (out[~mask] == 0).all()
    assert 0.4 * severity <= (~mask).mean() < 0.4 * severity + 0.1


def test_explicit_mask():
    image = np.random.default_rng(0).uniform(0.1, 1, (20, 30, 3)).astype(np.float32)
    mask = np.zeros((20, 30), bool)
    mask[5:, 10:] = True
    for form in (mask, mask * np.uint8(255), mask.astype(np.float32)):
        out = uncompleted(0, image, 0.5, mask=form)
        assert (out[5:, 10:] == image[5:, 10:]).all() and (out[:5] == 0).all() and (out[:, :10] == 0).all()
    with pytest.raises(ValueError, match=r"the mask is 30 x 20, the image 20 x 30 \(height x width\)"):
        uncompleted(0, image, 0.5, mask=mask.T)


def test_names():
    assert list(VERBS.values()) == list(TASKS) and len(TASKS) == 10
    assert task_name("deblur") == "motion-blurry" and task_name("inpaint") == "uncompleted"
    assert (
        task_name("lowlight") == "low-light"
        and task_name("snowy") == "snowy"
        and task_name("desnow") == "snowy"
    )
    for typo, meant in (("denoize", "denoise"), ("de-rain", "derain"), ("hazey", "hazy")):
        with pytest.raises(ValueError, match=f"unknown task '{typo}'; did you mean '{meant}'"):
            task_name(typo)


def test_bad_input(photo):
    for image in (photo[..., 0], photo[..., :2], photo[:0]):
        with pytest.raises(ValueError, match=r"shape \(H, W, 3\)"):
            degrade("noisy", 0, image, 0.5)
    for severity in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"severity must lie in \[0, 1\]"):
            degrade("noisy", 0, photo, severity)


def test_batch_depends_on_seed_and_step_alone():
    photos = training_photos()
    one, again = batch(1, 5, photos, 32, 6), batch(1, 5, photos, 32, 6)
    longer, later, other = batch(1, 5, photos, 32, 9), batch(1, 6, photos, 32, 6), batch(2, 5, photos, 32, 6)
    for name in ("clean", "degraded", "task"):
        assert (one[name] == again[name]).all() and (longer[name][:6] == one[name]).all()
    for different in (later, other):
        assert all((different["clean"][i] != one["clean"][i]).any() for i in range(6))


def test_batch_holds_every_task_and_true_pairs():
    photos = training_photos()
    pairs = batch(0, 0, photos, 48, 200)
    assert pairs["clean"].shape == pairs["degraded"].shape == (200, 48, 48, 3)
    assert pairs["task"].dtype == np.int32
    counts = np.bincount(pairs["task"], minlength=10)
    assert len(counts) == 10 and abs(counts - 20).max() < 4 * np.sqrt(
        18
    )  # uniform, binomial standard deviation
    for clean, degraded, task in zip(pairs["clean"], pairs["degraded"], pairs["task"], strict=True):
        name = list(TASKS)[task]
        if name == "uncompleted":
            known = degraded.any(axis=-1)
            assert (degraded[known] == clean[known]).all() and known.mean() > 0.2
        if name == "noisy":
            assert 0.02 < (degraded - clean).std() < 90 / 255
        if name == "motion-blurry":
            assert abs(degraded.mean() - clean.mean()) < 0.1


def test_batch_crops_are_of_the_photos():
    """A made-up photo whose red and green name the place shows scale and flip."""
    y, x = np.mgrid[:200, :250].astype(np.uint8)
    maker = Photo("map", "map", np.stack([y, x, np.zeros_like(x)], -1), "", "")
    pairs = batch(0, 0, [maker], 64, 40)
    steps_down = np.diff(pairs["clean"][..., 0] * 255, axis=1).mean(axis=(1, 2))
    steps_right = np.diff(pairs["clean"][..., 1] * 255, axis=2).mean(axis=(1, 2))
    assert ((0.98 < steps_down) & (steps_down < 2.02)).all() and np.ptp(
        steps_down
    ) > 0.5  # reduced by 1/2 to 1
    np.testing.assert_allclose(np.abs(steps_right), steps_down, rtol=0.02)
    assert 8 < (steps_right < 0).sum() < 32  # flipped half of the time
    with pytest.raises(ValueError, match="'map' is 200 x 250 pixels; training needs at least 208"):
        batch(0, 0, [maker], 192, 1)


def test_batch_damages_each_crop_in_its_own_way():
    pairs = batch(3, 0, training_photos(), 48, 60)
    kinds = {"noisy": np.sign, "uncompleted": np.abs, "snowy": np.abs}
    for name, view in kinds.items():
        here = pairs["task"] == list(TASKS).index(name)
        damage = view(pairs["degraded"][here] - pairs["clean"][here]).reshape(here.sum(), -1)
        likeness = np.corrcoef(damage)[~np.eye(len(damage), dtype=bool)]
        assert here.sum() >= 3 and np.abs(likeness).max() < 0.6, name


def test_batch_prefers_detail():
    """Of a photo that is half texture, half plain, more than half of the crops are texture, but not all."""
    rng = np.random.default_rng(0)
    pixels = np.full((400, 800, 3), 128, np.uint8)
    pixels[:, 400:] = rng.integers(0, 256, (400, 400, 3))
    pairs = batch(0, 0, [Photo("half", "half", pixels, "", "")], 32, 200)
    textured = (pairs["clean"].std(axis=(1, 2, 3)) > 0.05).mean()
    assert 0.65 < textured < 0.95
