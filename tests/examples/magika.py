"""Where the magika example lies."""

from pathlib import Path

MAGIKA = Path(__file__).parents[2] / "examples" / "magika"
