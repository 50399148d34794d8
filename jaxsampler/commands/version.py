"""`jaxsampler --version`: what a report of a fault should begin with."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import jaxsampler

CORE = ("jax", "jaxlib", "numpy", "equinox", "jaxtyping", "diffrax", "optax", "chex")
EXTRAS = {  # as pyproject.toml has them
    "demo": (
        "matplotlib",
        "pillow",
        "safetensors",
        "scikit-image",
        "scikit-learn",
        "scipy",
        "tifffile",
        "tqdm",
        "tyro",
    ),
    "ot": ("ott-jax",),
}
RELEVANT = ("JAX_", "XLA_", "CUDA_VISIBLE_DEVICES", "JAXSAMPLER_")


def report() -> str:
    """Versions, devices, extras and the settings in the environment, a fact per line."""
    lines = [
        f"jaxsampler {jaxsampler.__version__} ({os.path.dirname(jaxsampler.__file__)})",
        f"Python {platform.python_version()}, {platform.platform()}, {os.cpu_count()} CPUs",
        ", ".join(f"{name} {found(name) or 'missing'}" for name in CORE),
        f"devices: {devices()}",
    ]
    for extra, names in EXTRAS.items():
        told = ", ".join(f"{name} {found(name) or 'missing'}" for name in names)
        whole = all(found(name) for name in names)
        lines.append(f"{told}" if whole else f'{told}: pip install "jaxsampler[{extra}]"')
        lines[-1] = f"extra {extra}: {lines[-1]}"
    settings = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(RELEVANT)]
    return "\n".join([*lines, f"environment: {' '.join(settings) or 'nothing set'}"])


def found(name: str) -> str | None:
    """The version of an installed package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def devices() -> str:
    """The devices that JAX sees, or why it sees none."""
    import jax

    try:
        seen = jax.devices()
    except RuntimeError as error:
        return f"none ({str(error).splitlines()[0]})"
    return f"{len(seen)} x {seen[0].device_kind} ({seen[0].platform})"
