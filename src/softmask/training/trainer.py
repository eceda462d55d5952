"""A thin subclass of transformers.Trainer: the masked-diffusion objective, and checkpoints from
which a run goes on exactly.

Overridden are the loss, the parameter groups, the order of the data, the evaluation on fixed
masks, and what a checkpoint holds. The loop, mixed precision, accumulation, distribution, logging
back ends and the rotation of checkpoints are transformers' and accelerate's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import rotate_checkpoints

from ..files import write_atomically
from ..hub.checkpoints import quiet
from ..models import DreamModel
from .batches import Collator, Validation
from .checkpoints import checkpoint_of, mark_complete
from .config import TrainConfig
from .ema import MovingAverage
from .log_sums import LogSums
from .objective import BUCKETS, Loss, masked_diffusion_loss, trajectory_loss
from .optimizers import make_optimizer, make_scheduler
from .schedule import TrainingSchedule
from .trajectory import Trajectories
from .weights import (
    evaluation_mode,
    load_soft_mask,
    load_weights,
    save_network,
    save_soft_mask,
    soft_mask_values,
    weights_of,
    whole_folder,
)

EMA_WEIGHTS = "ema.safetensors"
BAD_BATCH = "bad_batch.json"


class SoftMaskTrainer(Trainer):
    """Trains a DreamModel, or a PeftModel around one."""

    def __init__(
        self,
        model: nn.Module,
        dream: DreamModel,
        args: TrainingArguments,
        settings: TrainConfig,
        schedule: TrainingSchedule,
        collator: Collator,
        train_dataset: Any,
        validation: Validation | None,
        **kwargs: Any,
    ) -> None:
        """`dream` is the DreamModel inside `model`."""
        self.dream, self.settings = dream, settings
        self.schedule, self.validation = schedule, validation
        self.collator = collator
        # evaluate() reads self.validation; the Trainer only checks that a dataset is given.
        kwargs["eval_dataset"] = [] if validation is not None else None
        super().__init__(model, args, collator, train_dataset, **kwargs)
        # Otherwise the Trainer takes the loss for normalised over the accumulated forwards and does
        # not divide it (finding B19). The second flag has its name since transformers 5.20 or so.
        self.model_accepts_loss_kwargs = False
        self.loss_is_scaled_for_ga = False
        if settings.ema is not None and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError("train.ema averages whole weights, not sharded ones: leave it out")
        self.average = None if settings.ema is None else MovingAverage(model, settings.ema)
        kept = 0 if dream.soft_mask is None else dream.soft_mask.reads
        self.trajectories = None if settings.trajectory is None else Trajectories(kept)
        self._sums = LogSums()
        self._soft_in_update = False
        self.add_callback(AroundUpdate(self))

    def create_accelerator_and_postprocess(self) -> None:
        """Adjusts accelerate's FSDP2 to this model.

        Its mixed precision would round the soft-mask parameters, the feedback between the passes
        and the losses to bfloat16: autocast casts instead, as on one device. And it shards the
        embedding table apart, which soft tokens read without calling its module: a hook gathers it.
        """
        super().create_accelerator_and_postprocess()
        if self.is_fsdp_enabled:
            self.accelerator.state.fsdp_plugin.mixed_precision_policy = None
            forward = self.accelerator.autocast()(self.dream.forward)
            self.dream.forward = forward  # type: ignore[method-assign]
            self.dream.register_forward_pre_hook(gather_table)

    # Batches and loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """The objective of a masked batch.

        Raises:
            ValueError: the loss is not finite; `bad_batch.json` then names the rows.
        """
        if self.trajectories is None:
            loss = self._loss(model, inputs, inputs["soft"], inputs["feedback_passes"])
        else:
            loss = self._loss_of_trajectories(model, inputs, self.trajectories)
        if not torch.isfinite(loss.value):
            self._refuse(inputs, loss)
        self._sums.add(loss, inputs["ids_BL"].numel())
        self._soft_in_update |= inputs["soft"]
        if self.settings.accumulate == "sum":
            # As published (finding B19): the Trainer divides by the forwards of an update here, and
            # the mean over processes by their number.
            forwards = self.current_gradient_accumulation_steps * self.args.world_size
            return loss.value * forwards
        return loss.value

    def _loss(
        self, model: nn.Module, inputs: dict[str, Any], soft: bool, feedback_passes: int = 1
    ) -> Loss:
        return masked_diffusion_loss(
            model,
            inputs["noisy_BL"],
            inputs["ids_BL"],
            inputs["masked_BL"],
            inputs["times_B"],
            scored_BL=inputs["scored_BL"],
            maskable_BL=inputs["maskable_BL"],
            soft=soft,
            feedback_passes=feedback_passes,
            weighting=self.settings.weighting,
        )

    def _loss_of_trajectories(
        self, model: nn.Module, inputs: dict[str, Any], under_way: Trajectories
    ) -> Loss:
        """One stage or more of every row of the batch, which stays for the next update."""
        place, reads_B, soft = inputs["place"], inputs["reads_B"], inputs["soft"]
        carried = under_way.enter(place, inputs["rows"], inputs["masked_BL"])
        loss, masked_BL, said = trajectory_loss(
            model,
            inputs["ids_BL"],
            carried.masked_BL,
            inputs["maskable_BL"],
            inputs["shares_BW"],
            carried.feedback(reads_B) if soft else None,
            reads_B=reads_B,
            order_BL=inputs["order_BL"],
            soft=soft,
            weighting=self.settings.weighting,
            attention_mask_BL=inputs["real_BL"],
        )
        under_way.leave(place, carried, masked_BL, said)
        return loss

    @property
    def _folder(self) -> Path:
        assert self.args.output_dir is not None
        return Path(self.args.output_dir)

    def _refuse(self, inputs: dict[str, Any], loss: Loss) -> None:
        path = self._folder / BAD_BATCH
        report = {
            "step": self.state.global_step,
            "row_ids": inputs["row_ids"],
            "draw": inputs["draw"],
            "soft": inputs["soft"],
            "loss": str(loss.value.item()),
            "times": inputs["times_B"].tolist(),
            "input_ids": inputs["ids_BL"].tolist(),
        }
        write_atomically(path, json.dumps(report) + "\n")
        raise ValueError(
            f"the loss of update {self.state.global_step + 1} is {loss.value.item()}: {path} names "
            f"the rows ({', '.join(map(str, inputs['row_ids'][:3]))}); look at them, or lower the "
            "learning rate"
        )

    # Optimisation

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Groups of their own for the soft-mask parameters and what decays."""
        if self.optimizer is None:
            model: Any = args[0] if args else self.model
            self.optimizer = make_optimizer(model, self.settings)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            optimizer = optimizer or self.optimizer
            self.lr_scheduler = make_scheduler(
                optimizer, self.schedule, self.settings.soft_learning_rate
            )
        return self.lr_scheduler

    def before_update(self) -> None:
        """Leaves the soft-mask parameters alone in an update without a soft batch.

        Their gradient is 0 then, not None, as distributed training needs; Adam would still move
        them by its momentum. All processes agree, as they draw the same random numbers.
        """
        if self.dream.soft_mask is not None and not self._soft_in_update:
            for parameter in self.dream.soft_mask.parameters():
                parameter.grad = None
        self._soft_in_update = False

    # Log

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the sums since the last line to a line about training.

        The losses are means over forwards, in place of the Trainer's own: those would begin anew
        where a run goes on, and grow with an update's forwards where they are summed.
        """
        if "loss" in logs:
            logs |= self._line()
        if "train_loss" in logs:  # of the whole run, in its last line
            logs["train_loss"] = self._sums.mean_loss(self._over_processes)
        # Ours are passes over the rows; the Trainer takes the whole run for one.
        rows: Any = self.train_dataset
        draws = self.state.global_step * self.collator.global_batch.size
        self.state.epoch = rows.epochs(draws)
        super().log(logs, start_time)

    def _over_processes(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.accelerator.reduce(sums, "sum")

    def _line(self) -> dict[str, Any]:
        values = self._sums.drain(self._over_processes)
        shown = {"loss": values["loss"] / values["forwards"]}
        shown |= {"nats": values["nats"] / max(1, values["read"]), "tokens": values["tokens"]}
        stage = self.schedule.at(max(0, self.state.global_step - 1))
        if len(self.schedule.stages) > 1:
            shown["stage"] = stage.name
        if self.dream.soft_mask is not None:
            shown["soft_share"] = values["soft"] / values["forwards"]
            if values["soft"]:
                shown |= {k: values[k] / values["soft"] for k in ("lambda", "entropy")}
            shown |= soft_mask_values(self.dream.soft_mask)
        hits, total = values["hits_T"], values["total_T"]
        shown["accuracy"] = sum(hits) / max(1.0, sum(total))
        for bucket, (hit, count) in enumerate(zip(hits, total, strict=True)):
            if count:
                shown[f"accuracy_t{bucket / BUCKETS:.1f}"] = hit / count
        return shown

    # Evaluation

    @torch.no_grad()
    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: Any = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """The loss on fixed rows, times and masks: one pass, and with soft-masking also two.

        `eval_loss` is the training objective (two passes with soft-masking); the others are nats
        per masked token, on the same masks; all are means over batches.
        """
        assert self.validation is not None, "there is nothing to evaluate on"
        model = self.model if self.model_wrapped is None else self.model_wrapped
        evaluation_mode(model)
        soft_mask = self.dream.soft_mask is not None
        metrics: dict[str, float] = {}
        objective = []
        average = self.average.swapped_in() if self.average else contextlib.nullcontext()
        with average:
            for kind in self.validation.kinds:
                sums = self._evaluate_kind(model, kind, soft_mask)
                prefix = "" if kind == "all" else f"{kind}_"
                for name in ("plain", "soft") if soft_mask else ("plain",):
                    metrics[f"eval_{prefix}{name}"] = sums[f"{name}_nats"] / max(1, sums["read"])
                objective.append(
                    sums[f"{'soft' if soft_mask else 'plain'}_value"] / sums["batches"]
                )
        metrics["eval_loss"] = sum(objective) / len(objective)
        model.train()
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _evaluate_kind(self, model: nn.Module, kind: str, soft_mask: bool) -> dict[str, float]:
        assert self.validation is not None
        sums: dict[str, Tensor] = {}
        parts = (self.args.process_index, self.args.world_size)
        for batch, counts in self.validation.batches(kind, *parts):
            inputs = self._prepare_inputs(batch)
            for name in ("plain", "soft") if soft_mask else ("plain",):
                with self.accelerator.autocast():
                    loss = self._loss(model, inputs, name == "soft")
                seen = {f"{name}_nats": loss.nats, f"{name}_value": loss.value}
                if name == "plain":
                    seen |= {"batches": torch.ones_like(loss.value), "read": loss.has_masks}
                for key, value in seen.items():
                    sums[key] = sums.get(key, 0) + value.detach().float() * counts
        return {name: value.item() for name, value in self.accelerator.reduce(sums, "sum").items()}

    # Checkpoints

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """The adapter or the weights, and the soft-mask parameters in both forms."""
        folder = Path(output_dir or self._folder)
        save_soft_mask(self.dream.soft_mask, folder, self.args.should_save)
        if not self.args.should_save:
            return
        model = self.accelerator.unwrap_model(self.model)
        with quiet():
            if model is self.dream:
                model.save_pretrained(folder, state_dict=weights_of(state_dict or self.dream))
            else:
                # "auto" would ask the Hub about the base's vocabulary at every checkpoint.
                model.save_pretrained(folder, state_dict=state_dict, save_embedding_layers=False)
                save_network(self.dream.config, folder)
        if self.average is not None:
            self.average.save(folder / EMA_WEIGHTS)

    def _trajectories_of(self, folder: Path) -> Path:
        """Where a process keeps its rows that are under way."""
        return folder / f"trajectories-{self.args.process_index}.safetensors"

    def _log_of(self, folder: Path) -> Path:
        """Where a process keeps what it has summed up for the log."""
        return folder / f"log-{self.args.process_index}.json"

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        """Marks a checkpoint as complete when all processes have written their files.

        Raises:
            ValueError: it cannot be written (a full disk); the incomplete checkpoint is removed,
                and earlier ones are kept.
        """
        step = self.state.global_step
        folder = checkpoint_of(self._folder, step)
        writes = self.args.should_save
        with whole_folder(folder, "the checkpoint"):
            super()._save_checkpoint(model, trial)
            folder.mkdir(parents=True, exist_ok=True)
            self._sums.save(self._log_of(folder))
            if self.trajectories is not None:
                self.trajectories.save(self._trajectories_of(folder))
            self.accelerator.wait_for_everyone()
            if writes:
                # A path would hold in this place alone: BestCheckpoint finds it by its update.
                state = dataclasses.replace(self.state, best_model_checkpoint=None)
                state.save_to_json(str(folder / TRAINER_STATE_NAME))
                mark_complete(folder, step, self.args.world_size)
        if writes:
            # Here, as the Trainer's own rotation comes before the new one is marked complete.
            best = self.state.best_model_checkpoint
            rotate_checkpoints(str(self._folder), self.settings.save_limit, best)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any = None) -> bool:
        """The best one to keep is among the checkpoints: nothing else can be gone back to.

        Those of an uninterrupted run: what a Ctrl-C leaves would else decide how the run ends.
        """
        step = self.state.global_step
        planned = step % self.settings.save_every == 0 or step >= self.state.max_steps
        if self.settings.keep_best and not planned:
            return False
        return super()._determine_best_metric(metrics, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        weights = folder / "model.safetensors"
        if self.model is self.dream and weights.is_file() and not self.is_fsdp_enabled:
            load_weights(self.dream, load_file(weights))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.dream.soft_mask is not None:
            load_soft_mask(self.dream.soft_mask, folder)
        if self.average is not None:
            self.average.load(folder / EMA_WEIGHTS)
        if self._log_of(folder).is_file():  # checkpoints of earlier versions have none
            self._sums.load(self._log_of(folder), self.args.device)
        if self.trajectories is not None:
            self.trajectories.load(self._trajectories_of(folder), self.args.device)

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        best = self.state.best_model_checkpoint
        assert best is not None, "no checkpoint was evaluated"
        self._load_from_checkpoint(best)


def gather_table(dream: DreamModel, _inputs: Any) -> None:
    """Gathers an embedding table that is sharded apart from the model around it."""
    if isinstance(dream.model.embed_tokens, FSDPModule):
        dream.model.embed_tokens.unshard()


class AroundUpdate(TrainerCallback):
    """Calls the trainer before each update, and the moving average after it."""

    def __init__(self, trainer: SoftMaskTrainer) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.before_update()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.trainer.average is not None:
            self.trainer.average.update()
