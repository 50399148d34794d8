r"""diffrax on our flows: its adaptive solvers, events, dense output and Brownian tree.

`ode_terms` and `sde_terms` are the flow of a denoiser as diffrax terms, in the state y and the rising time s
of `probability_flow.py` (which says why dy/drho = eps is not stiff); `solve` maps states and times in and
out. Time must rise: diffrax 0.7 steps its stochastic Runge-Kutta solvers the wrong way in falling time, and
shows events the negative of the time.

The other way, `FromDiffrax(diffrax.Heun())` is a `js.Solver`, so `js.sample` runs it with its hooks, saved
states and adjoints (`from_diffrax.py`).

Reference: Kidger 2021 (diffrax).
"""

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ...numerics import Grid, Key, Real, State, is_traced, on_host, wide
from ...paths import Path, grids
from ..probability_flow import Ends, Flow, Times, begin, brownian_tree, lenient

if TYPE_CHECKING:
    import diffrax


def ode_terms(denoiser: Callable, variable: str = "lam") -> Any:
    """Return the probability flow as a `diffrax.ODETerm`.

    Its `vector_field` is the `Flow` (see `probability_flow.py`), which maps states and times too.

    Example:
        >>> denoiser = js.Denoiser(lambda x, t: 0 * x + 2.0, js.EDM(), "noise")
        >>> flow = js.bridge.ode_terms(denoiser, "rho").vector_field
        >>> float(flow.s(3.0)), flow(-3.0, jnp.ones(1)).tolist()  # s = -rho, dy/ds = -eps
        (-3.0, [-2.0])
    """
    return _terms(Flow(denoiser, variable), None)


def sde_terms(
    denoiser: Callable, tree: "diffrax.AbstractBrownianPath", variable: str = "lam", eta: Real = 1.0
) -> Any:
    """Return the reverse SDE as a `diffrax.MultiTerm` of the `Flow` and its noise.

    Args:
        tree: a diffrax Brownian path over solver times.

    Example:
        >>> import diffrax
        >>> tree = diffrax.VirtualBrownianTree(-80.0, 0.0, 1e-3, (1,), jax.random.key(0))
        >>> denoiser = js.Denoiser(lambda x, t: 0 * x + 2.0, js.EDM(), "noise")
        >>> drift, noise = js.bridge.sde_terms(denoiser, tree, "rho").terms
        >>> drift.vector_field(-2.0, jnp.ones(1)).tolist()  # dy/ds = -2 eps
        [-4.0]
        >>> noise.vector_field(-2.0, jnp.ones(1), None).diagonal.tolist()  # its square is 2 rho
        [2.0]
    """
    if not eta > 0:
        raise ValueError(f"eta must be positive, got {eta}: without noise the flow is an ODE, see ode_terms")
    return _terms(Flow(denoiser, variable, eta), tree)


def _terms(flow: Flow, tree: Any) -> Any:
    import diffrax

    drift = diffrax.ODETerm(flow)
    return drift if flow.eta == 0 else diffrax.MultiTerm(drift, diffrax.ControlTerm(flow.diffusion, tree))


class Solution(eqx.Module):
    """What `solve` found; with dense=True, `solution(t)` is the state at any scalar time between.

    Attributes:
        x, t: where it ended. ts, xs: what `save` asked for, stacked; infinite after the last accepted step.
        nfe: network calls of an explicit Runge-Kutta solver (one more if its very first step was rejected),
        None
            for others.
        raw: diffrax's own `Solution` in (s, y), with `result` and `event_mask`.

    Example:
        >>> denoiser = js.Denoiser(lambda x, t: 0 * x + 2.0, js.EDM(), "noise")  # dx/dt = 2
        >>> solution = js.bridge.solve(denoiser, jnp.zeros(1), t_max=4.0, t_min=1.0)
        >>> print(f"{solution.x[0]:.3f}", solution.t, solution.stats["num_rejected_steps"])
        -6.000 1.0 0
    """

    x: State
    t: Any
    ts: Any
    xs: State
    nfe: Any
    flow: Flow
    raw: Any

    @property
    def stats(self) -> dict[str, Any]:
        """num_steps, num_accepted_steps, num_rejected_steps, max_steps."""
        return self.raw.stats

    def __call__(self, t: Times) -> State:
        if self.raw.interpolation is None:
            raise ValueError(
                "for the state at any time solve with dense=True; this solution has its saved states only"
            )
        with lenient():
            y = self.raw.evaluate(jnp.asarray(self.flow.s(t), jnp.result_type(self.raw.t0)))
            return self.flow.leave(y, t)


