"""Paired timings: functions run in turns, so that other load on the machine affects all of them alike."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from tqdm import tqdm


def fastest(functions: Sequence[Callable[[], Any]], rounds: int = 5, label: str | None = None) -> list[float]:
    """Least seconds of each function over `rounds` turns; a first turn compiles and does not count.

    Args:
        label: of a progress bar; None: no bar.
    """
    times = []
    turns = [(turn, f) for turn in range(rounds + 1) for f in functions]
    with tqdm(turns, desc=label, unit="run", disable=label is None) as bar:
        for turn, f in bar:
            if len(times) <= turn:
                times.append([])
            began = time.perf_counter()
            jax.block_until_ready(f())
            times[-1].append(time.perf_counter() - began)
    return [min(column) for column in zip(*times[1:], strict=True)]


def device() -> str:
    """Name the machine: number, kind and platform of its devices, and the version of jax."""
    first = jax.devices()[0]
    return f"{len(jax.devices())} x {first.device_kind} ({first.platform}), jax {jax.__version__}"
