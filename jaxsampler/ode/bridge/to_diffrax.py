r"""diffrax, both ways: its adaptive solvers, events, dense output and Brownian tree on our flows; its one-step solvers in our driver.

Out: `ode_terms` and `sde_terms` are the flow of a denoiser as diffrax terms, in the state y and the rising time s of `probability_flow.py` (which says
why dy/drho = eps is not stiff); `solve` maps states and times in and out. Time must rise: diffrax 0.7 steps its stochastic
Runge-Kutta solvers the wrong way in falling time, and shows events the time's negative.

In: `FromDiffrax(diffrax.Heun())` is a `js.Solver`, so `js.sample` runs it with its hooks, saved states and adjoints (`from_diffrax.py`).

Reference: Kidger 2021 (diffrax).
"""

import contextlib
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ...numerics import Real, is_traced, on_host, wide
from ...paths import grids
from ...paths.base import Path
from ..probability_flow import Ends, Flow, begin, brownian_tree, lenient


def ode_terms(denoiser: Callable, variable: str = "lam") -> Any:
    """The probability flow as a `diffrax.ODETerm`; its `vector_field` is the `Flow` (see `probability_flow.py`), which maps states and times too."""
    return _terms(Flow(denoiser, variable), None)


def sde_terms(denoiser: Callable, tree: Any, variable: str = "lam", eta: Real = 1.0) -> Any:
    """The reverse SDE as a `diffrax.MultiTerm` of the `Flow` and its noise; tree: a diffrax Brownian path over solver times."""
    if not eta > 0:
        raise ValueError(f"eta must be positive, got {eta}: without noise the flow is an ODE, see ode_terms")
    return _terms(Flow(denoiser, variable, eta), tree)


def _terms(flow: Flow, tree: Any) -> Any:
    import diffrax

    drift = diffrax.ODETerm(flow)
    return drift if flow.eta == 0 else diffrax.MultiTerm(drift, diffrax.ControlTerm(flow.diffusion, tree))


class Solution(eqx.Module):
    """What `solve` found. x, t: where it ended. ts, xs: what `save` asked for, stacked; infinite after the last accepted step.

    nfe: network calls of an explicit Runge-Kutta solver (one more if its very first step was rejected), None of others. raw: diffrax's own
    `Solution` in (s, y), with `result` and `event_mask`. With dense=True, `solution(t)` is the state at any scalar time between.
    """

    x: PyTree
    t: Any
    ts: Any
    xs: PyTree
    nfe: Any
    flow: Flow
    raw: Any

    @property
    def stats(self) -> dict[str, Any]:
        """num_steps, num_accepted_steps, num_rejected_steps, max_steps."""
        return self.raw.stats

    def __call__(self, t: Any) -> PyTree:
        if self.raw.interpolation is None:
            raise ValueError(
                "for the state at any time solve with dense=True; this solution has its saved states only"
            )
        with lenient():
            y = self.raw.evaluate(jnp.asarray(self.flow.s(t), jnp.result_type(self.raw.t0)))
            return self.flow.leave(y, t)


def solve(
    denoiser: Callable,
    x: PyTree,
    *,
    solver: Any = None,
    controller: Any = None,
    grid: Any = None,
    variable: str = "lam",
    t_max: Any = None,
    t_min: Any = None,
    key: Any = None,
    eta: Real = 1.0,
    adjoint: Any = None,
    save: Any = None,
    dense: bool = False,
    event: Any = None,
    dt0: Any = None,
    max_steps: int | None = 4096,
    throw: bool = True,
) -> Solution:
    """Solve the flow from x at t_max to t_min (by default the path's) with diffrax: the adaptive reference for every sampler.

    solver: by default `diffrax.Tsit5()`, for SDEs `diffrax.ShARK()`. controller: by default `diffrax.PIDController(rtol=1e-5, atol=1e-5)`,
    of errors in y. grid: fixed steps between these times instead. key: solve the SDE of this eta instead of the ODE, on diffrax's
    virtual Brownian tree. adjoint: by default `diffrax.RecursiveCheckpointAdjoint()`. save: decreasing times (of a system, a dict of
    them), or "all" for the accepted steps. event: a `diffrax.Event` whose conditions get the path's t and x. dt0: the first step, in s
    (by default a hundredth of the way).

    variable: in "lam" step sizes vary least, hence the default; in "t" the slope of a tabulated schedule jumps at path.knots, of which a
    `diffrax.ClipStepSizeController(.., jump_ts=-path.knots[::-1])` must know.

    Where sigma(t_min) = 0 and the network does not determine the slope there (as data networks do not in rho), the solver stops at the
    path's own t_min (or, if that is no help, at a hundredth of t_max) and one data prediction leads on, as at the end of a default grid.
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
                "grid= says where all steps end, on one path: leave out controller, t_max and t_min, and a system to js.sample"
            )
        grid = grids.checked(denoiser.path, grid)
        t_max, t_min = float(grid[0]), float(grid[-1])
    flow, ends = begin(denoiser, variable, 0.0 if key is None else float(eta), t_max, t_min)
    if grid is not None and ends.stop != ends.end:  # the last interval is the data prediction
        ends, grid = Ends(t_max, float(grid[-2]), t_min), grid[:-1]
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


def _of(ends: Any, name: str) -> Any:
    return getattr(ends, name) if isinstance(ends, Ends) else {k: getattr(v, name) for k, v in ends.items()}


def _saved(flow: Flow, save: Any, s0: float, s1: float, span: tuple) -> Any:
    """Solver times to save at, ValueError if they leave the solve."""
    known = lambda a: a if is_traced(a) else np.asarray(a, np.float64)
    save = {k: known(v) for k, v in save.items()} if isinstance(save, dict) else known(save)
    with on_host() if not is_traced(save) else contextlib.nullcontext():
        s = flow.s(save)
    if not is_traced(s):
        slack = 1e-6 * (s1 - s0)
        if np.ndim(s) != 1 or np.any(np.diff(s) < 0) or np.any((s < s0 - slack) | (s > s1 + slack)):
            first, final = (jax.tree.map(float, flow.t(v)) for v in (s0, s1))
            raise ValueError(
                f"save must be times that decrease from {first} to {final}, where the solver stops; got {save}"
            )
    return jnp.clip(jnp.asarray(s, span[0].dtype), *span)


def _in_path_time(event: Any, flow: Flow) -> Any:
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


def _finish(flow: Flow, x: PyTree, t: Any, ends: Any, stopped: Any) -> Any:
    """The data prediction that leads from `stop` to `end`, where there is a way to go and no event was met."""
    end, stop = _of(ends, "end"), _of(ends, "stop")
    if end == stop:
        return x, t

    def jump(path, x, new, t, end, stop):
        if end == stop:
            return x, t
        return jax.tree.map(lambda a, b: jnp.where(stopped, a, b), x, new), jnp.where(stopped, t, end)

    out = flow.denoiser.each(jump, x, flow.denoised(x, t, end), t, end, stop)
    return out if isinstance(ends, Ends) else tuple({k: v[i] for k, v in out.items()} for i in (0, 1))


def _calls(solver: Any, flow: Flow, ends: Any, raw: Any) -> Any:
    """Network calls, where the solver's tableau tells them."""
    import diffrax

    if not isinstance(solver, diffrax.AbstractERK) or flow.eta != 0:
        return None
    tableau: Any = solver.tableau
    steps = raw.stats["num_steps"]
    jump = int(_of(ends, "end") != _of(ends, "stop"))
    return jump + (steps * (tableau.num_stages - 1) + 1 if tableau.fsal else steps * tableau.num_stages)
