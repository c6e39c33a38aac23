"""Compute the loss: embeddings of one product should be near each other and far from those of other products."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


TEMPERATURE_SHARE = 0.6  # of the scores' spread; measured with the starter, docs/quality.md
MIN_TEMPERATURE = 0.005


def info_nce(images: Tensor, anchors: Tensor, products: Tensor, *, temperature: float) -> Tensor:
    """Return InfoNCE in both directions between images and one anchor per product, a picture or a caption.

    images: (n, dim) unit rows. anchors: (m, dim) unit rows, one for each product of the batch. products: (n,) the row
    in `anchors` of each image's product; every product has an image.
    The loss is label-aware because each product has exactly one anchor: no image is pushed away from another picture or
    caption of its own product. Several images of one anchor share its probability.
    Source: arXiv:1807.03748; both directions, CLIP, arXiv:2103.00020; several positives, arXiv:2004.11362.
    """
    import torch
    from torch.nn import functional

    scores = images @ anchors.T / temperature
    to_anchors = functional.cross_entropy(scores, products)
    own = functional.one_hot(products, len(anchors)).T.to(scores.dtype)  # (m, n)
    to_images = -(functional.log_softmax(scores.T, dim=1) * own).sum(dim=1) / own.sum(dim=1)
    loss: Tensor = (to_anchors + torch.mean(to_images)) / 2
    return loss


def initial_temperature(scores: Tensor) -> float:
    """Return a temperature proportional to the spread of the scores before training.

    scores: (n, m) cosines. Checkpoints differ: CLIP's scores of photos and texts lie within a tenth, the starter's of
    photos and pictures within a half; with one fixed temperature one of them would have no gradient.
    """
    return max(MIN_TEMPERATURE, TEMPERATURE_SHARE * float(scores.std(dim=1, correction=0).mean()))
