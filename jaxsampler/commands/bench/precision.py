r"""What low precision costs, per solver: `jaxsampler bench precision`.

The same samples (one x_T, one noise) of a Gaussian mixture on a path's default grid, three times:

    float64     state, coefficients and network: the reference
    float32     state, coefficients and network
    bfloat16    a network whose input and output are bfloat16; state and coefficients in float32

The error is the root mean square difference to the float64 samples over their standard deviation. A bfloat16
number has 8 bits, so one rounding is up to 2^-9 of it, 0.2 %. The kind that the network predicts could
matter: data from noise is (x - sigma eps)/alpha, where a rounding of eps counts sigma/alpha times, and noise
from data is the same at the other end. Both are measured. (It hardly matters: solvers give x0 the weight
alpha where alpha is small.)
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from ... import solvers
from ...paths import VP, Denoiser, Path, grids
from ...paths import exact as models
from ...scan import Direct, run
from ...tables import Table, pad, tabulate

COLUMNS = ("float32", "bfloat16, data network", "bfloat16, noise network")
MEANS, STDS = ((-0.9, 0.2), (0.3, 0.8), (0.7, -0.6)), (0.3, 0.25, 0.4)


@dataclasses.dataclass
class Precision:
    """Errors per solver, in the order of `COLUMNS`, in standard deviations of a sample; kinds of solvers."""

    path: str
    steps: int
    samples: int
    errors: dict[str, list[float]]
    kinds: dict[str, str]


def network(path: Path, kind: str, low: bool) -> Denoiser:
    """Make the mixture's exact denoiser a network that predicts `kind`, in bfloat16 if `low`."""
    exact = models.gaussian_mixture(MEANS, STDS, path)

    def net(x, t):
        x = x.astype(jnp.bfloat16).astype(x.dtype) if low else x
        m = exact(x, t, kind)
        return m.astype(jnp.bfloat16) if low else m

    return Denoiser(net, path, kind)


def sampler(path: Path, kind: str, low: bool) -> Callable[..., jax.Array]:
    """Jit sampling, a function of (table, x_T, noise), compiled once for all tables of a shape."""
    return jax.jit(
        lambda table, x, noise: run(network(path, kind, low), table, x, noise=noise, adjoint=Direct())
    )


def same_shape(tables: dict[str, Table]) -> dict[str, Table]:
    """Pad the tables to one shape."""
    nfe, regs = (max(getattr(t, size) for t in tables.values()) for size in ("nfe", "regs"))
    return {name: pad(t, nfe=nfe, regs=regs) for name, t in tables.items()}


def measure(steps: int = 20, samples: int = 512, path: Path | None = None) -> Precision:
    """Measure the errors of every solver of the catalogue on a path, by default VP."""
    path = VP() if path is None else path
    steppers = solvers.catalogue()
    tables = same_shape({name: tabulate(path, grids.default(path, steps), s) for name, s in steppers.items()})
    x = path.prior(jax.random.key(0), jnp.zeros((samples, 2), jnp.float32))
    draws = max(t.draws for t in tables.values())
    noise = jax.random.normal(jax.random.key(1), (draws, samples, 2), jnp.float32)
    low = [sampler(path, "data", False), sampler(path, "data", True), sampler(path, "noise", True)]
    wide = partial(np.asarray, dtype=np.float64)
    with jax.enable_x64(True):
        exact = sampler(path, "data", False)
        bar = tqdm(tables.items(), desc="float64", unit="solver")
        reference = {name: wide(exact(table, wide(x), wide(noise))) for name, table in bar}
    errors = {}
    for name, table in tqdm(tables.items(), desc="float32 and bfloat16", unit="solver"):
        off = [wide(sample(table, x, noise)) - reference[name] for sample in low]
        errors[name] = [float(np.sqrt(np.mean(d**2)) / reference[name].std()) for d in off]
    kinds = {name: s.kind if isinstance(s.kind, str) else "its own" for name, s in steppers.items()}
    return Precision(type(path).__name__, steps, samples, errors, kinds)


def markdown(result: Precision) -> str:
    """Format the table."""
    run_of = f"{result.path}, {result.steps} steps, {result.samples} samples"
    head = f"Error against float64 in standard deviations of a sample; {run_of}\n\n"
    head += "| solver | works on | " + " | ".join(COLUMNS) + " |\n" + "|---" * (len(COLUMNS) + 2) + "|\n"
    return head + "".join(
        f"| `{name}` | {result.kinds[name]} | " + " | ".join(f"{error:.1e}" for error in row) + " |\n"
        for name, row in result.errors.items()
    )


def table() -> str:
    """Measure, and format as Markdown."""
    return markdown(measure())


def figure(result: Precision) -> Any:
    """Plot the errors of each solver on a logarithmic axis, one colour per precision."""
    import matplotlib.pyplot as plt

    names = sorted(result.errors, key=lambda name: result.errors[name][1])
    fig, ax = plt.subplots(figsize=(7, 0.22 * len(names) + 1), layout="constrained")
    for column, (label, marker) in enumerate(zip(COLUMNS, "osD", strict=True)):
        errors = [result.errors[name][column] for name in names]
        ax.scatter(errors, range(len(names)), s=20, marker=marker, label=label, zorder=3)
    ax.axvline(2.0**-9, color="0.3", lw=1, ls=":")
    ax.set_xscale("log")
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.set_xlabel(
        "error against float64, in standard deviations of a sample; dotted: one rounding in bfloat16"
    )
    ax.legend(fontsize=8)
    ax.grid(axis="x", alpha=0.3)
    return fig
