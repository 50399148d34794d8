"""Every prediction becomes every other: definitions from closed forms, round trips, the singular ends, and
the Denoiser.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import Cubic, gaussian

import jaxsampler as js
from jaxsampler.paths.base import KINDS

pytestmark = pytest.mark.usefixtures("x64")
properties = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
PATHS = {
    "vp": js.VP(),
    "sub_vp": js.SubVP(),
    "cosine": js.CosineVP(),
    "ve": js.VE(),
    "edm": js.EDM(),
    "cond_ot": js.CondOT(),
    "discrete": js.DiscreteVP.linear(100, 1e-3, 0.2),
    "mr": js.MeanReverting(0.4, std=0.3),
    "irsde": js.MeanReverting(-0.7, variant="irsde", schedule="linear", T=50),
    "cubic": Cubic(),
}
VP_LIKE = {k: PATHS[k] for k in ("vp", "cosine", "discrete", "mr", "irsde")}
each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
kinds, names, unit = st.sampled_from(KINDS), st.sampled_from(sorted(PATHS)), st.floats(0.015, 0.985)


def times(path, n=9):
    """Interior times, away from the knots of interpolated tables."""
    knots = len(path.alphas_cumprod) if isinstance(path, js.DiscreteVP) else getattr(path, "T", 0)
    u = np.linspace(0.03, 0.97, n)
    return path.t_max * ((np.floor(u * knots) + 0.37) / knots if knots else u)


def mean_of(path):
    return 0.0 if path.centre is None else path.centre


def slope(f, t, h):
    """f'(t) by a five-point stencil."""
    return (8 * (f(t + h) - f(t - h)) - (f(t + 2 * h) - f(t - 2 * h))) / (12 * h)


def truth(path, t, x0, eps):
    """The state and its exact prediction of every kind, from the definitions, velocity by finite
    differences.
    """
    mu, h = mean_of(path), 1e-5 * path.t_max

    def state(s):
        return mu + path.alpha(s) * (x0 - mu) + path.sigma(s) * eps

    alpha, sigma, std = path.alpha(t), path.sigma(t), getattr(path, "std", 1.0)
    predictions = {
        "data": x0,
        "noise": eps,
        "score": -eps / sigma,
        "velocity": slope(state, t, h),
        "v": alpha * std * eps - sigma / std * (x0 - mu),
    }
    return jnp.asarray(state(t)), {k: jnp.asarray(v) for k, v in predictions.items()}


# --- definitions


@each_path
def test_any_kind_gives_any_other(path):
    """From known data and noise: each of the five predictions, with the state, recovers each of the
    others.
    """
    x0, eps = np.array([0.9, -0.3, 0.0]), np.array([-1.1, 0.4, 2.0])
    for t in times(path, 3):
        x, known = truth(path, t, x0, eps)
        for source in KINDS:
            for target in KINDS:
                got = js.convert(known[source], x, t, path, source=source, target=target)
                np.testing.assert_allclose(
                    got, known[target], rtol=1e-6, atol=1e-6 * max(1.0, float(np.abs(known[target]).max()))
                )


@each_path
def test_gaussian_score_noise_and_velocity(path):
    """x_0 ~ N(0.7, 0.4^2): score is grad log p_t, noise -sigma score, velocity d/dt of the exact flow through
    x.
    """
    denoiser, flow, moments = gaussian(path)
    for t in times(path):
        centre, var = moments(t)
        x = jnp.asarray(centre + np.sqrt(var) * np.array([-1.5, 0.2, 2.0]))
        log_p = jax.vmap(jax.grad(lambda y, m=centre, v=var: -0.5 * (y - m) ** 2 / v))
        np.testing.assert_allclose(denoiser(x, t, "score"), log_p(x), rtol=1e-9)
        np.testing.assert_allclose(denoiser(x, t, "noise"), -path.sigma(t) * log_p(x), rtol=1e-9)
        velocity = slope(lambda s, x=x, t=t: flow(x, t, s), t, 1e-5 * path.t_max)
        np.testing.assert_allclose(
            denoiser(x, t, "velocity"), velocity, rtol=1e-6, atol=1e-8 * np.abs(velocity).max()
        )


