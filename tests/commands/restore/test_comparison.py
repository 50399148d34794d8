"""The comparison's crops, metrics and tables, against closed forms and hand-made rows."""

import csv
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxsampler import data, solvers
from jaxsampler.commands.restore import comparison, report, restore, table
from jaxsampler.commands.restore.comparison import Row
from jaxsampler.commands.restore.figure import figure
from jaxsampler.commands.restore.report import Distance
from jaxsampler.nn.unet import RestorationNet


def test_psnr_and_ssim_in_closed_form():
    image = np.full((32, 32, 3), 0.5, np.float32)
    assert comparison.psnr(image + np.float32(0.1), image) == pytest.approx(20, abs=1e-4)
    assert comparison.psnr(np.full_like(image, 1.7), np.ones_like(image) - np.float32(1e-3)) == pytest.approx(
        60, abs=1e-2
    )  # clipped first
    ramp = np.linspace(0, 0.5, 32 * 32 * 3, dtype=np.float32).reshape(32, 32, 3)
    assert comparison.ssim(ramp, ramp) == pytest.approx(1)
    a, b, c1 = 0.5, 0.6, 0.01**2  # constant images: the luminance term alone
    assert comparison.ssim(image + np.float32(0.1), image) == pytest.approx(
        (2 * a * b + c1) / (a * a + b * b + c1), abs=1e-4
    )


def test_the_crops_shown_are_held_out_damaged_and_worth_seeing():
    batch, photos = comparison.shown(), {p.name: p for p in data.held_out_photos()}
    assert list(comparison.SHOWN) == list(data.TASKS)
    for name, clean, degraded, (_, top, left) in zip(*batch, comparison.SHOWN.values(), strict=True):
        assert top % 8 == left % 8 == 0  # JPEG's blocks
        np.testing.assert_array_equal(clean, photos[name].image[top : top + 128, left : left + 128])
        assert clean.std() > 0.1
        assert 8 < comparison.psnr(degraded, clean) < 32
    assert len(set(batch.photos)) >= 3


def test_crops_of_the_comparison():
    photos = data.held_out_photos()[:2]
    first, again = (list(comparison.crops(photos, 64, each=2)) for _ in range(2))
    assert len(first) == 4
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.degraded, b.degraded)
    assert not np.array_equal(first[0].clean, first[1].clean)


TRACES = []


class Counted(RestorationNet):
    """Notes when it is traced."""

    def __init__(self, net):
        for name, value in vars(net).items():
            setattr(self, name, value)

    def __call__(self, x, t, mu, task):
        TRACES.append(x.shape)
        return super().__call__(x, t, mu, task)


def test_bench_is_restore_with_one_compilation_for_all_numbers_of_calls(net):
    batch, bench = comparison.shown(64), comparison.Bench(Counted(net), seed=5)
    TRACES.clear()
    rows, images = bench.rows(batch, [("mr_ode 2", 3), ("mr_sde 1", 3), ("posterior", 3), ("mr_sde 2", 4)])
    assert TRACES == [(10, 64, 64, 3)]
    posterior, _ = bench.run(
        batch, bench.table(solvers.posterior, 3)
    )  # rows() runs it once, as the tables are equal
    np.testing.assert_allclose(posterior, images["mr_sde 1", 3], atol=1e-5)
    assert images["posterior", 3] is images["mr_sde 1", 3]
    assert np.abs(images["mr_ode 2", 3] - images["mr_sde 1", 3]).max() > 0.01
    direct = restore(
        net, table(net, solvers.mr_sde(), 4), jnp.asarray(batch.degraded), jnp.arange(10), jax.random.key(5)
    )
    np.testing.assert_allclose(images["mr_sde 2", 4][:9], direct[:9], atol=1e-5)
    hole = (batch.degraded[9] == 0).all(-1)
    np.testing.assert_allclose(images["mr_sde 2", 4][9][hole], direct[9][hole], atol=1e-5)
    np.testing.assert_array_equal(images["mr_sde 2", 4][9][~hole], batch.clean[9][~hole])
    for k, task in enumerate(data.TASKS):
        expected = 10 * np.log10(1 / np.mean((np.clip(images["mr_sde 2", 4][k], 0, 1) - batch.clean[k]) ** 2))
        assert report.mean(rows, "mr_sde 2", 4, task=task) == pytest.approx(expected, abs=1e-3)


