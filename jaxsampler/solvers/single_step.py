r"""Single-step exponential integrators: DPM-Solver-2/3 and DPM-Solver++(2S/3S), two or three calls per step.

The slopes of `exponential.taylor` come from calls at inner points lam_t + r h of the step; notation as there.
Third order needs r2 = 2/3 in both forms: the output at r1 is known to h^2 only, and its weight vanishes at r2
= 2/3.

A step of order k costs k calls, so a budget of calls is spent on steps of mixed orders: `singlestep`
("DPM-Solver-fast") and `singlestep_fixed` return the grid and its steps, for `js.sample(.., grid=grid,
solver=steps)`.

References: Lu et al. 2022a, alg. 1, 2 (and the general r of app. D; DPM-Solver-fast), and its released code;
Lu et al. 2022b, alg. 1.
"""

from collections.abc import Callable

import numpy as np

from ..numerics import Grid, Scalar, on_host
from ..paths import Path
from ..paths.grids import log_snr
from ..tables import Step, step
from .exponential import Times, Value, checked_form, dpm_1, dpmpp_1, taylor


def _second(path: Path, ts: Times, x: Value, model: Callable, kind: str, r: Scalar, form: str) -> Value:
    t, s = ts[-2:]
    h = path.lam(s) - path.lam(t)
    mid = path.time(path.lam(t) + r * h)
    F = model(x, t)
    rise = model(taylor(path, t, mid, x, [F], kind), mid) - F
    if checked_form(form) == "taylor":
        return taylor(path, t, s, x, [F, rise / (r * h)], kind)
    return taylor(path, t, s, x, [F + rise / (2 * r)], kind)


def _third(
    path: Path, ts: Times, x: Value, model: Callable, kind: str, r1: Scalar, r2: Scalar, form: str
) -> Value:
    t, s = ts[-2:]
    h = path.lam(s) - path.lam(t)
    mid1, mid2 = (path.time(path.lam(t) + r * h) for r in (r1, r2))
    F = model(x, t)
    rise1 = model(taylor(path, t, mid1, x, [F], kind), mid1) - F
    rise2 = model(taylor(path, t, mid2, x, [F, rise1 / (r1 * h)], kind), mid2) - F
    if checked_form(form) == "dpmsolver":
        return taylor(path, t, s, x, [F, rise2 / (r2 * h)], kind)
    a, b = rise1 / r1, rise2 / r2
    return taylor(
        path, t, s, x, [F, (r2 * a - r1 * b) / ((r2 - r1) * h), 2 * (b - a) / ((r2 - r1) * h**2)], kind
    )


@step(kind="data", order=2, to_zero=dpmpp_1, from_noise=dpmpp_1)
def dpmpp_2s(path, ts, x, past, model, z, *, r: Scalar = 0.5, form: str = "dpmsolver"):
    """DPM-Solver++(2S) [Lu et al. 2022b, alg. 1].

        u   = DDIM(x to lam_t + r h)
        x_s = (sigma_s/sigma_t) x - alpha_s (e^{-h} - 1) (F + (F_u - F)/(2r))

    Options:
        r: where the second call is made, as a fraction of the step in lam.
        form: "dpmsolver" is the equation above; "taylor" gives the slope (F_u - F)/(r h) its exact weight
            instead.

    Example:
        >>> js.tabulate(js.CondOT(), [0.9, 0.5, 0.1], js.solvers.dpmpp_2s(r=0.3)).t.round(4)
        array([0.9   , 0.8232, 0.5   , 0.3409])
    """
    return _second(path, ts, x, model, "data", r, form)


@step(kind="noise", order=2, to_zero=dpm_1)
def dpm_2(path, ts, x, past, model, z, *, r: Scalar = 0.5, form: str = "dpmsolver"):
    """DPM-Solver-2 [Lu et al. 2022a, alg. 1].

        u   = DDIM(x to lam_t + r h)
        x_s = (alpha_s/alpha_t) x - sigma_s (e^h - 1) (F + (F_u - F)/(2r))

    Options:
        r: where the second call is made, as a fraction of the step in lam.
        form: "dpmsolver" is the equation above; "taylor" gives the slope (F_u - F)/(r h) its exact weight
            instead.

    Example:
        >>> js.tabulate(js.CondOT(), [0.9, 0.5, 0.1], js.solvers.dpm_2).B[-1].round(4)
        array([ 0. ,  1.8, -0.8])
    """
    return _second(path, ts, x, model, "noise", r, form)


@step(kind="data", order=3, to_zero=dpmpp_1, from_noise=dpmpp_1)
def dpmpp_3s(path, ts, x, past, model, z, *, r1: Scalar = 1 / 3, r2: Scalar = 2 / 3, form: str = "dpmsolver"):
    """DPM-Solver++(3S) [Lu et al. 2022b, released code].

        x_s = (sigma_s/sigma_t) x + alpha_s (h phi_1(-h) F + h phi_2(-h) (F_v - F)/r2)

    with v at r2, reached with the slope from the call at r1.

    Options:
        r1: where the second call is made, as a fraction of the step in lam.
        r2: where the third call is made; the step is of third order at 2/3 only.
        form: "dpmsolver" is the equation above; "taylor" takes F' and F'' from both inner outputs.

    Example:
        >>> js.tabulate(js.CondOT(), [0.9, 0.5, 0.1], js.solvers.dpmpp_3s).t.round(4)
        array([0.9   , 0.8123, 0.6753, 0.5   , 0.3247, 0.1877])
    """
    return _third(path, ts, x, model, "data", r1, r2, form)


