"""Restore photographs with a few network calls: one photo, a folder, or a comparison of solvers."""

from .folder import Outcome, load_mask, restore_folder
from .photo import Restorer, chosen, restore, table
from .tiles import Tiled

__all__ = ["Outcome", "Restorer", "Tiled", "chosen", "load_mask", "restore", "restore_folder", "table"]
