"""The parts of a fine-tuning: the trained weights, the losses, the batches, the memory, the loop, the table."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.drawings import photo_bytes
from tests.tiny_checkpoints import tiny_clip, tiny_siglip, tiny_siglip2
from visual_search.exceptions import ConfigurationError, TrainingFailed
from visual_search.training.batches import Batches, Example
from visual_search.training.comparison import (
    Change,
    EvaluationSet,
    compare,
    make_evaluation_sets,
    metrics_of,
    table,
    text_regressions,
)
from visual_search.training.data import usable_captions
from visual_search.training.fine_tuning import hold_out_photos, main_picture_variants
from visual_search.training.losses import info_nce, initial_temperature
from visual_search.training.memory import MemoryPlan, bytes_per_image, plan_memory, recompute
from visual_search.training.splits import ProductSplit, split_products
from visual_search.training.trainer import Recipe, Trainer, check_recipe
from visual_search.training.weights import choose_weights, find_blocks
from visual_search.vision.checkpoints import load_checkpoint

TINY = {"clip": tiny_clip, "siglip": tiny_siglip, "siglip2": tiny_siglip2}
CAPTIONS = {"1": "a red shoe", "2": "a green bag", "3": "a red bag"}


def example(product: str, seed: int) -> Example:
    return Example(product, photo_bytes((48, 48), seed=seed))


@pytest.fixture
def pictures() -> dict[str, list[Example]]:
    return {key: [example(key, int(key))] for key in CAPTIONS}


@pytest.fixture
def photos() -> list[Example]:
    return [example(key, 10 * int(key) + n) for key in CAPTIONS for n in range(4)]


def make_trainer(folder: Path, make: Callable[[Path], Path] = tiny_clip, **recipe: Any) -> Trainer:
    chosen = Recipe(learning_rate=1e-2, **recipe)
    # Enough memory, whatever other tests have left in this process.
    return Trainer(load_checkpoint(make(folder)), CAPTIONS, chosen, steps=20, memory_bytes=64 * 2**30)


def unit(rows: int, dim: int = 4, seed: int = 0) -> torch.Tensor:
    return functional.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=-1)


# Weights


@pytest.mark.parametrize("name", TINY)
def test_choose_weights__takes_the_upper_blocks_of_the_image_side(name: str, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(TINY[name](tmp_path))
    chosen, _ = choose_weights(checkpoint)
    assert {weight.split("layers.")[1][0] for weight in chosen if ".layers." in weight} == {"1"}  # of 0 and 1
    assert not [weight for weight in chosen if weight.startswith(("text", "logit")) or "embedding" in weight]
    assert any("post_layernorm" in weight for weight in chosen)
    learning = {name for name, weight in checkpoint.model.named_parameters() if weight.requires_grad}
    assert learning == set(chosen)


def test_choose_weights__head_of_siglip__with_the_parts_that_are_never_called(tmp_path: Path) -> None:
    chosen, _ = choose_weights(load_checkpoint(tiny_siglip(tmp_path)), head_only=True)
    assert not [weight for weight in chosen if ".layers." in weight]
    assert {"vision_model.head.probe", "vision_model.head.attention.out_proj.weight"} <= set(chosen)


def test_choose_weights__of_the_starter(starter_folder: Path) -> None:
    chosen, _ = choose_weights(load_checkpoint(starter_folder))
    blocks = {int(weight.split(".")[2]) for weight in chosen if weight.startswith("vision_model.blocks")}
    assert blocks == set(range(8, 16))
    others = {weight.split(".")[0] for weight in chosen if not weight.startswith("vision_model.blocks")}
    assert others == {"vision_model", "visual_projection", "classifier", "concept_projection"}


def test_find_blocks__of_something_without_blocks__says_so() -> None:
    with pytest.raises(ConfigurationError, match="not made of a list of blocks"):
        find_blocks(torch.nn.Sequential(torch.nn.Linear(2, 2)), {"0.weight"})


# Losses


def test_info_nce__one_image_a_product__is_cross_entropy_in_both_directions() -> None:
    images, anchors = unit(5), unit(5, seed=1)
    scores = images @ anchors.T / 0.1
    wanted = (
        functional.cross_entropy(scores, torch.arange(5)) + functional.cross_entropy(scores.T, torch.arange(5))
    ) / 2
    assert torch.allclose(info_nce(images, anchors, torch.arange(5), temperature=0.1), wanted)


def test_info_nce__two_photos_of_one_product__are_not_pushed_apart() -> None:
    anchors = torch.eye(3)[:2]
    here = torch.tensor([0, 0, 1])
    together = info_nce(anchors[here], anchors, here, temperature=0.05)
    assert float(together) < float(info_nce(unit(3, dim=3), anchors, here, temperature=0.05))
    # The lowest possible loss: each photo equals its anchor, and the anchor's two photos share its probability.
    assert float(together) == pytest.approx(np.log(2) / 4, abs=1e-3)


def test_info_nce__one_product_alone__asks_nothing_of_the_photos() -> None:
    images = unit(4).requires_grad_()
    info_nce(images, unit(1, seed=1), torch.zeros(4, dtype=torch.long), temperature=1.0).backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()


def test_initial_temperature__follows_the_spread_of_the_scores() -> None:
    scores = unit(20) @ unit(10, seed=1).T
    assert initial_temperature(scores / 10) == pytest.approx(initial_temperature(scores) / 10)
    assert initial_temperature(torch.ones(3, 1)) > 0


# Batches


def test_batches__same_seed_same_batch_whoever_draws_it(photos: list[Example], pictures: Any) -> None:
    def drawn(seed: int) -> list[bytes]:
        batches = Batches(photos, pictures, size=4, seed=seed, strength=0.5)
        return [image.tobytes() for batch in batches.epoch(1) for image in batch.images]

    assert drawn(1) == drawn(1) != drawn(2)
    last = Batches(photos, pictures, size=4, seed=1, strength=0.5).draw(1, 2)
    assert [image.tobytes() for image in last.images] == drawn(1)[-len(last.images) :]


def test_batch__holds_one_picture_of_each_product(photos: list[Example], pictures: Any) -> None:
    for batch in Batches(photos, pictures, size=6, seed=0, strength=0).epoch(0):
        assert len(batch.products) == 6
        assert len(batch.images) == 6 + len(batch.keys)
        assert sorted(set(batch.products)) == list(range(len(batch.keys)))
        assert len(set(batch.keys)) == len(batch.keys)


def test_epoch__shows_every_photo_once(photos: list[Example], pictures: Any) -> None:
    batches = Batches(photos, pictures, size=4, seed=0, strength=0)
    shown = sorted(key for batch in batches.epoch(0) for key in np.array(batch.keys)[batch.products])
    assert shown == sorted(photo.product for photo in photos)


def test_batches__of_fewer_photos_than_a_batch__are_one(photos: list[Example], pictures: Any) -> None:
    batches = Batches(photos, pictures, size=64, seed=0, strength=0)
    assert (len(batches), batches.size) == (1, len(photos))


def test_batches__without_photos__show_variants_of_the_pictures(pictures: Any) -> None:
    batches = Batches([], pictures, size=8, seed=0, strength=0.5)
    originals = {examples[0].open().tobytes() for examples in pictures.values()}
    batch = batches.draw(0, 0)
    assert len(batch.products) == 8
    assert not originals & {image.tobytes() for image in batch.images[:8]}


# Memory


@pytest.mark.parametrize("make", [tiny_clip, tiny_siglip], ids=["clip", "siglip"])
def test_gradients__in_chunks_and_recomputed__are_those_of_the_whole_batch(
    make: Callable[[Path], Path], tmp_path: Path, photos: list[Example], pictures: Any
) -> None:
    trainer = make_trainer(tmp_path, make)
    batch = Batches(photos, pictures, size=8, seed=0, strength=0.5).draw(0, 0)
    whole = gradients(trainer, batch, MemoryPlan(64, keeps_graph=True, is_recomputing=False))
    in_chunks = gradients(trainer, batch, MemoryPlan(3, keeps_graph=False, is_recomputing=False))
    recompute(trainer.blocks)
    recomputed = gradients(trainer, batch, MemoryPlan(3, keeps_graph=True, is_recomputing=True))
    for name, gradient in whole.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(in_chunks[name], gradient, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-3, atol=1e-5)


def test_gradients__in_mixed_precision__point_the_same_way(
    tmp_path: Path, photos: list[Example], pictures: Any
) -> None:
    trainer = make_trainer(tmp_path)
    batch = Batches(photos, pictures, size=8, seed=0, strength=0.5).draw(0, 0)
    plan = MemoryPlan(64, keeps_graph=True, is_recomputing=False)
    single = gradients(trainer, batch, plan)
    trainer._half = torch.bfloat16  # as on a GPU; a CPU can do it too, slowly
    for name, gradient in gradients(trainer, batch, plan).items():
        assert gradient.dtype == torch.float32
        if single[name].abs().max() < 1e-5:  # softmax is independent of a key's bias
            continue
        assert functional.cosine_similarity(gradient.flatten(), single[name].flatten(), dim=0) > 0.95, name


def gradients(trainer: Trainer, batch: Any, plan: MemoryPlan) -> dict[str, torch.Tensor]:
    trainer.optimizer.zero_grad()
    trainer._accumulate(batch, plan)
    return {name: weight.grad.clone() for name, weight in trainer.weights.items() if weight.grad is not None}


def test_recomputed_blocks__keep_less(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    blank = example("1", 1).open()
    plain = bytes_per_image(lambda count: trainer._embed([blank] * count))
    recompute(trainer.blocks)
    assert 0 < bytes_per_image(lambda count: trainer._embed([blank] * count)) < plain


@pytest.mark.parametrize(
    ("share", "keeps_graph", "is_recomputing"), [(2.0, True, False), (0.8, True, True), (0.1, False, True)]
)
def test_plan__the_less_memory_the_slower_the_way(
    share: float, keeps_graph: bool, is_recomputing: bool, tmp_path: Path
) -> None:
    trainer = make_trainer(tmp_path)
    blank, blocks = example("1", 1).open(), trainer.blocks

    def embed(count: int) -> torch.Tensor:
        return trainer._embed([blank] * count)

    needed = bytes_per_image(embed) * 1.5 * 1000
    plan = plan_memory(embed, blocks, images=1000, budget_bytes=int(needed * share))
    assert (plan.keeps_graph, plan.is_recomputing) == (keeps_graph, is_recomputing)


def test_plan__without_memory_for_one_image__says_how_much_is_missing(tmp_path: Path) -> None:
    trainer = Trainer(load_checkpoint(tiny_clip(tmp_path)), CAPTIONS, Recipe(), steps=1, memory_bytes=1)
    with pytest.raises(ConfigurationError, match="Raise --memory-gb"):
        trainer._make_plan(8)


# The loop


@pytest.mark.parametrize("make", TINY.values(), ids=TINY)
def test_steps__bring_photos_to_their_products(
    make: Callable[[Path], Path], tmp_path: Path, photos: list[Example], pictures: Any
) -> None:
    trainer = make_trainer(tmp_path, make)
    text_before = trainer.embed_captions(list(CAPTIONS.values()))
    batches = Batches(photos, pictures, size=12, seed=0, strength=0)
    losses = [trainer.step(next(iter(batches.epoch(number)))) for number in range(20)]
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
    assert (trainer.embed_captions(list(CAPTIONS.values())) == text_before).all()


def test_products_of_one_caption__are_not_pushed_apart_by_it(tmp_path: Path, pictures: Any) -> None:
    same = dict.fromkeys(CAPTIONS, "a red shoe")
    batch = Batches([example(key, 5) for key in CAPTIONS], pictures, size=3, seed=0, strength=0).draw(0, 0)
    with_text = Trainer(load_checkpoint(tiny_clip(tmp_path / "a")), same, Recipe(), steps=1)
    without = Trainer(load_checkpoint(tiny_clip(tmp_path / "b")), {}, Recipe(), steps=1)
    plan = MemoryPlan(8, keeps_graph=True, is_recomputing=False)
    one, other = gradients(with_text, batch, plan), gradients(without, batch, plan)
    # The caption's loss pulls all photos equally; it does not tell products apart.
    assert one.keys() == other.keys()
    assert with_text._texts is not None
    assert len(with_text._texts) == 1


def test_loss_that_is_no_number__stops_with_the_learning_rate(
    tmp_path: Path, photos: list[Example], pictures: Any
) -> None:
    trainer = make_trainer(tmp_path)
    with torch.no_grad():
        next(iter(trainer.weights.values())).fill_(float("nan"))
    with pytest.raises(TrainingFailed, match=r"became nan at the learning rate 0\.01\..*lower --lr"):
        trainer.step(Batches(photos, pictures, size=4, seed=0, strength=0).draw(0, 0))


def test_state__goes_on_as_if_nothing_had_been(tmp_path: Path, photos: list[Example], pictures: Any) -> None:
    batches = Batches(photos, pictures, size=6, seed=0, strength=0.5)
    straight, halted = make_trainer(tmp_path / "a"), make_trainer(tmp_path / "b")
    for step in range(2):
        straight.step(batches.draw(0, step))
        halted.step(batches.draw(0, step))
    resumed = make_trainer(tmp_path / "c")
    resumed.restore(halted.state())
    for trainer in (straight, resumed):
        trainer.step(batches.draw(1, 0))
    for name, weight in straight.trained_weights().items():
        assert torch.equal(weight, resumed.trained_weights()[name]), name


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"batch": 1}, {"learning_rate": 0.0}, {"learning_rate": float("nan")}]
)
def test_check_recipe__refuses_what_learns_nothing(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="--epochs must be"):
        check_recipe(Recipe(**wrong))


# Splits


def test_split__same_seed_same_products_in_whatever_order() -> None:
    keys = [str(number) for number in range(50)]
    assert split_products(keys, seed=3) == split_products(keys[::-1], seed=3) != split_products(keys, seed=4)
    split = split_products(keys, seed=3)
    assert sorted([*split.learned, *split.stopping, *split.held_out]) == sorted(keys)
    assert (len(split.held_out), len(split.stopping)) == (10, 6)


def test_split__given_products_are_kept_away() -> None:
    split = split_products("abcdefghijkl", seed=0, held_out=["b"], stopping=["k", "a"])
    assert (split.held_out, split.stopping) == (("b",), ("a", "k"))
    assert not {"a", "b", "k"} & set(split.learned)


def test_split__of_few_products__sets_none_aside() -> None:
    assert split_products("abc", seed=0) == ProductSplit(("a", "b", "c"))


@pytest.mark.parametrize(
    ("keys", "options", "said"),
    [
        ("abc", {"held_out": ["z"]}, "names 'z'"),
        ("abc", {"held_out": ["a"], "stopping": ["a"]}, "'a' is named both"),
        ("a", {}, "1 of 1 products are left"),
        ("abc", {"held_out": ["a"], "stopping": ["b"]}, "1 of 3 products are left"),
    ],
)
def test_split__that_can_not_be__says_why(keys: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        split_products(keys, seed=0, **options)


def test_hold_out_photos__takes_a_tenth_of_each_product_that_has_so_many() -> None:
    photos = [example(key, 0) for key in ["a"] * 25 + ["b"] * 9]
    kept, aside = hold_out_photos(photos)
    assert [photo.product for photo in aside] == ["a", "a"]
    assert len(kept) == 32


def test_main_picture_variants__differ_from_what_is_trained_on(pictures: Any) -> None:
    asked = {photo.open().tobytes() for photo in main_picture_variants(pictures, seed=0)}
    learned = {image.tobytes() for image in Batches([], pictures, size=60, seed=0, strength=1).draw(0, 0).images}
    assert len(asked) == 6
    assert not asked & learned


# The captions, the table and the gate


def test_usable_captions__none_or_one_for_all__are_not_learned_from() -> None:
    assert usable_captions({}) == (
        {},
        "The catalogue has no text (Catalog.text): the training uses pictures only.",
    )
    assert "have the same caption, 'Shoe'" in usable_captions({"a": "Shoe", "b": "Shoe"})[1]
    assert usable_captions({"a": "Shoe", "b": "Bag"}) == ({"a": "Shoe", "b": "Bag"}, "")


def test_metrics_of__ranks() -> None:
    found = {name: values.tolist() for name, values in metrics_of(np.array([1, 2, 10, 11])).items()}
    assert found == {"hit_at_1": [1, 0, 0, 0], "hit_at_10": [1, 1, 1, 0], "mrr": [1, 0.5, 0.1, 1 / 11]}


def change(name: str, before: list[int], after: list[int]) -> Change:
    pairs = [(str(number), "words") for number in range(len(before))]
    return compare(EvaluationSet(name, captions=pairs), np.array(before), np.array(after))


def test_gate__text_that_lost_more_than_the_margin() -> None:
    worse = change("text, learned products", [1] * 10, [1] * 9 + [50])
    (said,) = text_regressions([worse], margin=0.02)
    assert said == "text, learned products: hit@10 fell from 100.0% to 90.0%, by more than the 2.0% allowed"
    assert text_regressions([worse], margin=0.1) == []
    assert text_regressions([change("photos, learned products", [1] * 10, [50] * 10)], margin=0.02) == []


def test_table__shows_before_and_after() -> None:
    head, line = table([change("text, learned products", [20] * 10, [1, 20] * 5)])
    assert "hit@10" in head
    assert line.startswith("text, learned products")
    assert "0.0% → 50.0%" in line
    assert re.search(r"\+50\.0 \(\+\d+\.\d to \+\d+\.\d\)$", line)


def test_evaluation_sets__hold_each_product_where_it_belongs() -> None:
    split = ProductSplit(("a",), ("b",), ("c",))
    photos = [example(key, 0) for key in "abc"]
    asked = make_evaluation_sets(split, photos, {"a": "A", "b": "B", "c": "C"}, kind="photos")
    assert {question.name: question.products for question in asked} == {
        "photos, learned products": ["a"],
        "photos, held-out products": ["c"],
        "text, learned products": ["a"],
        "text, other products": ["b", "c"],
    }
