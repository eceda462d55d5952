"""Evaluation tasks for lm-evaluation-harness that run offline and execute no code unguarded.

    code/      humaneval, humaneval_plus, mbpp, mbpp_plus, each also as _instruct
    math/      math500 and minerva_math500
    ifeval.yaml
    planning/  Countdown and 4x4 Sudoku, few-shot and plain
    ruler/     needles, variables, words and questions in long texts
    parallelbench/ and sudoku_9x9/, which make their rows themselves

The names that upstream has (lm-eval 0.4.13) keep its prompts, shots, filters and metrics, and
replace it in `TaskManager(include_path=...)`. GSM8K, GSM8K-Platinum and AIME need nothing of ours:
they are upstream's own files.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

__all__ = ["FOLDER", "include_paths"]

FOLDER = Path(__file__).parent
# Upstream's folders of tasks that are used as they are.
UPSTREAM = ("gsm8k", "gsm8k_platinum", "aime")


def include_paths() -> list[str]:
    """Return the folders of our tasks and of the upstream tasks we use as they are.

    `TaskManager(include_path=include_paths(), include_defaults=False)` indexes them in a moment;
    with the defaults it reads the 14,000 files of upstream first (5 s). Raises ValueError if
    lm_eval is not installed.
    """
    spec = find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise ValueError("The tasks need lm_eval: pip install 'softmask[eval]'.")
    tasks = Path(spec.origin).parent / "tasks"
    return [*(str(tasks / name) for name in UPSTREAM), str(FOLDER)]
