r"""Exponential integrators of the probability-flow ODE, multistep: DPM-Solver, DPM-Solver++, MR Sampler.

In lam = log(alpha/sigma) the flow is a linear part plus the network, and the linear part is integrated
exactly. From t to s, with h = lam_s - lam_t,

    x_s = (sigma_s/sigma_t) x_t + alpha_s int e^{-(lam_s - l)} x0(l) dl          data kind   (DPM-Solver++)
    x_s = (alpha_s/alpha_t) x_t - sigma_s int e^{lam_s - l}  eps(l) dl           noise kind  (DPM-Solver)

The Taylor polynomial F + F' (l - lam_t) + F'' (l - lam_t)^2/2 in place of the network gives `taylor` below.
The multistep solvers estimate F' and F'' from past outputs; `relax` scales these estimates (see
`relaxation`). Second order has two published forms: "dpmsolver" evaluates the polynomial at the midpoint,
"taylor" integrates it (the default of the MR names). On `MeanReverting`, which is variance preserving in (x -
mu)/std, the Taylor form is MR Sampler [Li et al. 2025].

References: Lu et al. 2022a (DPM-Solver), 2022b (DPM-Solver++); Li et al. 2025 (MR Sampler).
"""

from collections.abc import Callable, Sequence

from ..numerics import Arr, Scalar, Time, phi
from ..paths import Path
from ..tables import Step, step
from ..tables.authoring import variants

Times = Arr | Sequence[Scalar]  # the grid as a formula sees it: ts[-2] is now, ts[-1] is next
Value = Scalar  # a state, an output or a coefficient inside a formula: a number or an array
Factors = Arr | Sequence[Scalar]  # on the estimates of F', F'', ..


def taylor(path: Path, t: Time, s: Time, x: Value, derivatives: Sequence[Value], kind: str) -> Value:
    """Solve exactly from t to s, the network being the polynomial in lam with derivatives [F, F', F''] at t.

    It is written in ratios, not exponentials: finite into sigma_s = 0 (first order) and, for data, out of
    alpha_t = 0, derivatives too.
    """
    h = path.lam(s) - path.lam(t)
    F, *higher = derivatives
    if kind == "data":
        ratio = path.sigma(s) / path.sigma(t)
        x = ratio * x + (path.alpha(s) - ratio * path.alpha(t)) * F
        return x + sum(path.alpha(s) * h ** (k + 1) * phi(k + 1, -h) * d for k, d in enumerate(higher, 1))
    ratio = path.alpha(s) / path.alpha(t)
    x = ratio * x + (path.sigma(s) - ratio * path.sigma(t)) * F
    return x - sum(path.sigma(s) * h ** (k + 1) * phi(k + 1, h) * d for k, d in enumerate(higher, 1))


def scaled(slopes: Sequence[Value], relax: Factors) -> list[Value]:
    """Multiply the first estimates of [F', F'', ..] by the factors `relax` (see `relaxation`)."""
    return [relax[k] * d if k < len(relax) else d for k, d in enumerate(slopes)]


def second(
    path: Path, ts: Times, x: Value, values: Sequence[Value], kind: str, form: str, relax: Factors = ()
) -> Value:
    """Take a second-order step: F' is the difference quotient in lam of the outputs at ts[-2] and ts[-3]."""
    q, t, s = ts[-3:]
    h = path.lam(s) - path.lam(t)
    (slope,) = scaled([(values[0] - values[1]) / (path.lam(t) - path.lam(q))], relax)
    if checked_form(form) == "taylor":
        return taylor(path, t, s, x, [values[0], slope], kind)
    return taylor(path, t, s, x, [values[0] + h / 2 * slope], kind)


def third(
    path: Path, ts: Times, values: Sequence[Value], published: bool, relax: Factors = ()
) -> list[Value]:
    """Return [F, F', F''] from the outputs at ts[-2], ts[-3], ts[-4] by divided differences.

    The published third-order codes (DPM-Solver, and MR Sampler after it) use half of F'', which loses the
    third order.
    """
    a, b, c = (path.lam(t) for t in (ts[-2], ts[-3], ts[-4]))
    new, old = (values[0] - values[1]) / (a - b), (values[1] - values[2]) / (b - c)
    curve = (new - old) / (a - c)
    return [values[0], *scaled([new + curve * (a - b), curve if published else 2 * curve], relax)]