@step(kind="noise", order=3, to_zero=dpm_1)
def dpm_3(path, ts, x, past, model, z, *, r1: Scalar = 1 / 3, r2: Scalar = 2 / 3, form: str = "dpmsolver"):
    """DPM-Solver-3 [Lu et al. 2022a, alg. 2].

        x_s = (alpha_s/alpha_t) x - sigma_s (h phi_1(h) F + h phi_2(h) (F_v - F)/r2)

    with v at r2, reached with the slope from the call at r1.

    Options:
        r1: where the second call is made, as a fraction of the step in lam.
        r2: where the third call is made; the step is of third order at 2/3 only.
        form: "dpmsolver" is the equation above; "taylor" takes F' and F'' from both inner outputs.

    Example:
        >>> js.tabulate(js.CondOT(), [0.9, 0.5, 0.1], js.solvers.dpm_3).B[-1].round(4)
        array([-0.4039,  1.8   ,  0.    , -0.3961])
    """
    return _third(path, ts, x, model, "noise", r1, r2, form)


SINGLESTEP = {"noise": (dpm_1, dpm_2, dpm_3), "data": (dpmpp_1, dpmpp_2s, dpmpp_3s)}


def _steps(
    path: Path, outer: Grid, orders: list[int], kind: str, grid: Callable, form: str, published: bool
) -> list[Step]:
    """One step per interval, of these orders; as published, inner nodes follow `grid` inside the interval."""
    family = [single if k == 0 else single(form=form) for k, single in enumerate(SINGLESTEP[kind])]
    if not published:
        return [family[k - 1] for k in orders]
    steps = []
    for t, s, k in zip(outer[:-1], outer[1:], orders, strict=True):
        with on_host():
            lam = np.asarray(path.lam(grid(path, k, t_max=float(t), t_min=float(s))), np.float64)
        r = (lam[1:-1] - lam[0]) / (lam[-1] - lam[0])
        steps.append(family[k - 1](**dict(zip(("r",) if k == 2 else ("r1", "r2"), r.tolist(), strict=False))))
    return steps


def _budget(nfe: int, order: int, kind: str, form: str) -> None:
    if kind not in SINGLESTEP:
        raise ValueError(f"single-step solvers work on data or noise, not {kind!r}: choose one of them")
    if order not in (1, 2, 3):
        raise ValueError(f"single-step solvers have order 1, 2 or 3, got {order}")
    if nfe < 1:
        raise ValueError(f"nfe counts network calls, at least one; got {nfe}")
    checked_form(form)


def singlestep(
    path: Path,
    nfe: int,
    order: int = 3,
    *,
    kind: str = "noise",
    grid: Callable[..., Grid] = log_snr,
    form: str = "dpmsolver",
    published: bool = False,
) -> tuple[Grid, list[Step]]:
    """Return (grid, steps) of exactly `nfe` calls [Lu et al. 2022a, DPM-Solver-fast].

    Steps of `order` come first, then lower ones for the calls that are left. Order 3 ends with orders (2, 1),
    (1) or (2) as nfe mod 3 is 0, 1 or 2; order 2 ends with a first-order step if nfe is odd. A last step of
    first order costs an error h^2 once, so the whole has order 2 at most (`singlestep_fixed` keeps 3). Out of
    alpha = 0 the first step gives way to one of first order, with one call. On
    `js.EDM` with `log_snr` and kind="noise" this is k-diffusion's `dpm_fast`.

    Args:
        nfe: network calls.
        kind: what is extrapolated, "noise" or "data".
        grid: a function (path, n) such as `js.grids.uniform`. `log_snr` (also inside `functools.partial`) is
            divided into equal steps whatever their orders, as published; on another grid of nfe intervals a
            step of order k takes k of them.
        form: of the steps, see `dpm_2`.
        published: the inner nodes follow `grid` within each step (it must take t_max=, t_min=) instead of
            lying at 1/2 or at 1/3, 2/3 in lam. The third order needs r2 = 2/3, which such nodes approach as
            the steps shrink.

    Example:
        >>> grid, steps = js.solvers.singlestep(js.VP(), 6)
        >>> [step.order for step in steps], len(grid)
        ([3, 2, 1], 4)
    """
    _budget(nfe, order, kind, form)
    tail = {(2, 1): [1], (3, 0): [2, 1], (3, 1): [1], (3, 2): [2]}.get((order, nfe % order), [])
    orders = [order] * ((nfe - sum(tail)) // order) + tail
    equal = getattr(grid, "func", grid) is log_snr
    outer = grid(path, len(orders)) if equal else np.asarray(grid(path, nfe))[np.cumsum([0, *orders])]
    return outer, _steps(path, outer, orders, kind, grid, form, published)


def singlestep_fixed(
    path: Path,
    nfe: int,
    order: int = 3,
    *,
    kind: str = "noise",
    grid: Callable[..., Grid] = log_snr,
    form: str = "dpmsolver",
    published: bool = False,
) -> tuple[Grid, list[Step]]:
    """Return (grid, steps) of nfe//order steps of one order [Lu et al. 2022a, released code].

    They make at most `nfe` calls. The arguments are those of `singlestep`.

    Example:
        >>> grid, steps = js.solvers.singlestep_fixed(js.VP(), 7)
        >>> [step.order for step in steps], len(grid)
        ([3, 3], 3)
    """
    _budget(nfe, order, kind, form)
    if nfe < order:
        raise ValueError(
            f"one step of order {order} takes {order} calls, more than nfe={nfe}: lower the order"
        )
    outer = grid(path, nfe // order)
    return outer, _steps(path, outer, [order] * (nfe // order), kind, grid, form, published)
