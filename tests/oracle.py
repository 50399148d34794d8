"""Problems with closed-form answers, written from the mathematics and independent of the library's
formulas.
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp

import jaxsampler as js


def gaussian(path, mean=0.7, std=0.4):
    """Denoiser of x0 ~ N(mean, std^2) and its exact probability flow x(t) = c_t + sqrt(V_t/V_s) (x_s -
    c_s).
    """
    mu = 0.0 if path.centre is None else path.centre

    def moments(t):
        a, s = path.alpha(t), path.sigma(t)
        return mu + a * (mean - mu), a**2 * std**2 + s**2

    def net(x, t):
        centre, var = moments(t)
        return mean + path.alpha(t) * std**2 * (x - centre) / var

    def flow(x, t_from, t_to):
        (c0, v0), (c1, v1) = moments(t_from), moments(t_to)
        return c1 + np.sqrt(v1 / v0) * (np.asarray(x) - c0)

    return js.Denoiser(net, path, "data"), flow, moments


def mixture(path, means=(-0.8, 0.5, 1.1), stds=(0.3, 0.2, 0.4), weights=(0.3, 0.5, 0.2)):
    """Elementwise mixture of Gaussians: the denoiser, and its flow by an independent 8th-order ODE solver in
    lam.
    """
    means, stds, weights = map(np.asarray, (means, stds, weights))
    mu = 0.0 if path.centre is None else path.centre

    def net(x, t, xp=jnp):
        a, s = path.alpha(t), path.sigma(t)
        var = a**2 * stds**2 + s**2
        away = x[..., None] - xp.broadcast_to(mu + a * (means - mu), (*x.shape, 3))
        var = xp.broadcast_to(var, away.shape)
        logits = xp.broadcast_to(np.log(weights), away.shape) - away**2 / (2 * var) - xp.log(var) / 2
        # a shift without a gradient: that of max divides by how many entries equal it, none if one is rounded
        # differently where it is computed again
        top = logits.max(-1, keepdims=True)
        r = xp.exp(logits - (jax.lax.stop_gradient(top) if xp is jnp else top))
        r = r / r.sum(-1, keepdims=True)
        each = xp.broadcast_to(means, away.shape) + a * xp.broadcast_to(stds**2, away.shape) * away / var
        return (r * each).sum(-1)

    def flow(x, t_from, t_to):
        # y = (x - mu)/alpha obeys dy/drho = (y - (x0 - mu))/rho; in log rho: dy/dlog rho = y - (x0 - mu)
        def field(log_rho, y):
            t = float(path.time(-log_rho))
            x = mu + path.alpha(t) * y
            return y - (net(x, t, np) - mu)

        x = np.asarray(x, np.float64)
        span = (-float(path.lam(t_from)), -float(path.lam(t_to)))
        y0 = (x - mu) / path.alpha(t_from)
        out = solve_ivp(field, span, y0, method="DOP853", rtol=1e-12, atol=1e-13)
        return mu + path.alpha(t_to) * out.y[:, -1]

    return js.Denoiser(net, path, "data"), flow


class Cubic(js.Path):
    """A user's path: alpha and sigma only, and no time inverse."""

    def alpha(self, t):
        return 1 - t**3

    def sigma(self, t):
        return 1.0 * t


def random_net(seed=0, width=3):
    """A smooth nonlinear function of (x, t) with no structure to exploit."""
    k = jax.random.split(jax.random.key(seed), 3)
    w1, w2 = (
        jax.random.normal(k[0], (width, 8), jnp.float64),
        jax.random.normal(k[1], (8, width), jnp.float64),
    )
    shift = jax.random.normal(k[2], (8,), jnp.float64)

    def net(x, t):
        hidden = x @ w1.astype(x.dtype)
        hidden = hidden + jnp.broadcast_to(shift.astype(x.dtype) * jnp.asarray(t, x.dtype), hidden.shape)
        return 0.5 * jnp.tanh(hidden) @ w2.astype(x.dtype)

    return net


def recurrence(net, path, table, x, noise=None):
    """A table row by row in float64 numpy: the states [nfe + 1, ..] and the data predictions [nfe, ..].

    `net(x, t)` predicts the data, in numpy; `noise` holds the draws in order, zeros if there is none.
    """
    mu = 0.0 if path.centre is None else np.asarray(path.centre)
    x = np.asarray(x, np.float64) - mu
    memory = np.zeros((table.regs, *x.shape))
    draws = np.zeros((table.nfe + 1, *x.shape)) if noise is None else np.asarray(noise)
    x = table.start[0] * x + table.start[1] * draws[0]
    states, predictions = [x + mu], []
    for n in range(table.nfe):
        alpha, sigma, (a, b) = path.alpha(table.t[n]), path.sigma(table.t[n]), table.form[n]
        x0 = np.asarray(net(x + mu, table.t[n])) - mu
        memory[table.keep[n]] = x
        memory[table.slot[n]] = a * x0 + b * (x - alpha * x0) / sigma
        x = table.A[n] * x + np.tensordot(table.B[n], memory, 1) + table.C[n] * draws[table.draw[n]]
        states.append(x + mu)
        predictions.append(x0 + mu)
    return np.stack(states), np.stack(predictions)
