r"""Exponential integrators of the probability-flow ODE, multistep: DPM-Solver, DPM-Solver++ and MR Sampler (ODE).

In lam = log(alpha/sigma) the flow is linear plus the network, so the linear part is integrated exactly. From t to s, h = lam_s - lam_t,

    x_s = (sigma_s/sigma_t) x_t + alpha_s int e^{-(lam_s - l)} x0(l) dl          data kind   (DPM-Solver++)
    x_s = (alpha_s/alpha_t) x_t - sigma_s int e^{lam_s - l}  eps(l) dl           noise kind  (DPM-Solver)

A Taylor polynomial F + F' (l - lam_t) + F'' (l - lam_t)^2/2 for the network gives `taylor` below; `relax` scales the estimates of F', F''
(see `relaxation`). The two published forms of second order
are `form="taylor"` (exponential weights, default of the MR names) and "dpmsolver" (the slope acts at the midpoint). On `MeanReverting`,
which is variance preserving in (x - mu)/std, the Taylor form is MR Sampler [Li et al. 2025].

References: Lu et al. 2022a (DPM-Solver), 2022b (DPM-Solver++); Li et al. 2025 (MR Sampler).
"""

from collections.abc import Callable, Sequence
from typing import Any

from ..numerics import namespace, phi
from ..paths.base import Path
from ..tables.steps import Step, step, variants


def taylor(path: Path, t: Any, s: Any, x: Any, derivatives: Sequence[Any], kind: str) -> Any:
    """The exact solution from t to s when the network is the polynomial in lam with these derivatives [F, F', F''] at t.

    Ratios instead of exponentials keep it finite into sigma_s = 0 (first order) and, for data, out of alpha_t = 0.
    """
    h = path.lam(s) - path.lam(t)
    F, *higher = derivatives
    if kind == "data":
        x = path.sigma(s) / path.sigma(t) * x - path.alpha(s) * namespace(h).expm1(-h) * F
        return x + sum(path.alpha(s) * h ** (k + 1) * phi(k + 1, -h) * d for k, d in enumerate(higher, 1))
    ratio = path.alpha(s) / path.alpha(t)
    x = ratio * x + (path.sigma(s) - ratio * path.sigma(t)) * F
    return x - sum(path.sigma(s) * h ** (k + 1) * phi(k + 1, h) * d for k, d in enumerate(higher, 1))


def scaled(slopes: Sequence[Any], relax: Any) -> list[Any]:
    """Derivative estimates [F', F'', ..] times the factors `relax`, as many as there are (see `relaxation`)."""
    return [relax[k] * d if k < len(relax) else d for k, d in enumerate(slopes)]


def second(path: Path, ts: Any, x: Any, values: Sequence[Any], kind: str, form: str, relax: Any = ()) -> Any:
    """Second order from the outputs at ts[-2] and ts[-3]: F' is their difference quotient in lam."""
    q, t, s = ts[-3:]
    h = path.lam(s) - path.lam(t)
    (slope,) = scaled([(values[0] - values[1]) / (path.lam(t) - path.lam(q))], relax)
    if checked_form(form) == "taylor":
        return taylor(path, t, s, x, [values[0], slope], kind)
    return taylor(path, t, s, x, [values[0] + h / 2 * slope], kind)


def third(path: Path, ts: Any, values: Sequence[Any], published: bool, relax: Any = ()) -> list[Any]:
    """[F, F', F''] from the outputs at ts[-2], ts[-3], ts[-4] by divided differences.

    The published third-order codes (DPM-Solver's, and MR Sampler's with it) use half of F'', which loses the third order.
    """
    a, b, c = (path.lam(t) for t in (ts[-2], ts[-3], ts[-4]))
    new, old = (values[0] - values[1]) / (a - b), (values[1] - values[2]) / (b - c)
    curve = (new - old) / (a - c)
    return [values[0], *scaled([new + curve * (a - b), curve if published else 2 * curve], relax)]


def checked_form(form: str) -> str:
    """The form of second order, if it is one."""
    if form not in ("dpmsolver", "taylor"):
        raise ValueError(f"unknown form {form!r}; valid: dpmsolver (midpoint), taylor (exponential weights)")
    return form


