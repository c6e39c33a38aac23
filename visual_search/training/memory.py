"""Fit a training step into the given memory."""

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

CHUNK = 32  # images in one forward pass: more is no faster on a CPU and takes more memory for activations
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
OVERHEAD = 1.5  # memory of a pass, as a multiple of the tensors saved for the backward pass


@dataclass(frozen=True)
class MemoryPlan:
    """How one training step uses memory.

    chunk: images per forward pass. keeps_graph: whether one backward pass covers all chunks; otherwise each chunk is
    embedded twice. The gradients are those of the whole batch either way: computed for the embeddings first, then,
    chunk by chunk, for the weights, so a batch may have any size. Source: GradCache, arXiv:2101.06983.
    is_recomputing: blocks keep only their inputs and run again in the backward pass (arXiv:1604.06174).
    """

    chunk: int
    keeps_graph: bool
    is_recomputing: bool


def plan_memory(embed: Callable[[int], Tensor], blocks: nn.ModuleList, *, images: int, budget_bytes: int) -> MemoryPlan:
    """Return how to fit a batch of `images` into the budget; make the blocks recompute if necessary.

    embed: embeds the given number of images. Raises ConfigurationError if not even one image fits.
    """
    size = CHUNK
    plain = bytes_per_image(embed) * OVERHEAD
    if plain * images <= budget_bytes:
        return MemoryPlan(size, keeps_graph=True, is_recomputing=False)
    recompute(blocks)
    kept = bytes_per_image(embed) * OVERHEAD
    # While a block recomputes one chunk, its own activations come on top.
    block = plain / len(blocks)
    if kept * images + 2 * block * size <= budget_bytes:
        return MemoryPlan(size, keeps_graph=True, is_recomputing=True)
    size = min(size, int(budget_bytes / (kept + 2 * block)))
    if size < 1:
        needed, left = (kept + 2 * block) / 2**20, max(0, budget_bytes) / 2**20
        raise ConfigurationError(
            f"Training on one image needs {needed:.0f} MB, and {left:.0f} MB are left. Raise --memory-gb, add "
            "--head-only, or use a smaller checkpoint."
        )
    return MemoryPlan(size, keeps_graph=False, is_recomputing=True)


def bytes_per_image(embed: Callable[[int], Tensor]) -> int:
    """Return how many bytes are saved for the backward pass per image."""
    # The difference leaves out the weights, which are saved once.
    return _saved_bytes(partial(embed, 2)) - _saved_bytes(partial(embed, 1))


def _saved_bytes(embed: Callable[[], Tensor]) -> int:
    import torch

    sizes: dict[int, int] = {}

    def record(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        result = embed()
    del result  # kept alive until here, so that no freed address is used and counted again
    return sum(sizes.values())


def recompute(blocks: nn.ModuleList) -> None:
    """Make each block keep only its inputs and recompute the rest in the backward pass."""
    from torch.utils.checkpoint import checkpoint

    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next step. Returning it each time cost a fifth of the CPU time."""
    with suppress(OSError, AttributeError):  # another C library: only slower
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def resident_bytes() -> int:
    """Return this process's resident memory; 0 if it can't be read."""
    try:
        with open("/proc/self/status", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))
    except (OSError, StopIteration):
        return 0
