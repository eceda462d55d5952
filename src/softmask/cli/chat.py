"""softmask chat: a conversation with an Instruct model.

/clear forgets the conversation, /exit leaves.
"""

from __future__ import annotations

import argparse
import sys

from .generate import show_steps, start_generation
from .options import add_decoding_options, add_model_options, load_model, new_parser


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = new_parser("chat", __doc__)
    add_model_options(parser)
    add_decoding_options(parser)
    return parser


def run(args: argparse.Namespace, _argv: list[str]) -> int:
    """Runs the command with parsed arguments."""
    from ..decoding.prompts import has_chat_template

    checkpoint = load_model(args)
    if not has_chat_template(checkpoint):
        raise ValueError(
            "this model has no chat template: use `softmask generate`, or --model with an "
            "Instruct model"
        )
    messages: list[dict[str, str]] = []
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return 0
        if line == "/exit":
            return 0
        if line == "/clear":
            messages = []
        elif line:
            messages.append({"role": "user", "content": line})
            generation = start_generation(args, checkpoint, messages)
            show_steps(generation, args)
            answer = generation.completions()[0].text
            print(answer, flush=True)
            messages.append({"role": "assistant", "content": answer})
