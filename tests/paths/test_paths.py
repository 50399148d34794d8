"""Schedules: inverses, derivatives, published tables, the forward processes that they claim to be; priors;
errors.
"""

import functools
import json
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import Cubic
from places import GOLDEN_FOLDER
from scipy.integrate import solve_ivp

import jaxsampler as js

pytestmark = pytest.mark.usefixtures("x64")
properties = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
GOLDEN = np.load(GOLDEN_FOLDER / "mr_sampler.npz")
CONFIGS = json.loads(str(GOLDEN["index_json"]))["cfgs"]


class Sinusoid(js.Path):
    """A user's path written in jax.numpy throughout."""

    def alpha(self, t):
        return jnp.cos(1.5 * t)

    def sigma(self, t):
        return jnp.sin(1.5 * t)


class Folded(js.Path):
    """Not analytic: a complex step through abs gives zero."""

    def alpha(self, t):
        return 1 - abs(0.5 * t)

    def sigma(self, t):
        return 1.0 * t


class Scalar(js.Path):
    """Not even defined for complex numbers."""

    def alpha(self, t):
        return math.exp(-t)

    def sigma(self, t):
        return 1.0 * t


PATHS = {
    "vp": js.VP(),
    "vp_constant_beta": js.VP(beta_min=3.0, beta_max=3.0),
    "sub_vp": js.SubVP(),
    "cosine": js.CosineVP(),
    "ve": js.VE(),
    "edm": js.EDM(),
    "cond_ot": js.CondOT(),
    "discrete": js.DiscreteVP.scaled_linear(),
    "mr": js.MeanReverting(0.4),
    "mr_linear": js.MeanReverting(0.4, schedule="linear", std=0.999, eps=0.01),
    "irsde": js.MeanReverting(0.4, variant="irsde", schedule="constant", T=20),
    "cubic": Cubic(),
    "sinusoid": Sinusoid(),
}
each_name = pytest.mark.parametrize("name", PATHS)
each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


def interior(path, n=41):
    """Times away from the ends and from the knots of interpolated tables."""
    u = np.linspace(0.013, 0.987, n)
    knots = len(path.alphas_cumprod) if isinstance(path, js.DiscreteVP) else getattr(path, "T", 0)
    return path.t_max * ((np.floor(u * knots) + 0.37) / knots if knots else u)


SCHEDULE = ("alpha", "sigma", "lam", "rho", "alpha_dot", "sigma_dot")


@functools.cache
def staged(name):
    """Every schedule function of a path at its interior times, from one jitted call."""
    path, t = PATHS[name], interior(PATHS[name])

    @jax.jit
    def evaluate(t, lam):
        out = {f: jnp.broadcast_to(getattr(path, f)(t), t.shape) for f in SCHEDULE}
        out["time"], out["time_jvp"] = jax.jvp(path.time, (lam,), (jnp.ones_like(lam),))
        return out | {"time_grad": jax.vmap(jax.grad(path.time))(lam)}

    return evaluate(jnp.asarray(t), jnp.asarray(path.lam(t)))


def five_point(f, t, h):
    """f'(t) to fourth order."""
    return (8 * (f(t + h) - f(t - h)) - (f(t + 2 * h) - f(t - 2 * h))) / (12 * h)


# --- what every path owes its users


