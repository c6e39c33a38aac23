"""What each step learns from: photos, one catalogue picture of each of their products, and its caption."""

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

VARIANT_SHARE = 0.5  # of the catalogue pictures that are shown as variants; the others as the index holds them
GROUNDS = 8  # other photos that may stand behind a product, drawn anew for each step
PASSES = 2000  # variants that an epoch makes at least where it has catalogue pictures alone


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
    """images: n photos, then one picture of each of the m products. products: (n,) which of the m a photo shows."""

    images: list[Image]
    keys: list[str]
    products: NDArray[np.intp]


class Batches:
    """The batches of every epoch: the same for the same seed, in whatever order they are drawn.

    photos: what is learned from; without any, each catalogue picture is, as a phone would see it.
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
            photos = every * -(-PASSES // len(every))
            self.strength = 1.0
        self.photos, self.pictures, self.seed = photos, pictures, seed
        self.size = min(size, len(photos))

    def __len__(self) -> int:
        return len(self.photos) // self.size

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield the epoch's batches; each is drawn while the one before is learned from."""
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
            coming = thread.submit(self.draw, number, 0)
            for step in range(len(self)):
                batch = coming.result()
                if step + 1 < len(self):
                    coming = thread.submit(self.draw, number, step + 1)
                yield batch

    def draw(self, epoch: int, step: int) -> Batch:
        """Return one batch of an epoch."""
        import numpy as np

        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.photos))
        dice = np.random.default_rng([self.seed, epoch, step])
        chosen = [self.photos[at] for at in order[step * self.size : (step + 1) * self.size]]
        keys, products = np.unique([photo.product for photo in chosen], return_inverse=True)
        grounds = [self.photos[at].open() for at in dice.integers(len(self.photos), size=GROUNDS)]
        images = [self._vary(photo, dice, grounds) for photo in chosen]
        for key in keys:
            pictures = self.pictures[key]
            picture = pictures[int(dice.integers(len(pictures)))]
            is_varied = dice.random() < VARIANT_SHARE
            images.append(self._vary(picture, dice, grounds) if is_varied else picture.open())
        return Batch(images, [str(key) for key in keys], products)

    def _vary(self, example: Example, dice: np.random.Generator, grounds: Sequence[Image]) -> Image:
        from PIL.Image import Transpose

        image = example.open()
        if dice.random() < 0.5:
            image = image.transpose(Transpose.FLIP_LEFT_RIGHT)
        return phone_like(image, dice, strength=self.strength, grounds=grounds) if self.strength else image
