"""What a fine-tuning changed: the same questions before and after, and the gate that text search has to pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from visual_search.quality.metrics import Interval, interval
from visual_search.quality.tables import points

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from visual_search.training.batches import Example
    from visual_search.training.splits import ProductSplit
    from visual_search.training.trainer import Trainer
    from visual_search.vision.encoder import FloatArray

    Ranks = NDArray[np.int64]

QUESTIONS_MAX = 2_000  # photos of one kind that are asked, before and after
TEXT = "text"


@dataclass(frozen=True, slots=True)
class Question:
    """One kind of search, asked before and after. Photos or captions, and the product that each should find."""

    name: str
    photos: Sequence[Example] = ()
    captions: Sequence[tuple[str, str]] = ()  # product, words

    @property
    def products(self) -> list[str]:
        return [photo.product for photo in self.photos] or [product for product, _ in self.captions]


@dataclass(frozen=True, slots=True)
class Change:
    """One line of the table. Rates from 0 to 1; `…_gain` is after less before, with its paired 95 % interval."""

    name: str
    count: int
    before: dict[str, float]
    after: dict[str, float]
    gain: dict[str, Interval]


def make_questions(
    split: ProductSplit, photos: Sequence[Example], captions: Mapping[str, str], *, kind: str
) -> list[Question]:
    """Return what is asked, of products that were learned and of products that were not.

    photos: none that is learned from. kind: what they are, `photos` or `variants`.
    """
    learned, held_out = set(split.learned), set(split.held_out)
    others = held_out | set(split.stopping)
    asked = [
        Question(f"{kind}, learned products", [photo for photo in photos if photo.product in learned]),
        Question(f"{kind}, held-out products", [photo for photo in photos if photo.product in held_out]),
        Question(f"{TEXT}, learned products", captions=[pair for pair in captions.items() if pair[0] in learned]),
        Question(f"{TEXT}, other products", captions=[pair for pair in captions.items() if pair[0] in others]),
    ]
    return [_bounded(question) for question in asked if question.products]


def ask_all(
    trainer: Trainer, questions: Sequence[Question], pictures: Mapping[str, Sequence[Example]]
) -> dict[str, Ranks]:
    """Return, by the question's name, the place of each asked product among all, 1 for the first; by exact search.

    A product counts by its best picture, as in a search. Of equal scores the own one comes last.
    """
    gallery = trainer.embed_examples([example for examples in pictures.values() for example in examples])
    return {question.name: _ranks(trainer, question, pictures, gallery) for question in questions}


def _ranks(
    trainer: Trainer, question: Question, pictures: Mapping[str, Sequence[Example]], gallery: FloatArray
) -> Ranks:
    import numpy as np

    place = {product: at for at, product in enumerate(pictures)}
    starts = np.cumsum([0, *(len(examples) for examples in pictures.values())])[:-1]
    if question.photos:
        vectors = trainer.embed_examples(question.photos)
    else:
        vectors = trainer.embed_captions([words for _, words in question.captions])
    scores = np.maximum.reduceat(vectors @ gallery.T, starts, axis=1)
    own = scores[np.arange(len(scores)), [place[product] for product in question.products]]
    ranks: Ranks = (scores >= own[:, None]).sum(axis=1)
    return ranks


def compare(question: Question, before: Ranks, after: Ranks) -> Change:
    """Return one line of the table."""
    old, new = measures(before), measures(after)
    gains = {name: interval(new[name] - old[name], question.products) for name in old}
    return Change(question.name, len(before), rates_of(before), rates_of(after), gains)


def rates_of(ranks: Ranks) -> dict[str, float]:
    """Return the means of `measures`."""
    return {name: float(values.mean()) for name, values in measures(ranks).items()}


def measures(ranks: Ranks) -> dict[str, NDArray[np.float64]]:
    """Return what each rank counts for, by the measure's name: (n,) each, from 0 to 1."""
    import numpy as np

    hits = {f"hit_at_{k}": (ranks <= k).astype(np.float64) for k in (1, 10)}
    return hits | {"mrr": np.reciprocal(ranks.astype(np.float64))}


def lost_text(changes: Sequence[Change], *, margin: float) -> list[str]:
    """Return a sentence on each kind of text search that lost more than `margin` of its hit rate at 10."""
    return [
        f"{change.name}: hit@10 fell from {change.before['hit_at_10']:.1%} to {change.after['hit_at_10']:.1%}, by more "
        f"than the {margin:.1%} allowed"
        for change in changes
        if change.name.startswith(TEXT) and change.before["hit_at_10"] - change.after["hit_at_10"] > margin + 1e-9
    ]


def table(changes: Sequence[Change]) -> list[str]:
    """Return the lines of the table, in percent and points."""
    lines = [f"{'':<27}{'n':>6}{'hit@1':>17}{'hit@10':>17}{'MRR':>17}   gain of hit@10 (95 %)"]
    for change in changes:
        pairs = "".join(
            f"{f'{change.before[name]:.1%} → {change.after[name]:.1%}':>17}"
            for name in ("hit_at_1", "hit_at_10", "mrr")
        )
        lines.append(f"{change.name:<27}{change.count:>6}{pairs}   {points(change.gain['hit_at_10'])}")
    return lines


def _bounded(question: Question) -> Question:
    step = -(-len(question.products) // QUESTIONS_MAX)
    return Question(question.name, question.photos[::step], question.captions[::step])
