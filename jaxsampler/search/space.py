r"""The space of solver schedules: the choices of the unified sampling framework, to draw, mutate and cross.

A `Schedule` has its times and, for every interval of its grid, the choices of `js.solvers.Decision` (order,
kind, start, nodes, relaxation, corrector); the first output may be assumed. A `Space` says which choices
there are, how likely they are drawn, and how they mutate; whatever it makes is valid and costs the same
number of calls. Schedules are stacked and handled all at once.

Defaults are the published configuration. The space leaves out average_x0, the first output that takes x0 for
the mean of the data. It is "zero_x0" on data shifted to mean 0 (`js.solvers.shift_data`), and so not a
property of a table. The kind of DPM-Solver-v3 needs `statistics`; without them, the probabilities of the
other kinds are renormalised.

Reference: Liu et al. 2023 (USF: a unified sampling framework for solver searching of diffusion probabilistic
models), sec. 4 and 5.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from ..numerics import Arr, Real, on_host
from ..solvers import Decision
from ..tables import Table
from .build import build
from .choices import GAP, Choices
from .schedules import CHOICES, Schedule, delete, edited, insert, stack, unstack

Whole = int | np.integer


@dataclasses.dataclass(frozen=True, eq=False)
class Space(Choices):
    """Schedules of `nfe` calls on `path`.

    Choices are mappings from values to probabilities, which need not add up to 1; leave out what must not be
    drawn.

    Args:
        path: the path of the tables.
        nfe: network calls.
        grids: arrays of times or functions (path, n) -> array, where schedules begin; by default the
            library's grids. The last time of a schedule never changes.
        orders: choices of p, which is lowered at the start of the grid.
        nodes: choices of m_1, which is at most the number of points there are.
        starts: choices of the state that a step starts from, counted back from the latest; 1, the state
            before, makes singlestep methods.
        kinds: choices of "data", "noise" and, if `statistics` are given, "fitted".
        relaxations: choices of "linear" (1 + c h) and the names of `js.solvers.usf`. One of probability 0 is
            not drawn, but `known` and `encode` may use it.
        corrector: probability of a pseudo-corrector, of order p or p + 1; there is none into the last point.
        assumed: probability of an assumed first output, for data of mean about 0.
        statistics: a `FittedKind`, for the kind of DPM-Solver-v3.
        shift: std of the relative Gaussian by which a mutation moves all inner times.
        bend: std of the Gaussian by which a mutation moves c.
        redraw: probability that a mutation draws any other choice anew.
        move: probability that a mutation takes out a point and puts in another elsewhere.
        crossing: probability of a crossover before the mutation.
        gentle: least strength of a mutation. The strength is log-uniform between this and 1 and multiplies
            shift, bend, redraw and move. With 1, as published, few children are near their parent, which
            suits a rugged score (rare basin flips); 0.1 suits a smooth one.

    Raises:
        ValueError: if the space is empty, or a grid does not fit the path.

    Example:
        >>> space = js.search.Space(js.VP(), 4, orders={1: 0.5, 2: 0.5}, assumed=0.0)
        >>> schedules = space.sample(np.random.default_rng(0), 50)
        >>> sorted(set(schedules.order.ravel().tolist())), set(schedules.order[:, 0].tolist())
        ([1, 2], {1})
        >>> space.tables(schedules).t.shape
        (50, 4)
    """

    # drawing

    def sample(self, rng: np.random.Generator, b: int) -> Schedule:
        """`b` random schedules."""
        assumed = rng.random(b) < self.assumed
        times = np.full((b, self.width + 1), np.nan)
        for i, a in enumerate(assumed):
            base = self.bases[self.nfe + int(a)]
            grid = base[rng.integers(len(base))]
            times[i, : len(grid)] = grid
        return self.valid(
            dataclasses.replace(self._choices(rng, b), times=self._shifted(rng, times), assumed=assumed)
        )

    def _choices(self, rng: np.random.Generator, b: int) -> Schedule:
        def draw(choices: Mapping, numbered: bool = False) -> np.ndarray:
            p = np.array(list(choices.values()), float)
            names = np.arange(len(p)) if numbered else np.array(list(choices))
            return rng.choice(names, (b, self.width), p=p / p.sum()).astype(np.int32)

        order, m = draw(self.orders), draw(self.nodes)
        nodes = np.repeat(order[..., None] - 1, max(self.highest - 1, 1), -1)
        nodes[..., 0] = m
        corrected = rng.random((b, self.width)) < self.corrector
        return Schedule(
            times=np.full((b, self.width + 1), np.nan),
            order=order,
            kind=draw(self.kinds, True),
            start=draw(self.starts),
            nodes=nodes,
            relaxation=draw(self.relaxations, True),
            c=self.bend * rng.standard_normal((b, self.width)),
            corrector=np.where(corrected, order + rng.integers(0, 2, order.shape), 0).astype(np.int32),
            assumed=np.zeros(b, bool),
        )

    def _shifted(self, rng: np.random.Generator, times: np.ndarray, strength: Real | Arr = 1.0) -> np.ndarray:
        """Perturb and sort the inner times; keep them where that leaves the grid or makes a gap too small."""
        moved = times * (1 + strength * self.shift * rng.standard_normal(times.shape))
        last = np.sum(np.isfinite(times), 1) - 1
        rows = np.arange(len(times))
        moved[:, 0], moved[rows, last] = np.inf, -np.inf
        moved = -np.sort(-moved, axis=1)  # NaN last
        moved[:, 0], moved[rows, last] = times[:, 0], times[rows, last]
        with np.errstate(invalid="ignore"):
            good = np.all(~(moved[:, 1:] > (1 - GAP) * moved[:, :-1]), 1)
        return np.where(good[:, None], moved, times)

    def mutate(self, rng: np.random.Generator, schedules: Schedule) -> Schedule:
        """Return a mutation of each schedule of a stack."""
        b, fresh = len(schedules), self._choices(rng, len(schedules))
        strength = self.gentle ** rng.random((b, 1))
        again = lambda: rng.random((b, self.width)) < strength * self.redraw
        if len(self.lengths) == 2:
            assumed = schedules.assumed ^ (rng.random(b) < strength[:, 0] * self.redraw)
            schedules = self._with(rng, schedules, assumed)
        schedules = self._move(rng, schedules, rng.random(b) < strength[:, 0] * self.move)

        def mixed(name: str, which: np.ndarray) -> np.ndarray:
            old, new = getattr(schedules, name), getattr(fresh, name)
            return np.where(which.reshape(*which.shape, *(1,) * (old.ndim - 2)), new, old)

        names = ("kind", "start", "relaxation", "corrector")
        chosen = {name: mixed(name, again()) for name in names}
        order = again()  # nodes belong to the order
        chosen |= {name: mixed(name, order) for name in ("order", "nodes")}
        c = schedules.c + strength * self.bend * rng.standard_normal(schedules.c.shape)
        return self.valid(
            dataclasses.replace(schedules, times=self._shifted(rng, schedules.times, strength), c=c, **chosen)
        )

    def cross(self, rng: np.random.Generator, a: Schedule, b: Schedule) -> Schedule:
        """Join the first intervals of `a` to the last ones of `b`, counted from the data end.

        Where the times do not fit together, those of `a` stay.
        """
        out = []
        for s, other in zip(unstack(a), unstack(b), strict=True):
            n, later = self.nfe + int(s.assumed), int(other.assumed) - int(s.assumed)
            cut = int(rng.integers(1, max(n, 2)))
            tail, source = np.arange(cut, n), np.clip(np.arange(cut, n) + later, 0, None)
            child = jax.tree.map(np.copy, s)
            for name in CHOICES:
                getattr(child, name)[tail] = getattr(other, name)[source]
            times = np.concatenate([s.times[:cut], other.times[cut + later : n + later + 1]])
            if np.all(times[1:] <= (1 - GAP) * times[:-1]):
                child.times[: n + 1] = times
            out.append(child)
        return self.valid(stack(out))

    def _move(self, rng: np.random.Generator, schedules: Schedule, which: np.ndarray) -> Schedule:
        """Take out a point here and put in one there."""

        def edit(s: Schedule) -> Schedule:
            n = self.nfe + int(s.assumed)
            if n == 1:
                return s
            fewer = delete(s, int(rng.integers(1, n)))
            return insert(fewer, int(rng.integers(n - 1)), rng.uniform(0.2, 0.8))

        return edited(schedules, which, edit)

    def _with(self, rng: np.random.Generator, schedules: Schedule, assumed: np.ndarray) -> Schedule:
        """Let the first output be assumed or not, for as many calls: with one point more or less."""

        def edit(s: Schedule) -> Schedule:
            if s.assumed:
                return delete(s, int(rng.integers(1, self.nfe + 1)))
            return insert(s, int(rng.integers(self.nfe)), rng.uniform(0.2, 0.8))

        return dataclasses.replace(edited(schedules, assumed != schedules.assumed, edit), assumed=assumed)

    # validity

    def valid(self, s: Schedule) -> Schedule:
        """Return the nearest valid schedules, with unused choices at 0.

        They use no more points than there are, and nothing that the ends of the path forbid.
        """
        i = np.arange(self.width, dtype=np.int32)[None]
        count = (self.nfe + s.assumed.astype(np.int32))[:, None]
        used, last = i < count, i == count - 1
        start = np.where(used, np.minimum(s.start, i), 0)
        with on_host():
            pure = np.asarray(self.path.alpha(s.times[:, 0])) == 0
            ends = np.asarray(self.path.sigma(np.nanmin(s.times, axis=1))) == 0
        leaves = pure[:, None] & (start == i)  # from alpha = 0, an infinite step: of order 1 and in data
        order = np.where(used & ~leaves, np.minimum(s.order, i + 1), 1)
        k = np.arange(1, s.nodes.shape[-1] + 1)[None, None]
        nodes = np.clip(s.nodes, k, np.maximum(i[..., None], k)) * (k < order[..., None])
        data, names = (
            list(self.kinds).index("data") if "data" in self.kinds else 0,
            np.array(list(self.kinds)),
        )
        kind = np.where(leaves, data, s.kind)
        kind = np.where(ends[:, None] & last & (names[kind] == "fitted"), data, kind)
        linear = list(self.relaxations).index("linear") if "linear" in self.relaxations else -1
        relaxation = np.where(names[kind] == "fitted", max(linear, 0), s.relaxation)
        relaxation = np.where(order > 1, relaxation, 0)
        c = np.where((order > 1) & (relaxation == linear), s.c, 0.0)
        # another kind does not know its value at alpha = 0
        foreign = pure[:, None] & (kind != np.concatenate([kind[:, 1:], kind[:, -1:]], 1))
        corrector = np.where(used & ~last & ~foreign & (s.corrector > 0), np.clip(s.corrector, 2, i + 2), 0)
        ints = {"order": order, "kind": np.where(used, kind, 0), "start": start}
        ints |= {"nodes": nodes, "relaxation": relaxation, "corrector": corrector}
        whole = {name: values.astype(np.int32) for name, values in ints.items()}
        return Schedule(times=s.times, c=c, assumed=s.assumed, **whole)

    # decisions and tables

    def decisions(self, s: Schedule) -> list[Decision]:
        """Return the choices of one schedule for `js.solvers.usf`, on the grid `space.grid(s)`.

        If `s.assumed`, the solver takes first="zero_x0".
        """
        n = self.nfe + int(s.assumed)
        return [self.decision(*(getattr(s, name)[i] for name in CHOICES)) for i in range(n)]

    def decision(
        self,
        order: Whole,
        kind: Whole,
        start: Whole,
        nodes: Int[np.ndarray, " derivatives"] | Sequence[Whole],
        relaxation: Whole,
        c: Real | np.floating | Float[np.ndarray, "..."],
        corrector: Whole,
    ) -> Decision:
        """Return one decision from the entries of a schedule."""
        name, relaxed = list(self.kinds)[int(kind)], list(self.relaxations)[int(relaxation)]
        what: Any = self.statistics if name == "fitted" else name
        how: Any = ("linear", c) if relaxed == "linear" else relaxed
        if order == 1 or (relaxed != "linear" and name == "fitted"):
            how = None
        counts = tuple(int(m) for m in nodes[: int(order) - 1])
        return Decision(int(order), what, -1 - int(start), counts, how, int(corrector) or None)

    def grid(self, s: Schedule) -> np.ndarray:
        """Return the times of one schedule."""
        return s.times[np.isfinite(s.times)]

    def tables(self, schedules: Schedule) -> Table:
        """Return the stacked tables of a stack of schedules: all have nfe rows and nfe + 1 registers."""
        return build(self, schedules)

    def table(self, schedule: Schedule) -> Table:
        """Return the table of one schedule."""
        return jax.tree.map(lambda a: a[0], self.tables(stack([schedule])))
