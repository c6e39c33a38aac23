"""What is wanted of embeddings: near to what belongs to the same product, far from what belongs to others."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


TEMPERATURE_SHARE = 0.6  # of the spread: measured with the starter, docs/quality.md
MIN_TEMPERATURE = 0.005


def info_nce(images: Tensor, anchors: Tensor, products: Tensor, *, temperature: float) -> Tensor:
    """Return InfoNCE in both directions between images and one anchor a product, a picture or a caption.

    images: (n, dim) unit rows. anchors: (m, dim) unit rows, one for each product of the batch. products: (n,) the row
    in `anchors` of each image's product; every product has an image.
    That each product stands once among the anchors is what makes it label-aware: no image is pushed away from another
    picture or caption of its own product. An anchor's several images share its probability.
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


def own_temperature(scores: Tensor) -> float:
    """Return a temperature in proportion to how far scores lie apart before anything is learned.

    scores: (n, m) cosines. Checkpoints differ: those of CLIP's photos and texts lie within a tenth, the starter's
    photos and pictures within a half; one fixed number would leave one of them without a gradient.
    """
    return max(MIN_TEMPERATURE, TEMPERATURE_SHARE * float(scores.std(dim=1, correction=0).mean()))
