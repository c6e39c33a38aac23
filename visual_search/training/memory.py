"""How a step is fitted into the memory that it may take."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from visual_search.exceptions import ConfigurationError

if TYPE_CHECKING:
    from torch import Tensor, nn

CHUNK = 32  # images in one forward pass: more is no faster on a CPU, and its intermediates fill the memory
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
SLACK = 1.5  # what a pass takes beside the tensors kept for the backward pass


@dataclass(frozen=True)
class MemoryPlan:
    """chunk: images at once. keeps_graph: whether all chunks wait for one backward pass, or each is embedded twice.

    Embedded twice, the gradients are those of the whole batch all the same: of the embeddings first, then, chunk by
    chunk, of the weights, so a batch may be of any size. Source: GradCache, arXiv:2101.06983.
    is_recomputing: blocks keep their inputs alone and run once more in the backward pass (arXiv:1604.06174).
    """

    chunk: int
    keeps_graph: bool
    is_recomputing: bool


def plan_memory(embed: Callable[[int], Tensor], blocks: nn.ModuleList, *, images: int, budget_bytes: int) -> MemoryPlan:
    """Return how to fit a batch of `images` into the budget, and make the blocks recompute if they have to.

    embed: embeds so many images. Raises ConfigurationError if not even one image fits.
    """
    size = CHUNK
    plain = bytes_per_image(embed) * SLACK
    if plain * images <= budget_bytes:
        return MemoryPlan(size, keeps_graph=True, is_recomputing=False)
    recompute(blocks)
    kept = bytes_per_image(embed) * SLACK
    # While one block runs once more, what it alone keeps for one chunk comes on top.
    block = plain / len(blocks)
    if kept * images + 2 * block * size <= budget_bytes:
        return MemoryPlan(size, keeps_graph=True, is_recomputing=True)
    size = min(size, int(budget_bytes / (kept + 2 * block)))
    if size < 1:
        wanted, left = (kept + 2 * block) / 2**20, max(0, budget_bytes) / 2**20
        raise ConfigurationError(
            f"One image takes {wanted:.0f} MB to learn from, and {left:.0f} MB are left for it. Raise --memory-gb, add "
            "--head-only, or take a smaller checkpoint."
        )
    return MemoryPlan(size, keeps_graph=False, is_recomputing=True)


def bytes_per_image(embed: Callable[[int], Tensor]) -> int:
    """Return how many bytes each image keeps for the backward pass."""
    return _kept_bytes(partial(embed, 2)) - _kept_bytes(partial(embed, 1))  # without the weights, which are kept once


def _kept_bytes(embed: Callable[[], Tensor]) -> int:
    import torch

    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = embed()
    del result  # until here nothing that was counted is freed, so no address was counted for two
    return sum(sizes.values())


def recompute(blocks: nn.ModuleList) -> None:
    """Make each block keep its inputs alone."""
    from torch.utils.checkpoint import checkpoint

    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def keep_freed_memory() -> None:
    """Tell glibc to keep what is freed for the next step. Giving it back each time cost a fifth of the CPU time."""
    with suppress(OSError, AttributeError):  # another C library: slower, nothing else
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def resident_bytes() -> int:
    """Return how much memory this process has now; 0 where that can't be read."""
    try:
        with open("/proc/self/status", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))
    except (OSError, StopIteration):
        return 0
