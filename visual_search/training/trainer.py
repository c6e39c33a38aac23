"""Train the weights step by step, and embed pictures and captions with them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from visual_search.exceptions import ConfigurationError, TrainingFailed
from visual_search.training.losses import info_nce, initial_temperature
from visual_search.training.memory import CHUNK, MemoryPlan, plan_memory, resident_bytes
from visual_search.training.weights import choose_weights, features_of

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from visual_search.training.batches import Batch, Example
    from visual_search.vision.checkpoints import Checkpoint
    from visual_search.vision.encoder import FloatArray

WARM_UP_STEPS = 10
GPU_SHARE = 0.9  # of the GPU's free memory
OPTIMIZER_COPIES = 3  # of each weight: its gradient and AdamW's two moments


@dataclass(frozen=True, slots=True)
class Recipe:
    """The options that determine the result, besides the data. The defaults were measured, see docs/quality.md."""

    epochs: int = 3
    learning_rate: float = 2e-4
    batch: int = 64
    strength: float = 0.5
    seed: int = 0
    is_head_only: bool = False


# At the full rate on catalogue pictures alone, hit@10 of real photos fell by 20 points (docs/quality.md).
RECIPE_WITHOUT_PHOTOS = Recipe(epochs=1, learning_rate=2e-5)


class Trainer:
    """Trains the image side of a checkpoint. The text side is frozen: captions are embedded once.

    captions: of each product, by key; if empty, the training uses pictures only.
    steps: of the whole training; the learning rate falls to zero over them, along a cosine.
    memory_bytes: the memory this process may use on a CPU.
    Raises ConfigurationError if the checkpoint can't be trained, or not within this memory.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        captions: Mapping[str, str],
        recipe: Recipe,
        *,
        steps: int,
        device: str = "auto",
        memory_bytes: int = 3 * 2**30,
    ) -> None:
        import torch

        self.checkpoint, self.recipe, self.memory_bytes = checkpoint, recipe, memory_bytes
        self.model = checkpoint.model
        # Dropout and batch statistics stay as in a search, because a batch may be embedded twice.
        self.model.eval()
        name = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(name)
        self.weights, self.blocks = choose_weights(checkpoint, head_only=recipe.is_head_only)
        self.model.to(self.device)
        self.optimizer = torch.optim.AdamW(self.weights.values(), lr=recipe.learning_rate)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: _rate_factor(step, steps))
        half = torch.bfloat16 if self.device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float16
        self._half = half if self.device.type == "cuda" else None
        # The narrow exponent of float16 loses small gradients unless the loss is scaled.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self._half == torch.float16)
        texts = sorted(set(captions.values()))
        place = {text: at for at, text in enumerate(texts)}
        self._caption = {product: place[text] for product, text in captions.items()}
        self._texts = self._embed_texts(texts) if texts else None
        self._temperatures: dict[str, float] = {}
        self.plan: MemoryPlan | None = None

    def step(self, batch: Batch) -> float:
        """Train on a batch and return its loss. Raises TrainingFailed if the loss is not finite."""
        import torch

        # Planned for the largest batch of this many photos, so that a resumed training makes the same plan.
        self.plan = self.plan or self._make_plan(2 * len(batch.products))
        self.optimizer.zero_grad(set_to_none=True)
        while True:
            try:
                loss = self._accumulate(batch, self.plan)
                break
            except torch.OutOfMemoryError:
                if self.plan.chunk == 1:
                    raise
            self.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            self.plan = MemoryPlan(self.plan.chunk // 2, keeps_graph=False, is_recomputing=self.plan.is_recomputing)
        if not math.isfinite(loss):
            raise TrainingFailed(
                f"The loss became {loss} at the learning rate {self.recipe.learning_rate:g}. Nothing was written. "
                "Start again with a lower --lr."
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        return loss

    def embed_examples(self, examples: Sequence[Example]) -> FloatArray:
        """Return one unit-length embedding per picture: float32 (len(examples), dim).

        Raises TrainingFailed if they are not finite.
        """
        import torch

        with torch.no_grad():
            rows = [self._embed([one.open() for one in chunk]).cpu() for chunk in _chunks(examples, CHUNK)]
        array: FloatArray = torch.cat(rows).numpy()
        if not bool((abs(array).sum(axis=1) < float("inf")).all()):
            raise TrainingFailed(
                f"{self.checkpoint.name!r} makes embeddings that are not finite: its weights are damaged. "
                "Nothing was written."
            )
        return array

    def embed_captions(self, captions: Sequence[str]) -> FloatArray:
        """Return one unit-length embedding per text: float32 (len(captions), dim). Training does not change them."""
        array: FloatArray = self._embed_texts(captions).cpu().numpy()
        return array

    def state(self) -> dict[str, Any]:
        """Return the state for `restore`: copies of the trained weights, the optimizer's state and the temperatures."""
        return {
            "weights": self.trained_weights(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "temperatures": self._temperatures,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of the same checkpoint and recipe."""
        self.load_weights(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self._temperatures = dict(state["temperatures"])

    def trained_weights(self) -> dict[str, Tensor]:
        """Return copies of the trained weights, on the CPU."""
        return {name: weight.detach().cpu().clone() for name, weight in self.weights.items()}

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Overwrite the trained weights."""
        import torch

        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(weights[name])

    def _accumulate(self, batch: Batch, plan: MemoryPlan) -> float:
        """Add the gradients of the whole batch to the weights, and return the loss."""
        import torch

        chunks = _chunks(batch.images, plan.chunk)
        if plan.keeps_graph:
            loss = self._loss(torch.cat([self._embed(chunk) for chunk in chunks]), batch)
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            return loss.item()
        with torch.no_grad():
            embeddings = torch.cat([self._embed(chunk) for chunk in chunks])
        embeddings.requires_grad_()
        loss = self._loss(embeddings, batch)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        assert embeddings.grad is not None  # noqa: S101  # just made
        for chunk, gradient in zip(chunks, torch.split(embeddings.grad, plan.chunk), strict=True):
            self._embed(chunk).backward(gradient)  # type: ignore[no-untyped-call]
        return loss.item()

    def _loss(self, embeddings: Tensor, batch: Batch) -> Tensor:
        """Return the loss of photos against pictures of their products, and of both against the captions."""
        import torch

        products = torch.as_tensor(batch.products, device=self.device)
        photos, pictures = embeddings[: len(products)], embeddings[len(products) :]
        loss = info_nce(photos, pictures, products, temperature=self._temperature("pictures", photos, pictures))
        if self._texts is None:
            return loss
        # Products with the same caption share an anchor, so the captions do not push them apart.
        used, place = torch.unique(torch.tensor([self._caption[key] for key in batch.keys]), return_inverse=True)
        captions, place = self._texts[used.to(self.device)], place.to(self.device)
        temperature = self._temperature("captions", photos, captions)
        for images, own in ((photos, place[products]), (pictures, place)):
            loss = loss + info_nce(images, captions, own, temperature=temperature) / 2
        return loss

    def _temperature(self, name: str, images: Tensor, anchors: Tensor) -> float:
        """Return the temperature of a loss, set by the scores of its first batch."""
        if name not in self._temperatures:
            self._temperatures[name] = initial_temperature(images.detach() @ anchors.detach().T)
        return self._temperatures[name]

    def _embed(self, images: Sequence[Image]) -> Tensor:
        return self._unit_embeddings(self.model.get_image_features, self.checkpoint.image_inputs(images))

    def _embed_texts(self, texts: Sequence[str]) -> Tensor:
        import torch

        with torch.no_grad():
            rows = [
                self._unit_embeddings(self.model.get_text_features, self.checkpoint.text_inputs(chunk))
                for chunk in _chunks(texts, CHUNK)
            ]
        return torch.cat(rows)

    def _unit_embeddings(self, get_features: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        from torch.nn import functional

        with self._autocast():
            output = get_features(**{name: tensor.to(self.device) for name, tensor in inputs.items()})
        return functional.normalize(features_of(output).float(), dim=-1)

    def _autocast(self) -> AbstractContextManager[Any]:
        import torch

        return torch.autocast(self.device.type, dtype=self._half) if self._half else nullcontext()

    def _make_plan(self, images: int) -> MemoryPlan:
        import torch
        from PIL import Image

        blank = Image.new("RGB", (self.checkpoint.input_size_px, self.checkpoint.input_size_px), "grey")
        if self.device.type == "cuda":
            budget = int(torch.cuda.mem_get_info(self.device)[0] * GPU_SHARE)
        else:
            budget = self.memory_bytes - resident_bytes()
        budget -= OPTIMIZER_COPIES * sum(weight.nbytes for weight in self.weights.values())
        return plan_memory(lambda count: self._embed([blank] * count), self.blocks, images=images, budget_bytes=budget)


def check_recipe(recipe: Recipe) -> None:
    """Raise ConfigurationError if an option is out of range."""
    if not (recipe.epochs >= 1 and recipe.batch >= 2 and 0 < recipe.learning_rate < 1):
        raise ConfigurationError("--epochs must be 1 or more, --batch 2 or more, and --lr between 0 and 1.")


def _rate_factor(step: int, steps: int) -> float:
    """Return the factor of the learning rate: rising over WARM_UP_STEPS, then falling along a cosine."""
    return min(1.0, (step + 1) / WARM_UP_STEPS) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, steps))))


def _chunks(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