@pytest.mark.parametrize("path", VP_LIKE.values(), ids=VP_LIKE)
def test_v_is_the_derivative_in_the_angle(path):
    """With alpha = cos(phi) and sigma/std = sin(phi), v = dx/dphi along the flow: in units of x, mu
    included.
    """
    denoiser, flow, moments = gaussian(path)
    std = getattr(path, "std", 1.0)

    def angle(t):
        return np.arctan2(path.sigma(t) / std, path.alpha(t))

    for t in times(path):
        centre, var = moments(t)
        x = jnp.asarray(centre + np.sqrt(var) * np.array([-1.5, 0.2, 2.0]))
        h = 1e-5 * path.t_max
        want = slope(lambda s, x=x, t=t: flow(x, t, s), t, h) / slope(angle, t, h)
        np.testing.assert_allclose(denoiser(x, t, "v"), want, rtol=1e-6, atol=1e-7)


def test_mean_reverting_conversions_as_published():
    """The released conversions, mu an image: note where (1 - alpha) mu enters."""
    rng = np.random.default_rng(0)
    mu, x, m = rng.uniform(size=(3, 4, 4, 3))
    path, t = js.MeanReverting(jnp.asarray(mu), std=50 / 255), 37.6
    a, s, s8 = path.alpha(t), path.sigma(t), 50 / 255
    sh = s / s8
    published = {
        ("noise", "data"): (x - s * m) / a - (1 - a) / a * mu,
        ("v", "data"): a * x - sh * m + (1 - a) * mu,
        ("score", "data"): mu + (x - mu + s**2 * m) / a,
        ("data", "noise"): (x - mu - a * (m - mu)) / s,
        ("v", "noise"): (a * m + sh * (x - mu)) / s8,
        ("noise", "score"): -m / s,
        ("data", "score"): -(x - mu - a * (m - mu)) / s**2,
        ("noise", "v"): (s8 * m - sh * (x - mu)) / a,
        ("data", "v"): (a * (x - mu) - (m - mu)) / sh,
    }
    for (source, target), want in published.items():
        got = js.convert(jnp.asarray(m), jnp.asarray(x), t, path, source=source, target=target)
        np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-12, err_msg=f"{source} -> {target}")


# --- properties


@properties
@given(name=names, source=kinds, target=kinds, via=kinds, u=unit, x=st.floats(-3, 3), m=st.floats(-3, 3))
def test_round_trips(name, source, target, via, u, x, m):
    """There and back is the identity, directly and through a third kind, for any state and output (they need
    not be consistent).
    """
    path = PATHS[name]
    t = u * path.t_max
    x, m = (
        jnp.array([x]) * float(path.sigma(t) + path.alpha(t)),
        jnp.array([m]) / float(min(path.sigma(t), 1) if source == "score" else 1),
    )

    def to(value, a, b):
        return js.convert(value, x, t, path, source=a, target=b)

    scale = 1.0 + abs(float(m[0])) + abs(float(to(to(m, source, "data"), "data", source)[0]))
    back = to(to(m, source, target), target, source)
    assert float(back[0]) == pytest.approx(float(m[0]), rel=1e-9, abs=1e-9 * scale)
    direct, detour = to(m, source, target), to(to(m, source, via), via, target)
    size = max(abs(float(to(m, source, k)[0])) for k in (source, target, via)) + 1
    assert float(detour[0]) == pytest.approx(float(direct[0]), rel=1e-8, abs=1e-9 * size)


