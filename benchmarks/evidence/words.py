"""What an instruct model says, GSM8K and WikiText-2, as texts to adapt that very model on.

    python benchmarks/evidence/words.py OUT --model SMOLLM2 --data ../shared/data

DATA holds eval/gsm8k_train.jsonl, eval/mbpp.jsonl, text/self_instruct_seed_tasks.jsonl and
text/wiki.train.tokens. OUT gets own.txt (the model's own answers to the questions of the first
three, those that came to an end), gsm8k.txt (as people answered) and wiki.txt.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from common import evenly
from transformers import AutoModelForCausalLM, AutoTokenizer

from softmask.puzzles.stories import join_stories

# MBPP's test split: never trained on.
MBPP_TEST = range(11, 511)


def asked(question: str) -> str:
    """The beginning of a document that holds a question."""
    return f"Question: {question.strip()}\nAnswer:"


def read(path: Path) -> Iterator[dict]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def questions(data: Path) -> list[str]:
    """Questions of all kinds."""
    mathematics = [row["question"] for row in read(data / "eval" / "gsm8k_train.jsonl")]
    mbpp = read(data / "eval" / "mbpp.jsonl")
    code = [row["text"] for row in mbpp if row["task_id"] not in MBPP_TEST]
    tasks = []
    for row in read(data / "text" / "self_instruct_seed_tasks.jsonl"):
        tasks += [f"{row['instruction']}\n{one['input']}".strip() for one in row["instances"]]
    return mathematics + code + tasks


@torch.inference_mode()
def answers(
    model: AutoModelForCausalLM, tokenizer: AutoTokenizer, asking: list[str], tokens: int, rows: int
) -> Iterator[str]:
    """The model's answer to each question that it answers within `tokens`, as a document."""
    asking = sorted(asking, key=len)
    for start in range(0, len(asking), rows):
        batch = asking[start : start + rows]
        chats = [[{"role": "user", "content": question}] for question in batch]
        encoded = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        ).to(model.device)
        ids_BL = model.generate(
            **encoded, do_sample=True, temperature=0.7, top_k=50, max_new_tokens=tokens
        )
        new_BL = ids_BL[:, encoded["input_ids"].shape[1] :].cpu()
        for question, ids_L in zip(batch, new_BL.tolist(), strict=True):
            if tokenizer.eos_token_id in ids_L:
                said = tokenizer.decode(ids_L, skip_special_tokens=True)
                # Not as people's answers begin: these are often wrong.
                yield f"Instruction: {question}\nResponse: {said}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--questions", type=int, help="at most (default: all)")
    parser.add_argument("--tokens", type=int, default=192, help="of an answer, at most")
    parser.add_argument("--batch", type=int, default=64)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    known = read(args.data / "eval" / "gsm8k_train.jsonl")
    write(args.out / "gsm8k.txt", [f"{asked(row['question'])} {row['answer']}" for row in known])
    wiki = (args.data / "text" / "wiki.train.tokens").read_text(encoding="utf-8")
    write(args.out / "wiki.txt", [part for part in wiki.split("\n") if len(part) > 100])
    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    dtype = "float32" if args.device == "cpu" else "bfloat16"
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype).to(args.device)
    torch.manual_seed(1)
    asking, begun = questions(args.data), time.perf_counter()
    if args.questions is not None:
        # Of all kinds: the first 7,473 are mathematics.
        asking = evenly(asking, args.questions)
    said = list(answers(model, tokenizer, asking, args.tokens, args.batch))
    write(args.out / "own.txt", said)
    print(f"{len(said)} of {len(asking)} answers, {time.perf_counter() - begun:.0f} s")


def write(path: Path, documents: list[str]) -> None:
    if not documents:
        raise SystemExit(f"words.py: nothing to write to {path.name}: no answer ended in time")
    path.write_text(join_stories(documents), encoding="utf-8")


if __name__ == "__main__":
    main()
