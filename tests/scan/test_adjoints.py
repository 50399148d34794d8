"""Adjoints change memory and time, never values: gradients equal plain reverse mode, forward mode works, temp
bytes
follow the claim.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import gaussian, random_net

import jaxsampler as js

ADJOINTS = [
    js.Direct(),
    js.Direct(remat=True),
    js.Direct(unroll=True),
    js.RecursiveCheckpoint(),
    js.RecursiveCheckpoint(2),
    js.RecursiveCheckpoint(5),
]
VP = js.VP()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("n", [1, 2, 12, 17])
def test_every_adjoint_gives_the_gradient_of_a_plain_loop(n):
    """Row counts that do and do not factor; against the chain rule through an unrolled python loop."""
    net = random_net(3)
    table = js.tabulate(VP, js.grids.log_snr(VP, n), js.solvers.dpmpp_2m_sde)
    x = jnp.asarray([0.3, -1.0, 0.8])
    noise = jax.random.normal(jax.random.key(0), (n, 3))

    def unrolled(w, x):
        mem, A = [jnp.zeros(3)] * table.regs, table.A
        for i in range(n):
            mem[table.slot[i]] = w * net(x, table.t[i])
            x = A[i] * x + sum(table.B[i, r] * mem[r] for r in range(table.regs)) + table.C[i] * noise[i]
        return (x**2).sum()

    want = jax.grad(unrolled, argnums=(0, 1))(1.1, x)
    for adjoint in ADJOINTS:

        def loss(w, x, adjoint=adjoint):
            denoiser = js.Denoiser(lambda x, t: w * net(x, t), VP, "data")
            return (js.run(denoiser, table, x, noise=noise, adjoint=adjoint) ** 2).sum()

        @jax.jit
        def derivatives(w, x, loss=loss):
            return jax.grad(loss, argnums=(0, 1))(w, x), jax.jvp(loss, (w, x), (1.0, jnp.ones(3)))[1]

        got, tangent = derivatives(1.1, x)
        chex.assert_trees_all_close(got, want, rtol=1e-12)
        np.testing.assert_allclose(tangent, want[0] + want[1].sum(), rtol=1e-11)


@pytest.mark.usefixtures("x64")
def test_gradient_converges_to_the_closed_form_of_the_flow():
    """Gaussian data: dx(t)/dx(s) = sqrt(V_t/V_s), approached at the solver's order."""
    denoiser, _, moments = gaussian(VP)
    start, end = float(VP.time(-1.0)), float(VP.time(1.2))
    want = np.sqrt(moments(end)[1] / moments(start)[1])
    slope = jax.jit(jax.grad(lambda x, table: js.run(denoiser, table, x)))
    errors = []
    for n in (20, 40, 80):
        table = js.tabulate(VP, js.grids.log_snr(VP, n, t_max=start, t_min=end), js.solvers.dpmpp_2m)
        errors.append(abs(float(slope(0.4, js.pad(table, nfe=80))) - want))
    assert abs(np.polyfit(np.log([20, 40, 80]), -np.log(errors), 1)[0] - 2) < 0.2


def temp_bytes(adjoint, n, width=256, batch=64):
    """Compiled temporaries of the gradient with respect to the start, for a net whose activations dwarf the
    state.
    """
    w = jnp.zeros((width, 16 * width))
    net = lambda x, t: jnp.tanh(jnp.tanh(x @ w) @ w.T)
    table = js.tabulate(VP, js.grids.log_snr(VP, n), js.solvers.dpmpp_1)
    grad = jax.grad(lambda x: js.run(js.Denoiser(net, VP, "data"), table, x, adjoint=adjoint).sum())
    return jax.jit(grad).lower(jnp.zeros((batch, width))).compile().memory_analysis().temp_size_in_bytes


def test_memory_follows_the_claim():
    state, activations = 64 * 256 * 4, 64 * 16 * 256 * 4
    direct = [temp_bytes(js.Direct(), n) for n in (32, 256)]
    assert direct[1] - direct[0] > 0.9 * (256 - 32) * activations  # N (A + d)
    remat = [temp_bytes(js.Direct(remat=True), n) for n in (32, 256)]
    assert 0.9 * (256 - 32) * state < remat[1] - remat[0] < 4 * (256 - 32) * state  # N d + A
    default = [temp_bytes(js.RecursiveCheckpoint(), n) for n in (32, 256)]
    assert default[1] - default[0] < 8 * (2 * 16 - 2 * 6) * state  # 2 sqrt(N) d + A
    assert default[1] < 0.1 * direct[1]
    few, many = temp_bytes(js.RecursiveCheckpoint(4), 256), temp_bytes(js.RecursiveCheckpoint(64), 256)
    assert few < default[1] * 1.2
    assert many > few


def test_forward_values_do_not_depend_on_the_adjoint():
    net = js.Denoiser(random_net(1), VP, "noise")
    table = js.tabulate(VP, js.grids.log_snr(VP, 17), js.solvers.dpm_2m)
    x = jnp.asarray([0.3, -1.0, 0.8])
    with jax.enable_x64(False):
        outs = [js.run(net, table, x, adjoint=a) for a in ADJOINTS]
    for out in outs[1:]:
        np.testing.assert_allclose(out, outs[0], rtol=2e-6)
