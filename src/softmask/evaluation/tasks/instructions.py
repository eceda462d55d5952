"""Score IFEval with upstream's checks, without its download.

Upstream's module fetches NLTK's punkt_tab when it is imported. Only two of its 25 kinds of
instruction need it: the number of sentences, and words in capitals (64 of the 541 prompts).
Another way to split sentences would score these differently without a sign of it, so their
absence is an error before anything is generated.
"""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["checked_docs", "mean_over_instructions", "results"]

_NEED_PUNKT = {"length_constraints:number_sentences", "change_case:capital_word_frequency"}


def checked_docs(docs: Dataset) -> Dataset:
    """Return the documents as they are; lm-eval calls this before it generates anything.

    Raises ValueError if a document needs NLTK's punkt_tab and it is not installed.
    """
    needed = any(_NEED_PUNKT & set(ids) for ids in docs["instruction_id_list"])
    if needed and not _has_punkt():
        raise ValueError(
            "IFEval counts sentences and words with NLTK's punkt_tab, which is not installed: run "
            "`python -m nltk.downloader punkt_tab` once with a network, or set NLTK_DATA to a "
            "folder that has tokenizers/punkt_tab."
        )
    return docs


def _has_punkt() -> bool:
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        return False
    return True


@lru_cache(maxsize=1)
def _upstream() -> ModuleType:
    import nltk
    from langdetect import DetectorFactory

    # langdetect draws at random otherwise, and a score would change from run to run.
    DetectorFactory.seed = 0
    with patch.object(nltk, "download"):  # called at import if punkt_tab is missing
        from lm_eval.tasks.ifeval import utils
    return utils


def results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """Return upstream's four scores of an answer, as lm-eval's `process_results`."""
    return _upstream().process_results(doc, results)


def mean_over_instructions(items: list[list[bool]]) -> float:
    """Return the part of all instructions, over all documents, that were followed."""
    flat = [followed for item in items for followed in item]
    return sum(flat) / len(flat)
