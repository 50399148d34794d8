"""A table belongs to the path that it was made on: on another its numbers are wrong, and nothing shows it."""

import numpy as np

from ..eager import Latest
from ..numerics import is_traced, on_host
from ..paths import Path
from ..tables import Table

_known_marks = Latest(256)


def check_path(path: Path, table: Table) -> None:
    """ValueError if the table is known to be of another path than the network."""
    if is_traced(table) or is_traced(path):
        return
    mark = None if table.made_on is None else np.asarray(table.made_on)
    last = float(np.max(table.t)) if mark is None else 0.0
    key = path.law, None if mark is None else mark.tobytes(), last
    error = _known_marks.made(key, lambda: _misfit(path, mark, last))
    if error is not None:
        raise ValueError(error)


def _misfit(path: Path, mark: np.ndarray | None, last: float) -> str | None:
    """What is wrong with a table on this path: its schedule, or times that the path does not have."""
    name = type(path).__name__
    fix = "tabulate on denoiser.path, or move the table there by js.search.transfer"
    if mark is None:
        if last > path.t_max * 1.5:  # churn may raise the level beyond t_max
            return (
                f"the table calls the network at t={last:g}, but {name} ends at t_max={path.t_max:g}: it was "
                f"made on another path; {fix}"
            )
        return None
    for t, alpha, sigma in mark:
        if t > path.t_max * (1 + 1e-6):
            continue
        with on_host():
            own = float(path.alpha(t)), float(path.sigma(t))
        if not np.allclose(own, (alpha, sigma), rtol=1e-5, atol=1e-7):
            return (
                f"the table was made on another path: alpha={alpha:.4g}, sigma={sigma:.4g} at t={t:g}, where "
                f"the {name} of the denoiser has alpha={own[0]:.4g}, sigma={own[1]:.4g}; {fix}"
            )
    if mark[0, 0] > path.t_max * (1 + 1e-6):
        return f"the table was made on a path with t={mark[0, 0]:g}, {name} ends at {path.t_max:g}; {fix}"
    return None
