"""The whole job: ask, learn, look after each epoch whether to go on, and ask again."""

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
from visual_search.training.comparison import Change, Question, ask_all, compare, make_questions, rates_of
from visual_search.training.data import TrainingData, usable_captions
from visual_search.training.output import load_state, save_state
from visual_search.training.splits import ProductSplit
from visual_search.training.trainer import Recipe, Trainer
from visual_search.vision.images import encode_jpeg

if TYPE_CHECKING:
    from visual_search.vision.checkpoints import Checkpoint

STOPPING = "stopping"  # the question that says when to stop
STAND_IN_SEED = 1_000_003  # no epoch has this number, so none learns from the very variants that are asked with
PATIENCE = 2  # epochs without a gain on the products set aside for it
STOPPING_PHOTOS = 500  # looked at after each epoch
SET_ASIDE_EACH = 10  # one photo in so many of each learned product is kept for the table, if no others are given


class Bar(Protocol):
    """A progress bar."""

    def advance(self, count: int = 1) -> None:
        """Note that so many more are done."""


@dataclass(frozen=True, slots=True)
class Job:
    """Everything that a fine-tuning is made of; the same job gives the same weights on the same machine."""

    folder: Path
    checkpoint: Checkpoint
    data: TrainingData
    split: ProductSplit
    recipe: Recipe
    device: str = "auto"
    memory_bytes: int = 3 * 2**30


@dataclass(slots=True)
class Progress:
    """How far a training is. best_epoch: 1 for the first. before: ranks by the question's name."""

    epoch: int = 0
    best_epoch: int = 0
    best_score: float = -1.0
    before: dict[str, list[int]] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)