def solve(
    denoiser: Callable,
    x: State,
    *,
    solver: "diffrax.AbstractSolver | None" = None,
    controller: "diffrax.AbstractStepSizeController | None" = None,
    grid: Grid | None = None,
    variable: str = "lam",
    t_max: Times | None = None,
    t_min: Times | None = None,
    key: Key | None = None,
    eta: Real = 1.0,
    adjoint: "diffrax.AbstractAdjoint | None" = None,
    save: str | Grid | dict[str, Grid] | None = None,
    dense: bool = False,
    event: "diffrax.Event | None" = None,
    dt0: Real | jax.Array | None = None,
    max_steps: int | None = 4096,
    throw: bool = True,
) -> Solution:
    """Solve the flow from x at t_max to t_min with diffrax: the adaptive reference for every sampler.

    Inside `jax.shard_map` it needs check_vma=False, because diffrax's loops do not say what differs there.

    Where sigma(t_min) = 0 and the network does not determine the slope there (as data networks do not in
    rho), the solver stops at the path's own t_min (or, if that does not help, at a hundredth of t_max) and
    one data prediction leads on, as at the end of a default grid.

    Args:
        solver: by default `diffrax.Tsit5()`, for SDEs `diffrax.ShARK()`.
        controller: by default `diffrax.PIDController(rtol=1e-5, atol=1e-5)`, of errors in y.
        grid: fixed steps between these times instead.
        variable: "t", "rho" or "lam". In "lam" step sizes vary least, hence the default; in "t" the slope of
            a tabulated schedule jumps at path.knots, which a
            `diffrax.ClipStepSizeController(.., jump_ts=-path.knots[::-1])` must know.
        t_max, t_min: by default the path's.
        key: solve the SDE of this `eta` instead of the ODE, on diffrax's virtual Brownian tree.
        adjoint: by default `diffrax.RecursiveCheckpointAdjoint()`.
        save: decreasing times (of a system, a dict of them), or "all" for the accepted steps.
        dense: make the solution callable at any time.
        event: a `diffrax.Event` whose conditions get the path's t and x.
        dt0: the first step, in s; by default a hundredth of the way.

    Example:
        >>> denoiser = js.models.gaussian_mixture([[0.0]], 1.0, js.EDM())  # x ~ sqrt(1 + t^2)
        >>> solution = js.bridge.solve(denoiser, jnp.sqrt(jnp.array([10.0])), t_max=3.0, t_min=1.0)
        >>> print(f"{solution.x[0] ** 2:.3f}", solution.t)
        2.000 1.0
    """
    import diffrax

    x = jax.tree.map(jnp.asarray, x)
    dtype = wide(x)
    if solver is None:
        solver = diffrax.Tsit5() if key is None else diffrax.ShARK()
    if grid is not None:
        if (
            not isinstance(getattr(denoiser, "path", None), Path)
            or controller is not None
            or t_max is not None
            or t_min is not None
        ):
            raise ValueError(
                "grid= says where all steps end, on one path: leave out controller, t_max and t_min; "
                "js.sample solves systems on a grid"
            )
        grid = grids.checked(denoiser.path, grid)
        t_max, t_min = float(grid[0]), float(grid[-1])
    flow, ends = begin(denoiser, variable, 0.0 if key is None else float(eta), t_max, t_min)
    if grid is not None and ends.stop != ends.end:  # the last interval is the data prediction
        ends, grid = Ends(*(float(grid[i]) for i in (0, -2, -1))), grid[:-1]
    start, stop = (_of(ends, name) for name in ("start", "stop"))
    with on_host():
        s0, s1 = (float(flow.s(t)) for t in (start, stop))
        steps = None if grid is None else np.asarray(flow.s(grid), np.float64)
    span = jnp.asarray(s0, dtype), jnp.asarray(s1, dtype)
    if grid is not None:
        controller = diffrax.StepTo(jnp.asarray(steps, dtype).at[0].set(span[0]).at[-1].set(span[1]))
        max_steps = None if max_steps is None else max(max_steps, len(grid))
    else:
        controller = diffrax.PIDController(rtol=1e-5, atol=1e-5) if controller is None else controller
        dt0 = 0.01 * (s1 - s0) if dt0 is None else dt0
    y0 = flow.enter(jax.tree.map(lambda a: a.astype(dtype), x), start)
    times = None if save is None or isinstance(save, str) else _saved(flow, save, s0, s1, span)
    if isinstance(save, str) and save != "all":
        raise ValueError(f"save must be None, 'all' or decreasing times, got {save!r}")
    with lenient():
        raw: Any = diffrax.diffeqsolve(
            _terms(
                flow, None if key is None else brownian_tree(solver, key, y0, *span, (s1 - s0) * 2.0**-20)
            ),
            solver,
            *span,
            dt0,
            y0,
            saveat=diffrax.SaveAt(
                t1=True, ts=times, steps=save == "all" if isinstance(save, str) else False, dense=dense
            ),
            stepsize_controller=controller,
            adjoint=diffrax.RecursiveCheckpointAdjoint() if adjoint is None else adjoint,
            event=None if event is None else _in_path_time(event, flow),
            max_steps=max_steps,
            throw=throw,
        )
        stopped = False if event is None else raw.result == diffrax.RESULTS.event_occurred
        last = jnp.isfinite(raw.ts).sum() - 1
        t = flow.t(raw.ts[last])
        t = jax.tree.map(lambda here, stop: jnp.where(stopped, here, stop), t, stop)
        out, t = _finish(flow, flow.leave(jax.tree.map(lambda a: a[last], raw.ys), t), t, ends, stopped)
        xs = ts = None
        if save is not None:
            count = len(raw.ts) - (times is not None)  # the end itself comes last
            ts = jax.vmap(flow.t)(raw.ts[:count])
            xs = jax.vmap(flow.leave)(jax.tree.map(lambda a: a[:count], raw.ys), ts)
    back = lambda a, like: a.astype(like.dtype)
    return Solution(jax.tree.map(back, out, x), t, ts, xs, _calls(solver, flow, ends, raw), flow, raw)


