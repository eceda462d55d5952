"""A task of its own, of two questions, that is scored by likelihood or by generated text."""

import json
import os
import sys
from pathlib import Path

import lm_eval
from common import MODEL, URL, say
from lm_eval.api.task import ConfigurableTask

ROWS = [
    {"question": "A dog has legs:", "choices": ["four", "two"], "answer": 0},
    {"question": "A hen has legs:", "choices": ["four", "two"], "answer": 1},
]
Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
SHARED = {
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}},
    "test_split": "test",
    "doc_to_text": "{{question}}",
}
STOPS = [".", "!", "?", ";", ":", "Q:"]
TASKS = {
    "local-completions": {
        "task": "by_likelihood",
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}],
    },
    "local-chat-completions": {
        "task": "by_text",
        "output_type": "generate_until",
        "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": STOPS, "max_gen_toks": 16, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}

kind = sys.argv[1]
path = "chat/completions" if "chat" in kind else "completions"
arguments = {"base_url": f"{URL}/{path}", "model": MODEL, "num_concurrent": 1, "max_retries": 1}
if "chat" not in kind:
    arguments |= {"tokenizer_backend": "huggingface", "tokenizer": os.environ["TOKENIZER"]}
found = lm_eval.simple_evaluate(
    model=kind,
    model_args=arguments,
    tasks=[ConfigurableTask(config={**SHARED, **TASKS[kind]})],
    apply_chat_template="chat" in kind,
    bootstrap_iters=0,
)
say(kind, found["results"])
