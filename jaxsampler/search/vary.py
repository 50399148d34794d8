"""What may be free in a `learnable` table, by name, and what published methods leave free.

References: Tong et al. 2025 (LD3); Frankel et al. 2025 (S4S); Shaul et al. 2024 (BNS); the Generalized
Solver, 2025; Zhao et al. 2024 (DC-Solver); Zhou et al. 2024 (AMED), Zhu et al. 2025 (EPD).
"""

from typing import Any

from ..spelling import nearest

LEAVES = ("nodes", "shifts", "relaxation", "amplitude", "weights", "scale", "compensation")
VARY = {
    "grid": ("nodes", "shifts"),
    "relaxation": ("nodes", "shifts", "relaxation"),
    "table": ("nodes", "shifts", "amplitude", "weights"),
}
# What is free in published methods, as options of `learnable` and `learn`; comments name parents and losses.
METHODS: dict[str, dict[str, Any]] = {
    # any parent; the loss of LD3 itself is relaxed, radius=1e-3
    "ld3": {"vary": "grid", "fix_first": True},
    # parent dpmpp_1: exponential multistep of order up to 3
    "s4s": {"vary": "nodes+shifts+weights", "band": 3, "consistent": False},
    # parent dpmpp_3m
    "gs": {"vary": "table", "consistent": False},
    # parent euler; contains BNS and its source noise
    "bns": {"vary": "table+scale", "consistent": False, "loss": "mean_log"},
    # parent unipc: dynamic compensation
    "dc": {"vary": "compensation"},
    # parent dpm_2, two rows a step; contains AMED without its network
    "amed": {"vary": "shifts+weights", "band": 2, "consistent": False},
    # parent of three rows a step (dpm_3), K = 2 slopes; contains EPD
    "epd": {"vary": "shifts+weights", "band": 3, "consistent": False},
}


def leaves_of(vary: str) -> tuple[str, ...]:
    """Return the free leaves that `vary` names: "grid", "relaxation", "table" and leaves, joined by "+"."""
    names: list[str] = []
    for name in vary.split("+"):
        if name not in VARY and name not in LEAVES:
            raise ValueError(f"unknown name {name!r} in vary={vary!r}; {nearest(name, [*VARY, *LEAVES])}")
        names += VARY.get(name, (name,))
    return tuple(dict.fromkeys(names))