@step(kind="data", order=1)
def dpmpp_1(path, ts, x, past, model, z):
    """DDIM as DPM-Solver++(1) [Lu et al. 2022b, eq. 9 with n = 1]."""
    t, s = ts[-2:]
    return taylor(path, t, s, x, [model(x, t)], "data")


@step(kind="noise", order=1)
def dpm_1(path, ts, x, past, model, z):
    """DDIM as DPM-Solver-1 [Lu et al. 2022a, eq. 3.7]."""
    t, s = ts[-2:]
    return taylor(path, t, s, x, [model(x, t)], "noise")


@step(kind="data", order=2, past=1, start=(dpmpp_1,), to_zero=dpmpp_1)
def dpmpp_2m(path, ts, x, past, model, z, *, form: str = "dpmsolver", relax: Any = ()):
    """DPM-Solver++(2M) [Lu et al. 2022b, alg. 2]."""
    return second(path, ts, x, [model(x, ts[-2]), *past], "data", form, relax)


@step(kind="noise", order=2, past=1, start=(dpm_1,), to_zero=dpm_1)
def dpm_2m(path, ts, x, past, model, z, *, form: str = "dpmsolver", relax: Any = ()):
    """DPM-Solver-2 multistep [Lu et al. 2022a, released code]."""
    return second(path, ts, x, [model(x, ts[-2]), *past], "noise", form, relax)


@step(kind="data", order=3, past=2, start=(dpmpp_1, dpmpp_2m), to_zero=dpmpp_1)
def dpmpp_3m(
    path, ts, x, past, model, z, *, form: str = "dpmsolver", published: bool = False, relax: Any = ()
):
    """DPM-Solver++(3M) [Lu et al. 2022b, released code]; `published` halves F'' as there (order 2). `form` is its second step's."""
    return taylor(
        path, ts[-2], ts[-1], x, third(path, ts, [model(x, ts[-2]), *past], published, relax), "data"
    )


@step(kind="noise", order=3, past=2, start=(dpm_1, dpm_2m), to_zero=dpm_1)
def dpm_3m(path, ts, x, past, model, z, *, form: str = "dpmsolver", published: bool = False, relax: Any = ()):
    """DPM-Solver-3 multistep [Lu et al. 2022a, released code]; `published` halves F'' as there (order 2). `form` is its second step's."""
    return taylor(
        path, ts[-2], ts[-1], x, third(path, ts, [model(x, ts[-2]), *past], published, relax), "noise"
    )


def published_mr_rule(order: int) -> Callable[[int], list[int]]:
    """The order schedule of MR Sampler's code: for M < 10 it lowers steps M-1, M-2, .. and takes the last at full order."""

    def rule(n: int) -> list[int]:
        if n < order:
            raise ValueError(
                f"the published order schedule needs at least {order} steps for order {order}, got {n}"
            )
        levels = [i if i < order else min(order, n - i) if n < 10 else order for i in range(1, n)]
        return [*levels, order]

    return rule


def published_mr_steps(solver: Step) -> Callable[[int, bool], list[Step]]:
    """The rule of a step that follows `published_mr_rule`."""
    family = solver.family
    return lambda n, _: [family[level - 1] for level in published_mr_rule(len(family))(n)]


def pick(table: dict, order: int, kind: str, name: str) -> Step:
    """The step of a family by its order and kind; ValueError listing those there are."""
    if (order, kind) not in table:
        raise ValueError(
            f"{name} has no order={order!r}, kind={kind!r}; valid: {', '.join(f'({o}, {k!r})' for o, k in table)}"
        )
    return table[order, kind]


@variants
def mr_ode(order: int = 2, kind: str = "data", published: bool = False) -> Step:
    """MR Sampler, probability-flow ODE, orders 1-3 [Li et al. 2025]; `published`: half F'' and the code's order schedule."""
    family = {
        (1, "data"): dpmpp_1,
        (2, "data"): dpmpp_2m(form="taylor"),
        (3, "data"): dpmpp_3m(form="taylor", published=published),
        (1, "noise"): dpm_1,
        (2, "noise"): dpm_2m(form="taylor"),
        (3, "noise"): dpm_3m(form="taylor", published=published),
    }
    chosen = pick(family, order, kind, "mr_ode")
    return chosen.replace(rule=published_mr_steps(chosen)) if published else chosen