@each_name
def test_host_and_traced_schedules_agree(name):
    """One formula, two evaluations: numpy float64 on the host, jax under jit."""
    path = PATHS[name]
    t = interior(path)
    for f in SCHEDULE:
        host = np.broadcast_to(getattr(path, f)(t), t.shape)
        np.testing.assert_allclose(staged(name)[f], host, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(getattr(path, f)(float(t[7])), host[7], rtol=1e-13)


@each_path
def test_ends_and_monotony(path):
    """alpha(0) = 1 and the half log-SNR falls from data to noise; lam and rho are the logarithm and the
    ratio.
    """
    t = np.linspace(0, path.t_max, 201)
    alpha, sigma = np.broadcast_to(path.alpha(t), t.shape), np.asarray(path.sigma(t))
    assert alpha[0] == pytest.approx(
        1, abs=6e-2 if path.sigma(0.0) else 0
    )  # "mrs" and VE start slightly noisy
    assert np.all(sigma[1:] > sigma[:-1])
    assert np.all(alpha[1:] <= alpha[:-1])
    assert np.all(np.diff(path.lam(t)) < 0)
    inside = slice(1, -1)
    np.testing.assert_allclose(
        np.exp(-np.asarray(path.lam(t)))[inside], sigma[inside] / alpha[inside], rtol=1e-12
    )
    np.testing.assert_allclose(path.rho(t)[inside], sigma[inside] / alpha[inside], rtol=1e-13)
    if alpha[-1] == 0:
        assert (path.lam(path.t_max), path.rho(path.t_max)) == (-np.inf, np.inf)


@each_name
def test_time_inverts_lam(name):
    """On the host and traced; on the host close to the ends too, where alpha or sigma is nearly 1."""
    path = PATHS[name]
    np.testing.assert_allclose(staged(name)["time"], interior(path), rtol=1e-10)
    t = np.concatenate([interior(path), path.t_max * np.array([1e-6, 1e-4, 1e-3, 0.9999])])
    if path.sigma(0.0) > 0:  # lam is flat at the data end of a path that starts noisy
        t = t[t > 1e-3 * path.t_max]
    np.testing.assert_allclose(path.time(path.lam(t)), t, rtol=2e-9)
    assert float(path.time(float(path.lam(0.3 * path.t_max)))) == pytest.approx(0.3 * path.t_max, rel=1e-10)


@each_path
def test_time_at_the_data_end(path):
    """lam = inf is t = 0 wherever sigma(0) = 0, on the host and traced: never NaN."""
    if path.sigma(0.0) == 0:
        assert float(path.time(np.inf)) == pytest.approx(0, abs=1e-18)
        assert float(path.time(jnp.array(jnp.inf))) == pytest.approx(0, abs=1e-18)
    assert float(path.time(path.lam(0.0))) == pytest.approx(0, abs=1e-10)


@each_name
def test_gradient_of_time_is_the_inverse_derivative(name):
    """dt/dlam = 1/lam'(t), with lam' by finite differences on the host; reverse and forward mode."""
    path = PATHS[name]
    slope = five_point(path.lam, interior(path), 2e-5 * path.t_max)
    np.testing.assert_allclose(staged(name)["time_grad"], 1 / slope, rtol=1e-7)
    np.testing.assert_allclose(staged(name)["time_jvp"], 1 / slope, rtol=1e-7)


@each_path
def test_derivatives_against_finite_differences(path):
    """alpha' and sigma' at interior times."""
    t = interior(path)
    h = 2e-5 * path.t_max
    scale = 1 / path.t_max
    for f, dot in ((path.alpha, path.alpha_dot), (path.sigma, path.sigma_dot)):
        np.testing.assert_allclose(dot(t), five_point(f, t, h), rtol=3e-9, atol=3e-9 * scale)


EXACT = {
    "cond_ot": (PATHS["cond_ot"], lambda t: (-1 + 0 * t, 1 + 0 * t)),
    "cubic": (PATHS["cubic"], lambda t: (-3 * t**2, 1 + 0 * t)),
    "edm": (PATHS["edm"], lambda t: (0 * t, 1 + 0 * t)),
    "ve": (PATHS["ve"], lambda t: (0 * t, np.log(5000) * 0.01 * 5000**t)),
    "sinusoid": (PATHS["sinusoid"], lambda t: (-1.5 * np.sin(1.5 * t), 1.5 * np.cos(1.5 * t))),
    "vp": (  # beta(t) = 0.1 + 19.9 t;  alpha' = -beta alpha/2,  sigma' = beta alpha^2/(2 sigma)
        PATHS["vp"],
        lambda t: (
            -(0.1 + 19.9 * t) / 2 * np.exp(-0.05 * t - 19.9 / 4 * t**2),
            (0.1 + 19.9 * t)
            / 2
            / np.expm1(0.1 * t + 19.9 / 2 * t**2)
            * np.sqrt(-np.expm1(-0.1 * t - 19.9 / 2 * t**2)),
        ),
    ),
}


@pytest.mark.parametrize(("path", "dots"), EXACT.values(), ids=EXACT)
def test_derivatives_are_exact_in_float64(path, dots):
    """The complex step has no truncation error: closed forms to rounding."""
    t = interior(path)
    for got, want in zip((path.alpha_dot(t), path.sigma_dot(t)), dots(t), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-13, atol=1e-300)


def test_infinite_slope_is_infinite():
    """sigma = sqrt(1 - alpha^2) leaves 0 with infinite slope, whoever evaluates it: complex step, own
    formula, jvp.
    """
    for path in (js.VP(), js.CosineVP(), js.DiscreteVP.linear(), js.MeanReverting(0.0, variant="irsde")):
        assert path.sigma_dot(0.0) == np.inf
        assert float(path.sigma_dot(jnp.array(0.0))) == np.inf
    assert js.SubVP().sigma_dot(0.0) == pytest.approx(0.1, rel=1e-12)
    assert Cubic().alpha_dot(0.0) == pytest.approx(0, abs=1e-30)


@pytest.mark.filterwarnings("ignore::numpy.exceptions.ComplexWarning")
@pytest.mark.parametrize("path", [Folded(), Scalar()])
def test_non_analytic_path_is_refused(path):
    """A silent zero derivative would be worse than this error."""
    with pytest.raises(ValueError, match=r"alpha is wrong: its formula is not analytic.*Define alpha_dot"):
        path.alpha_dot(0.3)
    assert path.sigma_dot(0.3) == pytest.approx(1)


def test_non_analytic_path_may_bring_its_own_derivatives():
    """`alpha_dot` and `sigma_dot` defined on the path are what the velocity form uses."""

    class WithDots(Folded):
        def alpha_dot(self, t):
            return -0.5 + 0.0 * t

        def sigma_dot(self, t):
            return 1.0 + 0.0 * t

    assert WithDots().form("velocity", 0.3) == (-0.5, 1.0)
    assert Folded().alpha_dot(jnp.array(0.3)) == pytest.approx(-0.5)  # a jvp knows abs


@each_path
def test_float32_schedules(path):
    """A traced float32 schedule keeps six digits, near t = 0 too, and stays float32."""
    t = (path.t_max * np.array([1e-3, 0.01, 0.1, 0.5, 0.9])).astype(np.float32)
    for f in (path.alpha, path.sigma):
        got = f(jnp.array(t))
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, f(t.astype(np.float64)), rtol=2e-5)
    if path.sigma(0.0) == 0:
        lam = np.asarray(path.lam(t.astype(np.float64))).astype(np.float32)
        got = path.time(jnp.array(lam))
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, t, rtol=5e-6)


