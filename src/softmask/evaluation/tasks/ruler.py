"""RULER's rows as its own scripts write them, for the tasks of lm-evaluation-harness.

Source: github.com/NVIDIA/RULER, `scripts/data/prepare.py` (arXiv 2404.06654). It makes texts anew
for a tokenizer and a length, `SAVE_DIR/TASK/validation.jsonl`; here SAVE_DIR is a folder
`ruler/LENGTH`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

# Upstream's task: RULER's own name of it.
RULER = {
    **{
        name: name
        for name in (
            *("niah_single_1", "niah_single_2", "niah_single_3"),
            *("niah_multikey_1", "niah_multikey_2", "niah_multikey_3"),
            *("niah_multiquery", "niah_multivalue"),
        )
    },
    "ruler_vt": "vt",
    "ruler_cwe": "cwe",
    "ruler_fwe": "fwe",
    "ruler_qa_squad": "qa_1",
    "ruler_qa_hotpot": "qa_2",
}
# Tokens; upstream has a metric for each of these.
LENGTHS = (4096, 8192, 16384, 32768, 65536, 131072)


def length_of(path: Path) -> dict[str, Any]:
    """The length that a file's texts were made for: the name of the folder above its task's.

    Raises:
        ValueError: the folder has another name.
    """
    name = path.parent.parent.name
    if name not in map(str, LENGTHS):
        raise ValueError(
            f"{path}: the folder above the task's must be named for the length of its texts, "
            f"{', '.join(map(str, LENGTHS))}, not {name}"
        )
    return {"max_length": int(name)}


def ruler_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row as upstream's tasks read it.

    The answer begins with `answer_prefix`; where a release has no such field, `input` ends with it.

    Raises:
        ValueError: a field is of another type.
    """
    outputs, prefix = row["outputs"], row.get("answer_prefix", "")
    if not isinstance(row["input"], str) or not isinstance(prefix, str):
        raise ValueError("input and answer_prefix must be texts.")
    if not isinstance(outputs, list) or not outputs or not all(isinstance(o, str) for o in outputs):
        raise ValueError("outputs must be a list of texts.")
    # The harness puts the space between a prompt and the beginning of its answer.
    own = {"input": row["input"].rstrip(), "outputs": outputs, "gen_prefix": prefix.strip()}
    return own | {"max_length": row["max_length"]}
