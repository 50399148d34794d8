"""Where the project's own files lie."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
GOLDEN_FOLDER = ROOT / "tests" / "golden"
