"""Run a whole fine-tuning: measure, train with early stopping, and measure again."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from visual_search.exceptions import ConfigurationError
from visual_search.quality.variants import phone_like
from visual_search.training.batches import Batches, Example
from visual_search.training.comparison import (
    Change,
    EvaluationSet,
    compare,
    make_evaluation_sets,
    mean_metrics,
    rank_all,
)
from visual_search.training.data import TrainingData, usable_captions
from visual_search.training.output import load_state, save_state
from visual_search.training.splits import ProductSplit
from visual_search.training.trainer import Recipe, Trainer
from visual_search.vision.images import encode_jpeg

if TYPE_CHECKING:
    from visual_search.vision.checkpoints import Checkpoint

STOPPING = "stopping"  # the evaluation set for early stopping
VARIANT_SEED = 1_000_003  # no epoch has this number, so none trains on the variants used for evaluation
PATIENCE = 2  # epochs without a gain on the stopping products
STOPPING_PHOTOS = 500  # searched after each epoch
HOLD_OUT_EVERY = 10  # every tenth photo of each learned product is for the table, if no report photos are given


class Bar(Protocol):
    """A progress bar."""

    def advance(self, count: int = 1) -> None:
        """Add `count` to the number of items done."""


@dataclass(frozen=True, slots=True)
class Job:
    """The input of a fine-tuning; the same job gives the same weights on the same machine."""

    folder: Path
    checkpoint: Checkpoint
    data: TrainingData
    split: ProductSplit
    recipe: Recipe
    device: str = "auto"
    memory_bytes: int = 3 * 2**30


@dataclass(slots=True)
class Progress:
    """The progress of a training. best_epoch: 1 for the first. before: ranks by the name of the evaluation set."""

    epoch: int = 0
    best_epoch: int = 0
    best_score: float = -1.0
    before: dict[str, list[int]] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)


class FineTuning:
    """A running job. write_line: prints a line. bar: makes a progress bar from a number of photos and a label."""

    def __init__(
        self, job: Job, *, write_line: Callable[[str], object], bar: Callable[[int, str], AbstractContextManager[Bar]]
    ) -> None:
        self.job, self.write_line, self.bar = job, write_line, bar
        self.base = job.checkpoint.fingerprint()
        self.captions, why_not = usable_captions(job.data.captions)
        if why_not:
            write_line(why_not)
        learned = set(job.split.learned)
        photos, evaluation_photos = self._divide_photos(learned)
        recipe = job.recipe
        pictures = {key: job.data.pictures[key] for key in job.split.learned}
        self.batches = Batches(photos, pictures, size=recipe.batch, seed=recipe.seed, strength=recipe.strength)
        if self.batches.size < recipe.batch:
            write_line(f"{self.batches.size} photos are fewer than a batch of {recipe.batch}: they make one batch.")
        self.trainer = Trainer(
            job.checkpoint,
            {key: text for key, text in self.captions.items() if key in learned},
            recipe,
            steps=recipe.epochs * len(self.batches),
            device=job.device,
            memory_bytes=job.memory_bytes,
        )
        kind = "photos" if job.data.photos else "variants"
        self.evaluation_sets = make_evaluation_sets(job.split, evaluation_photos, self.captions, kind=kind)
        stopping = [photo for photo in evaluation_photos if photo.product in set(job.split.stopping)]
        self.stopping = [EvaluationSet(STOPPING, stopping[:: -(-len(stopping) // STOPPING_PHOTOS)])] if stopping else []
        if not stopping:
            write_line("No products are set aside for early stopping: every epoch runs, and the last one counts.")
        self.progress = Progress()
        self.best_weights: dict[str, Any] = {}

    def run(self, *, is_resumed: bool = False) -> list[Change]:
        """Train, leave the best epoch's weights in the checkpoint, and return the table. Write no checkpoint."""
        import numpy as np

        if is_resumed:
            self._resume()
        if not self.progress.before:
            before = rank_all(self.trainer, [*self.evaluation_sets, *self.stopping], self.job.data.pictures)
            self.progress.before = {name: ranks.tolist() for name, ranks in before.items()}
            if self.stopping:
                self.write_line(f"Before: {_format_rates(mean_metrics(before[STOPPING]))}")
        while self.progress.epoch < self.job.recipe.epochs and not self._should_stop():
            self._train_epoch()
            save_state(self.job.folder, self._state())
        self.trainer.load_weights(self.best_weights)
        if self.stopping and self.progress.best_score < mean_metrics(np.array(self.progress.before[STOPPING]))["mrr"]:
            self.write_line("No epoch improved the search for the stopping products: check the table carefully.")
        after = rank_all(self.trainer, self.evaluation_sets, self.job.data.pictures)
        return [compare(one, np.array(self.progress.before[one.name]), after[one.name]) for one in self.evaluation_sets]

    def report(self) -> dict[str, Any]:
        """Return the report stored beside the weights: the base, the recipe, the products, and each epoch's figures."""
        return {
            "base": self.job.checkpoint.name,
            "base_fingerprint": self.base,
            "recipe": asdict(self.job.recipe),
            "photos": len(self.job.data.photos),
            "products": asdict(self.job.split),
            "best_epoch": self.progress.best_epoch,
            "epochs": self.progress.history,
        }

    def identity(self) -> str:
        """Return a digest of everything that determines the weights."""
        parts = {
            "checkpoint": self.base,
            "recipe": asdict(self.job.recipe),
            "split": asdict(self.job.split),
            "photos": _digest(self.batches.photos),
            "pictures": {key: _digest(pictures) for key, pictures in self.batches.pictures.items()},
            "captions": self.captions,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _divide_photos(self, learned: set[str]) -> tuple[list[Example], list[Example]]:
        """Return the photos to train on and those to evaluate with, among them all photos of products not learned."""
        data = self.job.data
        if not data.photos:
            return [], main_picture_variants(data.pictures, seed=self.job.recipe.seed)
        photos = [photo for photo in data.photos if photo.product in learned]
        others = [photo for photo in data.photos if photo.product not in learned]
        if data.report_photos:
            return photos, [*others, *data.report_photos]
        photos, report = hold_out_photos(photos)
        return photos, [*others, *report]

    def _train_epoch(self) -> None:
        number, losses, started = self.progress.epoch, [], time.monotonic()
        with self.bar(len(self.batches) * self.batches.size, f"Epoch {number + 1} of {self.job.recipe.epochs}") as bar:
            for batch in self.batches.epoch(number):
                losses.append(self.trainer.step(batch))
                bar.advance(len(batch.products))
        self.progress.epoch += 1
        figures = {"loss": sum(losses) / len(losses), "seconds": time.monotonic() - started}
        line = f"Epoch {number + 1}: loss {figures['loss']:.3f}, {figures['seconds']:.0f} s"
        if self.stopping:
            figures |= mean_metrics(rank_all(self.trainer, self.stopping, self.job.data.pictures)[STOPPING])
            line += f"; {_format_rates(figures)}"
        self.write_line(line)
        self.progress.history.append(figures)
        score = figures.get("mrr", self.progress.epoch)  # without stopping products, the last epoch is the best
        if score > self.progress.best_score:
            self.progress.best_score, self.progress.best_epoch = score, self.progress.epoch
            self.best_weights = self.trainer.trained_weights()

    def _should_stop(self) -> bool:
        return self.progress.epoch - self.progress.best_epoch >= PATIENCE

    def _state(self) -> dict[str, Any]:
        return {
            "identity": self.identity(),
            "done": asdict(self.progress),
            "best": self.best_weights,
            "trainer": self.trainer.state(),
        }

    def _resume(self) -> None:
        state = load_state(self.job.folder)
        if state is None:
            self.write_line("No saved training was found: starting from the beginning.")
            return
        if state["identity"] != self.identity():
            raise ConfigurationError(
                "The saved training used other photos, products, captions or options. Give the same ones, or leave out "
                "--resume to start again."
            )
        self.progress, self.best_weights = Progress(**state["done"]), state["best"]
        self.trainer.restore(state["trainer"])
        self.write_line(f"Resuming after epoch {self.progress.epoch}.")


def _format_rates(rates: Mapping[str, float]) -> str:
    return f"stopping products: hit@10 {rates['hit_at_10']:.1%}, MRR {rates['mrr']:.1%}"


def _digest(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(f"{example.product}\0{len(example.jpeg)}\0".encode() + example.jpeg)
    return digest.hexdigest()


def hold_out_photos(photos: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """Divide photos into those to train on and those for the table: every tenth of each product."""
    kept: list[Example] = []
    held_out: list[Example] = []
    seen: dict[str, int] = {}
    for photo in photos:
        seen[photo.product] = seen.get(photo.product, 0) + 1
        (held_out if seen[photo.product] % HOLD_OUT_EVERY == 0 else kept).append(photo)
    return kept, held_out


def main_picture_variants(pictures: Mapping[str, Sequence[Example]], *, seed: int) -> list[Example]:
    """Return two phone-like variants of each product's main picture, for a shop without photos."""
    import numpy as np

    made = []
    for place, (product, examples) in enumerate(pictures.items()):
        rng = np.random.default_rng([seed, VARIANT_SEED, place])
        for _ in range(2):
            variant = phone_like(examples[0].open(), rng)
            made.append(Example(product, encode_jpeg(variant, longest_px=max(variant.size))))
    return made
