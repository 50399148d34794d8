"""What test_devices.py runs in processes of its own, whose environment tells XLA to have several devices.

devices_worker.py OUT.npz                         eight devices in one process: sharded samples, and the same
                                                  on one device
devices_worker.py OUT.npz PORT PROCESS COUNT      one of COUNT processes, two devices each, which sample one
                                                  batch together
"""

import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxsampler as js

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

OUT, *TOGETHER = sys.argv[1:]
PATH = js.VP()
SHAPE, MOVES = (32, 6), ("gather", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
SAMPLERS = {
    "multistep": dict(solver=js.solvers.dpmpp_2m_sde),
    "brownian": dict(solver=js.solvers.dpmpp_sde_1, noise="brownian"),
}


def net(x, t):
    """One part couples the features of a sample (not the samples); the other ignores x, so its sample is the
    noise itself.
    """
    w = jax.random.normal(jax.random.key(7), (6, 6), jnp.float32) / 6
    return {"mixing": 0.5 * jnp.tanh(x["mixing"] @ w + t), "blind": jnp.zeros_like(x["blind"])}


DENOISER = js.Denoiser(net, PATH, "data")
LIKE = dict.fromkeys(("mixing", "blind"), jax.ShapeDtypeStruct(SHAPE, jnp.float32))


def sampler(name):
    """A function of the key alone: the prior is drawn too."""
    return lambda key: js.sample(DENOISER, LIKE, key=key, steps=6, **SAMPLERS[name])


@jax.jit
def from_state(x, key):
    """A function of x_T: whatever its sharding, the sample's follows."""
    return js.sample(DENOISER, x, key=key, x=x, steps=6, save=[0, 3], **SAMPLERS["multistep"])


def moves(compiled):
    """The operations of a program that move what is sharded."""
    found = re.findall(r"\b([a-z-]+?)(?:-start)?\(", compiled.as_text())
    return [name for name in found if name in MOVES]


def eight_devices():
    key, out = jax.random.key(3), {}

    def keep(name, compiled, result):
        """A sharded result and its program."""
        assert {s.data.shape for a in jax.tree.leaves(result) for s in a.addressable_shards} == {(4, 6)}
        out[name + "/moves"], out[name + "/flops"] = (
            np.array(moves(compiled), str),
            compiled.cost_analysis()["flops"],
        )
        out.update({f"{name}/{net}": a for net, a in result.items()})

    rows = NamedSharding(jax.make_mesh((8,), ("batch",)), PartitionSpec("batch"))
    for name in SAMPLERS:
        alone, sharded = (
            jax.jit(sampler(name)).lower(key).compile(),
            jax.jit(sampler(name), out_shardings=rows).lower(key).compile(),
        )
        x = sharded(key)
        keep(f"{name}/sharded", sharded, x)
        out[f"{name}/alone/flops"] = alone.cost_analysis()["flops"]
        out.update({f"{name}/alone/{net}": a for net, a in alone(key).items()})
    whole = rows.update(spec=PartitionSpec())
    out["a gather is seen"] = np.array(
        moves(jax.jit(lambda x: x, out_shardings=whole).lower(x["mixing"]).compile()), str
    )
    x = PATH.prior(jax.random.key(4), LIKE)
    out.update({f"given/alone/{net}": a for net, a in from_state(x, key).x.items()})
    for axes in (
        AxisType.Auto,
        AxisType.Explicit,
    ):  # which of them jax.make_mesh makes depends on the version of JAX
        mesh = jax.make_mesh((8,), ("batch",), axis_types=(axes,))
        with jax.set_mesh(mesh):
            y = jax.device_put(x, NamedSharding(mesh, PartitionSpec("batch")))
            compiled = from_state.lower(y, key).compile()
            keep(f"given/{axes.name}", compiled, compiled(y, key).x)
    np.savez(OUT, **{name.replace("/", "|"): np.asarray(a) for name, a in out.items()})


def together(port, process, count):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", num_processes=int(count), process_id=int(process))
    assert (jax.device_count(), jax.local_device_count()) == (2 * int(count), 2)
    rows, out = NamedSharding(jax.make_mesh((jax.device_count(),), ("batch",)), PartitionSpec("batch")), {}
    for name in SAMPLERS:
        x = jax.jit(sampler(name), out_shardings=rows)(jax.random.key(3))
        for shard in x["mixing"].addressable_shards:
            out[f"{name}|{shard.index[0].start}"] = np.asarray(shard.data)
    np.savez(OUT, **out)


if __name__ == "__main__":
    together(*TOGETHER) if TOGETHER else eight_devices()
