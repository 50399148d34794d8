"""The problems: starts and noise that do not depend on how many there are, converged solutions, one
compilation, honest data.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsampler as js
from jaxsampler.commands.bench import problems
from jaxsampler.commands.bench.problems import problem
from jaxsampler.data import fashion


@pytest.fixture(scope="module")
def mixture():
    return problem("mixture")


@pytest.fixture(scope="module")
def empirical():
    return dataclasses.replace(problem("empirical", photos=fashion.some()[:30]), chunk=5)


def test_start_does_not_depend_on_the_number(mixture):
    few, many = mixture.start(3, seed=5), mixture.start(40, seed=5)
    np.testing.assert_array_equal(few, many[:3])
    assert few.shape == (3, 64) and few.dtype == np.float32
    assert abs(many.std() - 1) < 0.05  # VP ends in N(0, I)
    assert not np.allclose(mixture.start(3, seed=6), few)


def test_any_number_of_samples_and_their_noise(mixture):
    """More than a chunk, not a multiple of it; stochastic samples too depend on the seed and their number
    only.
    """
    small = dataclasses.replace(mixture, chunk=16)
    table = js.tabulate(js.VP(), js.grids.log_snr(js.VP(), 4), js.solvers.dpmpp_2m_sde)
    x = small.start(37)
    whole = small.run(table, x, seed=1)
    assert whole.shape == (37, 64)
    np.testing.assert_array_equal(small.run(table, x[:20], seed=1), whole[:20])
    assert not np.allclose(small.run(table, x[:2], seed=2), whole[:2])
    spread = small.run(table, np.broadcast_to(x[0], x.shape), seed=1)
    assert len(np.unique(spread[:, 0])) == 37, "every sample has noise of its own, also in another chunk"


def test_one_compilation_for_all_solvers_of_a_shape(mixture):
    """The network is traced for the first table, and never again for another solver, grid or seed."""
    traced = []

    def net(x, t):
        traced.append(x.shape)
        return mixture.denoiser.net(x, t)

    counted = dataclasses.replace(mixture, chunk=8, denoiser=js.Denoiser(net, js.VP(), "data"))
    x, path = counted.start(11), js.VP()
    tables = [
        js.tabulate(path, js.grids.log_snr(path, 4), js.solvers.unipc(order=3)),
        js.tabulate(path, js.grids.uniform(path, 4), js.solvers.ddim),
    ]
    tables = [js.pad(t, regs=4) for t in tables]
    first = counted.run(tables[0], x)
    before = len(traced)
    assert before > 0
    other = counted.run(tables[1], x, seed=3)
    assert len(traced) == before
    assert not np.allclose(first, other)


def test_converged_mixture(mixture):
    """Against 200 calls of the classical Runge-Kutta method, of another family and on another grid; 200 of
    DDIM are off by far more.
    """
    path, regs = js.VP(), mixture.fine.regs + 1
    small = dataclasses.replace(mixture, chunk=16, fine=js.pad(mixture.fine, regs=regs))  # all of one shape
    x = small.start(16, seed=2)
    rk4 = js.tabulate(path, js.grids.log_snr(path, 50), js.solvers.rk_rho(tableau="4rk"))
    ddim = js.tabulate(path, js.grids.quadratic(path, 200), js.solvers.ddim)
    want, first = (small.run(js.pad(table, regs=regs), x) for table in (rk4, ddim))
    assert np.abs(small.converged(x) - want).max() < 2e-4
    assert np.abs(first - want).max() > 5e-3


def test_mixture_data_are_what_its_denoiser_says(mixture):
    """Components in turn; E x0 at t_max, where the state says nothing, is the mean of the data; splits
    differ.
    """
    train, test = mixture.real("train", 8000), mixture.real("test", 8000)
    mean = mixture.denoiser(jnp.zeros((1, 64)), 1.0)[0]
    np.testing.assert_allclose(train.mean(0), mean, atol=0.06)
    assert not np.allclose(train[:8], test[:8])
    spread = train[::8].std(0)  # one component: its own stds, 0.1 to 0.5
    assert 0.08 < spread.min() < 0.15 and 0.4 < spread.max() < 0.55


def test_empirical_ends_at_its_photos(empirical):
    """A perfect network's samples are the training images; each of them is near one."""
    x = empirical.converged(empirical.start(5))
    photos = empirical.real("train", 30)
    away = np.sqrt(np.square(x[:, None] - photos[None]).mean((2, 3, 4)))
    assert away.min(1).max() < 0.01 < np.sort(away, 1)[:, 1].min()


