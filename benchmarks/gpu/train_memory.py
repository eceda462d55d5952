"""Peak memory and time of a fine-tuning step of Dream-7B's shape, ours against the published step.

    python benchmarks/gpu/train_memory.py --out benchmarks/results/DATE_train_memory     # one GPU
    python benchmarks/gpu/train_memory.py --device cpu --layers 1,2,4                    # no GPU

Random bf16 weights, DoRA r=16 on q, k, v, o, gradient checkpointing, one row of 2,048 tokens, half
of them masked, bf16 autocast, AdamW. "ours" is this package's objective; "published" a plain
implementation of the released step: dense (B, T, V) mixture, logits of every position in both
passes. "4bit" is ours with frozen weights in 4 bits, where bitsandbytes is installed.
Every figure comes from a process of its own, so that no way leaves memory to the next. Without a
GPU the model cannot have all 28 layers: from several numbers of layers the summary extrapolates to
28, which is an estimate and is called so. Last line: JSON.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from shapes import FULL_LAYERS, SHAPES, random_dream
from torch import Tensor, nn

from softmask.reporting.measure import peak_mb
from softmask.reporting.result_folder import provenance
from softmask.soft_mask import confidence

WAYS = ("ours soft", "ours plain", "4bit soft", "published soft", "published plain")
GB = 1e9


def main() -> None:
    args = arguments()
    if args.child is not None:
        print(json.dumps(measure(args, args.child, int(args.layers))))
        return
    layers = [int(part) for part in args.layers.split(",")]
    ways = [w for w in WAYS if w in args.ways.split(",") or not args.ways]
    if importlib.util.find_spec("bitsandbytes") is None:
        ways = [way for way in ways if way != "4bit soft"]
    # In turns: number of layers outside, so that neighbours in time are what is compared.
    raw = [{"way": way, "layers": n} | run_child(args, way, n) for n in layers for way in ways]
    if all("failed" in run for run in raw):
        sys.exit("every way failed")
    summary = {way: summarise([r for r in raw if r["way"] == way]) for way in ways}
    result = {
        "command": " ".join(["python", *sys.argv]),
        **provenance(),
        "tokens": args.tokens,
        "shape": args.shape,
        "raw": raw,
        "summary": summary,
    }
    for way, values in summary.items():
        print(f"{way:<16}" + "  ".join(f"{k} {v:.2f}" for k, v in values.items()))
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shape", default="7b", choices=SHAPES)
    parser.add_argument("--layers", default=str(FULL_LAYERS), help="28, or 1,2,4")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=5, help="timed steps, after one to warm up")
    parser.add_argument("--ways", default="", help="some of: " + ", ".join(WAYS))
    parser.add_argument("--out", type=Path, help="folder for result.json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def run_child(args: argparse.Namespace, way: str, layers: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", way, "--layers", str(layers)]
    command += ["--device", args.device, "--shape", args.shape]
    command += ["--tokens", str(args.tokens), "--steps", str(args.steps)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["?"])[-1]
        print(f"{way}, {layers} layers: failed ({last})", file=sys.stderr)
        return {"failed": last}
    return json.loads(done.stdout.splitlines()[-1])


def summarise(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Peak and time by number of layers; the peak at 28 by a straight line where none has them."""
    runs = [run for run in runs if "failed" not in run]
    shown = {}
    for run in runs:
        shown[f"{run['layers']} layers GB"] = run["peak"] / GB
        shown[f"{run['layers']} layers s"] = statistics.median(run["seconds"])
    if len(runs) > 1 and all(run["layers"] != FULL_LAYERS for run in runs):
        first, last = runs[0], runs[-1]
        slope = (last["peak"] - first["peak"]) / (last["layers"] - first["layers"])
        shown["estimate at 28 GB"] = (last["peak"] + slope * (FULL_LAYERS - last["layers"])) / GB
    return shown


# One way, in a process of its own