def test_jax_path_samples_like_its_numpy_twin():
    """A path written in jax.numpy gives the same grid, prior and samples as one written for both, inside jit
    and without x64.
    """

    class Twin(js.Path):
        def alpha(self, t):
            return (jnp if isinstance(t, jax.Array) else np).cos(1.5 * t)

        def sigma(self, t):
            return (jnp if isinstance(t, jax.Array) else np).sin(1.5 * t)

    with jax.enable_x64(False):

        def draw(path, key):
            return js.sample(
                js.Denoiser(lambda x, t: 0.5 * x, path, "v"),
                jnp.zeros(3),
                key=key,
                solver=js.solvers.euler,
                steps=4,
            )

        key = jax.random.key(0)
        want = draw(Twin(), key)
        np.testing.assert_allclose(draw(Sinusoid(), key), want, rtol=1e-6)
        np.testing.assert_allclose(jax.jit(functools.partial(draw, Sinusoid()))(key), want, rtol=1e-6)
        np.testing.assert_allclose(Sinusoid().sigma_dot(0.4), 1.5 * np.cos(0.6), rtol=1e-6)
        assert Sinusoid().prior_std == pytest.approx(np.sin(1.5), rel=1e-15)


# --- the processes


def test_vp_is_its_forward_sde():
    """dx = -beta x/2 dt + sqrt(beta) dw: mean and variance integrated by an independent ODE solver."""
    t = np.linspace(0.01, 1, 30)

    def field(s, y):
        beta = 0.1 + (20 - 0.1) * s
        return [-beta / 2 * y[0], beta * (1 - y[1])]

    out = solve_ivp(field, (0, 1), [1.0, 0.0], t_eval=t, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(js.VP().alpha(t), out.y[0], rtol=1e-8)
    np.testing.assert_allclose(js.VP().sigma(t) ** 2, out.y[1], rtol=1e-8)


def test_sub_vp_is_its_forward_sde():
    """dx = -beta x/2 dt + sqrt(beta (1 - exp(-2 int beta))) dw [Song et al. 2021, eq. 29]."""
    t = np.linspace(0.01, 1, 30)

    def field(s, y):
        beta, integral = 0.1 + 19.9 * s, 0.1 * s + 19.9 * s**2 / 2
        return [-beta / 2 * y[0], -beta * y[1] + beta * (1 - np.exp(-2 * integral))]

    out = solve_ivp(field, (0, 1), [1.0, 0.0], t_eval=t, rtol=1e-11, atol=1e-16)
    np.testing.assert_allclose(js.SubVP().alpha(t), out.y[0], rtol=1e-8)
    np.testing.assert_allclose(js.SubVP().sigma(t) ** 2, out.y[1], rtol=1e-7)


def test_cosine_schedule():
    """alpha_bar = cos^2((t+s)/(1+s) pi/2)/cos^2(s/(1+s) pi/2) [Nichol & Dhariwal 2021, eq. 17]; t_max is
    short of its zero.
    """
    t = np.linspace(0, 0.9946, 50)
    a_bar = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    path = js.CosineVP()
    np.testing.assert_allclose(path.alpha(t) ** 2, a_bar, rtol=1e-12)
    np.testing.assert_allclose(path.sigma(t) ** 2, 1 - a_bar, rtol=1e-10, atol=1e-15)
    assert path.t_max == 0.9946
    # near 0, 1 - a_bar cancels: compare with tan(p) pi t/1.008 + O(t^2)
    np.testing.assert_allclose(
        path.sigma(1e-9) ** 2, np.tan(0.008 / 1.008 * np.pi / 2) * np.pi / 1.008 * 1e-9, rtol=1e-6
    )


def test_ve_and_edm():
    """Geometric noise levels from sigma_min to sigma_max; EDM time is the noise level itself."""
    ve = js.VE(sigma_min=0.02, sigma_max=100.0)
    np.testing.assert_allclose(ve.sigma(np.array([0, 0.5, 1])), [0.02, np.sqrt(0.02 * 100), 100], rtol=1e-12)
    assert np.all(ve.alpha(np.linspace(0, 1, 5)) == 1)
    edm = js.EDM()
    assert (edm.t_min, edm.t_max, edm.prior_std) == (0.002, 80.0, 80.0)
    np.testing.assert_array_equal(edm.sigma(np.array([0.0, 3.0, 80.0])), [0, 3, 80])


def test_discrete_vp_is_the_running_product():
    """Knots at (n+1)/N carry the running product of 1 - beta; alpha is log-linear in between, and t = 0 is
    data.
    """
    betas = np.linspace(1e-4, 0.02, 1000)
    product, products = 1.0, []
    for beta in betas:
        product *= 1 - beta
        products.append(product)
    path = js.DiscreteVP.linear()
    t = np.arange(1, 1001) / 1000
    np.testing.assert_allclose(path.alpha(t) ** 2, products, rtol=1e-11)
    np.testing.assert_allclose(path.sigma(t) ** 2, 1 - np.array(products), rtol=1e-10)
    middle = (t[:-1] + t[1:]) / 2
    np.testing.assert_allclose(
        path.alpha(middle), np.sqrt(path.alpha(t[:-1]) * path.alpha(t[1:])), rtol=1e-12
    )
    assert (path.alpha(0.0), path.sigma(0.0)) == (1.0, 0.0)
    assert not np.signbit(path.sigma(0.0))
    assert path.t_min == 1e-3
    np.testing.assert_allclose(path.network_time(t), np.arange(1000), atol=1e-9)
    assert path.network_time(1.0) == 999


def test_discrete_vp_constructors():
    """The three ways to the same table; Stable Diffusion's last alpha_bar is 0.0047 (its published sigma_max
    is 14.615).
    """
    betas = np.linspace(1e-4, 0.02, 50)
    assert js.DiscreteVP.from_betas(betas) == js.DiscreteVP(np.cumprod(1 - betas)) == js.DiscreteVP.linear(50)
    sd = js.DiscreteVP.scaled_linear()
    assert sd.rho(1.0) == pytest.approx(14.6146, abs=1e-4)
    assert sd.rho(1e-3) == pytest.approx(0.0292, abs=1e-4)


def test_discrete_vp_with_zero_terminal_snr():
    """alpha_bar may end at 0: then alpha(1) is exactly 0 and lam -inf, and all is finite just before."""
    path = js.DiscreteVP(np.linspace(0.99, 0.0, 10))
    assert (path.alpha(1.0), path.sigma(1.0), path.lam(1.0)) == (0.0, 1.0, -np.inf)
    assert float(path.time(-np.inf)) == 1.0
    np.testing.assert_allclose(path.alpha(0.9) ** 2, 0.11, rtol=1e-12)
    assert float(path.alpha(jnp.float32(1.0))) == 0.0


@pytest.mark.parametrize("name", CONFIGS)
def test_mean_reverting_tables(name):
    """alpha and sigma at every index equal the released tables, to rounding."""
    cfg = CONFIGS[name]
    std = cfg["max_sigma"] / 255 if cfg["max_sigma"] >= 1 else cfg["max_sigma"]
    path = js.MeanReverting(0.0, std=std, schedule=cfg["schedule"], T=cfg["T"], eps=cfg["eps"])
    sched = {
        k: GOLDEN[f"sched.{name}.{k}"] for k in ("thetas", "thetas_cumsum", "sigmas", "sigma_bars", "dt")
    }
    i = np.arange(cfg["T"] + 1.0)
    bar = sched["thetas_cumsum"] * sched["dt"]
    np.testing.assert_allclose(path.bar(i), bar, rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(path.alpha(i), np.exp(-bar), rtol=1e-13)
    np.testing.assert_allclose(path.sigma(i), sched["sigma_bars"], rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(path.rate(i[1:]), (sched["thetas"] * sched["dt"])[1:], rtol=1e-11)
    # dispersion^2 = 2 std^2 theta is the variance that the forward process gains per unit of time: d sigma^2
    # + 2 f sigma^2
    gain = 2 * path.sigma(i[1:]) * path.sigma_dot(i[1:]) + 2 * path.rate(i[1:]) * path.sigma(i[1:]) ** 2
    np.testing.assert_allclose(gain, (sched["sigmas"] ** 2 * sched["dt"])[1:], rtol=1e-11)


@pytest.mark.parametrize(
    ("schedule", "dt", "alpha_0", "sigma_0", "lam_0"),
    [
        ("cosine", 0.104093, 0.999936, 0.002217, 6.1114),
        ("linear", 0.527196, 0.999478, 0.006334, 5.0614),
        ("constant", 0.052459, 0.948894, 0.061882, 2.7301),
    ],
)
def test_mean_reverting_published_values(schedule, dt, alpha_0, sigma_0, lam_0):
    """T = 100, eps = 0.005, std = 50/255: the printed values, lam_T common to all."""
    path = js.MeanReverting(0.0, schedule=schedule)
    first_theta = {
        "cosine": 1
        - np.cos((1 / 102 + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2,
        "linear": 0.1 / 101,
        "constant": 1.0,
    }[schedule]
    assert path.bar(0.0) / first_theta == pytest.approx(dt, abs=6e-7)
    assert path.alpha(0.0) == pytest.approx(alpha_0, abs=6e-7)
    assert path.sigma(0.0) == pytest.approx(sigma_0, abs=6e-7)
    assert path.lam(0.0) == pytest.approx(lam_0, abs=6e-5)
    assert path.lam(100.0) == pytest.approx(-3.6691, abs=6e-5)
    assert path.alpha(100.0) == pytest.approx(0.005, rel=1e-12)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("variant", ["mrs", "irsde"])
def test_mean_reversion_is_variance_preserving(schedule, variant):
    """alpha^2 + (sigma/std)^2 = 1 at any real time; bar is piecewise linear; the variants differ by theta_0
    alone.
    """
    path = js.MeanReverting(0.0, schedule=schedule, variant=variant, std=0.3, T=40, eps=0.02)
    t = np.linspace(0, 40, 977)
    np.testing.assert_allclose(path.alpha(t) ** 2 + (path.sigma(t) / 0.3) ** 2, 1, rtol=1e-14)
    i, f = np.floor(np.minimum(t, 39.999)), t - np.floor(np.minimum(t, 39.999))
    np.testing.assert_allclose(
        path.bar(t), (1 - f) * path.bar(i) + f * path.bar(i + 1), rtol=1e-12, atol=1e-15
    )
    assert path.alpha(40.0) == pytest.approx(0.02, rel=1e-12)
    other = js.MeanReverting(
        0.0, schedule=schedule, variant="mrs" if variant == "irsde" else "irsde", std=0.3, T=40, eps=0.02
    )
    ratio = np.diff(path.bar(np.arange(41.0))) / np.diff(other.bar(np.arange(41.0)))
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-10)  # the same theta_1.., another dt
    if variant == "irsde":
        assert (path.alpha(0.0), path.sigma(0.0), path.t_min) == (1.0, 0.0, 0.0)
        assert path.lam(0.0) == np.inf
    else:
        assert path.sigma(0.0) > 0
        assert path.t_min == 0.0


def test_mean_reverting_is_its_forward_sde():
    """dx = f (mu - x) dt + sqrt(2 std^2 f) dw from x_0: mean and variance by an independent solver with f
    from the definition of theta.
    """
    mu, x0, std, T, eps = 0.8, 0.1, 0.25, 10, 0.01
    a = np.cos((np.arange(T + 3) / (T + 2) + 0.008) / 1.008 * np.pi / 2) ** 2
    theta = 1 - a[1 : T + 2] / a[0]
    f = theta * -np.log(eps) / theta[1:].sum()  # "irsde"
    path = js.MeanReverting(mu, std=std, T=T, eps=eps, variant="irsde")
    mean, var = x0, 0.0
    for i in range(1, T + 1):  # f is constant on (i-1, i]
        out = solve_ivp(
            lambda s, y, f=f[i]: [f * (mu - y[0]), 2 * std**2 * f - 2 * f * y[1]],
            (i - 1, i),
            [mean, var],
            t_eval=[i - 0.4, i],
            rtol=1e-11,
            atol=1e-14,
        )
        for t, (m, v) in zip((i - 0.4, float(i)), out.y.T, strict=True):
            assert mu + path.alpha(t) * (x0 - mu) == pytest.approx(m, rel=1e-9)
            assert path.sigma(t) ** 2 == pytest.approx(v, rel=1e-9)
        mean, var = out.y[:, -1]


# --- prior, perturb, mu


@pytest.mark.parametrize(
    ("path", "mean", "std"),
    [
        (js.VP(), 0, 1),
        (js.SubVP(), 0, 1),
        (js.CosineVP(), 0, 1),
        (js.VE(), 0, 50),
        (js.EDM(), 0, 80),
        (js.CondOT(), 0, 1),
        (js.DiscreteVP.linear(), 0, 1),
        (js.MeanReverting(0.7, std=0.2), 0.7, 0.2),
        (Cubic(), 0, 1),
    ],
    ids=lambda v: type(v).__name__,
)
@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey])
def test_prior_moments(path, mean, std, make):
    """x_T ~ N(mu, prior_std^2): mean and variance within 4 standard errors; MeanReverting draws std, not
    sigma(T).
    """
    n = 40_000
    x = path.prior(make(5), jax.ShapeDtypeStruct((n,), jnp.float64))
    assert abs(x.mean() - mean) < 4 * std / n**0.5
    assert abs(x.var() / std**2 - 1) < 4 * (2 / n) ** 0.5
    assert path.prior_std == pytest.approx(std)


@each_path
def test_perturb_moments(path):
    """E x_t = mu + alpha (x_0 - mu), Var x_t = sigma^2, by the draws of standard normal noise."""
    n, t = 40_000, 0.4 * path.t_max
    eps = jax.random.normal(jax.random.key(1), (n,))
    x = path.perturb(jnp.full(n, 0.9), t, eps)
    mu = 0.0 if path.centre is None else path.centre
    mean, sigma = mu + float(path.alpha(t)) * (0.9 - mu), float(path.sigma(t))
    assert abs(x.mean() - mean) < 4 * sigma / n**0.5
    assert abs(x.var() / sigma**2 - 1) < 4 * (2 / n) ** 0.5
    np.testing.assert_allclose(jax.grad(lambda e: path.perturb(jnp.array(0.9), t, e))(0.3), sigma, rtol=1e-12)


def test_prior_of_sample_i_ignores_the_batch():
    """The prior draw of sample i is bit-identical in batches of 1, 7 and 64, mu included."""
    path = js.MeanReverting(jnp.linspace(0, 1, 6).reshape(2, 3))
    whole = path.prior(jax.random.key(2), jax.ShapeDtypeStruct((64, 2, 3), jnp.float32))
    for n in (1, 7):
        np.testing.assert_array_equal(
            path.prior(jax.random.key(2), jax.ShapeDtypeStruct((n, 2, 3), jnp.float32)), whole[:n]
        )


def test_pytrees_and_mu():
    """mu as a tree like x, as one number or array for all leaves, under a leading batch axis; the dtype is
    that of x.
    """
    x = {"a": jnp.zeros((4, 3), jnp.float32), "b": jnp.zeros(3, jnp.bfloat16)}
    tree = js.MeanReverting({"a": jnp.array([1.0, 2.0, 3.0]), "b": jnp.float32(5.0)}, std=1e-6)
    got = tree.prior(jax.random.key(0), x)
    assert {k: v.dtype for k, v in got.items()} == {"a": jnp.float32, "b": jnp.bfloat16}
    np.testing.assert_allclose(got["a"], np.broadcast_to([1, 2, 3], (4, 3)), atol=1e-4)
    np.testing.assert_allclose(got["b"].astype(jnp.float32), 5, atol=1e-4)
    shared = js.MeanReverting(jnp.array([1.0, 2.0, 3.0]), std=1e-6).prior(jax.random.key(0), x)
    np.testing.assert_allclose(shared["b"].astype(jnp.float32), [1, 2, 3], atol=1e-2)
    # the end of the path forgets x_0 and rests on mu; its start is x_0
    eps = jax.tree.map(jnp.zeros_like, x)
    one = jax.tree.map(jnp.ones_like, x)
    np.testing.assert_allclose(
        tree.perturb(one, 100.0, eps)["a"], 0.005 + 0.995 * np.broadcast_to([1, 2, 3], (4, 3)), rtol=1e-6
    )
    irsde = js.MeanReverting(tree.mu, variant="irsde")
    np.testing.assert_allclose(irsde.perturb(one, 0.0, eps)["a"], 1, rtol=1e-6)


def test_only_mu_is_a_leaf():
    """Schedules are static: no leaves but mu, which is traced, differentiated and replaced as any array."""
    for name, path in PATHS.items():
        want = [0.4] if isinstance(path, js.MeanReverting) else []
        assert jax.tree.leaves(path) == want, name
    slope = jax.grad(lambda mu: js.MeanReverting(mu).perturb(jnp.array(0.2), 50.0, jnp.array(0.0)))(0.7)
    assert slope == pytest.approx(1 - js.MeanReverting(0.0).alpha(50.0), rel=1e-12)


def test_hash_equality_and_retracing():
    """Equal schedules are equal, hash alike and share one trace: closed over, as an argument, as a static
    argument, with another mu.
    """
    assert js.VP() == js.VP(0.1, 20)
    assert js.VP() != js.VP(0.1, 19.0)
    assert js.VP() != js.SubVP()
    assert hash(js.DiscreteVP.linear(20)) == hash(js.DiscreteVP.linear(20))
    traces = []

    def f(path, x):
        traces.append(type(path).__name__)
        return path.prior_std * x + path.alpha(0.3)

    static, leaf = jax.jit(f, static_argnums=0), eqx.filter_jit(f)
    for path in (js.VP(), js.VP(), js.VP(0.1, 20.0)):
        static(path, 1.0)
        leaf(path, 1.0)
    assert len(traces) == 2
    for mu in (0.1, 0.2):
        leaf(js.MeanReverting(jnp.array(mu)), 1.0)
    assert len(traces) == 3
    leaf(js.MeanReverting(jnp.array(0.1), std=0.3), 1.0)  # another schedule is another function
    assert len(traces) == 4


# --- properties and errors


@properties
@given(b0=st.floats(0.01, 5), spread=st.floats(0, 30), t=st.floats(1e-3, 1))
def test_any_vp_inverts(b0, spread, t):
    """Every VP schedule: the inverse holds, also for constant beta."""
    path = js.VP(b0, b0 + spread)
    if path.alpha(t) > 1e-7:
        assert float(path.time(path.lam(t))) == pytest.approx(t, rel=1e-7)


@properties
@given(
    schedule=st.sampled_from(["cosine", "linear", "constant"]),
    T=st.integers(2, 300),
    eps=st.floats(1e-4, 0.5),
    std=st.floats(0.01, 3),
    u=st.floats(0.001, 1),
)
def test_any_mean_reversion_inverts(schedule, T, eps, std, u):
    """Every MeanReverting schedule: alpha(T) = eps and time inverts lam."""
    path = js.MeanReverting(0.0, std=std, schedule=schedule, T=T, eps=eps)
    assert path.alpha(float(T)) == pytest.approx(eps, rel=1e-12)
    assert float(path.time(path.lam(u * T))) == pytest.approx(u * T, rel=1e-8)


CUBIC_TIME = jax.jit(Cubic().time)


@properties
@given(lam=st.floats(-3.5, 6))
def test_user_path_root_is_found(lam):
    """Bisection and Newton find the root of a path that knows only alpha and sigma; host and traced agree."""
    host, traced = Cubic().time(lam), CUBIC_TIME(jnp.array(lam))
    assert np.log((1 - host**3) / host) == pytest.approx(lam, abs=1e-12)
    assert float(traced) == pytest.approx(float(host), rel=1e-13)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: js.MeanReverting(0.0, schedule="cosin"),
            "unknown schedule 'cosin'; valid: cosine, linear, constant",
        ),
        (lambda: js.MeanReverting(0.0, variant="mr"), "unknown variant 'mr'; valid: mrs, irsde"),
        (lambda: js.MeanReverting(0.0, std=0.0), "need std > 0, 0 < eps < 1, T >= 2; got std=0"),
        (lambda: js.MeanReverting(0.0, std=float("nan")), "need std > 0"),
        (lambda: js.MeanReverting(0.0, eps=1.0), "0 < eps < 1"),
        (lambda: js.MeanReverting(0.0, T=1), "T >= 2"),
        (lambda: js.DiscreteVP([0.1, 0.5]), "alphas_cumprod must fall strictly"),
        (lambda: js.DiscreteVP(np.linspace(1e-4, 0.02, 10)), "the running product of 1 - beta"),
        (lambda: js.DiscreteVP([0.9, np.nan]), "alphas_cumprod must fall"),
        (lambda: js.DiscreteVP([1.0, 0.5]), "from below 1"),
        (lambda: js.DiscreteVP([0.5, -0.1]), "towards 0"),
        (lambda: js.DiscreteVP([0.5]), "alphas_cumprod must fall"),
        (
            lambda: js.VP().form("datta", 0.5),
            "unknown prediction kind 'datta'; valid: data, noise, score, velocity, v",
        ),
        (
            lambda: js.MeanReverting(jnp.zeros(4)).prior(jax.random.key(0), jnp.zeros(3)),
            r"mu of shape \(4,\) does not fit a state of shape \(3,\)",
        ),
        (
            lambda: js.MeanReverting(jnp.zeros((2, 3))).centred(jnp.zeros(3)),
            r"mu of shape \(2, 3\) does not fit",
        ),
        (
            lambda: js.MeanReverting({"a": 0.0}).centred({"b": jnp.zeros(3)}),
            "mu is a .* the state is a .*: make them alike",
        ),
    ],
)
def test_errors(make, message):
    """Static mistakes, in the caller's words."""
    with pytest.raises(ValueError, match=message):
        make()


