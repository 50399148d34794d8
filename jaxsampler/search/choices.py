r"""What a space of solver schedules chooses from: values, their probabilities, and the grids to begin with.

Reference: Liu et al. 2023 (USF), sec. 4 and 5.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ..numerics import Grid, on_host
from ..paths import EDM, VE, Path, grids
from ..solvers import FittedKind
from ..solvers.unified_framework import RELAXATIONS
from ..spelling import nearest

GAP = 1e-3  # each time is smaller than the one before by at least this share


def default_grids(path: Path, n: int) -> list[np.ndarray]:
    """Return the library's grids of n intervals on this path, its default first.

    Those of EDM and VE, whose default ends at 0, include some that end at t_min.
    """
    made = [grids.default(path, n)]
    with on_host():
        ends = np.asarray([path.lam(path.t_max), path.lam(path.t_min)])
    if np.all(np.isfinite(ends)):
        made += [grids.log_snr(path, n), grids.karras(path, n)]
    if not isinstance(path, EDM | VE):
        made += [grids.uniform(path, n, t_min=made[0][-1]), grids.quadratic(path, n, t_min=made[0][-1])]
    elif n > 1:
        made.append(grids.append_zero(grids.log_snr(path, n - 1)))
    return [g for i, g in enumerate(made) if not any(np.allclose(g, other, rtol=1e-9) for other in made[:i])]


@dataclasses.dataclass(frozen=True, eq=False)
class Choices:
    """The choices of a `Space`, which says what each field means; checked when made."""

    path: Path
    nfe: int
    grids: Sequence[Grid | Callable] | None = None
    orders: Mapping[int, float] = dataclasses.field(default_factory=lambda: {1: 0.2, 2: 0.4, 3: 0.3, 4: 0.1})
    nodes: Mapping[int, float] = dataclasses.field(default_factory=lambda: {1: 0.5, 2: 0.5})
    starts: Mapping[int, float] = dataclasses.field(default_factory=lambda: {0: 1.0})
    kinds: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {"noise": 0.3, "data": 0.3, "fitted": 0.4}
    )
    relaxations: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {"linear": 1.0, "dpmsolver-2": 0.0, "unipc-bh1": 0.0}
    )
    corrector: float = 0.5
    assumed: float = 0.5
    statistics: FittedKind | None = None
    shift: float = 0.08
    bend: float = 0.03
    redraw: float = 0.1
    move: float = 0.2
    crossing: float = 0.3
    gentle: float = 1.0

    def __post_init__(self):
        if isinstance(self.nfe, bool) or not isinstance(self.nfe, int) or self.nfe < 1:
            raise ValueError(
                f"nfe is the number of network calls, a whole number of at least 1; got {self.nfe!r}"
            )
        kinds = {k: p for k, p in self.kinds.items() if k != "fitted" or self.statistics is not None}
        object.__setattr__(self, "kinds", kinds)
        self._check(self.kinds, "kinds", ("data", "noise", "fitted"))
        self._check(self.relaxations, "relaxations", ("linear", *RELAXATIONS))
        self._check(self.orders, "orders", None, 1)
        self._check(self.nodes, "nodes", None, 1)
        self._check(self.starts, "starts", None, 0)
        for name in ("corrector", "assumed", "redraw", "move", "crossing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, 0 to 1; got {getattr(self, name)}")
        if not 0 < self.gentle <= 1:
            raise ValueError(
                f"gentle is the least strength of a mutation, above 0 and at most 1; got {self.gentle}"
            )
        if self.shift < 0 or self.bend < 0:
            raise ValueError(
                f"shift and bend are standard deviations, at least 0; got {self.shift} and {self.bend}"
            )
        _ = self.bases  # find a wrong grid now

    def _check(self, choices: Mapping, what: str, valid: Sequence[str] | None, least: int = 0) -> None:
        for name, p in choices.items():
            if valid is not None and name not in valid:
                raise ValueError(f"unknown name {name!r} in {what}; {nearest(str(name), valid)}")
            if valid is None and (not isinstance(name, int) or name < least):
                raise ValueError(f"{what} are whole numbers of at least {least}; got {name!r}")
            if not 0 <= p < np.inf:
                raise ValueError(f"the probability of {name!r} in {what} must be at least 0; got {p}")
        if sum(choices.values()) <= 0:
            fitted = " ('fitted' needs statistics=)" if what == "kinds" and self.statistics is None else ""
            raise ValueError(f"the space is empty: none of its {what} has a probability above 0{fitted}")

    @property
    def lengths(self) -> list[int]:
        """The numbers of intervals: one more than calls if the first output is assumed."""
        probabilities = (False, 1 - self.assumed), (True, self.assumed)
        return [self.nfe + int(assumed) for assumed, p in probabilities if p > 0]

    @functools.cached_property
    def bases(self) -> dict[int, list[np.ndarray]]:
        """The grids that schedules begin with, by number of intervals."""
        return {n: self._bases(n) for n in self.lengths}

    @property
    def width(self) -> int:
        """The number of intervals that a schedule has room for."""
        return max(self.lengths)

    @property
    def highest(self) -> int:
        return max(self.orders)

    def _bases(self, n: int) -> list[np.ndarray]:
        given = (
            default_grids(self.path, n)
            if self.grids is None
            else [g(self.path, n) if callable(g) else g for g in self.grids]
        )
        made = [grids.checked(self.path, g) for g in given]
        made = [g for g in made if len(g) == n + 1]
        if not made:
            also = f"; with assumed=0, {n} times will do" if n > self.nfe else ""
            raise ValueError(
                f"the space is empty: {self.nfe} calls need grids of {n + 1} times, "
                f"and none of `grids` has them{also}"
            )
        for g in made:
            if np.any(g[1:] > (1 - GAP) * g[:-1]):
                raise ValueError(
                    f"a grid of {n + 1} times whose neighbours differ by less than {GAP:g} of their value "
                    "leaves no room to search"
                )
            with on_host():
                if float(self.path.alpha(g[0])) == 0 and self.kinds.keys() <= {"noise", "fitted"}:
                    raise ValueError(
                        "the grid starts at alpha = 0, where only the data kind can: "
                        "give it a probability in kinds"
                    )
                if float(self.path.alpha(g[0])) == 0 and "fitted" in self.kinds:
                    raise ValueError(
                        "the grid starts at alpha = 0, which a FittedKind cannot use: "
                        "leave out `statistics` or start later"
                    )
                if float(self.path.sigma(g[-1])) == 0 and self.kinds.keys() <= {"fitted"}:
                    raise ValueError(
                        "the grid ends at sigma = 0, where only the data and noise kinds can: "
                        "give one a probability in kinds"
                    )
        return [np.asarray(g) for g in made]