def checked_form(form: str) -> str:
    """Return `form`; ValueError if there is no such form of second order."""
    if form not in ("dpmsolver", "taylor"):
        raise ValueError(f"unknown form {form!r}; valid: dpmsolver (midpoint), taylor (exponential weights)")
    return form


@step(kind="data", order=1)
def dpmpp_1(path, ts, x, past, model, z):
    """DDIM as DPM-Solver++(1) [Lu et al. 2022b, eq. 9 with n = 1].

        x_s = (sigma_s/sigma_t) x - alpha_s (e^{-h} - 1) F

    Example:
        >>> table = js.tabulate(js.CondOT(), [0.9, 0.5, 0.1], js.solvers.dpmpp_1)
        >>> table.A.round(4), table.B[:, 0].round(4)
        (array([0.5556, 0.2   ]), array([0.4444, 0.8   ]))
    """
    t, s = ts[-2:]
    return taylor(path, t, s, x, [model(x, t)], "data")


@step(kind="noise", order=1)
def dpm_1(path, ts, x, past, model, z):
    """DDIM as DPM-Solver-1 [Lu et al. 2022a, eq. 3.7].

        x_s = (alpha_s/alpha_t) x - sigma_s (e^h - 1) F

    Example:
        >>> table = js.tabulate(js.CondOT(), [0.9, 0.5, 0.1], js.solvers.dpm_1)
        >>> table.A.round(4), table.B[:, 0].round(4)
        (array([5. , 1.8]), array([-4. , -0.8]))
    """
    t, s = ts[-2:]
    return taylor(path, t, s, x, [model(x, t)], "noise")


@step(kind="data", order=2, past=1, start=(dpmpp_1,), to_zero=dpmpp_1)
def dpmpp_2m(path, ts, x, past, model, z, *, form: str = "dpmsolver", relax: Factors = ()):
    """DPM-Solver++(2M) [Lu et al. 2022b, alg. 2].

        x_s = (sigma_s/sigma_t) x - alpha_s (e^{-h} - 1) (F + h/2 F'),        F' = (F - F_last)/h_last

    Options:
        form: "dpmsolver" is the equation above; "taylor" gives F' its exact weight alpha_s h^2 phi_2(-h)
            instead.
        relax: [factor on F'], see `js.solvers.relax`.

    Example:
        >>> js.tabulate(js.CondOT(), [0.9, 0.5, 0.1], js.solvers.dpmpp_2m).B.round(4)
        array([[ 0.4444,  0.    ],
               [-0.4   ,  1.2   ]])
        >>> js.tabulate(js.CondOT(), [0.9, 0.5, 0.1], js.solvers.dpmpp_2m(form="taylor")).B.round(4)
        array([[ 0.4444,  0.    ],
               [-0.5359,  1.3359]])
    """
    return second(path, ts, x, [model(x, ts[-2]), *past], "data", form, relax)


@step(kind="noise", order=2, past=1, start=(dpm_1,), to_zero=dpm_1)
def dpm_2m(path, ts, x, past, model, z, *, form: str = "dpmsolver", relax: Factors = ()):
    """DPM-Solver-2 multistep [Lu et al. 2022a, released code].

        x_s = (alpha_s/alpha_t) x - sigma_s (e^h - 1) (F + h/2 F'),        F' = (F - F_last)/h_last

    Options:
        form: "dpmsolver" is the equation above; "taylor" gives F' its exact weight -sigma_s h^2 phi_2(h)
            instead.
        relax: [factor on F'], see `js.solvers.relax`.

    Example:
        >>> js.tabulate(js.CondOT(), [0.9, 0.5, 0.1], js.solvers.dpm_2m).B.round(4)
        array([[-4. ,  0. ],
               [ 0.4, -1.2]])
    """
    return second(path, ts, x, [model(x, ts[-2]), *past], "noise", form, relax)


