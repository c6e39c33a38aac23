"""Which weights of a dual encoder learn: the upper blocks of its image side and what stands above them.

Found by running the model, not by names: it serves CLIP, SigLIP, the starter and whatever else AutoModel loads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from visual_search.exceptions import ConfigurationError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from visual_search.vision.checkpoints import Checkpoint

UPPER_SHARE = 0.5  # of the blocks; the lower ones see edges and textures, which are the same in every shop


def choose_weights(checkpoint: Checkpoint, *, head_only: bool = False) -> tuple[dict[str, nn.Parameter], nn.ModuleList]:
    """Return the weights that learn, by name, and the blocks of the image side; freeze all other weights.

    head_only: what stands above the last block alone.
    Raises ConfigurationError if the image side is not made of blocks, or if nothing of it is left to learn.
    """
    from PIL import Image

    model = checkpoint.model.requires_grad_(True)
    size = checkpoint.input_size_px
    inputs = checkpoint.image_inputs([Image.new("RGB", (size, size), "grey")])
    weights = dict(model.named_parameters())
    images_need = _needed_for(features_of(model.get_image_features(**inputs)), weights)
    texts_need = _needed_for(features_of(model.get_text_features(**checkpoint.text_inputs(["a"]))), weights)
    blocks = find_blocks(model, images_need - texts_need)
    lower = len(blocks) if head_only else round(len(blocks) * (1 - UPPER_SHARE))
    outputs: list[Tensor] = []
    hook = blocks[lower - 1].register_forward_hook(
        lambda module, given, output: outputs.append(output[0] if isinstance(output, tuple) else output)
    )
    model.get_image_features(**inputs)
    hook.remove()
    chosen = images_need - texts_need - _needed_for(outputs[0], weights)
    if not chosen:
        raise ConfigurationError(f"{checkpoint.name!r} has no weights above its last block: leave out --head-only.")
    for name, weight in weights.items():
        weight.requires_grad_(name in chosen)
    return {name: weight for name, weight in weights.items() if name in chosen}, blocks


def features_of(output: Any) -> Tensor:
    """Return the embeddings out of what `get_image_features` or `get_text_features` answers, not of unit length."""
    features: Tensor = getattr(output, "pooler_output", output)
    return features


def find_blocks(model: nn.Module, names: set[str]) -> nn.ModuleList:
    """Return the longest run of blocks that hold some of the weights named."""
    from torch import nn

    runs = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and any(weight.startswith(f"{name}.") for weight in names)
    ]
    if not runs or len(longest := max(runs, key=len)) < 2:
        raise ConfigurationError(
            f"The image side of a {type(model).__name__} is not made of a run of blocks, so it can't be said which of "
            "its weights should learn. Name CLIP, SigLIP, the starter or another transformer."
        )
    return longest


def _needed_for(result: Tensor, weights: dict[str, nn.Parameter]) -> set[str]:
    import torch

    gradients = torch.autograd.grad(result.sum(), list(weights.values()), allow_unused=True)
    return {name for name, gradient in zip(weights, gradients, strict=True) if gradient is not None}
