r"""Measure the order of a step: how fast its error falls as the grid gets finer.

The table of the step is run in float64 on the host, on a variance-preserving path between lam = -1 and 1.2
with steps of equal length in lam. The global error falls like n^-p with n steps, and p is the slope of log
error against log n.

    order        deterministic steps: x at the end against the flow of a mixture of three Gaussians,
                 integrated by the classical Runge-Kutta method. A mixture, because on one Gaussian some
                 errors vanish.
    weak_order   steps that draw noise: mean and variance of x at the end given x_T, for Gaussian data. Their
                 predictions are affine in x, so both moments follow a linear recursion through the table.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..paths import VP, Path, grids
from ..tables import Step, Table, tabulate

MEANS, STDS, SHARES = np.array([-0.8, 0.5, 1.1]), np.array([0.3, 0.2, 0.4]), np.array([0.3, 0.5, 0.2])
X_T = np.array([0.9, -0.3, 0.2])
DATA_MEAN, DATA_STD = 0.7, 0.4
EXACT = 1e-10  # an error below this is rounding: the step is exact there


@dataclasses.dataclass(frozen=True)
class Order:
    """A measured order beside the declared one; it prints as a line.

    Attributes:
        name: of the step.
        measured: slope of log error against log steps; infinite where all errors are rounding.
        declared: `step.order`.
        steps: numbers of steps.
        errors: the error with each of them.

    Example:
        >>> js.solvers.order(js.solvers.ddim).measured.round(1)
        np.float64(1.0)
    """

    name: str
    measured: float
    declared: int
    steps: tuple[int, ...]
    errors: tuple[float, ...]

    def __repr__(self) -> str:
        measured = "exact here" if math.isinf(self.measured) else f"measured {self.measured:.2f}"
        return f"{self.name}: {measured}, declared {self.declared}"


def order(
    step: Step | Sequence[Step], *, steps: Sequence[int] = (80, 160, 320), path: Path | None = None
) -> Order:
    """Measure the order of a deterministic step.

    Args:
        step: the step; or (starter, step) to start with the first one, as third-order multistep solvers need:
            a single step of first order costs h^2 once, which caps the order at 2.
        steps: numbers of steps to compare.
        path: `js.VP()` by default; any path that reaches lam from -1 to 1.2.

    Raises:
        ValueError: the step draws noise.

    Example:
        >>> js.solvers.order(js.solvers.dpmpp_2m)
        dpmpp_2m: measured 2.02, declared 2
        >>> js.solvers.order((js.solvers.dpmpp_3s, js.solvers.dpmpp_3m))
        dpmpp_3m: measured 2.96, declared 3
    """
    starter, main = (None, step) if isinstance(step, Step) else step
    if main.stochastic:
        raise ValueError(f"{main.name} draws noise: measure it with js.solvers.weak_order")
    path = VP() if path is None else path
    truth = _truth(path)

    def error(n: int) -> float:
        first = 0 if starter is None else max(2, main.past)
        solver: Any = main if starter is None else [starter] * first + [main] * (n - first)
        return float(np.abs(_run(tabulate(path, _grid(path, n), solver), path, X_T) - truth).max())

    return _slope(main, steps, [error(n) for n in steps])


def weak_order(step: Step, *, steps: Sequence[int] = (80, 160, 320), path: Path | None = None) -> Order:
    """Measure the weak order of a step that draws noise: the lower of those of mean and variance.

    Args:
        step: the step.
        steps: numbers of steps to compare.
        path: `js.VP()` by default; any path that reaches lam from -1 to 1.2.

    Example:
        >>> js.solvers.weak_order(js.solvers.dpmpp_2m_sde)
        dpmpp_2m_sde: measured 2.01, declared 2
    """
    path = VP() if path is None else path
    truth = exact_moments(path, DATA_MEAN, DATA_STD, 1.3)
    errors = []
    for n in steps:
        found = moments(tabulate(path, _grid(path, n), step), path, DATA_MEAN, DATA_STD, 1.3)
        errors.append([abs(a - b) for a, b in zip(found, truth, strict=True)])
    both = [_slope(step, steps, column) for column in zip(*errors, strict=True)]
    return min(both, key=lambda o: o.measured)


def _slope(step: Step, steps: Sequence[int], errors: Sequence[float]) -> Order:
    exact = max(errors) < EXACT
    measured = math.inf if exact else np.polyfit(np.log(steps), -np.log(errors), 1)[0]
    return Order(step.name, measured, step.order, tuple(steps), tuple(errors))


def _grid(path: Path, n: int) -> np.ndarray:
    return np.asarray(grids.log_snr(path, n, t_max=float(path.time(-1.0)), t_min=float(path.time(1.2))))


@functools.lru_cache(maxsize=16)
def _truth(path: Path) -> np.ndarray:
    """The flow from lam = -1 to 1.2: with y = (x - mu)/alpha, dy/dlam = E[x_0 - mu] - y, by 2000 steps of
    RK4.
    """
    lams = np.linspace(-1.0, 1.2, 4001)  # ends and middles of the steps
    times = [float(path.time(lam)) for lam in lams]
    levels = [(float(path.alpha(t)), float(path.sigma(t))) for t in times]
    mu, h = _mean(path), lams[2] - lams[0]
    y = (X_T - mu) / levels[0][0]

    def slope(k: int, y: np.ndarray) -> np.ndarray:
        alpha, sigma = levels[k]
        return _mixture(alpha * y, alpha, sigma, mu) - y

    for k in range(0, 4000, 2):
        a = slope(k, y)
        b = slope(k + 1, y + h / 2 * a)
        c = slope(k + 1, y + h / 2 * b)
        y = y + h / 6 * (a + 2 * b + 2 * c + slope(k + 2, y + h * c))
    return levels[-1][0] * y + mu


def _mean(path: Path) -> Any:
    return 0.0 if path.centre is None else np.asarray(path.centre, np.float64)


def _run(table: Table, path: Path, x: np.ndarray) -> np.ndarray:
    """The recurrence of a deterministic table, on the mixture's denoiser."""
    memory, mu = np.zeros((table.regs, *x.shape)), _mean(path)
    x = (x - mu) * table.start[0]
    for n in range(table.nfe):
        alpha, sigma = path.alpha(table.t[n]), path.sigma(table.t[n])
        x0 = _mixture(x, alpha, sigma, mu)
        memory[table.keep[n]] = x
        memory[table.slot[n]] = table.form[n, 0] * x0 + table.form[n, 1] * (x - alpha * x0) / sigma
        x = table.A[n] * x + np.tensordot(table.B[n], memory, 1)
    return x + mu


