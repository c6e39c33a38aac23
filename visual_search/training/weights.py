"""Choose which weights of a dual encoder are trained: the upper blocks of its image side and the layers above them.

They are found by running the model, not by name, so this works for CLIP, SigLIP, the starter and other models that
AutoModel loads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from visual_search.exceptions import ConfigurationError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from visual_search.vision.checkpoints import Checkpoint

UPPER_SHARE = 0.5  # of the blocks; the lower ones detect edges and textures, which are the same in every shop


def choose_weights(checkpoint: Checkpoint, *, head_only: bool = False) -> tuple[dict[str, nn.Parameter], nn.ModuleList]:
    """Return the weights to train, by name, and the blocks of the image side; freeze all other weights.

    head_only: train only the layers above the last block.
    Raises ConfigurationError if the image side is not made of blocks, or if no weights are left to train.
    """
    from PIL import Image

    model = checkpoint.model.requires_grad_(True)
    size = checkpoint.input_size_px
    inputs = checkpoint.image_inputs([Image.new("RGB", (size, size), "grey")])
    weights = dict(model.named_parameters())
    image_weights = _weights_used_by(features_of(model.get_image_features(**inputs)), weights)
    text_weights = _weights_used_by(features_of(model.get_text_features(**checkpoint.text_inputs(["a"]))), weights)
    blocks = find_blocks(model, image_weights - text_weights)
    lower = len(blocks) if head_only else round(len(blocks) * (1 - UPPER_SHARE))
    outputs: list[Tensor] = []
    hook = blocks[lower - 1].register_forward_hook(
        lambda module, given, output: outputs.append(output[0] if isinstance(output, tuple) else output)
    )
    model.get_image_features(**inputs)
    hook.remove()
    chosen = image_weights - text_weights - _weights_used_by(outputs[0], weights)
    if not chosen:
        raise ConfigurationError(f"{checkpoint.name!r} has no weights above its last block: leave out --head-only.")
    for name, weight in weights.items():
        weight.requires_grad_(name in chosen)
    return {name: weight for name, weight in weights.items() if name in chosen}, blocks


def features_of(output: Any) -> Tensor:
    """Return the embeddings, not of unit length, from the output of `get_image_features` or `get_text_features`."""
    features: Tensor = getattr(output, "pooler_output", output)
    return features


def find_blocks(model: nn.Module, names: set[str]) -> nn.ModuleList:
    """Return the longest list of blocks that contains any of the named weights. Raises ConfigurationError."""
    from torch import nn

    lists = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and any(weight.startswith(f"{name}.") for weight in names)
    ]
    if not lists or len(longest := max(lists, key=len)) < 2:
        raise ConfigurationError(
            f"The image side of a {type(model).__name__} is not made of a list of blocks, so the weights to train are "
            "unknown. Name CLIP, SigLIP, the starter or another transformer."
        )
    return longest


def _weights_used_by(result: Tensor, weights: dict[str, nn.Parameter]) -> set[str]:
    import torch

    gradients = torch.autograd.grad(result.sum(), list(weights.values()), allow_unused=True)
    return {name for name, gradient in zip(weights, gradients, strict=True) if gradient is not None}
