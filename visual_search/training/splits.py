"""Which products are learned from, which say when to stop, and which are kept away to the end."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from visual_search.exceptions import ConfigurationError

HELD_OUT_SHARE = 0.20
STOPPING_SHARE = 0.12
SET_ASIDE_MAX = 200  # products each: more says little more, and costs time at each look
MIN_PRODUCTS = 10  # below it, setting some aside leaves too little on either side


@dataclass(frozen=True, slots=True)
class ProductSplit:
    """Keys of products; no product is in two of them."""

    learned: tuple[str, ...]
    stopping: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()


def split_products(
    keys: Collection[str], *, seed: int, held_out: Sequence[str] = (), stopping: Sequence[str] = ()
) -> ProductSplit:
    """Divide products at random, the same way for the same seed and products.

    keys: of products that can be learned from. held_out, stopping: taken as they are where given.
    Raises ConfigurationError for one that is not among the keys or in both, and if fewer than two are left to learn.
    """
    import numpy as np

    for name, given in (("--products-held-out", held_out), ("--products-stopping", stopping)):
        if unknown := sorted(set(given) - set(keys)):
            raise ConfigurationError(f"{name} names {unknown[0]!r}, which has nothing to learn from.")
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
            f"{len(drawn)} of {len(keys)} products are left to learn from; telling products apart needs two or more. "
            "Label photos of more products, or set fewer aside."
        )
    return ProductSplit(tuple(sorted(drawn)), tuple(sorted(stopping)), tuple(sorted(held_out)))


def _take(drawn: Sequence[str], count: float) -> tuple[Sequence[str], list[str]]:
    size = min(SET_ASIDE_MAX, max(1, round(count)))
    return drawn[:size], list(drawn[size:])