def _mixture(y: np.ndarray, alpha: float, sigma: float, mu: float) -> np.ndarray:
    """E[x_0 - mu | x - mu = y] of the mixture."""
    spread = alpha**2 * STDS**2 + sigma**2
    away = y[..., None] - alpha * (MEANS - mu)
    logits = np.log(SHARES) - away**2 / (2 * spread) - np.log(spread) / 2
    share = np.exp(logits - logits.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)
    return (share * (MEANS - mu + alpha * STDS**2 / spread * away)).sum(-1)


def moments(table: Table, path: Path, mean: float, std: float, x_T: float) -> tuple[float, float]:
    """Mean and variance of x at the end of a table given x_T, for data N(mean, std^2), by the recurrence
    itself.
    """
    mu, regs = _mean(path), table.regs
    m, P = np.zeros(1 + regs), np.zeros((1 + regs, 1 + regs))  # of (x - mu, registers)
    m[0], P[0, 0] = table.start[0] * (x_T - mu), table.start[1] ** 2
    for n in range(table.nfe):
        gain, offset = _affine(table, path, n, mean - mu, std)
        J, c = np.eye(1 + regs), np.zeros(1 + regs)
        J[1 + table.keep[n]] = np.eye(1 + regs)[0]
        J[1 + table.slot[n]], c[1 + table.slot[n]] = gain * np.eye(1 + regs)[0], offset
        m, P = J @ m + c, J @ P @ J.T
        U = np.eye(1 + regs)
        U[0, 0], U[0, 1:] = table.A[n], table.B[n]
        m, P = U @ m, U @ P @ U.T
        P[0, 0] += table.C[n] ** 2
    return float(m[0] + mu), float(P[0, 0])


def _affine(table: Table, path: Path, n: int, mean: float, std: float) -> tuple[float, float]:
    """The prediction of row n as gain y + offset, for centred data N(mean, std^2)."""
    alpha, sigma = path.alpha(table.t[n]), path.sigma(table.t[n])
    variance = alpha**2 * std**2 + sigma**2
    data, noise = alpha * std**2 / variance, sigma / variance
    a, b = table.form[n]
    return a * data + b * noise, a * (1 - data * alpha) * mean - b * noise * alpha * mean


def exact_moments(path: Path, mean: float, std: float, x_T: float) -> tuple[float, float]:
    """Mean and variance of x at the end of the grid given x_T under the exact reverse process."""
    mu = _mean(path)
    (a0, s0), (a1, s1) = ((path.alpha(t), path.sigma(t)) for t in _grid(path, 1))
    V0, V1 = a0**2 * std**2 + s0**2, a1**2 * std**2 + s1**2
    c0, c1 = mu + a0 * (mean - mu), mu + a1 * (mean - mu)
    return float(c1 + a0 / a1 * V1 / V0 * (x_T - c0)), float(V1 - (a0 / a1) ** 2 * V1**2 / V0)
