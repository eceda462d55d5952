"""Pretraining of a small Dream model: stages of plain and two-pass soft-mask training.

    softmask train default                       the bundled model, from nothing
    softmask train default --set seed=2

A run folder holds recipe.json, log.jsonl (one line per `log_every` steps), the newest
checkpoint.pt (weights, optimiser, step) and, at the end, the model folder `model/`. A run that was
stopped goes on where its checkpoint stands: batches and masks derive from (seed, step).
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from transformers import Qwen2Tokenizer

from .config import (
    SAMPLING_FILE,
    SOFT_MASK_FILE,
    SamplingConfig,
    SoftMaskConfig,
    StageConfig,
    TrainConfig,
    sampling_to_file,
    soft_mask_to_published,
)
from .data import Batch, PretrainingData, read_stories, train_tokenizer
from .modeling import DreamConfig, DreamModel
from .noise import corrupt, sample_times
from .objective import Loss, masked_diffusion_loss
from .puzzles import generate_puzzles, prompt_of
from .soft_mask import SoftMask


def build_model(config: TrainConfig, tokenizer: Qwen2Tokenizer) -> DreamModel:
    """A randomly initialised model of the recipe's shape, soft-mask parameters included."""
    shape = dataclasses.asdict(config.model)
    model = DreamModel(
        DreamConfig(
            **shape,
            mask_token_id=tokenizer.mask_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            architectures=["DreamModel"],
        )
    )
    soft = config.soft_mask
    model.soft_mask = SoftMask(
        soft.scale, soft.offset, soft.steepness, soft.temperature, mode=soft.mode, k=soft.k
    )
    return model


def learning_rate(stage: StageConfig, step: int) -> float:
    """Linear warm-up, then cosine from `learning_rate` to `final_learning_rate`."""
    if step < stage.warmup_steps:
        return stage.learning_rate * (step + 1) / stage.warmup_steps
    done = (step - stage.warmup_steps) / max(1, stage.steps - stage.warmup_steps)
    swing = stage.learning_rate - stage.final_learning_rate
    return stage.final_learning_rate + swing * 0.5 * (1 + math.cos(math.pi * done))


def make_optimizers(model: DreamModel, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Muon or AdamW for the matrices inside the layers, AdamW for all else.

    Weight decay acts on matrices alone. The soft-mask parameters are the last group of the last
    optimizer. Muon's step is scaled to AdamW's size, so that one learning rate serves both.
    """
    soft = list(model.soft_mask.parameters())
    matrices = [p for p in model.model.layers.parameters() if p.dim() == 2]
    own = {id(p) for p in (*soft, *matrices)}
    rest = [p for p in model.parameters() if id(p) not in own]
    decay = config.weight_decay
    groups = [
        {"params": [p for p in rest if p.dim() == 2], "weight_decay": decay},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
        {"params": [p for p in soft if p.requires_grad], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = []
    if config.optimizer == "muon":
        optimizers.append(
            torch.optim.Muon(matrices, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
        )
    else:
        groups.insert(0, {"params": matrices, "weight_decay": decay})
    return [*optimizers, torch.optim.AdamW(groups, betas=(0.9, config.beta2), eps=1e-8)]


def loss_of(
    model: DreamModel,
    batch: Batch,
    config: TrainConfig,
    seed: int,
    soft: bool,
    left_to_right: float = 0.0,
) -> Loss:
    """The loss of a batch under the masks that `seed` decides."""
    generator = torch.Generator().manual_seed(seed)
    times_B = sample_times(len(batch.ids_BL), config.t_low, config.t_high, generator)
    noisy_BL, masked_BL = corrupt(
        batch.ids_BL,
        batch.maskable_BL,
        times_B,
        model.config.mask_token_id,
        generator,
        left_to_right,
    )
    device = model.device
    bfloat16 = config.precision == "bfloat16"
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        return masked_diffusion_loss(
            model,
            noisy_BL.to(device),
            batch.ids_BL.to(device),
            masked_BL.to(device),
            times_B.to(device),
            soft=soft,
            weighting=config.weighting,
        )


@torch.no_grad()
def evaluate(model: DreamModel, data: PretrainingData, config: TrainConfig) -> dict[str, float]:
    """Nats per masked token of puzzles and of text, one pass against two on the same masks.

    The batches come from seeds that no training step uses, the same ones every time.
    """
    model.eval()
    share = config.data.puzzle_share
    sources = {"puzzles": data.puzzle_batch} if share > 0 else {}
    if share < 1:
        sources["text"] = data.story_batch
    result = {}
    for name, make_batch in sources.items():
        for soft in (False, True):
            losses = []
            for index in range(4):
                batch = make_batch(random.Random(f"evaluation/{config.seed}/{index}"))
                losses.append(loss_of(model, batch, config, 10_000_019 + index, soft).nats)
            key = f"{name}_{'soft' if soft else 'plain'}"
            result[key] = round(torch.stack(losses).mean().item(), 4)
    model.train()
    return result


def plan(config: TrainConfig) -> Iterator[tuple[int, int, StageConfig]]:
    """(step of the run, step of the stage, stage) for the whole run."""
    step = 0
    for stage in config.stages:
        for inner in range(stage.steps):
            yield step, inner, stage
            step += 1


class Run:
    """A training run in a folder: everything that has to survive a stop."""

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        stories: list[str],
        tokenizer: Qwen2Tokenizer,
        device: torch.device,
    ) -> None:
        self.config, self.folder, self.tokenizer = config, folder, tokenizer
        torch.manual_seed(config.seed)
        self.model = build_model(config, tokenizer).to(device)
        if device.type == "cpu":
            # At short rows the fused kernel's backward is 38 % of a step: 0.31 s instead of 0.16
            # (bfloat16, 64 rows of 51 tokens, two cores).
            self.model.set_attn_implementation("eager")
        self.optimizers = make_optimizers(self.model, config)
        self.data = PretrainingData(config.data, stories, tokenizer)
        self.step = 0
        self.seconds = 0.0

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def save(self) -> None:
        """Writes the checkpoint beside the old one and swaps: a kill leaves one of them whole."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
        }
        torch.save(state, self.folder / "checkpoint.new")
        (self.folder / "checkpoint.new").replace(self.checkpoint)

    def restore(self) -> None:
        """Goes on from the checkpoint, if there is one."""
        if self.checkpoint.is_file():
            # On the CPU: load_state_dict moves what belongs on the device, and AdamW's step
            # counters do not.
            state = torch.load(self.checkpoint, "cpu", weights_only=True)
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.step, self.seconds = state["step"], state["seconds"]

    def train_step(self, stage: StageConfig, inner: int) -> dict[str, float]:
        """One update; returns what the log shows of it."""
        config, seed = self.config, self.config.seed
        batch = self.data.batch(seed, self.step, stage)
        soft = random.Random(f"soft/{seed}/{self.step}").random() < stage.soft_probability
        mask_seed = seed * 1_000_003 + self.step
        loss = loss_of(self.model, batch, config, mask_seed, soft, stage.left_to_right)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.value.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        rate = learning_rate(stage, inner)
        *groups, soft_group = [group for o in self.optimizers for group in o.param_groups]
        for group in groups:
            group["lr"] = rate
        soft_group["lr"] = stage.soft_learning_rate * rate / stage.learning_rate
        for optimizer in self.optimizers:
            optimizer.step()
        shown = {"nats": loss.nats.item(), "grad_norm": norm.item(), "lr": rate}
        shown["tokens"] = batch.ids_BL.numel()
        if loss.mixed is not None:
            shown |= {"lambda": loss.mixed.item(), "entropy": loss.entropy.item()}
            mask = self.model.soft_mask
            for name in ("scale", "offset", "steepness"):
                shown[name] = getattr(mask, name).item()
        return {key: round(value, 5) for key, value in shown.items()}

    def export(self) -> Path:
        """Writes the model folder: bfloat16 weights, tokenizer, soft-mask and sampling settings."""
        target = self.folder / "model"
        save_model(self.model, self.tokenizer, self.config.sampling, target)
        return target


