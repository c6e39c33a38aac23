"""Compare searches before and after a fine-tuning, and check the gate for text search."""

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

QUERIES_MAX = 2_000  # in one evaluation set
TEXT = "text"


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """One kind of query, searched before and after: photos or captions, with the product that each should find."""

    name: str
    photos: Sequence[Example] = ()
    captions: Sequence[tuple[str, str]] = ()  # product, caption

    @property
    def products(self) -> list[str]:
        return [photo.product for photo in self.photos] or [product for product, _ in self.captions]


@dataclass(frozen=True, slots=True)
class Change:
    """One line of the table: metrics from 0 to 1 by name. gain: after minus before, with its paired 95 % interval."""

    name: str
    count: int
    before: dict[str, float]
    after: dict[str, float]
    gain: dict[str, Interval]


def make_evaluation_sets(
    split: ProductSplit, photos: Sequence[Example], captions: Mapping[str, str], *, kind: str
) -> list[EvaluationSet]:
    """Return the evaluation sets: photos and text, each of learned products and of others.

    photos: none that is trained on. kind: `photos` or `variants`.
    """
    learned, held_out = set(split.learned), set(split.held_out)
    others = held_out | set(split.stopping)
    sets = [
        EvaluationSet(f"{kind}, learned products", [photo for photo in photos if photo.product in learned]),
        EvaluationSet(f"{kind}, held-out products", [photo for photo in photos if photo.product in held_out]),
        EvaluationSet(f"{TEXT}, learned products", captions=[pair for pair in captions.items() if pair[0] in learned]),
        EvaluationSet(f"{TEXT}, other products", captions=[pair for pair in captions.items() if pair[0] in others]),
    ]
    return [_limited(one) for one in sets if one.products]


def rank_all(
    trainer: Trainer, sets: Sequence[EvaluationSet], pictures: Mapping[str, Sequence[Example]]
) -> dict[str, Ranks]:
    """Return, by the name of the evaluation set, the rank of each query's product among all, 1 for the first.

    The search is exact, and a product counts by its best picture, as in a search. Among equal scores the right product
    comes last.
    """
    gallery = trainer.embed_examples([example for examples in pictures.values() for example in examples])
    return {one.name: _ranks(trainer, one, pictures, gallery) for one in sets}


def _ranks(
    trainer: Trainer, evaluation_set: EvaluationSet, pictures: Mapping[str, Sequence[Example]], gallery: FloatArray
) -> Ranks:
    import numpy as np

    columns = {product: at for at, product in enumerate(pictures)}
    starts = np.cumsum([0, *(len(examples) for examples in pictures.values())])[:-1]
    if evaluation_set.photos:
        vectors = trainer.embed_examples(evaluation_set.photos)
    else:
        vectors = trainer.embed_captions([caption for _, caption in evaluation_set.captions])
    scores = np.maximum.reduceat(vectors @ gallery.T, starts, axis=1)
    own = scores[np.arange(len(scores)), [columns[product] for product in evaluation_set.products]]
    ranks: Ranks = (scores >= own[:, None]).sum(axis=1)
    return ranks


def compare(evaluation_set: EvaluationSet, before: Ranks, after: Ranks) -> Change:
    """Return one line of the table."""
    old, new = metrics_of(before), metrics_of(after)
    gains = {name: interval(new[name] - old[name], evaluation_set.products) for name in old}
    return Change(evaluation_set.name, len(before), mean_metrics(before), mean_metrics(after), gains)


def mean_metrics(ranks: Ranks) -> dict[str, float]:
    """Return the mean of each metric of `metrics_of`."""
    return {name: float(values.mean()) for name, values in metrics_of(ranks).items()}


def metrics_of(ranks: Ranks) -> dict[str, NDArray[np.float64]]:
    """Return the value of each metric for each rank: (n,) by the metric's name, from 0 to 1."""
    import numpy as np

    hits = {f"hit_at_{k}": (ranks <= k).astype(np.float64) for k in (1, 10)}
    return hits | {"mrr": np.reciprocal(ranks.astype(np.float64))}


def text_regressions(changes: Sequence[Change], *, margin: float) -> list[str]:
    """Return a line for each text evaluation set whose hit rate at 10 fell by more than `margin`."""
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


def _limited(one: EvaluationSet) -> EvaluationSet:
    step = -(-len(one.products) // QUERIES_MAX)
    return EvaluationSet(one.name, one.photos[::step], one.captions[::step])