@step(kind="data", order=3, past=2, start=(dpmpp_1, dpmpp_2m), to_zero=dpmpp_1)
def dpmpp_3m(
    path, ts, x, past, model, z, *, form: str = "dpmsolver", published: bool = False, relax: Factors = ()
):
    """DPM-Solver++(3M) [Lu et al. 2022b, released code].

        x_s = (sigma_s/sigma_t) x + alpha_s (h phi_1(-h) F + h^2 phi_2(-h) F' + h^3 phi_3(-h) F'')

    with F' and F'' by divided differences of the last three outputs.

    Options:
        form: of the second step, which is `dpmpp_2m`.
        published: halve F'', as the released code does, which makes it second order.
        relax: [factor on F', factor on F''], see `js.solvers.relax`.

    Example:
        >>> js.tabulate(js.CondOT(), [0.9, 0.6, 0.3, 0.1], js.solvers.dpmpp_3m).B[-1].round(4)
        array([ 0.2255, -0.9858,  1.4269])
    """
    return taylor(
        path, ts[-2], ts[-1], x, third(path, ts, [model(x, ts[-2]), *past], published, relax), "data"
    )


@step(kind="noise", order=3, past=2, start=(dpm_1, dpm_2m), to_zero=dpm_1)
def dpm_3m(
    path, ts, x, past, model, z, *, form: str = "dpmsolver", published: bool = False, relax: Factors = ()
):
    """DPM-Solver-3 multistep [Lu et al. 2022a, released code].

        x_s = (alpha_s/alpha_t) x - sigma_s (h phi_1(h) F + h^2 phi_2(h) F' + h^3 phi_3(h) F'')

    with F' and F'' by divided differences of the last three outputs.

    Options:
        form: of the second step, which is `dpm_2m`.
        published: halve F'', as the released code does, which makes it second order.
        relax: [factor on F', factor on F''], see `js.solvers.relax`.

    Example:
        >>> js.tabulate(js.CondOT(), [0.9, 0.6, 0.3, 0.1], js.solvers.dpm_3m).B[-1].round(4)
        array([-0.0565,  0.2575, -0.4868])
    """
    return taylor(
        path, ts[-2], ts[-1], x, third(path, ts, [model(x, ts[-2]), *past], published, relax), "noise"
    )


def published_mr_rule(order: int) -> Callable[[int], list[int]]:
    """Return n -> the orders of n steps in MR Sampler's code: for n < 10 it lowers those before the last."""

    def rule(n: int) -> list[int]:
        if n < order:
            raise ValueError(
                f"the published order schedule needs at least {order} steps for order {order}, got {n}: "
                "take more steps or a lower order"
            )
        levels = [i if i < order else min(order, n - i) if n < 10 else order for i in range(1, n)]
        return [*levels, order]

    return rule


def published_mr_steps(solver: Step) -> Callable[[int, bool], list[Step]]:
    """Return the rule of a step that follows `published_mr_rule`."""
    family = solver.family
    return lambda n, _: [family[level - 1] for level in published_mr_rule(len(family))(n)]


def pick(table: dict, order: int, kind: str, name: str) -> Step:
    """Return the step of a family by its order and kind; ValueError if there is none."""
    if (order, kind) not in table:
        valid = ", ".join(f"({o}, {k!r})" for o, k in table)
        raise ValueError(f"{name} has no order={order!r}, kind={kind!r}; valid (order, kind): {valid}")
    return table[order, kind]


@variants
def mr_ode(order: int = 2, kind: str = "data", published: bool = False) -> Step:
    """MR Sampler, probability-flow ODE [Li et al. 2025].

    On any path these are the exponential multistep solvers in their Taylor form: `dpmpp_1`, `dpmpp_2m`,
    `dpmpp_3m` (data) and `dpm_1`, `dpm_2m`, `dpm_3m` (noise).

    Options:
        order: 1, 2 or 3.
        kind: what is extrapolated, "data" or "noise".
        published: as the released code, halve F'' and follow its schedule of orders.

    Example:
        >>> path = js.MeanReverting(mu=0.5)
        >>> js.tabulate(path, [80.0, 40.0, 10.0], js.solvers.mr_ode(order=1)).A.round(4)
        array([0.8228, 0.2077])
    """
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
