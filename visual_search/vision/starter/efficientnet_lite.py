"""EfficientNet-Lite0, the starter's vision tower, with its batch normalisation folded into the convolutions.

Source: EfficientNet, arXiv:1905.11946; the Lite variants drop squeeze-and-excitation and use ReLU6
(tensorflow/tpu, Apache-2.0). After folding, a forward pass is only convolutions, and fine-tuning keeps the
pre-training statistics, which small batches need.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

IMAGE_SIZE_PX = 224
FEATURE_DIM = 1280
NUM_CLASSES = 1000
BATCH_NORM_EPSILON = 1e-3  # as in the training of the published weights


class Stage(NamedTuple):
    """A sequence of blocks. Only the first one strides and changes the number of channels."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels_in: int
    channels_out: int


STAGES = (
    Stage(1, 3, 1, 1, 32, 16),
    Stage(2, 3, 2, 6, 16, 24),
    Stage(2, 5, 2, 6, 24, 40),
    Stage(3, 3, 2, 6, 40, 80),
    Stage(3, 5, 1, 6, 80, 112),
    Stage(4, 5, 2, 6, 112, 192),
    Stage(1, 3, 1, 6, 192, 320),
)


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding: with stride 2, an odd row or column is added at the end."""

    def forward(self, inputs: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        rows, columns = (max((math.ceil(n / stride) - 1) * stride + kernel - n, 0) for n in inputs.shape[-2:])
        if rows % 2 == 0 and columns % 2 == 0:
            padding = (rows // 2, columns // 2)
        else:
            inputs = functional.pad(inputs, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
            padding = (0, 0)
        return functional.conv2d(inputs, self.weight, self.bias, self.stride, padding, 1, self.groups)


class InvertedResidual(nn.Module):
    """Expand, convolve each channel separately, project. Source: MobileNetV2, arXiv:1801.04381."""

    def __init__(self, kernel: int, stride: int, expansion: int, channels_in: int, channels_out: int) -> None:
        super().__init__()
        hidden = channels_in * expansion
        self.expand = nn.Conv2d(channels_in, hidden, 1) if expansion != 1 else None
        self.depthwise = SameConv2d(hidden, hidden, kernel, stride, groups=hidden)
        self.project = nn.Conv2d(hidden, channels_out, 1)
        self.has_skip = stride == 1 and channels_in == channels_out

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = inputs if self.expand is None else functional.relu6(self.expand(inputs))
        outputs: Tensor = self.project(functional.relu6(self.depthwise(hidden)))
        return inputs + outputs if self.has_skip else outputs


class EfficientNetLite0(nn.Module):
    """Compute the pooled features of an image, before the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv2d(3, STAGES[0].channels_in, 3, 2)
        self.blocks = nn.ModuleList()
        for stage in STAGES:
            self.blocks.append(
                InvertedResidual(stage.kernel, stage.stride, stage.expansion, stage.channels_in, stage.channels_out)
            )
            for _ in range(stage.repeats - 1):
                self.blocks.append(
                    InvertedResidual(stage.kernel, 1, stage.expansion, stage.channels_out, stage.channels_out)
                )
        self.head = nn.Conv2d(STAGES[-1].channels_out, FEATURE_DIM, 1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return (n, 1280) features of (n, 3, height, width) pixels scaled as (value - 127) / 128."""
        # The fastest memory layout for convolutions on CPU and GPU.
        hidden = functional.relu6(self.stem(pixel_values.contiguous(memory_format=torch.channels_last)))
        for block in self.blocks:
            hidden = block(hidden)
        return functional.relu6(self.head(hidden)).mean((2, 3))


def fold_batch_norm(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the EfficientNetLite0 state from the published state, whose convolutions have no bias.

    With s = weight / sqrt(variance + epsilon), a normalised convolution equals a convolution with the kernel
    s * kernel and the bias (bias - mean * s).
    """
    folded: dict[str, Tensor] = {}
    for name, (convolution, norm) in _published_names(published).items():
        scale = published[f"{norm}.weight"] / torch.sqrt(published[f"{norm}.running_var"] + BATCH_NORM_EPSILON)
        folded[f"{name}.weight"] = published[f"{convolution}.weight"] * scale[:, None, None, None]
        folded[f"{name}.bias"] = published[f"{norm}.bias"] - published[f"{norm}.running_mean"] * scale
    return folded


def _published_names(published: Mapping[str, Tensor]) -> dict[str, tuple[str, str]]:
    """Map our layer names to the published names of their convolution and normalisation."""
    names = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
    for index in range(sum(stage.repeats for stage in STAGES)):
        block = f"_blocks.{index}"
        if f"{block}._expand_conv.weight" in published:
            names[f"blocks.{index}.expand"] = (f"{block}._expand_conv", f"{block}._bn0")
        names[f"blocks.{index}.depthwise"] = (f"{block}._depthwise_conv", f"{block}._bn1")
        names[f"blocks.{index}.project"] = (f"{block}._project_conv", f"{block}._bn2")
    return names
