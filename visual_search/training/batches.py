"""Make the training batches: photos, and one catalogue picture of each of their products."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from visual_search.quality.variants import phone_like

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

VARIANT_SHARE = 0.5  # of the catalogue pictures, shown as variants; the others as the index holds them
GROUNDS = 8  # other photos that may become a product's background, drawn again for each step
MIN_VARIANTS = 2000  # in an epoch that has only catalogue pictures


@dataclass(frozen=True, slots=True)
class Example:
    """A picture of a product. jpeg: a small file, see data.read_small."""

    product: str
    jpeg: bytes

    def open(self) -> Image:
        from PIL import Image

        return Image.open(io.BytesIO(self.jpeg)).convert("RGB")


@dataclass(frozen=True, slots=True)
class Batch:
    """The input of one training step.

    images: n photos, then one picture of each of the m products. keys: of the m products. products: (n,) the index in
    `keys` of each photo's product.
    """

    images: list[Image]
    keys: list[str]
    products: NDArray[np.intp]


class Batches:
    """The batches of every epoch: the same for the same seed, in whatever order they are drawn.

    photos: to train on; if empty, phone-like variants of the catalogue pictures take their place.
    pictures: the catalogue pictures of each product, the main one first.
    size: photos in a batch. strength: see variants.phone_like.
    """

    def __init__(
        self,
        photos: Sequence[Example],
        pictures: Mapping[str, Sequence[Example]],
        *,
        size: int,
        seed: int,
        strength: float,
    ) -> None:
        self.strength = strength
        if not photos:
            every = [picture for product in pictures.values() for picture in product]
            photos = every * -(-MIN_VARIANTS // len(every))
            self.strength = 1.0
        self.photos, self.pictures, self.seed = photos, pictures, seed
        self.size = min(size, len(photos))

    def __len__(self) -> int:
        return len(self.photos) // self.size

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield the epoch's batches; draw each in a thread while the previous one is in use."""
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
            upcoming = thread.submit(self.draw, number, 0)
            for step in range(len(self)):
                batch = upcoming.result()
                if step + 1 < len(self):
                    upcoming = thread.submit(self.draw, number, step + 1)
                yield batch

    def draw(self, epoch: int, step: int) -> Batch:
        """Return one batch of an epoch."""
        import numpy as np

        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.photos))
        rng = np.random.default_rng([self.seed, epoch, step])
        chosen = [self.photos[at] for at in order[step * self.size : (step + 1) * self.size]]
        keys, products = np.unique([photo.product for photo in chosen], return_inverse=True)
        grounds = [self.photos[at].open() for at in rng.integers(len(self.photos), size=GROUNDS)]
        images = [self._vary(photo, rng, grounds) for photo in chosen]
        for key in keys:
            pictures = self.pictures[key]
            picture = pictures[int(rng.integers(len(pictures)))]
            is_varied = rng.random() < VARIANT_SHARE
            images.append(self._vary(picture, rng, grounds) if is_varied else picture.open())
        return Batch(images, [str(key) for key in keys], products)

    def _vary(self, example: Example, rng: np.random.Generator, grounds: Sequence[Image]) -> Image:
        from PIL.Image import Transpose

        image = example.open()
        if rng.random() < 0.5:
            image = image.transpose(Transpose.FLIP_LEFT_RIGHT)
        return phone_like(image, rng, strength=self.strength, grounds=grounds) if self.strength else image
