r"""What a sampler costs on top of its network: `jaxsampler bench overhead`.

All numbers are ratios from one run, of functions timed in turns (`timing`):

    solvers     time(20 calls by a table)/(20 x time of the jitted network), on the restoration U-Net, with
                one compilation for all tables
    no tables   the same for solvers without a table, each with its own compilation and 20 calls (adaptive
                ones: the calls that they made)
    baselines   the same for a scan written by hand (DDIM in two lines) and for diffrax with constant steps
                (Euler, Heun in rho)
    compiling   seconds and size of the program against the number of steps
    diffusers   a small MLP here and there, if torch and diffusers are installed
"""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from ... import pretrained, solvers
from ...front_door import sample
from ...numerics import Key
from ...paths import Denoiser, MeanReverting, Path, grids
from ...scan import Direct, Solver, run
from ...tables import Step, Table, pad, tabulate
from . import side_by_side
from .timing import device, fastest

NFE = 20


@dataclasses.dataclass
class Overhead:
    """What was measured: `ratios` of tables, `no_tables` of other solvers, `baselines` of other code."""

    device: str
    size: int
    call_ms: float
    ratios: dict[str, float]
    no_tables: dict[str, float]
    baselines: dict[str, float]
    compilations: int
    compile_seconds: dict[int, float]
    program_bytes: dict[int, int]
    others: dict[str, float]


