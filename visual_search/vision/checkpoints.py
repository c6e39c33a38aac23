"""Load a dual encoder's weights, image processor and tokenizer, and compute its fingerprint.

A checkpoint is a hub name or a local folder: CLIP, SigLIP, SigLIP 2, the starter, or any other that AutoModel loads
with `get_image_features` and `get_text_features`. Torch and transformers are imported inside the functions: they
take seconds and hundreds of MB, and CUDA must not be touched before a fork.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visual_search.exceptions import CheckpointMissing, ConfigurationError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

TEXT_HANDLING = 1  # increment when a change to text_inputs or image_inputs changes the embeddings of the same input
SIGLIP_MAX_TOKENS = 64  # the training length of SigLIP and SigLIP 2 (arXiv:2303.15343, arXiv:2502.14786)
MAX_ASPECT = 4  # a centre crop keeps only the middle square; resizing a whole thin strip takes gigabytes

ADVICE = (
    "Download it on a machine that reaches the hub and copy its folder here, set another local folder as the "
    'checkpoint (VISUAL_SEARCH["CHECKPOINT"]), or build a small one with `manage.py build_starter_checkpoint DIR`.'
)

# Settings that change an embedding but not the weights. An explicit list, because other versions of transformers
# add keys.
CONFIG_KEYS = (
    "model_type", "hidden_act", "layer_norm_eps", "num_attention_heads", "image_size", "patch_size",
    "projection_dim", "visual_dim", "concept_weight",
)  # fmt: skip
PREPROCESSING_KEYS = (
    "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize",
    "image_mean", "image_std", "do_pad", "pad_size", "patch_size", "max_num_patches",
)  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """A loaded dual encoder: on the CPU, in float32, in evaluation mode."""

    name: str
    model: Any
    image_processor: Any
    tokenizer: Any

    def image_inputs(self, images: Sequence[Image]) -> dict[str, Tensor]:
        """Return the arguments of `model.get_image_features` for RGB images of any size."""
        inputs = self.image_processor(images=[self._crop_strip(image) for image in images], return_tensors="pt")
        return dict(inputs)

    def text_inputs(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return the arguments of `model.get_text_features`. Texts that are too long are truncated.

        SigLIP was trained on lower-case text, padded at the end to 64 tokens, without an attention mask. With a mask
        its embeddings are wrong (cosine 0.05).
        """
        config = self.model.config
        limit = min(
            self.tokenizer.model_max_length, _sub_config(config, "text_config").get("max_position_embeddings", 512)
        )
        if not config.model_type.startswith("siglip"):
            return dict(
                self.tokenizer(list(texts), padding=True, truncation=True, max_length=limit, return_tensors="pt")
            )
        encoded = self.tokenizer(
            [text.lower() for text in texts],
            padding="max_length",
            padding_side="right",  # SigLIP pools the last position; transformers' own SigLIP 2 class pads left
            truncation=True,
            max_length=min(limit, SIGLIP_MAX_TOKENS),
            return_tensors="pt",
        )
        return {"input_ids": encoded["input_ids"]}

    @property
    def input_size_px(self) -> int:
        """The shortest side of the model's input. Smaller images are enlarged."""
        preprocessing = self._preprocessing()
        size = preprocessing.get("crop_size") if preprocessing.get("do_center_crop") else preprocessing.get("size")
        if size:
            return int(min(size.values()))
        # SigLIP 2 with native aspect ratio has a maximum number of patches instead.
        return math.isqrt(preprocessing.get("max_num_patches", 196)) * int(preprocessing.get("patch_size", 16))

    def fingerprint(self) -> str:
        """Return 16 hex digits for everything that determines an embedding: weights, settings, preprocessing.

        Independent of the folder, the device, the precision and the version of transformers. Weights are hashed by
        content, not by name, because other versions name layers differently.
        """
        config = self.model.config
        parts = {
            "text_handling": TEXT_HANDLING,
            "config": [_select(part, CONFIG_KEYS) for part in (config.to_dict(), *_tower_configs(config))],
            "preprocessing": self._preprocessing(),
            # Integer tensors are position ids, which only some versions store with the weights.
            "weights": sorted(_digest(item) for item in self.model.state_dict().values() if item.is_floating_point()),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def _preprocessing(self) -> dict[str, Any]:
        return _select(self.image_processor.to_dict(), PREPROCESSING_KEYS)

    def _crop_strip(self, image: Image) -> Image:
        image = image if image.mode == "RGB" else image.convert("RGB")
        if not getattr(self.image_processor, "do_center_crop", False):
            return image
        width, height = image.size
        longest = min(width, height) * MAX_ASPECT
        left, top = max(width - longest, 0) // 2, max(height - longest, 0) // 2
        return image.crop((left, top, width - left, height - top)) if left or top else image


def load_checkpoint(name: str | os.PathLike[str]) -> Checkpoint:
    """Load a checkpoint from a hub name or a local folder. A folder never causes network access.

    For a hub name, weights cached on this machine come first: starting needs no network, and weights that change
    on the hub don't silently change an index.
    Raises CheckpointMissing if the weights are missing or incomplete, ConfigurationError if a package is missing or
    the checkpoint is not a dual encoder.
    """
    name = os.fspath(name)
    folder = _local_folder(name)
    try:
        with quiet_transformers():
            checkpoint = _load(name, str(folder), local_only=True) if folder else _load_hub_name(name)
    except ImportError as error:
        raise ConfigurationError(
            f"Loading the checkpoint {name!r} needs a package that is missing: {error}. Run `pip install "
            '"django-visual-search[encoder]"`; SigLIP (not SigLIP 2) also needs `pip install sentencepiece protobuf`.'
        ) from error
    model = checkpoint.model
    if not hasattr(model, "get_image_features") or not hasattr(model, "get_text_features"):
        raise ConfigurationError(
            f"The checkpoint {name!r} is a {type(model).__name__}, which does not embed images and texts in one space. "
            "Use a dual encoder such as CLIP or SigLIP."
        )
    return checkpoint


def _local_folder(name: str) -> Path | None:
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_absolute() or name.startswith((".", "~")):
        raise CheckpointMissing(f"There is no checkpoint folder {name!r}. {ADVICE}")
    return None


def _load_hub_name(name: str) -> Checkpoint:
    try:
        return _load(name, name, local_only=True)
    except CheckpointMissing:
        return _load(name, name, local_only=False)


def _load(name: str, source: str, *, local_only: bool) -> Checkpoint:
    import torch
    from safetensors import SafetensorError

    import visual_search.vision.starter.model  # noqa: F401  # registers the starter with AutoModel

    # Never run code from a checkpoint. Without this option, transformers would ask on the terminal.
    options: dict[str, Any] = {"local_files_only": local_only, "trust_remote_code": False}
    transformers: Any = import_module("transformers")  # its annotations change with every version
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
        # Always the PIL backend: torchvision resizes slightly differently, which changes the embeddings.
        image_processor = transformers.AutoImageProcessor.from_pretrained(source, backend="pil", **options)
        model, report = transformers.AutoModel.from_pretrained(
            source, dtype=torch.float32, output_loading_info=True, **options
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointMissing(
            f"The checkpoint {name!r} can't be loaded on this machine: {_first_line(error)}. {ADVICE}"
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointMissing(
            f"The checkpoint {name!r} lacks {len(missing)} of its model's weights, including {missing[0]!r}. {ADVICE}"
        )
    return Checkpoint(name, model.eval(), image_processor, tokenizer)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep progress bars and loading reports out of the worker's log."""
    logging: Any = import_module("transformers.utils.logging")
    level, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if had_bars:
            logging.enable_progress_bar()


def _sub_config(config: Any, name: str) -> Mapping[str, Any]:
    sub_config: Any = getattr(config, name, None) or {}
    values: Mapping[str, Any] = sub_config if isinstance(sub_config, Mapping) else sub_config.to_dict()
    return values


def _tower_configs(config: Any) -> list[Mapping[str, Any]]:
    return [_sub_config(config, "text_config"), _sub_config(config, "vision_config")]


def _select(values: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: _to_json(values[key]) for key in keys if values.get(key) is not None}


def _to_json(value: Any) -> Any:
    """Return a setting as plain JSON types, whatever type transformers uses."""
    if isinstance(value, Mapping):
        return {str(key): _to_json(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    return value.value if isinstance(value, Enum) else value


def _digest(tensor: Tensor) -> str:
    digest = hashlib.sha256(repr(tuple(tensor.shape)).encode())
    # Little-endian float32, whatever the file and the machine use.
    digest.update(tensor.detach().float().cpu().flatten().numpy().astype("<f4", copy=False).data)
    return digest.hexdigest()
