"""Where tests find files: the checkout, small data beside the tests, and larger data beside it."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
DATA = Path(__file__).parent / "data"
# Real evaluation data and text, where they are at hand; what needs them skips with a reason.
SHARED = ROOT.parent / "shared" / "data"
