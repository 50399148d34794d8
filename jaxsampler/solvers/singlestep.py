r"""Single-step exponential integrators: DPM-Solver-2/3 and DPM-Solver++(2S/3S), two or three calls per step, no history.

The slopes of `exponential.taylor` come from calls at inner points lam_t + r h of the step. Notation as there.

References: Lu et al. 2022a, alg. 1, 2 (and the general r of app. D); Lu et al. 2022b, alg. 1.
"""

from typing import Any

from ..paths import Path
from ..steps import step
from .exponential import _checked, dpm_1, dpmpp_1, taylor


def _second(path: Path, ts: Any, x: Any, model: Any, kind: str, r: Any, form: str) -> Any:
    t, s = ts[-2:]
    h = path.lam(s) - path.lam(t)
    mid = path.time(path.lam(t) + r * h)
    F = model(x, t)
    rise = model(taylor(path, t, mid, x, [F], kind), mid) - F
    if _checked(form) == "taylor":
        return taylor(path, t, s, x, [F, rise / (r * h)], kind)
    return taylor(path, t, s, x, [F + rise / (2 * r)], kind)


def _third(path: Path, ts: Any, x: Any, model: Any, kind: str, r1: Any, r2: Any, form: str) -> Any:
    t, s = ts[-2:]
    h = path.lam(s) - path.lam(t)
    mid1, mid2 = (path.time(path.lam(t) + r * h) for r in (r1, r2))
    F = model(x, t)
    rise1 = model(taylor(path, t, mid1, x, [F], kind), mid1) - F
    rise2 = model(taylor(path, t, mid2, x, [F, rise1 / (r1 * h)], kind), mid2) - F
    if _checked(form) == "dpmsolver":  # third order for r2 = 2/3 only
        return taylor(path, t, s, x, [F, rise2 / (r2 * h)], kind)
    a, b = rise1 / r1, rise2 / r2
    return taylor(path, t, s, x, [F, (r2 * a - r1 * b) / ((r2 - r1) * h), 2 * (b - a) / ((r2 - r1) * h**2)], kind)


@step(kind="data", order=2, to_zero=dpmpp_1, from_noise=dpmpp_1)
def dpmpp_2s(path, ts, x, past, model, z, *, r: Any = 0.5, form: str = "dpmsolver"):
    """DPM-Solver++(2S) [Lu et al. 2022b, alg. 1]."""
    return _second(path, ts, x, model, "data", r, form)


@step(kind="noise", order=2, to_zero=dpm_1)
def dpm_2(path, ts, x, past, model, z, *, r: Any = 0.5, form: str = "dpmsolver"):
    """DPM-Solver-2 [Lu et al. 2022a, alg. 1]."""
    return _second(path, ts, x, model, "noise", r, form)


@step(kind="data", order=3, to_zero=dpmpp_1, from_noise=dpmpp_1)
def dpmpp_3s(path, ts, x, past, model, z, *, r1: Any = 1 / 3, r2: Any = 2 / 3, form: str = "dpmsolver"):
    """DPM-Solver++(3S) [Lu et al. 2022b, released code]."""
    return _third(path, ts, x, model, "data", r1, r2, form)


@step(kind="noise", order=3, to_zero=dpm_1)
def dpm_3(path, ts, x, past, model, z, *, r1: Any = 1 / 3, r2: Any = 2 / 3, form: str = "dpmsolver"):
    """DPM-Solver-3 [Lu et al. 2022a, alg. 2]."""
    return _third(path, ts, x, model, "noise", r1, r2, form)
