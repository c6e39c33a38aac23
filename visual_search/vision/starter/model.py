"""The starter as a transformers model, with the same calls and outputs as CLIP.

Importing this module registers it, so that AutoConfig and AutoModel can load its folders.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, BertConfig, BertModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from visual_search.vision.starter.efficientnet_lite import FEATURE_DIM, IMAGE_SIZE_PX, NUM_CLASSES, EfficientNetLite0

MODEL_TYPE = "visual-search-starter"


class StarterConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """The settings of a StarterModel.

    text_config: the text tower's BertConfig as a dict.
    visual_dim: length of the part of an embedding that only images use.
    concept_dim: length of the part that images and texts share: the text tower's width.
    concept_weight: share of the concept part in an image's squared length. A higher value helps text search and
        harms photo search; 0.1 has no measurable effect on photo search.
    """

    model_type = MODEL_TYPE

    def __init__(
        self,
        text_config: dict[str, Any] | None = None,
        visual_dim: int = 640,
        concept_dim: int = 384,
        concept_weight: float = 0.1,
        logit_scale_init_value: float = 2.6592,  # ln(1 / 0.07), CLIP's initial value (arXiv:2103.00020)
        **kwargs: Any,
    ) -> None:
        self.text_config = text_config or {}
        self.visual_dim = visual_dim
        self.concept_dim = concept_dim
        self.concept_weight = concept_weight
        self.logit_scale_init_value = logit_scale_init_value
        self.projection_dim = visual_dim + concept_dim
        self.image_size = IMAGE_SIZE_PX
        super().__init__(**kwargs)


class StarterModel(PreTrainedModel):
    """A dual encoder whose two towers were trained separately and are connected by class names.

    image = [sqrt(1 - w) visual | sqrt(w) concepts], text = [0 | words]; each part has unit length.
    - visual: the pooled features in a basis of the classifier's rows.
    - concepts: the classifier's probabilities times the class names' text embeddings (ConSE, arXiv:1312.5650).
    - words: the mean of the text tower's token states (Sentence-BERT, arXiv:1908.10084), minus the class names' mean.
    Two images are compared by both parts, a text and an image by the second part, so their cosine is below sqrt(w).
    """

    config_class = StarterConfig
    base_model_prefix = "starter"
    main_input_name = "pixel_values"
    config: StarterConfig
    text_mean: Tensor

    def __init__(self, config: StarterConfig) -> None:
        super().__init__(config)
        self.vision_model = EfficientNetLite0()
        self.text_model = BertModel(BertConfig(**config.text_config), add_pooling_layer=False)
        self.visual_projection = nn.Linear(FEATURE_DIM, config.visual_dim, bias=False)
        self.classifier = nn.Linear(FEATURE_DIM, NUM_CLASSES)
        self.concept_projection = nn.Linear(NUM_CLASSES, config.concept_dim, bias=False)
        self.register_buffer("text_mean", torch.zeros(config.concept_dim))
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: the checkpoint contains every weight."""

    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Return (n, visual_dim + concept_dim) unit embeddings of (n, 3, 224, 224) pixels as `pooler_output`."""
        return BaseModelOutputWithPooling(pooler_output=self._image_embeds(pixel_values))

    def get_text_features(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Return (n, visual_dim + concept_dim) unit embeddings of (n, tokens) ids as `pooler_output`."""
        return BaseModelOutputWithPooling(pooler_output=self._text_embeds(input_ids, attention_mask, token_type_ids))

    def forward(
        self, input_ids: Tensor, pixel_values: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Return the embeddings of images and texts and their scaled cosines, under CLIP's names."""
        image_embeds = self._image_embeds(pixel_values)
        text_embeds = self._text_embeds(input_ids, attention_mask)
        logits_per_image = self.logit_scale.exp() * image_embeds @ text_embeds.T
        return {
            "image_embeds": image_embeds,
            "text_embeds": text_embeds,
            "logits_per_image": logits_per_image,
            "logits_per_text": logits_per_image.T,
        }

    def _image_embeds(self, pixel_values: Tensor) -> Tensor:
        features = self.vision_model(pixel_values)
        visual = self.visual_projection(functional.normalize(features, dim=-1))
        concepts = self.concept_projection(self.classifier(features).softmax(dim=-1))
        weight = self.config.concept_weight
        visual = functional.normalize(visual, dim=-1) * (1 - weight) ** 0.5
        concepts = functional.normalize(concepts, dim=-1) * weight**0.5
        return torch.cat([visual, concepts], dim=-1)

    def _text_embeds(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        if attention_mask is None:
            attention_mask = input_ids.ne(self.config.text_config["pad_token_id"]).long()
        states = self.text_model(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state
        mask = attention_mask[..., None].to(states.dtype)
        words = functional.normalize((states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1), dim=-1)
        words = functional.normalize(words - self.text_mean, dim=-1)
        return torch.cat([words.new_zeros(len(words), self.config.visual_dim), words], dim=-1)


AutoConfig.register(MODEL_TYPE, StarterConfig, exist_ok=True)
AutoModel.register(StarterConfig, StarterModel, exist_ok=True)
