"""softmask export: a folder that transformers loads without this package, or a GGUF file.

Writes a folder with weights (an adapter is merged in), tokenizer, soft-mask parameters and code,
which AutoModel.from_pretrained(DIR, trust_remote_code=True) loads without this package. With
--layout original it is written as the model's family has it, for that family's own code and tools.
With --gguf bf16, q8_0, f16 or f32 it is one file that llama.cpp loads.
"""

from __future__ import annotations

import argparse

from ..reporting.progress import progress
from .options import add_family_option, add_layout_option, new_parser, path_of


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = new_parser("export", __doc__)
    parser.add_argument("target", type=path_of, metavar="PATH", help="the folder or file to write")
    parser.add_argument(
        "--model",
        help="folder, GGUF file or Hub id of a model (default: the adapter's, or the bundled)",
    )
    parser.add_argument("--adapter", help="folder or Hub id of a PEFT adapter to merge in")
    parser.add_argument("--revision", help="branch, tag or commit of the model on the Hub")
    add_family_option(parser)
    add_layout_option(parser)
    parser.add_argument("--dtype", help="convert to float32, bfloat16 or float16 (default: keep)")
    parser.add_argument("--gguf", metavar="TYPE", help="write a GGUF file: bf16, q8_0, f16, f32")
    parser.add_argument("--overwrite", action="store_true", help="replace an older export in PATH")
    return parser


def run(args: argparse.Namespace, _argv: list[str]) -> int:
    """Runs the command with parsed arguments."""
    if args.gguf is not None:
        return _run_gguf(args)
    with progress(f"exporting to {args.target}"):
        from ..config import SOFT_MASK_FILE
        from ..hub.export import export
        from ..hub.model_card import PLAIN_ELSEWHERE

        folder = export(
            args.target,
            args.model,
            args.adapter,
            revision=args.revision,
            family=args.family,
            layout=args.layout or "softmask",
            dtype=args.dtype,
            overwrite=args.overwrite,
        )
    print(f"the model is in {folder}")
    if args.layout == "original" and (folder / SOFT_MASK_FILE).is_file():
        print(PLAIN_ELSEWHERE)
    return 0


def _run_gguf(args: argparse.Namespace) -> int:
    from ..config import require

    for option in ("layout", "dtype"):
        given = getattr(args, option) is not None
        require(not given, f"--{option} is for a folder: leave it out, or --gguf")
    with progress(f"exporting to {args.target}"):
        from ..hub.gguf_export import CAUSAL_ELSEWHERE, export_gguf
        from ..hub.gguf_file import read_head

        file = export_gguf(
            args.target,
            args.model,
            args.adapter,
            kind=args.gguf,
            revision=args.revision,
            family=args.family,
            overwrite=args.overwrite,
        )
    print(f"the model is in {file}")
    if not read_head(file).architecture.denoises:
        print(CAUSAL_ELSEWHERE)
    return 0