@properties
@given(name=names, source=kinds, u=unit)
def test_state_and_prediction_are_affine_in_the_output(name, source, u):
    """An exact output gives back the exact data and noise (definitions, not round trips), whatever the
    time.
    """
    path = PATHS[name]
    t = u * path.t_max
    mu, x0, eps = mean_of(path), 0.8, -1.3
    x = jnp.asarray(mu + path.alpha(t) * (x0 - mu) + path.sigma(t) * eps)
    a, b = path.form(source, t)
    m = jnp.asarray(a * (x0 - mu) + b * eps + (mu if source == "data" else 0.0))
    assert float(js.convert(m, x, t, path, source=source, target="data")) == pytest.approx(x0, rel=1e-9)
    assert float(js.convert(m, x, t, path, source=source, target="noise")) == pytest.approx(eps, rel=1e-9)


@pytest.mark.parametrize(
    "path", [js.VP(), js.EDM(), js.CondOT(), js.MeanReverting(0.4, std=0.3)], ids=lambda p: type(p).__name__
)
def test_traced_time_and_float32(path):
    """Under jit, with a traced float32 time, all pairs agree with float64 to single precision and stay
    float32.
    """

    @jax.jit
    def every(m, x, t):
        return {(a, b): js.convert(m, x, t, path, source=a, target=b) for a in KINDS for b in KINDS}

    t = 0.37 * path.t_max
    mu = mean_of(path)
    x = mu + path.alpha(t) * (np.array([0.9, -0.4]) - mu) + path.sigma(t) * np.array([0.3, -1.2])
    single = every(jnp.array([0.5, -0.2], jnp.float32), jnp.asarray(x, jnp.float32), jnp.float32(t))
    for (a, b), got in single.items():
        assert got.dtype == jnp.float32
        want = np.asarray(js.convert(jnp.array([0.5, -0.2]), jnp.asarray(x), t, path, source=a, target=b))
        np.testing.assert_allclose(
            got, want, rtol=2e-3, atol=2e-4 * max(1.0, np.abs(want).max()), err_msg=f"{a} -> {b}"
        )


# --- ends

NO_NOISE = ("vp", "edm", "cond_ot", "discrete", "irsde", "cubic")
NO_DATA = {
    "cond_ot": PATHS["cond_ot"],
    "cubic": PATHS["cubic"],
    "zero_snr": js.DiscreteVP(np.linspace(0.99, 0, 20)),
}
FLAT = ("cond_ot", "edm", "cubic")  # finite sigma' at t = 0


@pytest.mark.parametrize("name", NO_NOISE)
def test_without_noise_the_state_is_the_data(name):
    """At sigma = 0 any noise, score, v (and finite velocity) prediction gives data = x; concrete and traced;
    gradients are exact.
    """
    path, t = PATHS[name], 0.0
    x, m = jnp.array([0.3, -1.7]), jnp.array([5.0, 0.1])
    for source in ("noise", "score", "v", *(("velocity",) if name in FLAT else ())):

        def data(m, x, t, source=source):
            return js.convert(m, x, t, path, source=source, target="data")

        np.testing.assert_allclose(data(m, x, t), x, rtol=1e-15, err_msg=source)
        np.testing.assert_allclose(jax.jit(data)(m, x, jnp.array(t)), x, rtol=1e-15, err_msg=source)
        gm, gx = jax.grad(lambda m, x: (data(m, x, t) * jnp.array([1.0, 2.0])).sum(), (0, 1))(m, x)
        np.testing.assert_allclose(gx, [1, 2], rtol=1e-15)
        np.testing.assert_array_equal(gm, 0)
    np.testing.assert_array_equal(js.convert(m, x, t, path, source="data", target="data"), m)
    np.testing.assert_array_equal(js.convert(m, x, t, path, source="score", target="noise"), 0 * m)
    std = getattr(path, "std", 1.0)  # v = alpha std eps at sigma = 0
    np.testing.assert_allclose(js.convert(m, x, t, path, source="v", target="noise"), m / std, rtol=1e-14)


