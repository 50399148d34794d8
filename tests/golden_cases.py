"""The golden vectors of tests/golden/diffusion_solvers.npz (described in the .md beside it): model,
schedules, cases, one shared run.

The model is the closed-form Gaussian mixture with diagonal variances that made them, written from that
description. `finish` pads a table to a few common shapes, so that all cases of a path share a handful of
compilations.
"""

import functools
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from places import GOLDEN_FOLDER

import jaxsampler as js

GOLDEN = np.load(GOLDEN_FOLDER / "diffusion_solvers.npz")
INDEX = json.loads(str(GOLDEN["index"]))
CONFIG, CASES = INDEX["config"], INDEX["cases"]
PATHS = {
    "vp_linear": js.VP(*CONFIG["vp"]),
    "vp_cosine": js.CosineVP(),
    "discrete": js.DiscreteVP(GOLDEN["discrete/alphas_cumprod"]),
    "subvp": js.SubVP(*CONFIG["vp"]),
    "ve": js.EDM(
        sigma_min=CONFIG["edm"][0], sigma_max=CONFIG["edm"][1]
    ),  # alpha = 1, sigma = t: also k-diffusion's and EDM's
    "score_sde_ve": js.VE(*CONFIG["ve"]),
}


def cases(prefix):
    """Names of the cases that begin with `prefix`."""
    return [name for name in CASES if name.startswith(prefix)]


class Mixture(eqx.Module):
    """E[eps | x_t] (or x0) of sum_k w_k N(mu_k, diag var_k) on any path."""

    path: js.Path
    kind: str = eqx.field(static=True, default="noise")

    def __call__(self, x, t):
        a, s = (jnp.asarray(v, x.dtype) for v in (self.path.alpha(t), self.path.sigma(t)))
        w, mu, var = (jnp.asarray(GOLDEN[f"gmm/{k}"], x.dtype) for k in ("w", "mu", "var"))
        away = x[..., None, :] - jnp.broadcast_to(a * mu, (*x.shape[:-1], *mu.shape))
        total = jnp.broadcast_to(a**2 * var + s**2, away.shape)
        logits = (-(away**2) / (2 * total) - jnp.log(total) / 2).sum(-1)
        r = jax.nn.softmax(logits + jnp.broadcast_to(jnp.log(w), logits.shape), axis=-1)
        pull = (r[..., None] * away / total).sum(-2)  # -score
        return s * pull if self.kind == "noise" else (x - s**2 * pull) / a


def denoiser(path, kind="noise"):
    """The exact denoiser of the golden mixture on `path`."""
    return js.Denoiser(Mixture(path, kind), path, kind)


def start(name):
    """x_T of all cases on path `name`: the stored normal z, times sigma_max where variance explodes."""
    z = jnp.asarray(GOLDEN["z"])
    return z * {"ve": CONFIG["edm"][1], "score_sde_ve": CONFIG["ve"][1]}.get(name, 1.0)


@functools.cache
def _run(path):
    return jax.jit(lambda table, x, noise: js.run(denoiser(path), table, x, noise=noise, adjoint=js.Direct()))


def finish(name, table, noise=None, x=None):
    """x at the end of `table` on path `name`, from the golden x_T."""
    nfe = next(n for n in (20, 40, 60, 110) if n >= table.nfe)
    x = start(name) if x is None else x
    noise = jnp.zeros((1, *x.shape)) if noise is None else jnp.asarray(noise)
    noise = jnp.pad(noise, [(0, max(0, nfe - len(noise))), *[(0, 0)] * x.ndim])
    return _run(PATHS[name])(js.pad(table, nfe=nfe, regs=max(8, table.regs)), x, noise)


def close(got, name, rtol=1e-8, atol=1e-9):
    """Assert that `got` is the golden result of case `name`."""
    np.testing.assert_allclose(np.asarray(got), GOLDEN[name], rtol=rtol, atol=atol, err_msg=name)
