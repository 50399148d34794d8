"""What `bench speed` times, with public names only: any checkout of the library runs it, as a script.

It reads the name of a case from each line of its input, and answers with one line of JSON: the seconds of CPU
and wall-clock time of a call. The first call of a case prepares and compiles it, and answers with what that
compiled.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import jaxsampler as js

COMPILED = []
UNROLLED = ", no loop"  # ends the name of a case that does the work of another one outside loops
SOLVERS = """ddim ddpm posterior euler euler_maruyama euler_ancestral heun edm rk_rho rf_solver dpm_1 dpm_2
    dpm_3 dpm_2m dpm_3m dpm_2_ancestral dpmpp_1 dpmpp_2s dpmpp_3s dpmpp_2m dpmpp_3m dpmpp_sde_1 dpmpp_sde
    dpmpp_2m_sde dpmpp_3m_sde dpmpp_2s_ancestral unipc deis deis_rho lms ipndm plms pndm mr_ode mr_sde"""
BY_HAND, IN_JIT = ", by hand", ", in jit and tabulated"


class Conv(eqx.Module):
    """A network as equinox users write it: channels first."""

    layers: list

    def __init__(self, key, width: int = 32):
        sizes, keys = [(3, width), (width, width), (width, 3)], jax.random.split(key, 3)
        self.layers = [
            eqx.nn.Conv2d(a, b, 3, padding=1, key=k) for (a, b), k in zip(sizes, keys, strict=True)
        ]

    def __call__(self, x, t):
        first, second, last = (jax.vmap(layer) for layer in self.layers)
        return last(jax.nn.silu(second(jax.nn.silu(first(x)))))


def gradients() -> dict[str, Callable]:
    """Gradients and samples of convolutional networks, jitted."""
    key = jax.random.key(0)

    def slope(denoiser, x, steps):
        arrays, static = eqx.partition(denoiser, eqx.is_inexact_array)

        def loss(arrays, x):
            d = eqx.combine(arrays, static)
            return jnp.square(js.sample(d, x, x=x, key=None, steps=steps)).mean()

        program = jax.jit(jax.grad(loss, argnums=(0, 1)))
        return lambda: program(arrays, x)

    def restoration():
        net = js.pretrained.load("restore")
        mu = jax.random.uniform(key, (1, 64, 64, 3))
        net_at = lambda x, t: net(x, t, mu, jnp.zeros(1, jnp.int32))
        return slope(js.Denoiser(net_at, net.path(mu), "data"), mu, 5)

    def nchw(what):
        x, net = jax.random.normal(key, (4, 3, 16, 16)), Conv(key)
        if what == "gradient":
            return slope(js.Denoiser(net, js.VP(), "noise"), x, 10)
        program = eqx.filter_jit(
            lambda net, x: js.sample(js.Denoiser(net, js.VP(), "noise"), x, x=x, key=None, steps=10)
        )
        return lambda: program(net, x)

    x = jax.random.normal(key, (4, 32, 32, 1))
    return {
        "gradient of fashion_edm": lambda: slope(js.pretrained.load("fashion_edm"), 80 * x, 8),
        "gradient of restore": restoration,
        "NCHW network, sample": lambda: nchw("sample"),
        "NCHW network, gradient": lambda: nchw("gradient"),
    }


class ConvLast(eqx.Module):
    """A network with channels last."""

    kernels: list

    def __init__(self, key, width: int = 32):
        sizes, keys = [(3, width), (width, width), (width, 3)], jax.random.split(key, 3)
        self.kernels = [
            jax.random.normal(k, (3, 3, a, b)) / (9 * a) ** 0.5 for (a, b), k in zip(sizes, keys, strict=True)
        ]

    def __call__(self, x, t):
        layout = ("NHWC", "HWIO", "NHWC")
        for i, kernel in enumerate(self.kernels):
            x = jax.lax.conv_general_dilated(
                jax.nn.silu(x) if i else x, kernel, (1, 1), "SAME", None, None, layout
            )
        return x


def loops() -> dict[str, Callable]:
    """Ten calls of a network in a scan, and the same work with nothing in a loop."""
    key, path, calls = jax.random.key(0), js.VP(), 10
    table = js.tabulate(path, js.grids.log_snr(path, calls), js.solvers.ddim)

    def scanned(net, x):
        return js.run(net, table, x, adjoint=js.Direct())

    def unrolled(net, x):
        for t, a, b in zip(table.t, table.A, table.B[:, 0], strict=True):
            x = float(a) * x + float(b) * net(x, jnp.float32(t))
        return x

    def forward(net, x, how):
        program = eqx.filter_jit(how if how is scanned else lambda net, x: net(x, jnp.float32(0.5)))
        return lambda: [program(net, x) for _ in range(1 if how is scanned else calls)]

    def gradient(net, x, how):
        program = eqx.filter_jit(eqx.filter_grad(lambda net, x: jnp.square(how(net, x)).mean()))
        return lambda: program(net, x)

    made = {"NCHW": (Conv(key), (8, 3, 32, 32)), "NHWC": (ConvLast(key), (8, 32, 32, 3))}
    return {
        f"{layout}, {work.__name__}{suffix}": lambda net=net, shape=shape, work=work, how=how: work(
            net, jax.random.normal(key, shape), how
        )
        for layout, (net, shape) in made.items()
        for work in (forward, gradient)
        for suffix, how in (("", scanned), (UNROLLED, unrolled))
    }


def eager() -> dict[str, Callable]:
    """Calls outside jit, on a small problem."""
    path = js.VP()
    denoiser = js.models.gaussian_mixture(jnp.array([[1.0, 0.0], [-1.0, 0.0]]), 0.2, path)
    like, key = jnp.zeros((64, 2)), jax.random.key(0)
    x = jax.random.normal(key, like.shape)
    table = js.tabulate(path, js.grids.log_snr(path, 20), js.solvers.dpmpp_2m)
    draw = lambda x: js.sample(denoiser, like, x=x, key=None)
    calls = {
        "eager sample": lambda: js.sample(denoiser, like, key=key),
        "eager sample, unipc": lambda: js.sample(denoiser, like, key=key, solver=js.solvers.unipc()),
        "eager run": lambda: js.run(denoiser, table, x),
        "eager log_prob": lambda: js.likelihood.log_prob(denoiser, x[0]),
        "eager invert": lambda: js.inversion.invert(denoiser, x).x,
        "eager gradient": lambda: jax.grad(lambda x: draw(x).sum())(x),
    }
    grid = js.grids.log_snr(path, 20)
    inside = {
        "eager run": lambda x: js.run(denoiser, table, x),
        "eager log_prob": lambda x: js.likelihood.log_prob(denoiser, x[0]),
        "eager invert": lambda x: js.inversion.invert(denoiser, x).x,
        "eager gradient": jax.grad(lambda x: draw(x).sum()),
    }

    def in_jit(function):
        program = jax.jit(function)
        return lambda: (js.tabulate(path, grid, js.solvers.dpmpp_2m), program(x))[1]

    calls |= {name + IN_JIT: in_jit(function) for name, function in inside.items()}
    return {name: lambda call=call: call for name, call in calls.items()}


def tables() -> dict[str, Callable]:
    """`tabulate`: a path that was never seen, so that no cache knows it."""
    fresh: Iterator[float] = (20 + 1e-9 * i for i in range(10**9))

    def made(name, n):
        step = js.solvers.by_name(name)

        def tabulate():
            path = js.VP(0.1, next(fresh))
            return js.tabulate(path, js.grids.log_snr(path, n), step).A

        return tabulate

    names = [name for name in SOLVERS.split() if hasattr(js.solvers, name)]
    return {
        f"tabulate {n}, {name}": lambda name=name, n=n: made(name, n) for n in (300, 1000) for name in names
    }


def small_states() -> dict[str, Callable]:
    """Jitted samples where the rows themselves cost, x donated, and scans by hand of as many calls."""
    names = [name for name in SOLVERS.split() if hasattr(js.solvers, name)]
    small = {f"64 x 2, {name}": (name, (64, 2), True) for name in names}
    cases: dict[str, tuple[str, tuple[int, int], bool]] = small | {
        "64 x 2, dpmpp_2m, a network of one operation": ("dpmpp_2m", (64, 2), False),
        "1024 x 1024, dpmpp_2m": ("dpmpp_2m", (1024, 1024), False),
    }
    made = {
        f"{case}{suffix}": lambda given=given, how=how: sampled(given[0], given[1], given[2], how)
        for case, given in cases.items()
        for suffix, how in (("", by_table), (BY_HAND, by_hand))
    }
    return made | {"64 x 2, dpmpp_2m, the table an argument": with_table}


def sampled(name: str, shape: tuple[int, int], mlp: bool, how: Callable) -> Callable:
    """Many calls of a sampler, each of which starts where the last one ended.

    The network has 32 hidden units, or is one operation.
    """
    path, key = js.VP(), jax.random.key(0)
    step: Any = js.solvers.by_name(name)
    table = js.tabulate(path, js.grids.log_snr(path, 20), step)
    w = jnp.linspace(-1, 1, 2 * 32, dtype=jnp.float32).reshape(2, 32)
    net = lambda x, t: jnp.tanh(x @ w + t) @ w.T / 32 if mlp else x * (1 - t)
    program = jax.jit(how(net, path, step.kind, table, key if table.draws else None), donate_argnums=0)

    def many():
        x = jnp.ones(shape, jnp.float32)
        for _ in range(200 if len(x) < 1000 else 5):
            x = program(x)
        return x

    return many


def by_table(net, path, kind, table, key):
    return lambda x: js.run(js.Denoiser(net, path, kind), table, x, key=key, adjoint=js.Direct())


def by_hand(net, path, kind, table, key):
    """x <- a x + b m (+ c z): the least that a solver does; on large states, a multistep one."""
    columns = [jnp.asarray(c, jnp.float32) for c in (table.t, table.A, *table.B.T[:2], table.C)]
    numbers = jnp.arange(table.nfe)

    def first_order(x, row):
        (t, a, b, *_, c), i = row
        x = a * x + b * net(x, t)
        return (x if key is None else x + c * jax.random.normal(jax.random.fold_in(key, i), x.shape)), None

    def multistep(carry, row):
        (x, last), ((t, a, b, b_last, _), _) = carry, row
        m = net(x, t)
        return (a * x + b * m + b_last * last, m), None

    def sample(x):
        if x.size < 1000:
            return jax.lax.scan(first_order, x, (columns, numbers))[0]
        return jax.lax.scan(multistep, (x, jnp.zeros_like(x)), (columns, numbers))[0][0]

    return sample


def with_table():
    """The table is an argument of the program, which then runs any table of its shape."""
    path, x = js.VP(), jax.random.normal(jax.random.key(0), (64, 2))
    denoiser = js.Denoiser(lambda x, t: x * (1 - t).astype(x.dtype), path, "data")
    program = jax.jit(lambda table, x: js.run(denoiser, table, x, adjoint=js.Direct()))
    table = js.tabulate(path, js.grids.log_snr(path, 20), js.solvers.dpmpp_2m)
    table = jax.tree.map(jnp.asarray, table)
    return lambda: [program(table, x) for _ in range(200)][-1]


def adjoints() -> dict[str, Callable]:
    """Gradients of a small network's samples by checkpoints and by the continuous adjoint."""

    def slope(adjoint, n):
        path, keys = js.VP(), jax.random.split(jax.random.key(0), 3)
        weights = [jax.random.normal(keys[0], (16, 64)) / 4, jax.random.normal(keys[1], (64, 16)) / 8]
        x, grid = jax.random.normal(keys[2], (64, 16)), js.grids.log_snr(path, n, t_max=0.9, t_min=0.01)

        def loss(weights, x):
            net = lambda x, t: jnp.tanh(x @ weights[0] + t) @ weights[1]
            denoiser = js.Denoiser(net, path, "noise")
            return jnp.square(js.sample(denoiser, x, x=x, key=None, grid=grid, adjoint=adjoint)).mean()

        program = jax.jit(jax.grad(loss, argnums=(0, 1)))
        return lambda: program(weights, x)

    routes = {"RecursiveCheckpoint": js.RecursiveCheckpoint(), "AdjointDPM": js.AdjointDPM()}
    return {
        f"gradient, {name}, {n} rows": lambda how=how, n=n: slope(how, n)
        for name, how in routes.items()
        for n in (16, 64, 256)
    }


def first_use() -> dict[str, Callable]:
    return {"pretrained.load": lambda: lambda: jax.tree.leaves(js.pretrained.load("fashion_edm"))[0]}


def cases() -> dict[str, Callable]:
    return gradients() | loops() | eager() | tables() | small_states() | adjoints() | first_use()


def main() -> None:
    def hear(event: str, duration_secs: float, **about: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            COMPILED.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(hear)
    known, ready = cases(), {}
    print(json.dumps(list(known)), flush=True)
    for line in sys.stdin:
        name, before = line.strip(), len(COMPILED)
        if first := name not in ready:
            ready[name] = known[name]()
        wall, cpu = time.perf_counter(), time.process_time()
        out = jax.block_until_ready(ready[name]())
        seconds = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
        head = np.concatenate([np.ravel(np.asarray(a, np.float64))[:50] for a in jax.tree.leaves(out)][:8])
        answer = seconds | {"first": first, "compiled": len(COMPILED) - before, "head": head.tolist()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
