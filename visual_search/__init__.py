"""Search by photo for Django shops: a photo goes in, similar products come out."""

__version__ = "0.1.0"
