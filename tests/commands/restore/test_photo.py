"""The restorer against an exact network, its masks, sizes and seeds."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsampler as js
from jaxsampler import solvers
from jaxsampler.commands.restore import Restorer, restore, table
from jaxsampler.nn.unet import RestorationNet

TRACES = []


class Exact(RestorationNet):
    """Knows the answer, for one task only; elsewhere it answers grey."""

    truth: jax.Array
    task: int = eqx.field(static=True)

    def __init__(self, net, truth, task):
        for name, value in vars(net).items():
            setattr(self, name, value)
        self.truth, self.task = truth, task

    def __call__(self, x, t, mu, task):
        TRACES.append(x.shape)
        right = (task == self.task)[:, None, None, None]
        return jnp.where(right, self.truth[None], jnp.asarray(0.5, x.dtype)) + 0 * x


@pytest.mark.parametrize(
    "solver", [solvers.mr_ode(), solvers.mr_sde(), solvers.posterior, solvers.mr_ode(order=1)]
)
def test_an_exact_network_restores_exactly(net, photo, solver):
    damaged = np.clip(photo + 0.2 * np.random.default_rng(0).standard_normal(photo.shape), 0, 1).astype(
        np.float32
    )
    exact = Exact(net, jnp.asarray(photo), 4)
    restored = Restorer(exact, solver, steps=5)(damaged, "denoise")
    remaining = float(net.path(jnp.zeros((1, 1, 3))).sigma(0.0))  # the path ends with a very little noise
    assert np.abs(restored - photo).max() < 5 * remaining + 1e-5
    assert np.abs(damaged - photo).max() > 20 * remaining


def test_the_verb_picks_the_task(net, photo):
    exact = Exact(net, jnp.asarray(photo), 4)
    assert np.abs(Restorer(exact, steps=2)(photo, "desnow") - 0.5).max() < 0.1


def test_solvers_of_one_shape_share_one_compilation(net, photo):
    exact, mu = Exact(net, jnp.asarray(photo), 4), jnp.asarray(photo[None])
    TRACES.clear()
    for solver, steps in (
        (solvers.mr_ode(order=1), 7),
        (solvers.mr_sde(order=1), 7),
        (solvers.posterior, 7),
        (solvers.euler_maruyama, 7),
    ):
        restore(exact, table(net, solver, steps), mu, jnp.array([4]), jax.random.key(0))
    assert len(TRACES) == 1


def test_seeds(net, photo):
    first, again, other = (Restorer(net, steps=2, seed=s)(photo, "dehaze") for s in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).mean() > 1e-3


def test_a_table_is_its_solver(net, photo):
    """To the bit: x_T and the solver's noise come from the same seed."""
    solver = solvers.mr_sde(order=2)
    by_solver, by_table = (Restorer(net, *how, seed=3) for how in ((solver, 3), (table(net, solver, 3),)))
    np.testing.assert_array_equal(by_solver(photo, "dehaze"), by_table(photo, "dehaze"))
    assert by_solver.settings == by_table.settings


def test_what_a_table_must_be(net):
    mine, path = table(net, solvers.mr_ode(), 3), js.EDM(sigma_max=20.0)
    with pytest.raises(ValueError, match="the table has its own steps, 3 network calls: leave steps=3 out"):
        Restorer(net, mine, 3)
    with pytest.raises(
        ValueError, match=r"the table was made for another path; this network is on MeanReverting\("
    ):
        Restorer(net, js.tabulate(path, js.grids.default(path, 3), js.solvers.ddim))


def test_any_size_is_its_mirrored_canvas_cropped(net, photo):
    odd = photo[:37, :53]
    canvas = np.pad(odd, ((0, 27), (0, 11), (0, 0)), mode="symmetric")
    restorer = Restorer(net, steps=2)
    np.testing.assert_array_equal(restorer(odd, "derain"), restorer(canvas, "derain")[:37, :53])
    assert restorer(photo[:1, :1], "derain").shape == (1, 1, 3)


def test_known_pixels_are_kept_and_hidden_ones_never_looked_at(net, photo):
    mask = np.ones(photo.shape[:2], bool)
    mask[20:40, 10:50] = False
    other = np.where(mask[..., None], photo, 1 - photo)
    restorer = Restorer(net, steps=3)
    restored = restorer(photo, "inpaint", mask)
    np.testing.assert_array_equal(restored[mask], photo[mask])
    np.testing.assert_array_equal(restored, restorer(other, "inpaint", mask))
    assert np.abs(restored[~mask]).mean() > 0.01  # no longer black


def test_values_stay_in_range(net, photo):
    restored = Restorer(net, solvers.mr_sde(), steps=2)(np.round(photo), "low-light")
    assert restored.dtype == np.float32
    assert restored.min() == 0
    assert restored.max() == 1


@pytest.mark.parametrize(
    ("task", "mask", "message"),
    [
        ("inpaint", None, "needs a mask"),
        ("denoise", np.ones((64, 64), bool), "leave it out"),
        ("inpaint", np.ones((64, 32), bool), "32x64 pixels, the photo 64x64"),
        ("denoize", None, "'denoise'"),
    ],
)
def test_bad_arguments(net, photo, task, mask, message):
    with pytest.raises(ValueError, match=message):
        Restorer(net, steps=2)(photo, task, mask)


def test_bad_steps_and_seed(net):
    with pytest.raises(ValueError, match="mr_sde needs at least 1 step, got 0"):
        Restorer(net, solvers.mr_sde(), steps=0)
    with pytest.raises(ValueError, match="seed"):
        Restorer(net, seed=-1)
