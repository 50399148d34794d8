"""What test_many_devices.py runs in a process with 64 devices: `many_devices_worker.py OUT.json` writes what
the programs of `jaxsampler sample` and `jaxsampler train` are on 8 and on 64 of them, the same share of a
batch on each, and what they give.
"""

import json
import re
import sys
import time
from collections import Counter
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxsampler as js
from jaxsampler.commands.generate import plans, work
from jaxsampler.nn import small_images
from jaxsampler.training import fitting, generate
from jaxsampler.training.optimisers import muon

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

DEVICES, EACH = jax.devices(), 2
MOVES = ("all-gather", "all-to-all", "all-reduce", "collective-permute", "reduce-scatter")
HOST = ("send", "recv", "infeed", "outfeed", "MoveToHost", "callback")
C = generate.Generate(
    model="edm",
    seed=0,
    steps=4,
    batch=EACH,
    widths=(4,),
    depth=1,
    embedding=8,
    noise_mean=0.0,
    noise_std=1.0,
    dropout=0.1,
    lr=1e-2,
    warmup=0,
    weight_decay=0.0,
    clip=1.0,
    average=0.1,
    images="pets",
    size=8,
)
LEAVES, STRUCTURE = jax.tree.flatten(generate.network(C, 0.5, 3))
KEYS = jax.random.split(jax.random.key(1), len(LEAVES))
NET = jax.tree.unflatten(  # no weight is zero
    STRUCTURE, [a + 0.2 * jax.random.normal(k, a.shape) for a, k in zip(LEAVES, KEYS, strict=True)]
)


def use(count):
    """Let this many devices be all there are."""
    jax.devices = jax.local_devices = lambda: DEVICES[:count]


def plan(batch):
    denoiser = generate.denoiser(NET)
    table = js.tabulate(denoiser.path, js.grids.default(denoiser.path, 4), js.solvers.dpmpp_2m_sde)
    return plans.Plan(denoiser, table, None, (8, 8, 1), ("a", "b", "c"), None, 2.0, 7, batch, batch, {}, "")


def program(jitted, *args):
    """What a compiled program holds."""
    traced = []
    batched = small_images.batched
    small_images.batched = lambda *a: traced.append(1) or batched(*a)
    began = time.perf_counter()
    compiled = jitted.lower(*args).compile().compiled
    print(f"compiled in {time.perf_counter() - began:.1f} s", file=sys.stderr)
    small_images.batched = batched
    text, memory = compiled.as_text(), compiled.memory_analysis()
    names = re.findall(r"\b([a-z-]+?)(?:-start)?\(", text)
    return {
        "traces": len(traced),
        "moves": dict(Counter(n for n in names if n in MOVES)),
        "host": [word for word in HOST if re.search(rf"\b{word}\b", text)],
        "host bytes": memory.host_temp_size_in_bytes + memory.host_output_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "output": memory.output_size_in_bytes,
        "length": len(names),
        "whole": [s.is_fully_replicated for s in jax.tree.leaves(compiled.output_shardings)],
    }


def sampling(count):
    use(count)
    p, seen = plan(EACH * count), {}
    jitted, work.draw = work.draw, lambda *args: seen.setdefault("args", args)
    work.begin(work.laid_out(p), 0)
    work.draw = jitted
    return program(work.draw, *seen["args"])


def training(count):
    use(count)
    c = replace(C, batch=EACH * count)
    state, place = fitting.spread(fitting.start(NET, muon(c)))
    loss = lambda net, batch, key: generate.loss(c, net, batch, key)
    fixed = (loss, muon(c), fitting.warmed(0.9), jax.random.key(0), 1)
    return program(fitting.update, fixed, state, place(data(c.batch)))


def data(size):
    rng = np.random.default_rng(0)
    image = rng.uniform(-1, 1, (size, 8, 8, 1)).astype(np.float32)
    return {"image": image, "label": rng.integers(0, 3, size).astype(np.int32)}


def images(count):
    """What 64 images are, drawn on this many devices."""
    use(count)
    p = work.laid_out(plan(64))
    drawn, good = work.begin(p, 0)
    assert len(drawn.sharding.device_set) == count
    return work.checked(p, 0, drawn, good).astype(int)


if __name__ == "__main__":
    out = {what.__name__: [what(8), what(64)] for what in (sampling, training)}
    one, many = images(1), images(64)
    out["images differ by"], out["spread"] = int(np.abs(one - many).max()), float(one.std())
    whole = NamedSharding(Mesh(np.array(DEVICES), "b"), PartitionSpec())
    rows = jax.device_put(jnp.ones(64), whole.update(spec=PartitionSpec("b")))
    gathered = eqx.filter_jit(lambda x: jax.lax.with_sharding_constraint(x, whole))
    out["a gather is seen"] = program(gathered, rows)
    with open(sys.argv[1], "w") as file:
        json.dump(out, file)
