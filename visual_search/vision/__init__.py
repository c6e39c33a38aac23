"""A file or a text becomes a vector: decoding, preparation, checkpoints, encoders. Knows nothing of Django."""

from visual_search.vision.images import open_product_image

__all__ = ["open_product_image"]
