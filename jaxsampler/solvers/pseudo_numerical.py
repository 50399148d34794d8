r"""PNDM: classical numerical methods whose linear part is a DDIM step ("pseudo" methods) [Liu et al. 2022].

A multistep step is that of `ipndm`, DDIM(x_t, e) with e the Adams-Bashforth average of the last outputs. The
variants differ in how they warm up. Only the first output of a step, made at its start, enters the history:

    F-PNDM (pndm, order 4)    three pseudo Runge-Kutta steps of four calls, then order 4: steps + 9 calls
    S-PNDM (pndm, order 2)    one improved Euler step of two calls, then order 2: steps + 1 calls
    PLMS   (plms)             one improved Euler step, then orders 2, 3, 4: steps + 1 calls

The weights are those of equal steps in rho = sigma/alpha; on other grids all three are of order 2. The
released codes work with training indices. The code of PNDM is this method on a shifted grid: noise level k +
1 at index k, last level 0. The code of diffusers rounds half of an odd stride down for the state of the
second call, and up for its time label and for the third call (`published=True`).

References: Liu et al. 2022 (PNDM), eq. 9-13 and app. A; von Platen et al. 2022 (diffusers).
"""

from collections.abc import Callable

from ..numerics import Time, namespace
from ..paths import DiscreteVP, Path
from ..tables import Step, step
from ..tables.authoring import variants
from .exponential import Value, dpm_1, taylor
from .improved_pndm import ipndm


def transfer(path: Path, t: Time, s: Time, x: Value, eps: Value) -> Value:
    """DDIM from t to s with noise eps."""
    return taylor(path, t, s, x, [eps], "noise")


@step(kind="noise", order=2, to_zero=dpm_1)
def improved_euler(path, ts, x, past, model, z):
    """Pseudo improved Euler [Liu et al. 2022, app. A]: the mean of the noise at both ends."""
    t, s = ts[-2:]
    e1 = model(x, t)
    e2 = model(transfer(path, t, s, x, e1), s)
    return transfer(path, t, s, x, (e1 + e2) / 2)


def halfway(path: Path, t: Time, s: Time, published: bool) -> tuple[Time, Time]:
    """Return the times of the second call and of the third, which labels both: equal unless `published`."""
    if not published:
        return (t + s) / 2, (t + s) / 2
    if not isinstance(path, DiscreteVP):
        raise ValueError("published=True rounds training indices: it needs a DiscreteVP path")
    N = len(path.alphas_cumprod)
    # 1e-6: rounding may leave an even stride below its integer
    half = namespace(t, s).floor(N * (t - s) / 2 + 1e-6) / N
    return t - half, s + half


@step(kind="noise", order=2, to_zero=dpm_1)
def runge_kutta(path, ts, x, past, model, z, *, published: bool = False):
    """Pseudo Runge-Kutta of order 4 [Liu et al. 2022, eq. 13], through the middle time."""
    t, s = ts[-2:]
    second, third = halfway(path, t, s, published)
    e1 = model(x, t)
    e2 = model(transfer(path, t, second, x, e1), third)
    e3 = model(transfer(path, t, third, x, e2), third)
    e4 = model(transfer(path, t, s, x, e3), s)
    return transfer(path, t, s, x, (e1 + 2 * e2 + 2 * e3 + e4) / 6)


def warmed_up(order: int, first: list[Step]) -> Callable[[int, bool], list[Step]]:
    """Return the rule: `first`, then iPNDM with an order that rises with the history."""

    def rule(n: int, lower_order_final: bool) -> list[Step]:
        orders = [min(order, i + 1, n - i if lower_order_final else order) for i in range(len(first), n)]
        steps = {p: ipndm(order=p) for p in dict.fromkeys(orders)}
        return [*first[:n], *(steps[p] for p in orders)]

    return rule


@variants
def pndm(order: int = 4, published: bool = False) -> Step:
    """F-PNDM or S-PNDM [Liu et al. 2022, alg. 2].

        x_s = DDIM(x_t, e),        e a Runge-Kutta average during the warm-up, then the average of `ipndm`

    Options:
        order: 4 is F-PNDM (steps + 9 calls), 2 is S-PNDM (steps + 1 calls).
        published: round half of an odd stride as diffusers does.

    Example:
        >>> grid = [0.9, 0.7, 0.5, 0.3, 0.1]
        >>> [js.tabulate(js.CondOT(), grid, js.solvers.pndm(order=order)).nfe for order in (4, 2)]
        [13, 5]
    """
    if order not in (2, 4):
        raise ValueError(f"pndm has orders 4 (F-PNDM) and 2 (S-PNDM), got {order!r}")
    first = [runge_kutta(published=published)] * 3 if order == 4 else [improved_euler]
    return ipndm(order=order).replace(start=(), rule=warmed_up(order, first))


@variants
def plms(order: int = 4) -> Step:
    """PLMS: multistep only [Liu et al. 2022; as in Stable Diffusion, Rombach et al. 2022].

        x_s = DDIM(x_t, e),        e the mean of both ends in the first step, then the average of `ipndm`

    Options:
        order: 2, 3 or 4; steps + 1 calls.

    Example:
        >>> js.tabulate(js.CondOT(), [0.9, 0.7, 0.5, 0.3, 0.1], js.solvers.plms).t
        array([0.9, 0.7, 0.7, 0.5, 0.3])
    """
    if order not in (2, 3, 4):
        raise ValueError(f"plms has orders 2, 3 and 4, got {order!r}; order 1 is ddim")
    return ipndm(order=order).replace(start=(), rule=warmed_up(order, [improved_euler]))
