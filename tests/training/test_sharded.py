"""Two real processes on the CPU: FSDP2 and DistributedDataParallel train what one process would.

FSDP2 gathers parameters in every forward, from all ranks: in a step, all ranks must make the same
number of forwards, so all are soft or all are plain (the choice derives from the step, not from
the rank). Root parameters (embedding table, head, soft mask) are read in parts by the root's own
forward and must stay in the root's group. DistributedDataParallel only meets in the backward pass:
there, ranks may differ.
"""

from __future__ import annotations

import copy
import os
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tiny import tiny_model
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from softmask.models import modeling_dream
from softmask.soft_mask import SoftMask
from softmask.training.noise import corrupt
from softmask.training.objective import masked_diffusion_loss

pytestmark = pytest.mark.long  # two processes begin, and shard in each of eight ways

WORLD = 2
MODES = ("topk", "temperature")
# Sharded again after the root's forward, as accelerate does it, or kept, torch's default.
RESHARD = (True, False)
# Which rank is soft, step after step.
MIXED = ((False, True), (True, False), (True, True))


def make_model(mode: str):
    model = tiny_model()
    model.soft_mask = SoftMask(0.5, -3.0, 1.0, mode=mode, k=3)
    return model


def batch_of(model, rank: int) -> tuple[torch.Tensor, ...]:
    """noisy_BL, ids_BL, masked_BL, times_B of a rank; the ranks' mask counts differ."""
    generator = torch.Generator().manual_seed(rank)
    ids = torch.randint(0, 60, (3, 12), generator=generator)
    times = torch.full((3,), 0.3 + 0.5 * rank)
    maskable = torch.ones_like(ids, dtype=torch.bool)
    noisy, masked, _ = corrupt(ids, maskable, times, model.config.mask_token_id, generator)
    return noisy, ids, masked, times


def gradients(model, rank: int, *, soft: bool) -> dict[str, torch.Tensor]:
    """Whole gradients of every parameter that has one, after a fresh backward pass."""
    dream = getattr(model, "module", model)
    dream.zero_grad()
    masked_diffusion_loss(model, *batch_of(dream, rank), soft=soft).value.backward()
    found = {n: p.grad for n, p in dream.named_parameters() if p.grad is not None}
    return {
        name: (g.full_tensor() if isinstance(g, DTensor) else g).clone()
        for name, g in found.items()
    }


def sharded(mode: str, reshard: bool):
    model = make_model(mode)
    for layer in model.model.layers:
        fully_shard(layer)
    return fully_shard(model, reshard_after_forward=reshard)


def work(rank: int, folder: str) -> None:
    """One rank: writes its gradients of every case to the folder."""
    torch.set_num_threads(1)
    modeling_dream.CHUNK_LOGITS = 5 * 64  # several chunks of rows, a different number per rank
    place = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=WORLD)
    found = {}
    for mode in MODES:
        for reshard in RESHARD:
            model = sharded(mode, reshard)
            for soft in (True, False):
                found["fsdp", mode, reshard, soft] = gradients(model, rank, soft=soft)
        model = DistributedDataParallel(make_model(mode))
        # The second step is where DDP agrees on new buckets: there too one rank alone is soft.
        for soft in MIXED:
            found["ddp", mode, soft] = gradients(model, rank, soft=soft[rank])
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.barrier()
    # Nothing is taken down. gloo's threads let go of a collective after it is done, and of what the
    # backward pass kept with it in Python, for which they wait for the GIL: a group that is freed
    # meanwhile waits for them for ever, and an interpreter that ends aborts.
    os._exit(0)


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    """What each rank found; a rank that hangs is ended and fails the tests."""
    folder = tmp_path_factory.mktemp("ranks")
    ranks = torch.multiprocessing.spawn(work, (str(folder),), nprocs=WORLD, join=False)
    deadline = time.monotonic() + 600
    try:
        while not ranks.join(timeout=5):
            assert time.monotonic() < deadline, "the ranks wait for each other"
    finally:
        for process in ranks.processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


def assert_mean_of_ranks(own: dict[str, torch.Tensor], mode: str, soft: tuple[bool, ...]) -> None:
    """The gradients equal the mean of those that one process finds on each rank's rows."""
    model = make_model(mode)
    parts = [copy.deepcopy(gradients(model, rank, soft=soft[rank])) for rank in range(WORLD)]
    assert own.keys() == parts[0].keys() == parts[1].keys()
    for name, gradient in own.items():
        expected = (parts[0][name] + parts[1][name]) / WORLD
        close = 1e-5 * expected.abs().max().item() + 1e-9
        torch.testing.assert_close(gradient, expected, rtol=0, atol=close, msg=name)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("reshard", RESHARD)
@pytest.mark.parametrize("soft", [True, False])
def test_sharded_gradients_are_the_mean_of_the_ranks(found, mode, reshard, soft) -> None:
    for rank in range(WORLD):
        own = found[rank]["fsdp", mode, reshard, soft]
        assert (own["soft_mask.raw_scale"].item() != 0) == soft
        assert_mean_of_ranks(own, mode, (soft, soft))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("soft", MIXED)
def test_a_soft_and_a_plain_rank_meet_in_their_mean_gradient(found, mode, soft) -> None:
    for rank in range(WORLD):
        own = found[rank]["ddp", mode, soft]
        assert own["soft_mask.raw_scale"].item() != 0
        assert_mean_of_ranks(own, mode, soft)
