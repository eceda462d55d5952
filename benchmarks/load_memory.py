"""What loading a checkpoint takes of memory at most, beside what the loaded model takes.

    python benchmarks/load_memory.py --out benchmarks/results/DATE_load_memory

The checkpoint has the shapes of Dream 7B and no content: its shards are a head and a hole in the
file (`truncate`), which read as zeros and take no disk. Each way of loading runs in a process of
its own, which a thread of it watches (/proc/self/status, so Linux alone):

* private: RssAnon, pages that no file backs, so that the kernel cannot take them back without swap;
  from what the process had before the load.
* mapped: RssFile, pages of the files, which it takes back when another wants them. Weights that are
  loaded in the dtype of their files stay there.

The claim: the private peak is at most the size of the loaded model's tensors (`final`) and of one
shard. What a model holds for good is in `after`, and of a dtype as in the files in the files.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.filesize import decimal
from safetensors.torch import save_file

from softmask.config import BUNDLED
from softmask.hub.adapters import quiet_peft
from softmask.hub.checkpoints import read_config
from softmask.hub.load import load
from softmask.models import DreamConfig, DreamModel
from softmask.reporting.result_folder import claim, write
from softmask.reporting.tables import light_table

# Dream-org/Dream-v0-Instruct-7B, config.json.
DREAM_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
}
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "vocab_size": 2048,
}
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTED: dict[str, Any] = {"r": 8, "lora_alpha": 8, "target_modules": LAYERS}
# What is loaded, by its name in the table: dtype, quantize, with an adapter.
WAYS: dict[str, tuple[str, str | None, bool]] = {
    "bfloat16": ("bfloat16", None, False),
    "bfloat16, adapter": ("bfloat16", None, True),
    "int8": ("float32", "int8", False),
    "int4": ("float32", "int4", False),
    "int4, adapter": ("float32", "int4", True),
}
SHARDS = 4
EVERY = 0.001  # seconds between two looks


def write_sparse(folder: Path, shape: dict[str, int], shards: int = SHARDS) -> Path:
    """A checkpoint in bfloat16 of zeros, which takes no disk: the bundled model's, in this shape.

    Its shards are cut between tensors, of about the same size.
    """
    bundled = Path(str(resources.files("softmask"))) / BUNDLED
    folder.mkdir(parents=True)
    for file in bundled.iterdir():
        if file.name.startswith(("tokenizer", "special_tokens", "vocab", "merges", "added_")):
            shutil.copy(file, folder)
    config = json.loads((bundled / "config.json").read_text(encoding="utf-8"))
    config |= {"layer_types": ["full_attention"] * shape["num_hidden_layers"]}
    config |= shape | {"tie_word_embeddings": False, "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with torch.device("meta"):
        tensors = DreamModel(DreamConfig(**config)).state_dict()
    total = sum(tensor.numel() for tensor in tensors.values())
    heads: list[dict[str, Any]] = [{} for _ in range(shards)]
    sizes, seen = [0] * shards, 0
    for name, tensor in tensors.items():
        number, bytes_ = min(shards - 1, seen * shards // total), 2 * tensor.numel()
        seen += tensor.numel()
        place = [sizes[number], sizes[number] + bytes_]
        heads[number][name] = {
            "dtype": "BF16",
            "shape": list(tensor.shape),
            "data_offsets": place,
        }
        sizes[number] += bytes_
    placed = {}
    for number, (head, size) in enumerate(zip(heads, sizes, strict=True), start=1):
        path = folder / f"model-{number:05}-of-{shards:05}.safetensors"
        text = json.dumps(head).encode()
        text += b" " * (-len(text) % 8)
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + size)
        placed |= dict.fromkeys(head, path.name)
    index = {"metadata": {"total_size": sum(sizes)}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def write_adapter(folder: Path, base: Path) -> Path:
    """A LoRA of small values for every linear layer of the base's blocks."""
    from peft import LoraConfig, PeftModel

    with torch.device("meta"), quiet_peft():
        model: Any = DreamModel(read_config(base))
        wrapped = PeftModel(model, LoraConfig(**ADAPTED))
    names = wrapped.state_dict()
    state = {
        name.replace(".default", ""): torch.full(tensor.shape, 0.01)
        for name, tensor in names.items()
        if ".lora_" in name
    }
    folder.mkdir(parents=True)
    save_file(state, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "base_model_name_or_path": str(base), **ADAPTED}
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