def _of(ends: Ends | dict[str, Ends], name: str) -> Any:
    return getattr(ends, name) if isinstance(ends, Ends) else {k: getattr(v, name) for k, v in ends.items()}


def _saved(flow: Flow, save: Grid | dict[str, Grid], s0: float, s1: float, span: tuple) -> Any:
    """Solver times to save at; ValueError if they leave the solve."""
    known = lambda a: a if is_traced(a) else np.asarray(a, np.float64)
    save = {k: known(v) for k, v in save.items()} if isinstance(save, dict) else known(save)
    with on_host() if not is_traced(save) else contextlib.nullcontext():
        s = flow.s(save)
    if not is_traced(s):
        slack = 1e-6 * (s1 - s0)
        if np.ndim(s) != 1 or np.any(np.diff(s) < 0) or np.any((s < s0 - slack) | (s > s1 + slack)):
            first, final = (jax.tree.map(float, flow.t(v)) for v in (s0, s1))
            raise ValueError(
                f"save must be times that decrease from {first} to {final}, where the solver stops; "
                f"got {save}"
            )
    return jnp.clip(jnp.asarray(s, span[0].dtype), *span)


def _in_path_time(event: "diffrax.Event", flow: Flow) -> "diffrax.Event":
    """The event with its conditions called as condition(t, x, args, **kwargs)."""
    import diffrax

    def wrap(condition):
        def wrapped(t, y, args, **kwargs):  # diffrax names them so
            t = flow.t(t)
            return condition(t, flow.leave(y, t), args, **kwargs)

        return wrapped

    return diffrax.Event(
        jax.tree.map(wrap, event.cond_fn, is_leaf=callable), event.root_finder, event.direction
    )


def _finish(flow: Flow, x: State, t: Times, ends: Ends | dict[str, Ends], stopped: bool | jax.Array) -> tuple:
    """The data prediction that leads from `stop` to `end`, unless these are equal or an event was met."""
    end, stop = _of(ends, "end"), _of(ends, "stop")
    if end == stop:
        return x, t

    def jump(path, x, new, t, end, stop):
        if end == stop:
            return x, t
        return jax.tree.map(lambda a, b: jnp.where(stopped, a, b), x, new), jnp.where(stopped, t, end)

    out = flow.denoiser.each(jump, x, flow.denoised(x, t, end), t, end, stop)
    return out if isinstance(ends, Ends) else tuple({k: v[i] for k, v in out.items()} for i in (0, 1))


def _calls(
    solver: "diffrax.AbstractSolver", flow: Flow, ends: Ends | dict[str, Ends], raw: "diffrax.Solution"
) -> Any:
    """Network calls, where the solver's tableau gives their number."""
    import diffrax

    if not isinstance(solver, diffrax.AbstractERK) or flow.eta != 0:
        return None
    tableau: Any = solver.tableau
    steps = raw.stats["num_steps"]
    jump = int(_of(ends, "end") != _of(ends, "stop"))
    return jump + (steps * (tableau.num_stages - 1) + 1 if tableau.fsal else steps * tableau.num_stages)