def measure(args: argparse.Namespace, way: str, layers: int) -> dict[str, Any]:
    """Bytes above what the process had before the model, and seconds of each step."""
    import peft  # noqa: F401  before the first reading: its 0.1 GB are no part of a step

    from softmask.training.objective import masked_diffusion_loss

    torch.manual_seed(0)
    device = torch.device(args.device)
    before = peak(device)
    model, dream = build(args.shape, layers, device, in_4bit=way.startswith("4bit"))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    ids_BL = torch.randint(0, dream.config.vocab_size - 1, (1, args.tokens), device=device)
    masked_BL = torch.rand(ids_BL.shape, device=device) < 0.5
    noisy_BL = ids_BL.masked_fill(masked_BL, dream.config.mask_token_id)
    times_B = torch.full((1,), 0.5, device=device)
    soft = way.endswith("soft")
    seconds = []
    for _ in range(args.steps + 1):
        synchronise(device)
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16):
            if way.startswith("published"):
                loss = published_loss(model, dream, noisy_BL, ids_BL, masked_BL, 0.5, soft)
            else:
                loss = masked_diffusion_loss(
                    model, noisy_BL, ids_BL, masked_BL, times_B, soft=soft, weighting="published"
                ).value
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    return {"peak": peak(device) - before, "seconds": seconds[1:], "loss": loss.item()}


def build(
    shape: str, layers: int, device: torch.device, in_4bit: bool
) -> tuple[nn.Module, nn.Module]:
    from peft import LoraConfig, get_peft_model

    from softmask.config import SoftMaskConfig
    from softmask.training.build import learnable

    dream = random_dream(shape, layers, device, torch.bfloat16)
    if in_4bit:
        quantise(dream, device)
        dream.is_loaded_in_4bit = True  # what peft asks
    adapter = LoraConfig(
        r=16, lora_alpha=16, use_dora=True, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]
    )
    model = get_peft_model(dream, adapter)
    dream.soft_mask = learnable(SoftMaskConfig(k=1, scale=0.3, offset=-8.0, steepness=1.0), dream)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train(), dream


def quantise(dream: nn.Module, device: torch.device) -> None:
    """The layers' linear modules in nf4, as `load(load_in_4bit=True)` makes them."""
    import bitsandbytes as bnb

    for layer in dream.model.layers:
        for parent in list(layer.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):
                    packed = bnb.nn.Linear4bit(
                        child.in_features,
                        child.out_features,
                        bias=child.bias is not None,
                        compute_dtype=torch.bfloat16,
                        quant_type="nf4",
                    )
                    packed.weight = bnb.nn.Params4bit(
                        child.weight.data.cpu(), requires_grad=False, quant_type="nf4"
                    )
                    packed.bias = child.bias
                    setattr(parent, name, packed.to(device))


def published_loss(
    model: nn.Module,
    dream: nn.Module,
    noisy_BL: Tensor,
    ids_BL: Tensor,
    masked_BL: Tensor,
    t: float,
    soft: bool,
) -> Tensor:
    """The released step, written down plainly: nothing sparse, logits of every position."""
    labels_BL = ids_BL.masked_fill(~masked_BL, -100)
    labels_BL[:, 0] = -100
    inputs = {"input_ids": noisy_BL}
    if soft:
        with torch.no_grad():
            first_BLV = model(noisy_BL).logits
        table_VD = dream.model.embed_tokens.weight
        mixture_BLV = dense_mixture(dream.soft_mask, noisy_BL, first_BLV, masked_BL)
        inputs = {"inputs_embeds": mixture_BLV.to(table_VD.dtype) @ table_VD}
    logits_BLV = model(**inputs).logits.float()
    loss = F.cross_entropy(logits_BLV.flatten(0, 1), labels_BL.flatten(), ignore_index=-100)
    return loss / t


def dense_mixture(mask: Any, noisy_BL: Tensor, logits_BLV: Tensor, masked_BL: Tensor) -> Tensor:
    """(B, L, V) weights of all embeddings, in fp32."""
    with torch.autocast(noisy_BL.device.type, enabled=False):
        logits_BLV = logits_BLV.float()
        p_BLV = torch.softmax(logits_BLV, -1)
        entropy_BL = -(p_BLV * torch.log(p_BLV + 1e-10)).sum(-1)
        sure_BL = confidence(entropy_BL, mask.offset, mask.steepness)
        lambda_BL = mask.scale * sure_BL * masked_BL
        values, ids = logits_BLV.topk(mask.k, -1)
        q_BLV = torch.zeros_like(logits_BLV).scatter(-1, ids, torch.softmax(values, -1))
        own_BLV = F.one_hot(noisy_BL, logits_BLV.shape[-1]).float()
        return (1 - lambda_BL[..., None]) * own_BLV + lambda_BL[..., None] * q_BLV


def peak(device: torch.device) -> int:
    """Bytes: of the GPU's allocator, or the largest resident size of this process."""
    return int(peak_mb(device.type) * 2**20)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