def tables(path: Path) -> dict[str, Table]:
    """Tabulate every solver of the library with at most 20 calls, padded to 20 and to common registers."""
    found = {}
    for name, solver in solvers.catalogue().items():
        per_step = solver.calls
        steps = max(solver.past + 1, NFE // per_step)
        while steps > 1 and (table := tabulate(path, _grid(path, solver, steps), solver)).nfe > NFE:
            steps -= 1
        found[name] = table
    regs = max(t.regs for t in found.values())
    return {name: pad(t, nfe=NFE, regs=regs) for name, t in found.items()}


def _grid(path: Path, solver: Step, steps: int) -> np.ndarray:
    return grids.log_snr(path, steps, t_max=0.9 * path.t_max, t_min=0.1 * path.t_max)


def measure(size: int = 128, rounds: int = 5) -> Overhead:
    """Measure on random images of size x size pixels."""
    net = pretrained.load("restore")
    mu = jax.random.uniform(jax.random.key(0), (1, size, size, 3))
    path = net.path(mu)
    predict = partial(net, mu=mu, task=jnp.zeros(1, jnp.int32))
    denoiser = Denoiser(predict, path, "data")
    rows = tables(path)

    call = eqx.filter_jit(lambda x, t: predict(x, t))
    shared: Any = jax.jit(lambda table, x, key: run(denoiser, table, x, key=key, adjoint=Direct()))
    key, t = jax.random.key(1), jnp.asarray(50.0)
    rows = {name: jax.tree.map(jnp.asarray, table) for name, table in rows.items()}
    for table in tqdm(rows.values(), desc="tables", unit="solver"):
        jax.block_until_ready(shared(table, mu, key))
    compilations = shared._cache_size()
    # a deterministic solver needs no key, and then draws nothing
    runs = {
        name: partial(shared, table, mu, key if solvers.catalogue()[name].stochastic else None)
        for name, table in rows.items()
    }

    def calls():
        for _ in range(NFE):
            out = call(mu, t)
            out.block_until_ready()
        return out

    by_hand = {"scan by hand (DDIM)": _scan_by_hand(predict, path, mu), **_by_diffrax(denoiser, mu)}
    other = _no_tables(denoiser, mu, key)
    made = {"dpm_adaptive": int(other["dpm_adaptive"]().nfe)}
    network, *seconds = fastest([calls, *runs.values(), *other.values(), *by_hand.values()], rounds, "timing")
    names = [*runs, *other, *by_hand]
    ratios = {name: s / network * NFE / made.get(name, NFE) for name, s in zip(names, seconds, strict=True)}
    compile_seconds, program = _compiling(denoiser, path, mu)
    return Overhead(
        device=device(),
        size=size,
        call_ms=1e3 * network / NFE,
        ratios={name: ratios[name] for name in runs},
        no_tables={name: ratios[name] for name in other},
        baselines={name: ratios[name] for name in by_hand},
        compilations=compilations,
        compile_seconds=compile_seconds,
        program_bytes=program,
        others=side_by_side.measure(),
    )


def _no_tables(denoiser: Denoiser, x: jax.Array, key: Key) -> dict[str, Any]:
    """20 calls of each solver without a table, except those that exist for comparison (mr_published)."""
    path: Any = denoiser.path
    lam = np.linspace(float(path.lam(path.t_max)), float(path.lam(0.01 * path.t_max)), 41)
    one, zero = (
        np.ones((41, *x.shape[1:])),
        np.zeros((41, *x.shape[1:])),
    )  # (l, s, b) = (1, 0, 0) predicts data
    chosen = {
        "dpm_v3": (solvers.dpm_v3(solvers.Statistics.of(path, lam, one, zero, zero)), NFE),
        "dpm_adaptive": (solvers.dpm_adaptive(kind="data", rtol=0.5), 1),
        "score_sde": (solvers.score_sde(), NFE // 2),
        "bdia": (solvers.bdia(), NFE),
        "obelm": (solvers.obelm(), NFE),
        "reversible_heun": (solvers.reversible_heun(), NFE - 1),
        "edict": (solvers.edict(), NFE // 2),
        "mccallum_foster": (solvers.mccallum_foster(), NFE // 4),
    }

    def run_one(solver: Solver, steps: int) -> Callable:
        grid = grids.log_snr(path, steps, t_max=0.9 * path.t_max, t_min=0.1 * path.t_max)
        return jax.jit(
            lambda x, key: sample(denoiser, x, x=x, key=key, solver=solver, grid=grid, adjoint=Direct())
        )

    return {name: partial(run_one(*way), x, key) for name, way in chosen.items()}


def _scan_by_hand(net: Callable, path: MeanReverting, x: jax.Array) -> Callable:
    """What a user who needs only DDIM writes: two lines inside a scan."""
    grid = grids.log_snr(path, NFE, t_max=0.9 * path.t_max, t_min=0.1 * path.t_max)
    t, s = grid[:-1], grid[1:]
    keep = path.sigma(s) / path.sigma(t)
    pull = path.alpha(s) - keep * path.alpha(t)

    @jax.jit
    def sample(coefficients, y):
        def step(y, c):
            return c[1] * y + c[2] * (net(path.uncentred(y), c[0]) - path.mu), None

        return path.uncentred(jax.lax.scan(step, path.centred(y), coefficients)[0])

    return partial(sample, tuple(jnp.asarray(c, x.dtype) for c in (t, keep, pull)), x)


def _by_diffrax(denoiser: Denoiser, x: jax.Array) -> dict[str, Any]:
    """diffrax with constant steps on dy/drho = eps, y = (x - mu)/alpha: 20 of Euler, 10 of Heun."""
    import diffrax

    path: Any = denoiser.path
    high, low = (float(path.rho(f * path.t_max)) for f in (0.9, 0.1))

    @eqx.filter_jit
    def sample(solver, steps, x):
        def field(rho, y, _):
            t = path.time(-jnp.log(rho))
            return denoiser(path.uncentred(path.alpha(t) * y), t, kind="noise")

        y = path.centred(x) / path.alpha(0.9 * path.t_max)
        out = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            solver,
            high,
            low,
            (low - high) / steps,
            y,
            adjoint=diffrax.DirectAdjoint(),
            max_steps=NFE,
        )
        return out.ys

    return {
        "diffrax Euler": partial(sample, diffrax.Euler(), NFE, x),
        "diffrax Heun": partial(sample, diffrax.Heun(), NFE // 2, x),
    }


def _compiling(denoiser: Denoiser, path: Path, x: jax.Array) -> tuple[dict[int, float], dict[int, int]]:
    """Seconds to trace and compile, and size of the program, for 10, 100 and 1000 steps."""
    seconds, size = {}, {}
    config: Any = jax.config
    persistent = config.jax_enable_compilation_cache
    config.update("jax_enable_compilation_cache", False)  # earlier programs must not be found again
    try:
        for n in tqdm((10, 100, 1000), desc="compiling", unit="program"):
            table = jax.tree.map(jnp.asarray, tabulate(path, grids.log_snr(path, n), solvers.dpmpp_2m))
            began = time.perf_counter()
            jitted = jax.jit(lambda table, x: run(denoiser, table, x, adjoint=Direct()))
            compiled = jitted.lower(table, x).compile()
            seconds[n], size[n] = time.perf_counter() - began, len(compiled.as_text() or "")
    finally:
        config.update("jax_enable_compilation_cache", persistent)
    return seconds, size


def markdown(result: Overhead) -> str:
    """Format the tables."""
    ratios = sorted(result.ratios.items(), key=lambda item: item[1])
    slowest, median = ratios[-1], ratios[len(ratios) // 2]
    net = f"restoration U-Net on {result.size} x {result.size} pixels, {result.call_ms:.0f} ms a call"
    lines = [
        f"{result.device}; {net}, {NFE} calls",
        "",
        "| sampler | time/(calls x network) |",
        "|---|---|",
        f"| {len(ratios)} solvers of the library, median | {median[1]:.3f} |",
        f"| slowest of them, `{slowest[0]}` | {slowest[1]:.3f} |",
        *(f"| `{name}`, no table | {value:.3f} |" for name, value in result.no_tables.items()),
        *(f"| {name} | {value:.3f} |" for name, value in result.baselines.items()),
        "",
        f"Compilations for all {len(ratios)} solvers: {result.compilations}.",
        "",
        "| steps | seconds to compile | program |",
        "|---|---|---|",
        *(
            f"| {n} | {s:.1f} | {result.program_bytes[n] / 1e3:.0f} kB |"
            for n, s in result.compile_seconds.items()
        ),
    ]
    if result.others:
        head = "| small MLP, batch 256, 20 calls | seconds/(seconds of `dpmpp_2m` here) |"
        lines += ["", head, "|---|---|"]
        lines += [f"| {name} | {value:.1f} |" for name, value in result.others.items()]
    return "\n".join(lines) + "\n"


def figure(result: Overhead) -> Any:
    """Plot the ratios of all solvers and baselines."""
    import matplotlib.pyplot as plt

    ratios = {**result.ratios, **result.no_tables, **result.baselines}
    items = sorted(ratios.items(), key=lambda item: item[1])
    fig, ax = plt.subplots(figsize=(7, 0.22 * len(items) + 1), layout="constrained")
    colours = ["tab:orange" if name in result.baselines else "tab:blue" for name, _ in items]
    ax.scatter([value for _, value in items], range(len(items)), color=colours, s=20, zorder=3)
    ax.axvline(1.0, color="0.3", lw=1)
    ax.axvline(1.02, color="0.3", lw=1, ls=":")
    ax.set_yticks(range(len(items)), [name for name, _ in items], fontsize=8)
    ax.set_xlabel(f"time of a sample/({NFE} x time of the jitted network); dotted: 1.02")
    ax.set_title("Cost beside the network (orange: written by hand, diffrax)", fontsize=10)
    ax.grid(axis="x", alpha=0.3)
    return fig
