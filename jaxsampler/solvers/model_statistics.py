r"""Statistics of a network for DPM-Solver-v3: the parameterisation that leaves least to extrapolate.

With y = x/alpha and the network's data prediction D, the probability flow is dy/dlam = -(y - D). For any
function l(lam) write it as

    dy/dlam = -(l y + f),        f = (1 - l) y - D    (f = -D at l = 1, f = (sigma/alpha) eps at l = 0)

and model the change of f along the flow as linear, df/dlam = s f + b + (rest). The empirical model statistics
(EMS) are the l that makes f least sensitive to x, and the s, b that make the rest smallest, in the mean over
noisy data. `ems` estimates them (see `estimate_statistics`).

Reference: Zheng et al. 2023 (DPM-Solver-v3), sec. 3.1 and app. C.
"""

import json
from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float

from ..files import from_json, write_arrays
from ..numerics import Arr, Grid, on_host
from ..paths import Path

Values = Arr | Sequence  # l, s or b as given, along lam


class Statistics(eqx.Module):
    """The statistics l, s, b of a network on n+1 equidistant rising lam [Zheng et al. 2023, sec. 3.1].

    `of` makes them from arrays, `ems` estimates them, `load` reads a file.

    Attributes:
        l, s, b: [n+1, *shape]; `shape` is that of one sample, or broadcasts to it.
        ends: first and last lam.
        mark: what the path must agree with, its alpha and t at five lam.
        about: where the statistics come from, as (name, value) pairs.

    Example:
        >>> lam = np.linspace(-4, 4, 9)
        >>> statistics = js.solvers.Statistics.of(js.VP(), lam, 1 + lam**3, 0 * lam, 0 * lam)
        >>> statistics.at(np.array([0.5]))[0]
        array([1.125])
    """

    l: Float[np.ndarray, "points ..."]
    s: Float[np.ndarray, "points ..."]
    b: Float[np.ndarray, "points ..."]
    ends: tuple[float, float] = eqx.field(static=True)
    mark: tuple[float, ...] = eqx.field(static=True)
    about: tuple[tuple[str, Any], ...] = eqx.field(static=True, default=())

    @staticmethod
    def of(
        path: Path, lam: Grid, l: Values, s: Values, b: Values, about: tuple[tuple[str, Any], ...] = ()
    ) -> "Statistics":
        """Make them from tables on `lam` [n+1], equidistant and rising, n >= 3.

        Args:
            l, s, b: [n+1, *shape], or [n+1] for all dimensions.
        """
        lam = np.asarray(lam, np.float64)
        tables = [np.asarray(a) for a in (l, s, b)]
        tables = [a if np.issubdtype(a.dtype, np.floating) else a.astype(np.float64) for a in tables]
        if lam.ndim != 1 or len(lam) < 4 or not np.all(np.isfinite(lam)):
            raise ValueError(f"lam must be a vector of at least 4 finite numbers, got shape {lam.shape}")
        if not (
            lam[-1] > lam[0]
            and np.allclose(lam, np.linspace(lam[0], lam[-1], len(lam)), rtol=0, atol=1e-6 * np.ptp(lam))
        ):
            raise ValueError(
                "lam must rise in equal steps: np.linspace(path.lam(path.t_max), path.lam(t_min), n + 1)"
            )
        for name, a in zip("lsb", tables, strict=True):
            if a.shape[:1] != lam.shape or a.shape != tables[0].shape:
                raise ValueError(
                    f"{name} has shape {a.shape}; l, s, b must be alike, with one entry for each of the "
                    f"{len(lam)} lam"
                )
            if not np.all(np.isfinite(a)):
                raise ValueError(
                    f"{name} is not finite at lam = "
                    f"{lam[np.argmin(np.isfinite(a).reshape(len(lam), -1).all(1))]:g}"
                )
        ends = float(lam[0]), float(lam[-1])
        l, s, b = tables
        return Statistics(l, s, b, ends, _mark(path, ends), (("path", " ".join(str(path).split())), *about))

    @property
    def lam(self) -> Float[np.ndarray, " points"]:
        """The n+1 rising lam."""
        return np.linspace(self.ends[0], self.ends[1], len(self.l))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of l, s, b at one lam."""
        return self.l.shape[1:]

    def check(self, path: Path) -> None:
        """Raise a ValueError unless `path` is the one that the statistics were made on."""
        if not np.allclose(_mark(path, self.ends), self.mark, rtol=1e-6, atol=1e-12):
            made, given = (
                " ".join(str(p).split())[:80] for p in (dict(self.about).get("path", "another path"), path)
            )
            raise ValueError(
                f"these statistics belong to the path {made}, not to {given}: estimate them with "
                "js.solvers.ems"
            )

    def at(self, lam: Float[np.ndarray, " k"]) -> tuple[Any, Any, Any]:
        """Return l, s, b [k, *shape] in float64 at any lam, by cubics through the four nearest points."""
        u = (lam - self.ends[0]) / (self.ends[1] - self.ends[0]) * (len(self.l) - 1)
        first = np.clip(np.floor(u).astype(int) - 1, 0, len(self.l) - 4)
        near = np.arange(4)
        lagrange = [np.prod([(u - first - j) / (i - j) for j in near if j != i], axis=0) for i in near]
        column = (-1, *[1] * len(self.shape))
        l, s, b = (
            sum(w.reshape(column) * a[first + i] for i, w in enumerate(lagrange))
            for a in (self.l, self.s, self.b)
        )
        return l, s, b

    def save(self, path: str | FilePath) -> None:
        """Write one safetensors file, whole or not at all; its metadata hold path, lam and origin as JSON."""
        card = {"lam": self.ends, "mark": self.mark, "about": self.about}
        arrays = {name: getattr(self, name) for name in "lsb"}
        write_arrays(path, arrays, {"statistics": json.dumps(card)})

    @staticmethod
    def load(path: str | FilePath) -> "Statistics":
        """Read what `save` wrote; ValueError if the file is missing, corrupt or something else."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                card = (file.metadata() or {}).get("statistics")
                if card is None:
                    raise ValueError(f"{path} holds no statistics: Statistics.save writes them")
                card, (l, s, b) = from_json(card), [file.get_tensor(name) for name in "lsb"]
            ends, mark = (tuple(map(float, card[name])) for name in ("lam", "mark"))
            floats = all(a.dtype.kind == "f" and a.shape == l.shape for a in (l, s, b))
            if not (floats and l.ndim and len(l) > 3 and len(ends) == 2 and ends[0] < ends[1]):
                raise ValueError("its arrays or ends do not fit each other")
            if not all(np.isfinite(a).all() for a in (l, s, b, ends, mark)):
                raise ValueError("it holds numbers that are not finite")
            return Statistics(l, s, b, ends, mark, _frozen(card["about"]))
        except OSError as e:
            raise ValueError(f"cannot read {path}: {e.strerror or e}") from None
        except (SafetensorError, ValueError, KeyError, TypeError) as e:
            if "holds no statistics" in str(e):
                raise
            raise ValueError(
                f"{path} is corrupt ({str(e).splitlines()[0]}): estimate the statistics again"
            ) from None


def _frozen(value: Any) -> Any:
    """Lists as tuples."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _mark(path: Path, ends: tuple[float, float]) -> tuple[float, ...]:
    with on_host():
        t = np.asarray(path.time(np.linspace(ends[0], ends[1], 5)), np.float64)
        return tuple(
            np.concatenate([t, np.broadcast_to(np.asarray(path.alpha(t), np.float64), t.shape)]).tolist()
        )
