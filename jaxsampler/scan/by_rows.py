r"""The rows of a table one after the other, the network outside: for networks that take long.

    x, state = begin(x_T);   for each row:   x, state = advance(state, network(x, t))

A scan is one program. Nothing is seen of it on the way unless it calls back into Python, and JAX does not
keep compiled programs that do. Here the caller calls the network, in parts if it is large, and the little
that is left is compiled for no number of rows. What it costs is a dispatch for each row.
"""

from typing import Any

import equinox as eqx
import jax
import numpy as np

from ..numerics import Key, Scalar, State
from ..paths import Denoiser, Path
from ..tables import Table
from .run_table import Prediction, cast_floats, check_tables, row_weights
from .table_solver import Rows, TableSolver, parts_of, rows_of


class ByRows:
    """A concrete `table` on `path`, for a network whose prediction is of this `kind`; equals `run`.

    Example:
        >>> from jaxsampler.scan.by_rows import ByRows
        >>> denoiser = js.models.gaussian_mixture(jnp.array([[2.0], [-2.0]]), 0.1, js.VP())
        >>> table = js.tabulate(js.VP(), js.grids.log_snr(js.VP(), 10), js.solvers.dpmpp_2m)
        >>> rows = ByRows(table, denoiser.path, denoiser.kind)
        >>> x, state = rows.begin(jnp.array([[1.0], [-1.0]]))
        >>> for i, t in enumerate(rows.times):
        ...     x, state = rows.advance(i, state, denoiser.net(x, t))
        >>> x.round().ravel()
        Array([ 2., -2.], dtype=float32)
    """

    def __init__(
        self, table: Table, path: Path, kind: str, *, key: Key | None = None, dtype: Any = np.float32
    ):
        check_tables(table)
        if table.draws and key is None:
            raise ValueError(f"{table} draws noise: pass key=jax.random.key(seed)")
        parts, structure = parts_of(table)
        rows = cast_floats(rows_of(table, None, row_weights(kind, path, table)), dtype)
        self._rows = [jax.tree.map(lambda a, i=i: a[i], rows) for i in range(table.nfe)]
        starts: list = [part.start.astype(dtype) for part in parts]
        solver = TableSolver(starts, key if table.draws else None, None, structure)
        self._fixed = solver, Denoiser(_called_outside, path, kind)
        self.times = [row.tables[0].t for row in self._rows]

    def begin(self, x: State) -> tuple[State, Any]:
        """What the network sees first, and the state, from the sample `x` at the first time."""
        return _begin(self._fixed, self._rows[0], x)

    def advance(self, i: int, state: Any, output: State) -> tuple[State, Any]:
        """The same after row i, given what the network put out; both arguments are used up."""
        return _advance((*self._fixed, self._rows[i]), state, output)


@eqx.filter_jit
def _begin(fixed: tuple[TableSolver, Denoiser], row: Rows, x: State) -> tuple[State, Any]:
    solver, denoiser = fixed
    state = solver.init(denoiser.centred(x), row)
    return denoiser.uncentred(state[0]), state


@eqx.filter_jit(donate="all-except-first")
def _advance(fixed: tuple[TableSolver, Denoiser, Rows], state: Any, output: State) -> tuple[State, Any]:
    solver, denoiser, row = fixed
    known = Denoiser(lambda x, t: output, denoiser.path, denoiser.kind)
    state = solver.step(Prediction(known), state, row)
    return denoiser.uncentred(solver.final(state)), state


def _called_outside(x: State, t: Scalar) -> State:
    raise AssertionError("the caller calls the network")
