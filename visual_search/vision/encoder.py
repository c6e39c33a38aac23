"""Embed images and texts with a dual encoder, which each process loads when it is first needed.

Importing this module imports neither torch nor transformers nor numpy, and creating an encoder loads nothing: a
web server or a django-q2 cluster forks first and loads in each child.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from visual_search.exceptions import ConfigurationError, InvalidVector, Unavailable

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from PIL.Image import Image

    from visual_search.vision.checkpoints import Checkpoint

    FloatArray = NDArray[np.float32]

logger = logging.getLogger(__name__)

GROW_AFTER = 32  # successful full batches before a halved batch is doubled again; at most 3 % of them are wasted


class Encoder(Protocol):
    """Turns images and texts into vectors of one space."""

    @property
    def dim(self) -> int:
        """The length of an embedding."""

    @property
    def fingerprint(self) -> str:
        """A short hash of weights and preprocessing. Embeddings of different fingerprints can't be compared."""

    @property
    def input_size_px(self) -> int:
        """The shortest side of the model's input. More pixels are of little use."""

    def embed_images(self, images: Sequence[Image]) -> FloatArray:
        """Return one unit-length embedding per RGB image: float32 (len(images), dim), in their order."""

    def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        """Return one unit-length embedding per text: float32 (len(texts), dim), in their order."""


class TransformersEncoder:
    """CLIP, SigLIP, SigLIP 2, the starter or any dual encoder that transformers loads.

    checkpoint: hub name or local folder.
    device: `auto` is CUDA where there is a GPU and the CPU elsewhere; or any of torch's names. Half precision on
        CUDA, single precision elsewhere: CPUs without 16-bit units are slower with it.
    batch_size: images in one forward pass. Halved when memory runs out, restored later.
    threads: CPU threads of this process. None leaves torch's default.

    Threads may share an encoder. A forked child loads its own.
    Source: CLIP, arXiv:2103.00020; SigLIP, arXiv:2303.15343; SigLIP 2, arXiv:2502.14786.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike[str],
        *,
        device: str = "auto",
        batch_size: int = 32,
        threads: int | None = None,
    ) -> None:
        self.checkpoint = os.fspath(checkpoint)
        self.device = device
        self.threads = threads
        self.batch = BatchSize(batch_size)
        self._loaded: _Loaded | None = None
        self._lock = threading.Lock()
        _encoders.add(self)

    def embed_images(self, images: Sequence[Image]) -> FloatArray:
        """Return one unit-length embedding per image.

        images: RGB, any size; resized as the checkpoint's own preprocessing says.
        Returns float32 (len(images), dim); row i belongs to images[i].
        Raises CheckpointMissing if the weights are not on this machine, InvalidVector if an embedding is not
        finite, Unavailable if even one image does not fit in memory.
        """
        return self._embed(images, self._load().image_features)

    def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        """Return one unit-length embedding per text; see embed_images. Long texts are truncated."""
        return self._embed(texts, self._load().text_features)

    @property
    def is_loaded(self) -> bool:
        """Whether this process has the weights in memory. Loads nothing."""
        return self._loaded is not None

    @property
    def dim(self) -> int:
        return self._load().dim

    @property
    def fingerprint(self) -> str:
        return self._load().fingerprint

    @property
    def input_size_px(self) -> int:
        return self._load().checkpoint.input_size_px

    def warm_up(self) -> None:
        """Load and run the model once, so that the first shopper does not wait. Call it after a server forks."""
        loaded = self._load()
        self.embed_images([_blank_image(loaded.checkpoint)])
        self.embed_texts(["warm up"])

    def _load(self) -> _Loaded:
        loaded = self._loaded
        if loaded is None:
            with self._lock:
                loaded = self._loaded = self._loaded or _load(self.checkpoint, self.device, self.threads)
        return loaded

    def _embed(self, items: Sequence[Any], features: Callable[[Sequence[Any]], torch.Tensor]) -> FloatArray:
        import numpy as np

        rows: list[FloatArray] = []
        start = 0
        while start < len(items):
            size = self.batch.size
            batch = items[start : start + size]
            vectors = self._try_batch(batch, features)
            if vectors is None:
                continue
            rows.append(vectors)
            start += len(batch)
            self.batch.succeeded(len(batch))
        return np.concatenate(rows) if rows else np.empty((0, self.dim), dtype=np.float32)

    def _try_batch(self, batch: Sequence[Any], features: Callable[[Sequence[Any]], torch.Tensor]) -> FloatArray | None:
        """Return the batch's unit vectors, or None if it must be retried with fewer items."""
        import torch

        cause: torch.OutOfMemoryError
        try:
            return self._unit_rows(features(batch))
        except torch.OutOfMemoryError as error:
            # Drop the traceback: its frames hold the tensors that filled the memory.
            cause = error.with_traceback(None)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(batch) == 1:
            raise Unavailable(
                f"A single item does not fit in the memory of {self._load().device}: {cause}. "
                "Free memory on it, or use a smaller checkpoint or another DEVICE."
            ) from cause
        self.batch.shrink(len(batch))
        logger.warning(
            "Out of memory with a batch of %d on %s: now %d.",
            len(batch),
            self.device,
            self.batch.size,
        )
        return None

    def _unit_rows(self, features: torch.Tensor) -> FloatArray:
        import torch

        vectors = torch.nn.functional.normalize(features.float(), dim=-1, eps=1e-30).cpu()
        # A zero row keeps length 0; NaN and infinity become NaN.
        invalid = ((vectors.norm(dim=-1) - 1).abs() < 1e-3).logical_not().nonzero()
        if len(invalid):
            raise InvalidVector(
                f"The checkpoint {self.checkpoint!r} on {self._load().device} made {len(invalid)} of {len(vectors)} "
                f"embeddings that are zero or not finite, the first at index {int(invalid[0])}. Its weights are "
                'damaged, or it overflows half precision: try VISUAL_SEARCH["DEVICE"] = "cpu".'
            )
        rows: FloatArray = vectors.numpy()
        return rows

    def _unload_after_fork(self) -> None:
        # Keep it alive unused: a child can't free what the parent put on a GPU.
        _inherited_from_parent.append(self._loaded)
        self._loaded = None
        self._lock = threading.Lock()  # a thread that does not exist in the child may have held the old one


