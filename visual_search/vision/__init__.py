"""Turn images and texts into vectors: decoding, preparation, checkpoints, encoders. Independent of Django."""

from visual_search.vision.images import open_product_image

__all__ = ["open_product_image"]
