r"""A table found on one path, used on another.

In y = x/alpha and rho = sigma/alpha all paths are one: x = alpha x_0 + sigma eps is y = x_0 + rho eps. A row
that calls the source's network with (x, t) asks about y = x/alpha(t) at rho(t), so the target's network is
called at the time t' of the same rho with

    x' = s x,      s = alpha'(t')/alpha(t) = sigma'(t')/sigma(t),

and (x_0, eps), hence every prediction a x_0 + b eps that a row may want, is the same. What remains is a
change of units from row to row: A_n <- A_n s_{n+1}/s_n, outputs in B_n and the noise C_n by s_{n+1}, kept
states in B_n by s_{n+1}/s of the row that kept them. After the last row t is the time at which the table
ends. So for any data distribution the samples are those of the source, from the same z of x_T = prior_std z,
up to rounding.

Beyond the ends. Where rho is above all of the target's (alpha = 0 at t = 1 of CondOT, EDM ends at 80) its
network is called at t_max, with eps kept: s = sigma'/sigma; the predicted x_0 is the mean of the data up to
about std^2/rho. Where rho is below all of the target's (VE stops at sigma_min) it is called at t = 0, with y
kept: s = alpha'/alpha. From the same z, flows of different highest rho differ themselves, by about mean
std/rho.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from ..numerics import is_traced, on_host
from ..paths import Path
from ..tables import Table
from ..tables.tabulation import mark_of


def transfer(table: Table, source: Path | dict[str, Path], target: Path | dict[str, Path]) -> Table:
    """Return `table`, made for networks on `source`, as a table for networks on `target`.

    It has the same calls, registers and draws; the table may be stochastic. Paths that revert to a mean count
    as centred, because tables know no mean. States at grid points in between are in the units of the next
    call: those of the grid point, unless the table has network times of its own.

    Raises:
        TypeError: if a path is the dict of paths of a system.
        ValueError: if the table is traced, is a stack, or does not say at which time it ends.

    Example:
        >>> vp, edm = js.VP(), js.EDM()
        >>> source, target = (js.models.gaussian_mixture(np.ones((1, 2)), 0.5, path) for path in (vp, edm))
        >>> table = js.tabulate(vp, [0.8, 0.5, 0.1], js.solvers.dpmpp_2m)
        >>> moved = js.search.transfer(table, vp, edm)
        >>> np.allclose(moved.t, vp.rho(table.t))  # t of EDM is rho
        True
        >>> z = jnp.array([0.3, -0.4])
        >>> ours = js.run(target, moved, z * float(edm.prior_std))
        >>> theirs = js.run(source, table, z * float(vp.prior_std)) / float(vp.alpha(0.1))
        >>> bool(jnp.allclose(ours, theirs, atol=1e-4))
        True
    """
    if isinstance(source, dict) or isinstance(target, dict):
        raise TypeError(
            "a table is transferred from one path to another: of a system, "
            "transfer the table of each part by itself"
        )
    if is_traced(table):
        raise ValueError("a traced table cannot be transferred: transfer it outside jit")
    if table.t.ndim != 1:
        raise ValueError("transfer tables before stacking them")
    t, end = np.asarray(table.t, np.float64), np.asarray(table.end, np.float64)
    known = ~np.isnan(end)
    if not known.any():
        raise ValueError(
            "the table does not say at which time it ends (all of `end` is NaN), "
            "which sets the units of its samples"
        )
    at = np.append(t, end[known][-1])
    to, scale = _same_level(source, target, at)
    new_end = end.copy()
    new_end[known] = _same_level(source, target, end[known])[0]
    before, after = scale[:-1], scale[1:]
    with on_host():
        priors = np.array([source.prior_std / target.prior_std, 1.0])
        begin = np.asarray(np.nan if table.begin is None else table.begin, np.float64)
        to_begin = np.where(begin == source.t_max, target.t_max, _same_level(source, target, begin)[0])
    return dataclasses.replace(
        table,
        t=to[:-1],
        A=np.asarray(table.A, np.float64) * after / before,
        B=np.asarray(table.B, np.float64) * after[:, None] / _units(table, before),
        C=np.asarray(table.C, np.float64) * after,
        form=np.asarray(table.form, np.float64),
        end=new_end,
        start=np.asarray(table.start, np.float64) * before[0] * priors,
        begin=None if table.begin is None else to_begin,
        made_on=None if table.made_on is None else mark_of(target),
        lift=None if table.lift is None else _lift(table, source, target, before, after),
    )


def _lift(
    table: Table, source: Path, target: Path, before: np.ndarray, after: np.ndarray
) -> Float[np.ndarray, "nfe more"]:
    """Return the moves to the next call, from the units at the end of the interval to those of the call."""
    end, lift = np.asarray(table.end, np.float64), np.asarray(table.lift, np.float64)
    at_end = _same_level(source, target, end)[1]
    scale = np.where(np.isnan(end), 1.0, after / at_end)
    state, noise = lift[:, :1] * scale[:, None], lift[:, 1:2] * after[:, None]
    return np.concatenate([state, noise, lift[:, 2:] * after[:, None] / _units(table, before)], 1)


def _same_level(source: Path, target: Path, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the target's times of the same rho, where there are any, and the scales of the state there."""
    with on_host():
        lam, noisiest, cleanest = source.lam(t), target.lam(target.t_max), target.lam(0.0)
        to = np.where(lam <= noisiest, target.t_max, np.where(lam >= cleanest, 0.0, target.time(lam)))
        # Beyond the ends eps or y is kept. In between the two ratios are equal: take the one that is not 0/0.
        by_sigma = (lam <= noisiest) | ((lam < 0) & (lam < cleanest))
        return to, np.where(by_sigma, target.sigma(to) / source.sigma(t), target.alpha(to) / source.alpha(t))


def _units(table: Table, scale: np.ndarray) -> Float[np.ndarray, "nfe regs"]:
    """Return the scale of what each register holds: that of its row for a kept state, 1 for an output."""
    units = np.ones((table.nfe, table.regs))
    for n, (keep, slot) in enumerate(zip(table.keep, table.slot, strict=True)):
        units[n:, keep] = scale[n]
        units[n:, slot] = 1.0
    return units