def test_smoothed_ends_near_its_photos(empirical):
    smoothed = dataclasses.replace(problem("smoothed", photos=fashion.some()[:30]), chunk=5)
    assert smoothed.name == "smoothed"
    x, photos = smoothed.converged(smoothed.start(5)), smoothed.real("train", 30)
    away = np.sqrt(np.square(x[:, None] - photos[None]).mean((2, 3, 4))).min(1)
    np.testing.assert_allclose(away, 0.3, atol=0.03)  # a Gaussian of std 0.3 around a photo


def test_photos_come_class_by_class():
    labels = np.array([3, 3, 0, 1, 0, 3, 0])
    order = problems.in_turn(labels)
    assert labels[order].tolist() == [0, 1, 3, 0, 3, 0, 3]
    assert order.tolist() == [2, 3, 0, 4, 1, 6, 5]


def test_networks_bind_a_class_to_each_sample(tmp_path):
    """An untrained network saved like a trained one: sample i of a chunk is of class i mod 10, whatever its
    chunk.
    """
    from jaxsampler import checkpoint
    from jaxsampler.training import generate

    card = dict(
        model="edm",
        seed=0,
        steps=1,
        batch=1,
        widths=[4, 4],
        depth=1,
        embedding=4,
        noise_mean=0.0,
        noise_std=1.0,
        dropout=0.1,
    )
    card |= dict(lr=1e-3, warmup=0, weight_decay=0.0, clip=1.0, average=0.1, sigma_data=0.5)
    net = generate.TASK.from_card(card)
    net = jax.tree.map(
        lambda a: a + 0.1 if isinstance(a, jax.Array) else a, net
    )  # else its last layer is 0, and the class nothing
    checkpoint.save(tmp_path / "fashion_edm.safetensors", net, card)
    p = problem("fashion_edm", weights=tmp_path)
    assert p.chunk % 10 == 0
    table = js.tabulate(p.denoiser.path, js.grids.karras(p.denoiser.path, 1), js.solvers.ddim)
    same = np.broadcast_to(p.start(1), (p.chunk + 3, 32, 32, 1))
    x = p.run(table, same)
    alone = jax.jit(lambda k: js.run(p.single.bind(label=k), table, jnp.asarray(same[0])))
    for i, k in ((0, 0), (7, 7), (13, 3), (p.chunk + 2, 2)):
        np.testing.assert_allclose(x[i], alone(k), atol=1e-4 * np.abs(x).max())
    assert np.abs(x[0] - x[1]).max() > 1e-3 * np.abs(x).max()
    few = jax.jit(lambda x: js.run(p.sized(20), table, x))(jnp.asarray(same[:20]))
    np.testing.assert_allclose(x[:20], few, atol=1e-4 * np.abs(x).max())
    with pytest.raises(ValueError, match="multiple of 10, got 15"):
        p.sized(15)
    with pytest.raises(
        ValueError, match=r"fashion_classifier\.json"
    ):  # the distance needs it, sampling does not
        p.features(x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda tmp: problem("mixtur"), "unknown problem 'mixtur'; did you mean 'mixture'"),
        (lambda tmp: problem("empirical", data=tmp), "choose a folder with the files of fashion-mnist"),
        (lambda tmp: problem("fashion_edm", weights=tmp), r"fashion_edm\.(safetensors|json)"),
        (
            lambda tmp: problem("empirical", photos=fashion.some()[:5]).real("test", 6),
            "6 test photos are requested, only 5 exist",
        ),
    ],
)
def test_refused_in_one_line(make, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        make(tmp_path)
    assert "\n" not in str(error.value)


def test_samples_that_do_not_fit_into_the_memory_are_refused(mixture, monkeypatch):
    """Before anything is drawn: the numbers of a config may fill any machine."""
    monkeypatch.setattr(problems, "memory", lambda: 2**20)
    for draw in (mixture.start, lambda n: mixture.real("test", n)):
        assert len(draw(512)) == 512
        with pytest.raises(ValueError, match=r"513 samples of shape \[64\] do not fit .*: at most 512 do"):
            draw(513)