def test_a_path_needs_alpha_and_sigma():
    """Forgetting one of the two formulas fails when the path is made."""

    class NoSigma(js.Path):
        def alpha(self, t):
            return 1 - t

    with pytest.raises(TypeError, match="sigma"):
        NoSigma()


class Tabulated(js.Path):
    """A user's path with a long table."""

    levels: tuple
    name: str = "mine"

    def alpha(self, t):
        return 1 - t

    def sigma(self, t):
        return t


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (js.CondOT(), "CondOT()"),
        (js.VP(beta_max=19.0), "VP(beta_max=19.0)"),
        (js.EDM(0.01, 50), "EDM(sigma_min=0.01, sigma_max=50.0)"),
        (js.DiscreteVP.linear(), "DiscreteVP(1000 levels, alpha^2 0.9999 -> 0.077797 -> 4.0358e-05)"),
        (
            js.DiscreteVP.scaled_linear().zero_terminal_snr(),
            "DiscreteVP(1000 levels, alpha^2 0.99915 -> 0.24102 -> 0)",
        ),
        (
            js.MeanReverting(jnp.ones((64, 64, 3)), std=0.5, T=50),
            "MeanReverting(mu=f32[64,64,3], std=0.5, T=50)",
        ),
        (
            js.MeanReverting(np.ones((4, 2)).tolist()),
            "MeanReverting(mu=[[1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0]])",
        ),
        (js.MeanReverting(np.ones((64, 64)).tolist()), "MeanReverting(mu=<list of 4096>)"),
        (Tabulated((0.5, 0.1)), "Tabulated(levels=(0.5, 0.1))"),
        (
            Tabulated(tuple(range(1000)), name="x" * 100),
            f"Tabulated(levels=<tuple of 1000>, name='{'x' * 56}...)",
        ),
    ],
)
def test_a_path_prints_as_one_short_line(path, said):
    assert repr(path) == str(path) == f"{path}" == said


def test_paths_of_equal_ends_print_differently():
    """The line is all that the card of a table keeps of a path."""
    same_ends = [js.DiscreteVP([0.9, mid, 0.1]) for mid in (0.5, 0.4)]
    lines = {repr(path) for path in (*same_ends, js.DiscreteVP.linear(), js.DiscreteVP.cosine())}
    assert len(lines) == 4


@pytest.mark.parametrize("t", [1e-12, 2.4e-9, 1e-6, 1e-3, 0.5])
def test_slopes_near_the_data(t):
    """sigma' = (beta/2) alpha^2/sigma of VP, where sigma grows like sqrt(t): 3.2e3 at 2.4e-9."""
    path = js.VP()
    beta = 0.1 + (20.0 - 0.1) * t
    log_alpha = -(0.1 * t + 19.9 * t**2 / 2) / 2
    want = beta / 2 * math.exp(2 * log_alpha) / math.sqrt(-math.expm1(2 * log_alpha))
    np.testing.assert_allclose(path.sigma_dot(t), want, rtol=1e-9)