def hand_made(gain, short, ratio):
    """Rows of two crops per task whose gains, shortfalls and distances are given."""
    rows, distances = [], []
    for k, task in enumerate(data.TASKS):
        for wobble in (-1, 1):
            values = {
                ("input", 0): 20,
                ("mr_ode 2", 10): 20 + gain[k],
                ("mr_ode 2", 5): 20 + gain[k],
                ("posterior", 100): 20 + gain[k] + short,
            }
            rows += [Row(task, "p", s, c, v + wobble, 0.5, 0.1) for (s, c), v in values.items()]
        distances += [Distance(task, "mr_ode 1", 10, 0.02), Distance(task, "mr_ode 2", 10, 0.02 * ratio)]
    return rows, distances


@pytest.mark.parametrize(
    ("gain", "short", "ratio", "met"),
    [
        ([6] * 10, 0.2, 0.4, [True, True, True, True, True]),
        ([6] * 9 + [-1], 0.2, 0.6, [False, True, True, True, False]),
        ([4] * 10, 0.5, 0.4, [True, False, False, True, True]),
        ([6] * 10, 0.9, 0.4, [True, True, False, False, True]),
    ],
)
def test_targets(gain, short, ratio, met):
    targets = report.targets(*hand_made(gain, short, ratio), "mr_ode 2")
    assert [t.met for t in targets] == met
    assert f"{short:+.2f} dB" in targets[2].measured
    assert targets[4].measured == f"{ratio:.2f}"


def test_tables_say_what_was_measured():
    rows, _ = hand_made(list(range(10)), 0.0, 1.0)
    lines = report.per_task(rows, [("mr_ode 2", 10), ("posterior", 100)]).splitlines()
    assert len({len(line) for line in lines}) == 1
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["PSNR (dB)/SSIM", "input", "mr_ode 2 x10", "posterior x100"]
    assert [line[2] for line in cells[2:12]] == [f"{20 + k:.2f}/0.500" for k in range(10)]
    assert cells[12] == ["**mean**", "20.00/0.500", "24.50/0.500", "24.50/0.500"]
    assert cells[13][1:] == ["0", "10", "100"]
    assert cells[14][1:] == ["", "1.0", "1.0"]


def test_csv_holds_every_row():
    rows, _ = hand_made([1.5] * 10, 0.25, 1.0)
    read = list(csv.DictReader(io.StringIO(report.as_csv(rows))))
    assert [(r["task"], r["solver"], int(r["calls"])) for r in read] == [
        (r.task, r.solver, r.calls) for r in rows
    ]
    np.testing.assert_allclose([float(r["psnr"]) for r in read], [r.psnr for r in rows], atol=1e-3)


def test_the_member_is_chosen_on_training_photos(net, monkeypatch):
    seen = []
    monkeypatch.setattr(data, "held_out_photos", lambda: pytest.fail("held-out photos must not be looked at"))
    monkeypatch.setattr(
        report,
        "crops",
        lambda photos, **options: seen.extend(photos) or [comparison.crops(photos[:1], 32, 1).__next__()],
    )
    best, rows = report.choose(comparison.Bench(net))
    scores = {s: sum(r.psnr for r in rows if r.solver == s) for s in {r.solver for r in rows} - {"input"}}
    assert best == max(scores, key=scores.get)
    assert set(scores) == {"mr_ode 1", "mr_ode 2", "mr_sde 1", "mr_sde 2"}
    assert {p.scene for p in seen}.isdisjoint(data.photos.HELD_OUT)


def test_the_figure_shows_the_pictures():
    colours = np.linspace(0, 1, 3 * 10).reshape(3, 10, 1, 1, 1)
    pictures = [np.broadcast_to(c, (10, 16, 16, 3)).astype(np.float32) for c in colours]
    png = figure(list(zip(("input", "ours", "truth"), pictures, strict=True)), [[10.0, 20.0, 0.0]] * 10)
    image = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(float)
    height, width, _ = image.shape
    for row in range(10):
        for column in range(3):
            y, x = (0.5 + 1.74 * (row + 0.5)) / 17.9 * height, (0.5 + 1.6 * (column + 0.5)) / 5.3 * width
            assert abs(image[int(y), int(x)].mean() / 255 - colours[column, row].item()) < 0.02