@pytest.mark.parametrize("name", NO_DATA)
def test_without_data_the_state_is_the_noise(name):
    """At alpha = 0 a data or v prediction gives noise = x exactly; v is minus the data, velocity still tells
    the data.
    """
    path = NO_DATA[name]
    x, m, t = jnp.array([0.3, -1.7]), jnp.array([5.0, 0.1]), path.t_max

    def to(source, target, t=t):
        return js.convert(m, x, t, path, source=source, target=target)

    for t_ in (t, jnp.array(t)):
        np.testing.assert_array_equal(to("data", "noise", t_), x)
        np.testing.assert_array_equal(to("v", "noise", t_), x)
        np.testing.assert_array_equal(to("v", "data", t_), -m)
        np.testing.assert_array_equal(to("data", "v", t_), -m)
        np.testing.assert_array_equal(to("data", "score", t_), -x)
        np.testing.assert_array_equal(to("noise", "score", t_), -m)
    slope_m = jax.grad(lambda m: js.convert(m, x, t, path, source="v", target="data").sum())(m)
    np.testing.assert_array_equal(slope_m, -1)
    if name == "cond_ot":  # velocity = eps - x_0
        np.testing.assert_array_equal(to("velocity", "data"), x - m)
    if name == "cubic":  # velocity = -3 x_0 + eps
        np.testing.assert_allclose(to("velocity", "data"), (x - m) / 3, rtol=1e-15)


SINGULAR = [
    (js.EDM(), 0.0, "data", "noise"),
    (js.EDM(), 0.0, "data", "score"),
    (js.EDM(), 0.0, "noise", "score"),
    (js.EDM(), 0.0, "velocity", "score"),
    (js.CondOT(), 0.0, "data", "velocity"),
    (js.CondOT(), 0.0, "data", "v"),
    (js.CondOT(), 1.0, "noise", "data"),
    (js.CondOT(), 1.0, "score", "data"),
    (js.CondOT(), 1.0, "noise", "velocity"),
    (js.VP(), 0.0, "noise", "velocity"),
    (js.VP(), 0.0, "velocity", "noise"),
    (js.DiscreteVP.linear(), 0.0, "v", "velocity"),
    (js.DiscreteVP([0.9, 0.0]), 1.0, "noise", "v"),
    (js.MeanReverting(0.0, variant="irsde"), 0.0, "data", "noise"),
]


@pytest.mark.parametrize(("path", "t", "source", "target"), SINGULAR)
def test_singular_conversions_are_refused(path, t, source, target):
    """Where the state and the output do not determine the target: an error that names the end and the way
    out, never a NaN.
    """
    m = jnp.ones(2)
    message = (
        rf"a '{source}' prediction does not determine '{target}' at t=.*keep the grid away from that end"
    )
    with pytest.raises(ValueError, match=message):
        js.convert(m, m, t, path, source=source, target=target)
    with pytest.raises(ValueError, match=message):
        js.Denoiser(lambda x, t: x, path, source)(m, t, target)
    nearby = js.convert(m, m, 0.8 * t + 0.2 * (path.t_max - t), path, source=source, target=target)
    assert np.all(np.isfinite(nearby))


# --- targets as numbers


@each_path
def test_tuple_targets(path):
    """A pair (a, b) asks for a (x_0 - mu) + b eps; the state itself is (alpha, sigma); pairs may be
    traced.
    """
    x0, eps = np.array([0.9, -0.3]), np.array([-1.1, 0.4])
    t = times(path, 3)[1]
    x, known = truth(path, t, x0, eps)
    mu = mean_of(path)
    for source in ("data", "noise", "score", "v"):
        to = functools.partial(js.convert, known[source], x, t, path, source=source)
        np.testing.assert_allclose(to(target=(1.0, 0.0)), x0 - mu, rtol=1e-9)
        np.testing.assert_allclose(to(target=(0.0, 1.0)), eps, rtol=1e-9)
        np.testing.assert_allclose(to(target=(0.3, -2.0)), 0.3 * (x0 - mu) - 2 * eps, rtol=1e-9)
        np.testing.assert_allclose(to(target=(path.alpha(t), path.sigma(t))), x - mu, rtol=1e-9)
    traced = jax.jit(lambda a, b, t: js.convert(known["v"], x, t, path, source="v", target=(a, b)))
    np.testing.assert_allclose(traced(0.3, -2.0, t), 0.3 * (x0 - mu) - 2 * eps, rtol=1e-9)


