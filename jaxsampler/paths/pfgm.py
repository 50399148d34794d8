r"""PFGM++: the EDM path with heavy-tailed noise, between Poisson flow (D = 1) and diffusion (D = inf).

Data of N dimensions are charges in N + D; the field lines of their D-dimensionally symmetric Poisson field,
r = sigma sqrt(D) away from the data in the extra dimensions, carry the perturbation kernel

    p_r(x | x_0)  ~  (|x - x_0|^2 + r^2)^{-(N+D)/2}:
    x - x_0 = sigma eps,   eps = Z sqrt(D)/sqrt(C),   Z ~ N(0, I),   C ~ chi^2_D

(Student's t; the radius obeys R^2/(R^2 + r^2) ~ Beta(N/2, D/2)). With r = sigma sqrt(D) the phases of all D
agree, so grids, weights and preconditioning are EDM's, as is the flow, dx/dsigma = (x - E[x_0 | x])/sigma.
What differs is the law of eps: of the prior and of the noise in training. Data, noise and velocity convert as
on other paths (they are linear in x_0 and eps); the score of p_r is not -E[eps | x]/sigma.

Reference: Xu et al. 2023 (PFGM++), eq. 3-6, alg. 1, 2.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..numerics import Key, Like, State, Time, cast, normal
from .gaussian import EDM


class PFGMpp(EDM):
    r"""EDM's path with Student-t noise of D degrees of freedom [Xu et al. 2023]; D = inf is `EDM`.

    Sample it with `edm`. Solvers that draw noise (churn too) and the kind "score" are for D = inf only.

    Args:
        D: degrees of freedom, the number of extra dimensions.
        batch_axes: number of leading axes of x that enumerate samples, each with a radius of its own; 0 takes
            all of x (every leaf of it) as one sample, as under `jax.vmap`.

    Example:
        >>> path = js.PFGMpp(D=128.0)
        >>> float(path.rho(3.0)), path.gaussian, js.PFGMpp(D=float("inf")).gaussian
        (3.0, False, True)
    """

    D: float = eqx.field(static=True, converter=float, default=2048.0)
    batch_axes: int = eqx.field(static=True, default=0, kw_only=True)

    def __check_init__(self):
        if not self.D > 0:
            raise ValueError(
                f"D, the number of extra dimensions, must be positive (inf for diffusion); got {self.D}"
            )
        if self.batch_axes < 0:
            raise ValueError(
                f"batch_axes counts the leading axes that enumerate samples, 0 or more; got {self.batch_axes}"
            )

    @property
    def gaussian(self) -> bool:
        """Whether D = inf."""
        return math.isinf(self.D)

    def form(self, kind: str, t: Time) -> tuple[Any, Any]:
        if kind == "score" and not self.gaussian:
            raise ValueError(
                "with D < inf the score is not -E[eps | x]/sigma: use data, noise or velocity predictions"
            )
        return super().form(kind, t)

    def noise(self, key: Key, like: Like) -> State:
        """eps = Z sqrt(D/C), one C ~ chi^2_D per sample."""
        z = normal(key, like)
        if self.gaussian:
            return z
        shapes = {a.shape[: self.batch_axes] for a in jax.tree.leaves(z)}
        if len(shapes) > 1 or any(len(s) < self.batch_axes for s in shapes):
            raise ValueError(
                f"batch_axes={self.batch_axes}, but the leading axes of the leaves of x are "
                f"{sorted(shapes)}: they must be alike"
            )
        dtype = np.result_type(np.float32, *[a.dtype for a in jax.tree.leaves(z)])
        half_chi2 = jax.random.gamma(jax.random.fold_in(key, 2**31 - 1), self.D / 2, shapes.pop(), dtype)
        scale = jnp.sqrt(self.D / 2 / half_chi2)
        return jax.tree.map(
            lambda a: a * cast(scale, a).reshape(*scale.shape, *[1] * (a.ndim - scale.ndim)), z
        )