class Watch:
    """Looks at this process's memory from a thread; `peak` and `base` are in bytes."""

    def __init__(self) -> None:
        self.base = self.now()
        self.peak = dict(self.base)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @staticmethod
    def now() -> dict[str, int]:
        """Private and mapped memory."""
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        found = dict(line.split(":", 1) for line in lines)
        names = {"private": "RssAnon", "mapped": "RssFile"}
        return {key: 1024 * int(found[name].split()[0]) for key, name in names.items()}

    def _look(self) -> None:
        while not self._ended.wait(EVERY):
            for key, value in self.now().items():
                self.peak[key] = max(self.peak[key], value)


def measure(folder: Path, dtype: str, quantize: str | None, adapter: Path | None) -> dict[str, Any]:
    """Loads on the CPU in this process: bytes of the peaks above what was there, and of the model.

    `final` are its tensors' bytes, of which `private` those that lie in no file.
    """
    with tempfile.TemporaryDirectory() as place:
        # Imports libraries, and starts their threads.
        small = write_sparse(Path(place) / "model", SMALL, shards=1)
        tuned = write_adapter(Path(place) / "adapter", small) if adapter is not None else None
        load(small, tuned, device="cpu", dtype=dtype, quantize=quantize)
    with Watch() as watch:
        started = time.perf_counter()
        loaded = load(folder, adapter, device="cpu", dtype=dtype, quantize=quantize)
        seconds = time.perf_counter() - started
    after = Watch.now()
    grown = {f"{key}_peak": watch.peak[key] - watch.base[key] for key in watch.base}
    kept = {f"{key}_after": after[key] - watch.base[key] for key in watch.base}
    return {
        "final": bytes_of(loaded.model),
        "seconds": round(seconds, 1),
        **grown,
        **kept,
    }


def bytes_of(model: torch.nn.Module) -> int:
    """Bytes of parameters and buffers, with the scales that bitsandbytes keeps beside them."""
    tensors = [*model.parameters(), *model.buffers()]
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            nested = state.state2
            tensors += [state.absmax, *((nested.absmax,) if nested is not None else ())]
        scales = getattr(parameter, "SCB", None)
        tensors += [scales] if scales is not None else []
    return sum(tensor.nbytes for tensor in tensors)


def in_own_process(folder: Path, way: str, adapter: Path) -> dict[str, Any]:
    """`measure` in a process of its own."""
    words = [sys.executable, __file__, "--child", str(folder), way, str(adapter)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measures every way, or one in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="the folder of the result")
    parser.add_argument("--layers", type=int, default=DREAM_7B["num_hidden_layers"])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--child", nargs=3, metavar=("FOLDER", "WAY", "ADAPTER"))
    args = parser.parse_args()
    if args.child is not None:
        folder, way, adapter = args.child
        dtype, quantize, adapted = WAYS[way]
        print(
            json.dumps(measure(Path(folder), dtype, quantize, Path(adapter) if adapted else None))
        )
        return
    if args.out is None:
        parser.error("give --out")
    claim(args.out)
    shape = DREAM_7B | {"num_hidden_layers": args.layers}
    with tempfile.TemporaryDirectory() as place:
        folder = write_sparse(Path(place) / "model", shape)
        adapter = write_adapter(Path(place) / "adapter", folder)
        shard = max(file.stat().st_size for file in folder.glob("*.safetensors"))
        found = {way: in_own_process(folder, way, adapter) for way in args.ways}
    table = light_table(f"{args.layers} layers of Dream 7B in {SHARDS} shards of {decimal(shard)}")
    for name in ("", "final", "private peak", "after", "mapped peak", "final + shard", "seconds"):
        table.add_column(name, justify="right" if name else "left")
    for way, row in found.items():
        names = ("final", "private_peak", "private_after", "mapped_peak")
        numbers = [decimal(row[name]) for name in names]
        table.add_row(way, *numbers, decimal(row["final"] + shard), f"{row['seconds']:.0f}")
    values = {"shape": shape, "shard": shard, "adapter": ADAPTED, "ways": found}
    write(args.out, sys.argv, values, [table])
    Console().print(table)


if __name__ == "__main__":
    main()