# --- the denoiser


class Linear(eqx.Module):
    """A network with a weight and a conditioning leaf."""

    weight: jax.Array
    condition: jax.Array

    def __call__(self, x, t):
        return self.weight * x + self.condition * jnp.asarray(t, x.dtype)


def test_denoiser_with_an_equinox_network():
    """Weights and conditioning are leaves: jit takes the denoiser as an argument, grad reaches both through
    the conversion.
    """
    path, t = js.VP(), 0.4
    x = jnp.array([0.5, -1.0])
    denoiser = js.Denoiser(Linear(jnp.array(0.3), jnp.array(2.0)), path, "noise")
    a, s = path.alpha(t), path.sigma(t)
    want = (x - s * (0.3 * x + 2.0 * t)) / a
    np.testing.assert_allclose(denoiser(x, t), want, rtol=1e-12)
    np.testing.assert_allclose(
        eqx.filter_jit(lambda d, x, t: d(x, t))(denoiser, x, jnp.array(t)), want, rtol=1e-12
    )
    grads = jax.grad(lambda d: d(x, t).sum())(denoiser)
    np.testing.assert_allclose(grads.net.weight, -s / a * x.sum(), rtol=1e-12)
    np.testing.assert_allclose(grads.net.condition, -s / a * 2 * t, rtol=1e-12)


def test_denoiser_with_closed_over_conditioning():
    """functools.partial of a plain function."""

    def net(x, t, *, label, scale):
        return scale * label * x

    denoiser = js.Denoiser(functools.partial(net, label=jnp.array(2.0), scale=0.25), js.CondOT(), "velocity")
    x = jnp.array([4.0])
    np.testing.assert_allclose(denoiser(x, 0.5, "velocity"), [2.0])
    np.testing.assert_allclose(denoiser(x, 0.5), [4.0 - 0.5 * 2.0])  # x_0 = x - t v
    np.testing.assert_allclose(denoiser(x, 0.5, "noise"), [4.0 + 0.5 * 2.0])  # eps = x + (1 - t) v


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_denoiser_with_a_bfloat16_network(dtype):
    """The network computes in bfloat16 inside; its output is cast before the conversion, which keeps the
    precision of x.
    """
    path = js.EDM()

    def net(x, t):
        return (x.astype(jnp.bfloat16) / 4).astype(jnp.bfloat16)

    x = jnp.array([1.0, -0.1], dtype)
    got = js.Denoiser(net, path, "noise")(x, 2.0)
    assert got.dtype == dtype
    eps = np.asarray(net(x, 2.0).astype(jnp.float32), np.float64)
    np.testing.assert_allclose(got, np.asarray(x, np.float64) - 2 * eps, rtol=1e-6)
    same = js.Denoiser(net, path, "noise")(x, 2.0, "noise")  # nothing to convert: cast all the same
    assert same.dtype == dtype


def test_denoiser_on_trees():
    """Any tree of arrays of mixed precision, mu a tree too; leaf by leaf the same as alone."""
    mu = {"image": jnp.full((2, 2), 0.5), "label": (jnp.array(-1.0),)}
    x = {"image": jnp.arange(4.0, dtype=jnp.float32).reshape(2, 2), "label": (jnp.array(3.0),)}
    path, t = js.MeanReverting(mu, std=0.3), 41.0
    tree = js.Denoiser(lambda x, t: jax.tree.map(lambda a: 0.1 * a, x), path, "v")(x, t, "data")
    image = js.Denoiser(lambda x, t: 0.1 * x, js.MeanReverting(0.5, std=0.3), "v")(x["image"], t, "data")
    label = js.Denoiser(lambda x, t: 0.1 * x, js.MeanReverting(-1.0, std=0.3), "v")(x["label"][0], t, "data")
    assert (tree["image"].dtype, tree["label"][0].dtype) == (jnp.float32, jnp.float64)
    np.testing.assert_allclose(tree["image"], image, rtol=1e-6)
    np.testing.assert_allclose(tree["label"][0], label, rtol=1e-12)


