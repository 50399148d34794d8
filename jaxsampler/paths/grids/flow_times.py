r"""Times of flows, tau in [0, 1] with 1 noise, moved towards the noise for large images and videos.

    shifted      tau' = s tau/(1 + (s - 1) tau),  that is  logit tau' = logit tau + log s
    stretched    1 - tau' = (1 - tau) (1 - terminal)/(1 - tau_last)

A shift of a shift is their product.

References: Esser et al. 2024 (SD3), sec. 5.3.2 (the static shift); the released code of Flux (the shift by
resolution) and of LTX-Video (the terminal time).
"""

import math

import numpy as np

from ...numerics import Grid, Real
from .checks import Times


def _flow_times(grid: Grid) -> Times:
    tau = np.asarray(grid, np.float64)
    if tau.ndim != 1 or len(tau) < 2 or not np.all((tau >= 0) & (tau <= 1)):
        raise ValueError(f"flow times are a vector in [0, 1] with 1 noise; got {tau}")
    return tau


def shifted(grid: Grid, shift: Real = 3.0) -> Times:
    """Shift flow times [Esser et al. 2024, eq. 23]: `shift` above 1 takes shorter steps near the noise.

    Args:
        grid: times in [0, 1], such as `uniform(js.CondOT(), n)`. 0 and 1 stay.
        shift: sqrt(m/n) for images of m numbers and a network that saw n; 3 for SD3 at 1024 x 1024; e^mu
            where a configuration gives mu (see `shift_for`).

    Example:
        >>> js.grids.shifted([1.0, 0.75, 0.5, 0.25, 0.0], 3.0).tolist()
        [1.0, 0.9, 0.75, 0.5, 0.0]
    """
    if not shift > 0:
        raise ValueError(f"shift must be positive (1 leaves the times as they are), got {shift}")
    tau = _flow_times(grid)
    return shift * tau / (1 + (shift - 1) * tau)


def shift_for(
    tokens: Real, *, low: tuple[Real, Real] = (256, 0.5), high: tuple[Real, Real] = (4096, 1.15)
) -> float:
    """Return the shift e^mu for an image of this many tokens: mu is linear in it, by default as in Flux.

    Args:
        tokens: length of the network's sequence: (height/16)(width/16) for Flux.
        low: (tokens, mu) of a small image: `base_image_seq_len` and `base_shift` of a scheduler's config.
        high: the same of a large one: `max_image_seq_len` and `max_shift`.

    Example:
        >>> [round(js.grids.shift_for(n), 4) for n in (256, 4096)]  # e^0.5, e^1.15
        [1.6487, 3.1582]
    """
    if not tokens > 0 or low[0] == high[0]:
        raise ValueError(f"shift_for needs tokens > 0 and two different ends, got {tokens}, {low}, {high}")
    slope = (high[1] - low[1]) / (high[0] - low[0])
    return math.exp(low[1] + slope * (tokens - low[0]))


def stretched(grid: Grid, terminal: Real) -> Times:
    """Stretch flow times so that the last is `terminal`; 1 stays. Use `append_zero` for a step to the data.

    Example:
        >>> js.grids.stretched([1.0, 0.75, 0.5], 0.1).round(6).tolist()
        [1.0, 0.55, 0.1]
    """
    tau = _flow_times(grid)
    if not 0 <= terminal < 1 or tau[-1] == 1:
        raise ValueError(f"terminal must be in [0, 1), and the last time below 1; got {terminal}, {tau[-1]}")
    times = 1 - (1 - tau) * ((1 - terminal) / (1 - tau[-1]))
    times[-1] = terminal
    return times
