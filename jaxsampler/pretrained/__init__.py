"""Our own small trained networks, and samplers learned for them.

`load("fashion_edm")`: each network is a safetensors file beside this one, with a JSON card: how it was
trained, and how well it does. `table("fashion_edm", 5)`: each learned table is a safetensors file in
`tables`, with its card inside.
"""

from .loading import NAMES, card, load
from .samplers import table, table_card, tables

__all__ = ["NAMES", "card", "load", "table", "table_card", "tables"]