@pytest.mark.parametrize(
    ("net", "error", "message"),
    [
        (
            lambda x, t: x[:1],
            ValueError,
            r"the network returned shape \(1,\) for a state of shape \(2,\); they must be equal",
        ),
        (lambda x, t: x[None], ValueError, r"the network returned shape \(1, 2\)"),
        (
            lambda x, t: x.astype(jnp.int32),
            TypeError,
            "the network returned dtype int32 for a state of float32; return floats",
        ),
        (lambda x, t: jax.lax.complex(x, x), TypeError, "the network returned dtype complex64"),
        (lambda x, t: (x, x), TypeError, r"the network returned a .*\(\*, \*\).*, the state is a .*\*"),
        (lambda x, t: None, TypeError, "the network returned a"),
    ],
)
@pytest.mark.parametrize("jit", [False, True])
def test_network_output_errors(net, error, message, jit):
    """Caught at trace time, before any arithmetic broadcasts them away."""
    denoiser = js.Denoiser(net, js.VP(), "noise")
    call = jax.jit(lambda x: denoiser(x, 0.5)) if jit else lambda x: denoiser(x, 0.5)
    with pytest.raises(error, match=message):
        call(jnp.ones(2, jnp.float32))


def test_kind_and_path_errors():
    """Unknown kinds are named with the valid ones, in the constructor, as source and as target."""
    x = jnp.ones(2)
    with pytest.raises(ValueError, match="unknown prediction kind 'epsilo'; did you mean 'epsilon'"):
        js.Denoiser(lambda x, t: x, js.VP(), "epsilo")
    with pytest.raises(ValueError, match="unknown prediction kind 'xyz'; valid names are data, .*, velocity"):
        js.Denoiser(lambda x, t: x, js.VP(), "data")(x, 0.5, "xyz")
    with pytest.raises(TypeError, match=r"path is the class VP: make one, js\.VP\(\)"):
        js.Denoiser(lambda x, t: x, js.VP, "data")
    with pytest.raises(ValueError, match="unknown prediction kind 'Noise'; did you mean 'noise'"):
        js.convert(x, x, 0.5, js.VP(), source="Noise", target="data")
    with pytest.raises(TypeError, match=r"path must be a js\.Path \(or a dict of them, .*\), got str"):
        js.Denoiser(lambda x, t: x, "vp", "data")


def test_a_denoiser_prints_as_one_short_line():
    """The network by name, whatever it holds; paths by theirs, unless there are many."""

    def net(x, t, weights):
        return weights @ x

    partial = functools.partial(net, weights=jnp.ones((3, 3)))
    many = {f"part{i}": js.DiscreteVP.linear() for i in range(20)}
    for model, path, said in [
        (net, js.VP(), "net=net, path=VP()"),
        (partial, js.VP(), "net=net, path=VP()"),
        (jax.tree_util.Partial(net, weights=jnp.ones((3, 3))), js.VP(), "net=net, path=VP()"),
        (js.models.gaussian_mixture([[0.0]], 1.0, js.VP()), js.VP(), "net=Denoiser, path=VP()"),
        (net, {"a": js.CondOT(), "b": js.VP(0.2)}, "net=net, path={'a': CondOT(), 'b': VP(beta_min=0.2)}"),
        (net, many, "net=net, path=<20 paths>"),
    ]:
        denoiser = js.Denoiser(model, path, "data")
        assert repr(denoiser) == str(denoiser) == f"Denoiser({said}, kind='data')"