def save_model(
    model: DreamModel, tokenizer: Qwen2Tokenizer, sampling: SamplingConfig, target: Path
) -> None:
    """A folder that `softmask.load` reads: the layout of Dream's own, weights in bfloat16."""
    mask = model.soft_mask
    names = ("scale", "offset", "steepness", "temperature")
    values = {name: round(getattr(mask, name).item(), 6) for name in names}
    config = SoftMaskConfig(mode=mask.mode, k=mask.k, **values)
    plain = DreamModel(model.config)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "soft_mask" not in k})
    plain.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)
    files = {
        SOFT_MASK_FILE: soft_mask_to_published(config),
        SAMPLING_FILE: sampling_to_file(sampling),
    }
    for name, content in files.items():
        (target / name).write_text(json.dumps(content, indent=2) + "\n")


def train(config: TrainConfig, folder: Path, device: str | torch.device = "cpu") -> Path:
    """Runs the recipe in `folder` to its end and returns the model folder.

    Raises:
        ValueError: a text file is missing, or the folder holds a run of another recipe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    recipe = json.loads(json.dumps(dataclasses.asdict(config)))
    written = folder / "recipe.json"
    if written.is_file() and json.loads(written.read_text()) != recipe:
        raise ValueError(f"{folder} holds a run of another recipe: name a new folder with --out")
    stories = read_stories(config.data.text)
    tokenizer = make_tokenizer(config, stories)
    run = Run(config, folder, stories, tokenizer, torch.device(device))
    run.restore()
    written.write_text(json.dumps(recipe, indent=2) + "\n")
    log_file = folder / "log.jsonl"
    _forget_later_lines(log_file, run.step)
    with log_file.open("a", buffering=1) as log:
        for step, inner, stage in plan(config):
            if step < run.step:
                continue
            started = time.perf_counter()
            shown = run.train_step(stage, inner)
            run.step += 1
            run.seconds += time.perf_counter() - started
            last = inner == stage.steps - 1
            evaluated = run.step % config.eval_every == 0 or last
            if evaluated:
                shown |= evaluate(run.model, run.data, config)
            if step % config.log_every == 0 or evaluated:
                line = {"step": step, "stage": stage.name, "seconds": round(run.seconds, 1)}
                print(json.dumps(line | shown), file=log)
                print(json.dumps(line | shown), flush=True)
            if evaluated:
                run.save()
    return run.export()


def _forget_later_lines(log: Path, step: int) -> None:
    """Drops what a stopped run logged behind its checkpoint: those steps are run again."""
    if log.is_file():
        lines = log.read_text().splitlines(keepends=True)
        log.write_text("".join(line for line in lines if json.loads(line)["step"] < step))


def make_tokenizer(config: TrainConfig, stories: list[str]) -> Qwen2Tokenizer:
    """The BPE of the recipe, trained on its stories and some of its puzzles."""
    rng = random.Random(config.seed)
    puzzles = generate_puzzles(rng.getrandbits(60), config.data.puzzles)
    texts = [prompt_of(p) + p.output for p in islice(puzzles, 200)]
    return train_tokenizer(texts + stories[:4000], config.model.vocab_size)
