"""Tables as the start of learning: the corrections that lead from a parent to a given table."""

import numpy as np

from ..numerics import Arr, on_host
from ..tables import Table
from .parametrisation import Learnable, amplitude_unit, replaced
from .unrolled import unrolled


def at_table(model: Learnable, table: Table) -> Learnable:
    """Return the corrections of the weights that turn the parent on its grid into `table`.

    The table must call the network at the times at which the parent does. A consistent model reaches only
    consistent tables, whose last row is the parent's if it ends at sigma = 0.

    Raises:
        ValueError: if no corrections lead to the table.
    """
    if "weights" not in model.free or table.nfe != model.rows:
        raise ValueError(
            f"a table of {table.nfe} rows is no start of a model of {model.rows} rows "
            f"with free {sorted(model.free)}: the rows must agree and the weights must be free"
        )
    with on_host():
        free: dict[str, Arr] = {name: np.zeros(np.shape(a)) for name, a in model.free.items()}
        base, path = replaced(model, free).base(), model.path
        arrive = np.append(base.t[1:], model.ends[1])
        alpha, sigma = (np.asarray(f(arrive), np.float64) for f in (path.alpha, path.sigma))
        scale = np.minimum(alpha, sigma) if model.consistent else alpha
        (A, B), (to_A, to_B) = unrolled(base, path), unrolled(table, path)
        free["weights"] = (to_B - B)[1:] / np.where(scale > 0, scale, 1.0)[:, None]
        if "amplitude" in free:
            free["amplitude"] = (to_A - A)[1:] / amplitude_unit(A, np)
        made = replaced(model, free)
        reached = made.table()
        pairs = [
            (reached.t, table.t),
            (reached.start, table.start),
            *zip(unrolled(reached, path), (to_A, to_B), strict=True),
        ]
    if not all(np.allclose(a, b, rtol=1e-6, atol=1e-8) for a, b in pairs):
        raise ValueError(
            f"no corrections lead from {model.parent.name} on its grid to this table: "
            "it must have the grid's times and, unless consistent=False, "
            "the amplitudes and row sums of exact solvers; with `band` there is no start but the parent"
        )
    return made
