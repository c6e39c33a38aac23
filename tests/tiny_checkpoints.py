"""Dual encoders with a few thousand random weights, saved as transformers saves real ones."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2Model,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

WORDS = ("<pad>", "</s>", "<unk>", "a", "red", "green", "shoe", "bag", "Red", "word")
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def tiny_clip(folder: Path, *, seed: int = 0) -> Path:
    """Save a CLIP with 8-d embeddings, 32 px images and 77 tokens."""
    config = CLIPConfig(
        text_config=TOWER | {"vocab_size": len(WORDS), "max_position_embeddings": 77, **_special_ids()},
        vision_config=TOWER | {"image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return _save(folder, CLIPModel, config, processor, seed)


def tiny_siglip(folder: Path, *, seed: int = 0) -> Path:
    """Save a SigLIP with 16-d embeddings, 32 px images and 64 tokens."""
    config = SiglipConfig(
        text_config=TOWER | {"vocab_size": len(WORDS), "max_position_embeddings": 64, **_special_ids()},
        vision_config=TOWER | {"image_size": 32, "patch_size": 8},
    )
    return _save(folder, SiglipModel, config, SiglipImageProcessorPil(size={"height": 32, "width": 32}), seed)


def tiny_siglip2(folder: Path, *, seed: int = 0) -> Path:
    """Save a SigLIP 2 that keeps the aspect ratio of images: 16-d embeddings, 16 patches of 8 px."""
    config = Siglip2Config(
        text_config=TOWER | {"vocab_size": 58, "max_position_embeddings": 64, **_special_ids()},
        vision_config=TOWER | {"num_patches": 16, "patch_size": 8},
    )
    return _save(folder, Siglip2Model, config, Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16), seed)


def _special_ids() -> dict[str, int]:
    return {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 3}


def _save(folder: Path, model_class: Any, config: Any, processor: Any, seed: int) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(config)
    # Fresh models give every input nearly the same embedding; larger weights separate them.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
    tokenizer = _letters() if model_class is Siglip2Model else _words()
    for part in (model, processor, tokenizer):
        part.save_pretrained(folder)
    return folder


def _words() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def _letters() -> Siglip2Tokenizer:
    symbols = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581", *string.ascii_letters)
    return Siglip2Tokenizer(vocab={symbol: number for number, symbol in enumerate(symbols)}, merges=[])
