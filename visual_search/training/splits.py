"""Split the products into those to learn, those for early stopping, and those held out to the end."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from visual_search.exceptions import ConfigurationError

HELD_OUT_SHARE = 0.20
STOPPING_SHARE = 0.12
SET_ASIDE_MAX = 200  # products for stopping, and as many held out: more adds little and costs evaluation time
MIN_PRODUCTS = 10  # with fewer, none are set aside: too few would be left on either side


@dataclass(frozen=True, slots=True)
class ProductSplit:
    """The keys of the products in each part; no product is in two of them.

    learned: trained on. stopping: for early stopping. held_out: only for the table before and after.
    """

    learned: tuple[str, ...]
    stopping: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()


def split_products(
    keys: Collection[str], *, seed: int, held_out: Sequence[str] = (), stopping: Sequence[str] = ()
) -> ProductSplit:
    """Split products at random; the same seed and products give the same split.

    keys: of the products that can be trained on. held_out, stopping: used as they are if given.
    Raises ConfigurationError for a given key that is unknown or in both, and if fewer than two products are left.
    """
    import numpy as np

    for name, given in (("--products-held-out", held_out), ("--products-stopping", stopping)):
        if unknown := sorted(set(given) - set(keys)):
            raise ConfigurationError(f"{name} names {unknown[0]!r}, which has no data to train on.")
    if both := sorted(set(held_out) & set(stopping)):
        raise ConfigurationError(f"{both[0]!r} is named both by --products-held-out and by --products-stopping.")
    rest = sorted(set(keys) - set(held_out) - set(stopping))
    drawn = [rest[at] for at in np.random.default_rng(seed).permutation(len(rest))]
    if len(keys) >= MIN_PRODUCTS:
        if not held_out:
            held_out, drawn = _take(drawn, HELD_OUT_SHARE * len(keys))
        if not stopping:
            stopping, drawn = _take(drawn, STOPPING_SHARE * len(keys))
    if len(drawn) < 2:
        raise ConfigurationError(
            f"{len(drawn)} of {len(keys)} products are left to learn; at least two are needed. "
            "Label photos of more products, or set fewer aside."
        )
    return ProductSplit(tuple(sorted(drawn)), tuple(sorted(stopping)), tuple(sorted(held_out)))


def _take(drawn: Sequence[str], count: float) -> tuple[Sequence[str], list[str]]:
    size = min(SET_ASIDE_MAX, max(1, round(count)))
    return drawn[:size], list(drawn[size:])
