r"""Which noise goes with which image: orders of a batch's noise, for `losses.flow_matching(coupling=...)`.

Minibatch optimal transport pairs images with near noise. The paths of the flow then hardly cross, so the flow
is straighter, and its marginals stay (in the limit of large batches; in small ones the noise of an image
depends on its neighbours) [Pooladian et al. 2023; Tong et al. 2024]. The images keep their order, hence their
labels: the noise of each is drawn from its row of the transport plan.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

Coupling = Callable[[PRNGKeyArray, Float[Array, "n ..."], Float[Array, "n ..."]], Float[Array, "n ..."]]


def independent(
    key: PRNGKeyArray, x0: Float[Array, "n ..."], eps: Float[Array, "n ..."]
) -> Float[Array, "n ..."]:
    """Leave the noise as it was drawn.

    Example:
        >>> x0, eps = jnp.zeros((2, 1)), jnp.array([[3.0], [4.0]])
        >>> js.training.couplings.independent(jax.random.key(0), x0, eps).ravel().tolist()
        [3.0, 4.0]
    """
    return eps


def minibatch_ot(epsilon: float | None = None, iterations: int = 2000) -> Coupling:
    """Entropic optimal transport for |x0 - eps|^2 by Sinkhorn's iteration (ott-jax).

    Args:
        epsilon: smooths the plan; None: 1% of the mean cost.
        iterations: of Sinkhorn, at most.

    Raises:
        ModuleNotFoundError: ott-jax is not installed: pip install "jaxsampler[ot]".

    Example:
        >>> coupling = js.training.couplings.minibatch_ot()
        >>> x0, eps = jnp.array([[0.0], [5.0]]), jnp.array([[6.0], [-1.0]])
        >>> coupling(jax.random.key(0), x0, eps).ravel().tolist()
        [-1.0, 6.0]
    """
    from ott.geometry import pointcloud
    from ott.problems.linear.linear_problem import LinearProblem
    from ott.solvers.linear.sinkhorn import Sinkhorn

    def coupling(
        key: PRNGKeyArray, x0: Float[Array, "n ..."], eps: Float[Array, "n ..."]
    ) -> Float[Array, "n ..."]:
        flat = [a.reshape(len(a), -1).astype(jnp.float32) for a in (x0, eps)]
        cost = lambda a, b: (
            jnp.square(a).sum(1).mean() + jnp.square(b).sum(1).mean() - 2 * a.mean(0) @ b.mean(0)
        )
        smooth = 0.01 * cost(*flat) if epsilon is None else epsilon
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # ott's own arithmetic
            cloud: Any = pointcloud.PointCloud(flat[0], flat[1], epsilon=smooth)
            f, g = Sinkhorn(max_iterations=iterations)(LinearProblem(cloud)).potentials
            log_plan = (f[:, None] + g[None] - cloud.cost_matrix) / smooth
        chosen = jax.random.categorical(key, log_plan, axis=1)
        return jax.lax.stop_gradient(eps[chosen])

    return coupling