class FineTuning:
    """A job on its way. say: takes a line for people. bar: makes a progress bar of so many photos, with a label."""

    def __init__(
        self, job: Job, *, say: Callable[[str], object], bar: Callable[[int, str], AbstractContextManager[Bar]]
    ) -> None:
        self.job, self.say, self.bar = job, say, bar
        self.base = job.checkpoint.fingerprint()
        self.captions, why_not = usable_captions(job.data.captions)
        if why_not:
            say(why_not)
        learned = set(job.split.learned)
        photos, asked = self._divide_photos(learned)
        recipe = job.recipe
        pictures = {key: job.data.pictures[key] for key in job.split.learned}
        self.batches = Batches(photos, pictures, size=recipe.batch, seed=recipe.seed, strength=recipe.strength)
        if self.batches.size < recipe.batch:
            say(f"{self.batches.size} photos are fewer than a batch of {recipe.batch}: they make one batch.")
        self.trainer = Trainer(
            job.checkpoint,
            {key: text for key, text in self.captions.items() if key in learned},
            recipe,
            steps=recipe.epochs * len(self.batches),
            device=job.device,
            memory_bytes=job.memory_bytes,
        )
        kind = "photos" if job.data.photos else "variants"
        self.questions = make_questions(job.split, asked, self.captions, kind=kind)
        stopping = [photo for photo in asked if photo.product in set(job.split.stopping)]
        self.stopping = [Question(STOPPING, stopping[:: -(-len(stopping) // STOPPING_PHOTOS)])] if stopping else []
        if not stopping:
            say("No product is set aside to stop early by: every epoch is run, and the last one counts.")
        self.done = Progress()
        self.best: dict[str, Any] = {}

    def run(self, *, is_resumed: bool = False) -> list[Change]:
        """Learn, and return the table; the checkpoint holds the best epoch's weights then. Writes no checkpoint."""
        import numpy as np

        if is_resumed:
            self._resume()
        if not self.done.before:
            before = ask_all(self.trainer, [*self.questions, *self.stopping], self.job.data.pictures)
            self.done.before = {name: ranks.tolist() for name, ranks in before.items()}
            if self.stopping:
                self.say(f"Before: {_said(rates_of(before[STOPPING]))}")
        while self.done.epoch < self.job.recipe.epochs and not self._is_enough():
            self._learn_epoch()
            save_state(self.job.folder, self._state())
        self.trainer.take(self.best)
        if self.stopping and self.done.best_score < rates_of(np.array(self.done.before[STOPPING]))["mrr"]:
            self.say("No epoch finds the products set aside better than it was before: look twice at the table.")
        after = ask_all(self.trainer, self.questions, self.job.data.pictures)
        return [
            compare(question, np.array(self.done.before[question.name]), after[question.name])
            for question in self.questions
        ]

    def report(self) -> dict[str, Any]:
        """Return what belongs beside the weights: from what, how and on which products they were made."""
        return {
            "base": self.job.checkpoint.name,
            "base_fingerprint": self.base,
            "recipe": asdict(self.job.recipe),
            "photos": len(self.job.data.photos),
            "products": asdict(self.job.split),
            "best_epoch": self.done.best_epoch,
            "epochs": self.done.history,
        }

    def identity(self) -> str:
        """Return a digest of all that decides the weights."""
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
        """Return the photos to learn from and those to ask with; of products that are not learned, all are asked."""
        data = self.job.data
        if not data.photos:
            return [], stand_ins(data.pictures, seed=self.job.recipe.seed)
        photos = [photo for photo in data.photos if photo.product in learned]
        others = [photo for photo in data.photos if photo.product not in learned]
        if data.report_photos:
            return photos, [*others, *data.report_photos]
        photos, report = set_aside(photos)
        return photos, [*others, *report]

    def _learn_epoch(self) -> None:
        number, losses, started = self.done.epoch, [], time.monotonic()
        with self.bar(len(self.batches) * self.batches.size, f"Epoch {number + 1} of {self.job.recipe.epochs}") as bar:
            for batch in self.batches.epoch(number):
                losses.append(self.trainer.step(batch))
                bar.advance(len(batch.products))
        self.done.epoch += 1
        line = {"loss": sum(losses) / len(losses), "seconds": time.monotonic() - started}
        said = f"Epoch {number + 1}: loss {line['loss']:.3f}, {line['seconds']:.0f} s"
        if self.stopping:
            line |= rates_of(ask_all(self.trainer, self.stopping, self.job.data.pictures)[STOPPING])
            said += f"; {_said(line)}"
        self.say(said)
        self.done.history.append(line)
        score = line.get("mrr", self.done.epoch)  # of two alike without a score, the later one
        if score > self.done.best_score:
            self.done.best_score, self.done.best_epoch = score, self.done.epoch
            self.best = self.trainer.learned()

    def _is_enough(self) -> bool:
        return self.done.epoch - self.done.best_epoch >= PATIENCE

    def _state(self) -> dict[str, Any]:
        return {
            "identity": self.identity(),
            "done": asdict(self.done),
            "best": self.best,
            "trainer": self.trainer.state(),
        }

    def _resume(self) -> None:
        state = load_state(self.job.folder)
        if state is None:
            self.say("No training was kept: starting from the beginning.")
            return
        if state["identity"] != self.identity():
            raise ConfigurationError(
                "The kept training is of other photos, products, captions or options. Give the same ones, or leave out "
                "--resume to start again."
            )
        self.done, self.best = Progress(**state["done"]), state["best"]
        self.trainer.restore(state["trainer"])
        self.say(f"Going on after epoch {self.done.epoch}.")


def _said(rates: Mapping[str, float]) -> str:
    return f"products set aside: hit@10 {rates['hit_at_10']:.1%}, MRR {rates['mrr']:.1%}"


def _digest(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(f"{example.product}\0{len(example.jpeg)}\0".encode() + example.jpeg)
    return digest.hexdigest()


def set_aside(photos: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """Divide photos into those to learn from and those for the table: every tenth of each product that has so many."""
    kept: list[Example] = []
    aside: list[Example] = []
    seen: dict[str, int] = {}
    for photo in photos:
        seen[photo.product] = seen.get(photo.product, 0) + 1
        (aside if seen[photo.product] % SET_ASIDE_EACH == 0 else kept).append(photo)
    return kept, aside


def stand_ins(pictures: Mapping[str, Sequence[Example]], *, seed: int) -> list[Example]:
    """Return two phone-like variants of each product's main picture, for a shop without photos."""
    import numpy as np

    made = []
    for place, (product, examples) in enumerate(pictures.items()):
        dice = np.random.default_rng([seed, STAND_IN_SEED, place])
        for _ in range(2):
            variant = phone_like(examples[0].open(), dice)
            made.append(Example(product, encode_jpeg(variant, longest_px=max(variant.size))))
    return made
