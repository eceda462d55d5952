"""The files of a checkpoint: weights under their original names, and the soft-mask parameters."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from ..config import SOFT_MASK_FILE, SOFT_MASK_WEIGHTS, SoftMaskConfig, soft_mask_to_published
from ..families.registry import FAMILY_KEY, by_name
from ..hub.folder import NETWORK_FILE
from ..models import DreamConfig, DreamModel
from ..soft_mask import FIXED, SoftMask

# How libraries report a failed write: those in Rust by an error with these words, of no class that
# can be caught, and torch's writer of archives by a RuntimeError that does not say why.
IN_RUST, IN_TORCH = "(os error ", ("inline_container", "iostream", "PytorchStreamWriter")


@contextlib.contextmanager
def whole_folder(folder: Path, what: str) -> Iterator[None]:
    """Inside the block a folder is written: all of it, or nothing is left.

    Raises:
        ValueError: it cannot be written (a full disk).
    """
    try:
        yield
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        reason = (str(error).splitlines() or [""])[0]
        if any(words in reason for words in IN_TORCH):
            reason = "a write failed"
        elif not isinstance(error, OSError) and IN_RUST not in reason:
            raise
        raise ValueError(
            f"{what} {folder} cannot be written ({reason}): make room and start again; the run "
            "goes on from its last checkpoint"
        ) from error


def soft_mask_values(mask: SoftMask) -> dict[str, float]:
    """The soft-mask parameters after their transforms: scale, offset, steepness, temperature."""
    names = ("scale", "offset", "steepness", "temperature")
    return {name: _gathered(getattr(mask, name)).float().item() for name in names}


def _gathered(value: Tensor) -> Tensor:
    """A sharded tensor gathered, which every process must call; any other tensor as it is."""
    value = value.detach()
    return value.full_tensor() if isinstance(value, DTensor) else value


def save_soft_mask(mask: SoftMask | None, folder: Path, writes: bool = True) -> None:
    """Writes the parameters twice: raw in fp32, and as the published JSON.

    For None that JSON says so: beside an adapter without one, those of its base would count. Where
    weights are sharded, every process must call it; only those with `writes` write.
    """
    raw: dict[str, Tensor] = {}
    config: SoftMaskConfig | None = None
    if mask is not None:
        raw = {k: _gathered(v).cpu().contiguous() for k, v in mask.state_dict().items()}
        values: dict[str, Any] = {**soft_mask_values(mask)}
        config = SoftMaskConfig(**values | {name: getattr(mask, name) for name in FIXED})
    if writes:
        folder.mkdir(parents=True, exist_ok=True)
        if raw:
            save_file(raw, folder / SOFT_MASK_WEIGHTS)
        published = json.dumps(soft_mask_to_published(config), indent=2)
        (folder / SOFT_MASK_FILE).write_text(published + "\n", encoding="utf-8")


def save_network(config: DreamConfig, folder: Path) -> None:
    """Writes beside an adapter what its weights were trained for and do not say themselves."""
    values: dict[str, Any] = {}
    if by_name(config.family).explicit:  # the base's files do not say it either
        values[FAMILY_KEY] = config.family
    if config.block_size is not None:
        values["block_size"] = config.block_size
    if values:
        (folder / NETWORK_FILE).write_text(json.dumps(values) + "\n", encoding="utf-8")


@torch.no_grad()
def load_soft_mask(mask: SoftMask, folder: Path) -> None:
    """Loads the raw parameters, in full precision; sharded ones too."""
    for name, value in load_file(folder / SOFT_MASK_WEIGHTS).items():
        parameter = getattr(mask, name)
        if isinstance(parameter, DTensor):
            mesh, placements = parameter.device_mesh, parameter.placements
            value = distribute_tensor(value.to(parameter.device), mesh, placements)
        parameter.copy_(value)


def load_weights(model: DreamModel, state: dict[str, Tensor]) -> None:
    """Inverse of `weights_of`; a tied head is in the file once, as the embedding table."""
    lacking, unknown = model.load_state_dict(state, strict=False)
    tied = ("lm_head.weight",) if model.config.tie_word_embeddings else ()
    lacking = [k for k in lacking if not k.startswith("soft_mask.") and k not in tied]
    assert not lacking, f"the checkpoint lacks {lacking[0]}"
    assert not unknown, f"the checkpoint has the unknown {unknown[0]}"


def weights_of(model: DreamModel | dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict under the original names: without the soft-mask parameters."""
    state = model.state_dict() if isinstance(model, DreamModel) else model
    return {k: v for k, v in state.items() if not k.startswith("soft_mask.")}


def evaluation_mode(model: nn.Module) -> None:
    """`eval()` except for 4-bit layers: on a CPU it repacks their weights, which ends training."""
    model.eval()
    for module in model.modules():
        if any(cls.__name__ == "Linear4bit" for cls in type(module).__mro__):
            module.train()
