"""Settings of `softmask eval ppl` and `softmask eval calibration`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import require, require_positive, setting
from .config import check_batch_size


@dataclass(frozen=True)
class HeldOutConfig:
    """How the text is cut and masked."""

    length: int = setting(256, "tokens of a window")
    times: int = setting(16, "masks of a window, one in each of as many equal slices of t")
    batch_size: int | str = setting(16, "rows of one forward; auto: as many as fit and pay")
    seed: int = setting(0, "of the masks; each window has its own")
    steps: int = setting(64, "stale feedback: denoising steps; it comes from t + 1/steps")

    def __post_init__(self) -> None:
        require(self.length >= 2, f"length must be at least 2, not {self.length}")
        require_positive(self, "times", "steps")
        check_batch_size(self.batch_size)


@dataclass(frozen=True)
class CalibrationConfig:
    """How often masks are read, and how texts are masked."""

    passes: int = setting(8, "readings of the same masks, each with the feedback of the one before")
    share: float = setting(0.5, "of texts: the share of a window's tokens that is masked")
    length: int = setting(128, "of texts: tokens of a window")
    batch_size: int = setting(16, "rows of one forward")
    seed: int = setting(0, "of the masks of texts, and of what decoding draws")

    def __post_init__(self) -> None:
        require_positive(self, "passes", "batch_size")
        require(self.length >= 2, f"length must be at least 2, not {self.length}")
        require(0 < self.share <= 1, f"share must lie in (0, 1], not {self.share}")
        require(0 <= self.seed < 2**63, f"seed must lie between 0 and 2**63, not {self.seed}")