class BatchSize:
    """The number of items in a forward pass: halved when memory runs out, doubled after a run of full batches."""

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ConfigurationError(f"The batch size is {limit!r}; it must be at least 1.")
        self.limit = self.size = limit
        self._successes = 0

    def shrink(self, failed: int) -> None:
        """Record that `failed` items did not fit."""
        self.size = max(1, min(self.size, failed // 2))
        self._successes = 0

    def succeeded(self, count: int) -> None:
        """Record that `count` items fitted. Only full batches count towards growing."""
        if self.size < self.limit and count >= self.size:
            self._successes += 1
            if self._successes >= GROW_AFTER:
                self.size = min(self.size * 2, self.limit)
                self._successes = 0


@dataclass(frozen=True)
class _Loaded:
    """A checkpoint on its device, with its dimension and fingerprint."""

    checkpoint: Checkpoint
    device: torch.device
    dim: int
    fingerprint: str
    tokenizer_lock: threading.Lock  # a fast tokenizer raises "Already borrowed" when two threads call it at once

    def image_features(self, images: Sequence[Image]) -> torch.Tensor:
        """Return (len(images), dim), not normalised."""
        return _run(self.checkpoint.model.get_image_features, self.checkpoint.image_inputs(images))

    def text_features(self, texts: Sequence[str]) -> torch.Tensor:
        """Return (len(texts), dim), not normalised."""
        with self.tokenizer_lock:
            inputs = self.checkpoint.text_inputs(texts)
        return _run(self.checkpoint.model.get_text_features, inputs)


def _load(name: str, device_name: str, threads: int | None) -> _Loaded:
    global _used_torch
    start = time.perf_counter()
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(
            f'The encoder needs torch and transformers: {error}. Run `pip install "django-visual-search[encoder]"`.'
        ) from error
    from visual_search.vision.checkpoints import load_checkpoint

    if _forked_after_use:
        threads = 1  # the parent's OpenMP threads don't exist here; waiting for them would never end
        logger.warning("This process was forked after its parent used an encoder, so it runs on one CPU thread.")
    if threads is not None:
        torch.set_num_threads(threads)
    _used_torch = True
    checkpoint = load_checkpoint(name)
    fingerprint = checkpoint.fingerprint()  # before half precision, so that it is the same on every device
    device = _to_device(checkpoint, device_name)
    dim = getattr(checkpoint.model.config, "projection_dim", None) or _probe_dim(checkpoint)
    logger.info("Loaded %s on %s in %.1f s, fingerprint %s.", name, device, time.perf_counter() - start, fingerprint)
    return _Loaded(checkpoint, device, dim, fingerprint, threading.Lock())


def _to_device(checkpoint: Checkpoint, name: str) -> torch.device:
    """Move the model in place and return its device."""
    import torch

    try:
        device = torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
        checkpoint.model.to(device=device, dtype=torch.float16 if device.type == "cuda" else torch.float32)
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError(
            f"The checkpoint {checkpoint.name!r} can't be moved to the device {name!r}: {error} "
            "If this process was forked, nothing may use the GPU before the fork: call `warm_up()` after it."
        ) from error
    return device


def _run(get_features: Callable[..., Any], inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    import torch

    model = get_features.__self__  # type: ignore[attr-defined]
    moved = {
        name: tensor.to(model.device, dtype=model.dtype if tensor.is_floating_point() else None)
        for name, tensor in inputs.items()
    }
    with torch.inference_mode():
        output = get_features(**moved)
    features: torch.Tensor = output if isinstance(output, torch.Tensor) else output.pooler_output
    return features


def _probe_dim(checkpoint: Checkpoint) -> int:
    inputs = checkpoint.image_inputs([_blank_image(checkpoint)])
    return int(_run(checkpoint.model.get_image_features, inputs).shape[-1])


def _blank_image(checkpoint: Checkpoint) -> Image:
    from PIL import Image

    return Image.new("RGB", (checkpoint.input_size_px, checkpoint.input_size_px), "grey")


_encoders: weakref.WeakSet[TransformersEncoder] = weakref.WeakSet()
_inherited_from_parent: list[_Loaded | None] = []
_used_torch = False
_forked_after_use = False


def _after_fork_in_child() -> None:
    global _forked_after_use
    _forked_after_use = _forked_after_use or _used_torch
    for encoder in list(_encoders):
        encoder._unload_after_fork()


if hasattr(os, "register_at_fork"):  # Windows does not fork
    os.register_at_fork(after_in_child=_after_fork_in_child)
