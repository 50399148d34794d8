"""UniPC of any order: exact on polynomials in lam, before and after correction; its variants, its published
defect,
its ends.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import random_net

import jaxsampler as js

pytestmark = pytest.mark.usefixtures("x64")
VP = js.VP()
unipc = js.solvers.unipc
GRID = np.array([0.95, 0.83, 0.66, 0.52, 0.41, 0.3, 0.22])


def flow(path, t, s, x, P, kind):
    """The exact solution for an output P(lam): int e^(c l) P dl = e^(c l) (P/c - P'/c^2 + P''/c^3 - ..), with
    c = 1
    (data) or -1 (noise).
    """
    c = 1.0 if kind == "data" else -1.0
    lam = np.array([path.lam(t), path.lam(s)])
    terms = sum((-1) ** k * P.deriv(k)(lam) / c ** (k + 1) for k in range(P.degree() + 1))
    integral = np.diff(np.exp(c * lam) * terms)[0]
    if kind == "data":
        return path.sigma(s) / path.sigma(t) * x + path.sigma(s) * integral
    return path.alpha(s) / path.alpha(t) * x - path.alpha(s) * integral


def by_formula(solver, i, x, P):
    """(next, corrected state) of the step at grid point i, whose outputs, past ones too, are P(lam)."""
    ts = GRID[: i + 2]
    past = tuple(P(VP.lam(t)) for t in ts[-3::-1])[: solver.past]
    return solver.formula(VP, ts, x, past, lambda x, t: P(VP.lam(t)), ())


@pytest.mark.parametrize("kind", ["data", "noise"])
@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_exact_on_polynomials(order, kind):
    """UniP-p on degree p - 1, UniC-p on degree p, and not on one more."""
    P, Q, R = (
        np.polynomial.Polynomial(np.array([0.7, -0.4, 0.3, 0.9, -0.6, 0.5, 0.8])[: order + d])
        for d in (0, 1, 2)
    )
    predictor = unipc(order=order, variant="vary", kind=kind, corrector=False)
    both = unipc(order=order, variant="vary", kind=kind)
    t, s = GRID[4:6]
    x = 0.37
    np.testing.assert_allclose(by_formula(predictor, 4, x, P)[0], flow(VP, t, s, x, P, kind), rtol=1e-11)
    assert abs(by_formula(predictor, 4, x, Q)[0] - flow(VP, t, s, x, Q, kind)) > 1e-6
    predicted = by_formula(predictor, 4, x, Q)[0]
    np.testing.assert_allclose(by_formula(both, 5, predicted, Q)[1], flow(VP, t, s, x, Q, kind), rtol=1e-11)
    predicted = by_formula(predictor, 4, x, R)[0]
    assert abs(by_formula(both, 5, predicted, R)[1] - flow(VP, t, s, x, R, kind)) > 1e-6


@pytest.mark.parametrize("order", [2, 3])
def test_published_vary_corrector_is_wrong_on_straight_lines(order):
    """As released it spoils what the predictor had exact; order 1 alone is not affected."""
    P, x = np.polynomial.Polynomial([0.7, -0.4]), 0.37
    t, s = GRID[4:6]
    predicted = by_formula(unipc(order=3, variant="vary", corrector=False), 4, x, P)[0]
    for published, error in ((False, 1e-12), (True, np.inf)):
        corrected = by_formula(unipc(order=order, variant="vary", published=published), 5, predicted, P)[1]
        away = abs(corrected - flow(VP, t, s, x, P, "data"))
        assert away < error
        assert published == (away > 1e-4)
    one = [unipc(order=1, variant="vary", published=flag) for flag in (False, True)]
    a, b = (js.tabulate(VP, GRID, solver).B for solver in one)
    np.testing.assert_array_equal(a, b)


def test_variants_differ_in_the_weight_of_the_first_slope_only():
    """Order 3: the same rows from the fourth on; the third still corrects what UniP-2 predicted. Order 2,
    bh1: W hh/2 D
    as in the paper.
    """
    tables = [
        js.tabulate(VP, GRID, unipc(variant=v, lower_order_final=False)) for v in ("bh1", "bh2", "vary")
    ]
    for table in tables[1:]:
        np.testing.assert_allclose(table.B[3:], tables[0].B[3:], rtol=1e-12, atol=1e-14)
        assert np.abs(table.B[1] - tables[0].B[1]).max() > 1e-4
    for kind in ("data", "noise"):
        solver, ts = unipc(order=2, variant="bh1", kind=kind, corrector=False), GRID[:3]
        h, r = np.diff(VP.lam(ts))[1], -np.diff(VP.lam(ts))[0] / np.diff(VP.lam(ts))[1]
        hh, W = (-h, -VP.alpha(ts[2])) if kind == "data" else (h, -VP.sigma(ts[2]))
        decay = VP.sigma(ts[2]) / VP.sigma(ts[1]) if kind == "data" else VP.alpha(ts[2]) / VP.alpha(ts[1])
        x, F, F_old = 0.3, 0.8, -0.5
        got = solver.formula(VP, ts, x, (F_old,), lambda x, t, F=F: F, ())[0]
        np.testing.assert_allclose(
            got, decay * x + W * np.expm1(hh) * F + W * hh * 0.5 * (F_old - F) / r, rtol=1e-12
        )


@functools.cache
def flow_network():
    """A network on rectified flow and a run of it, with one compilation for all tables."""
    net = js.Denoiser(jax.jit(random_net(1)), js.CondOT(), "data")
    return net, jax.jit(lambda table, x: js.run(net, table, x, adjoint=js.Direct()))


@pytest.mark.parametrize("variant", ["bh1", "bh2", "vary"])
@pytest.mark.parametrize("order", [1, 3, 5])
def test_from_pure_noise_to_clean_data(order, variant):
    """Rectified flow, all of it: an infinite step is DDIM, uncorrected; concrete and traced grids alike."""
    path, grid = js.CondOT(), np.linspace(1, 0, 7)
    (net, run), x = flow_network(), jnp.asarray([[0.3, -1.0, 0.4]])
    for final in (True, False):
        solver = unipc(order=order, variant=variant, lower_order_final=final)
        table = js.tabulate(path, grid, solver)
        got = run(js.pad(table, nfe=6, regs=8), x)
        np.testing.assert_allclose(got, js.loop(net, path, grid, solver, x), rtol=1e-11)
        np.testing.assert_allclose(table.B[-1].sum(), 1.0, rtol=1e-11)
        assert table.A[-1] == 0
    first = js.tabulate(path, grid[:2], js.solvers.dpmpp_1)
    np.testing.assert_allclose([table.A[0], *table.B[0, :1]], [first.A[0], first.B[0, 0]], rtol=1e-12)


def test_any_order_and_what_is_refused():
    assert js.tabulate(VP, GRID, unipc(order=6)).nfe == 6
    for options, message in (
        ({"order": 0}, "positive integer"),
        ({"variant": "bh3"}, "valid: bh1, bh2, vary"),
        ({"kind": "v"}, "data, noise"),
        ({"published": True}, "leave it out"),
    ):
        with pytest.raises(ValueError, match=message):
            unipc(**options)
    with pytest.raises(TypeError, match="did you mean 'variant'"):
        unipc(varient="bh1")
