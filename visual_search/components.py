"""This process's encoders, background removers and stores: each is created once per process, on first use."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from django.core.signals import setting_changed
from django.utils.module_loading import import_string

from visual_search.catalog import get_catalog
from visual_search.conf import SETTING, get_settings
from visual_search.exceptions import Busy, ConfigurationError, IndexOutdated
from visual_search.models import IndexVersion
from visual_search.vision.preparation import embed_prepared, parse_preparation_id, preparation_id, prepare

if TYPE_CHECKING:
    from PIL.Image import Image

    from visual_search.stores.base import VectorStore
    from visual_search.vision.background import BackgroundRemover
    from visual_search.vision.encoder import FloatArray, TransformersEncoder


@dataclass(slots=True, eq=False)
class OpenStore:
    """A version's store in this process. users: searches under way. is_current: later searches use it too."""

    store: VectorStore
    checkpoint: str
    pid: int
    users: int = 0
    is_current: bool = True


_lock = threading.RLock()
_encoders: dict[tuple[object, ...], TransformersEncoder] = {}
_removers: dict[tuple[object, ...], BackgroundRemover] = {}
_stores: dict[tuple[int, int], OpenStore] = {}
_replaced: list[OpenStore] = []
_slots: dict[tuple[int, int], threading.BoundedSemaphore] = {}


def get_encoder(checkpoint: str) -> TransformersEncoder:
    """Return this process's encoder for a checkpoint. It loads on first use."""
    from visual_search.vision.encoder import TransformersEncoder

    settings = get_settings()
    with _lock:
        options = {"device": settings.DEVICE, "batch_size": settings.BATCH_SIZE, "threads": settings.ENCODER_THREADS}
        key = (os.getpid(), checkpoint, *options.values())
        if key not in _encoders:
            _encoders[key] = TransformersEncoder(checkpoint, **options)  # type: ignore[arg-type]
        return _encoders[key]


def get_remover(model: str | None = None) -> BackgroundRemover:
    """Return this process's background remover for a model (default: BACKGROUND_MODEL). It loads on first use."""
    from visual_search.vision.background import BackgroundRemover

    settings = get_settings()
    name = model or settings.BACKGROUND_MODEL
    with _lock:
        options = {"device": settings.DEVICE, "threads": settings.ENCODER_THREADS}
        key = (os.getpid(), name, *options.values())
        if key not in _removers:
            _removers[key] = BackgroundRemover(name, **options)  # type: ignore[arg-type]
        return _removers[key]


def encoder_for(version: IndexVersion) -> TransformersEncoder:
    """Return the encoder that made the version's embeddings.

    Raises IndexOutdated if the weights or preprocessing of that checkpoint differ on this machine.
    """
    encoder = get_encoder(version.checkpoint)
    if encoder.fingerprint != version.encoder_fingerprint:
        raise IndexOutdated(
            f"The index was made with {version.checkpoint!r}, fingerprint {version.encoder_fingerprint!r}; on this "
            f"machine it is {encoder.fingerprint!r}. Restore the old checkpoint, or run `manage.py reset_index`."
        )
    return encoder


def gallery_preparation() -> str:
    """Return the identity of the product images' preparation in the settings. It is part of an index's fingerprint."""
    settings = get_settings()
    return preparation_id(settings.GALLERY_PREPARATION, settings.BACKGROUND_MODEL)


def embed_gallery(version: IndexVersion, encoder: TransformersEncoder, images: Sequence[Image]) -> FloatArray:
    """Return one embedding per product image, prepared as the version requires: float32 (len(images), dim).

    Raises ConfigurationError if the background model can't be loaded: an index with only some cut-outs would be wrong.
    """
    strategy, model = parse_preparation_id(version.preparation)
    remover = get_remover(model)
    if strategy != "none":
        remover.warm_up()
    return embed_prepared(encoder, [prepare(image, strategy, remover.find_mask) for image in images])


@contextmanager
def encode_slot() -> Iterator[None]:
    """Hold one of the process's ENCODE_CONCURRENCY slots. Raises Busy if none is free within ENCODE_WAIT_SECONDS."""
    settings = get_settings()
    with _lock:
        slots = _slots.setdefault(
            (os.getpid(), settings.ENCODE_CONCURRENCY), threading.BoundedSemaphore(settings.ENCODE_CONCURRENCY)
        )
    if not slots.acquire(timeout=settings.ENCODE_WAIT_SECONDS):
        raise Busy(f"{settings.ENCODE_CONCURRENCY} queries are being encoded, and none finished in time.")
    try:
        yield
    finally:
        slots.release()


def store_for(version: IndexVersion) -> VectorStore:
    """Return this process's store for a version. Opens nothing. Raises ConfigurationError."""
    return _open_store(version).store


def new_store(version: IndexVersion) -> VectorStore:
    """Return another store for the version, which no search uses yet. Opens nothing. Raises ConfigurationError."""
    settings = get_settings()
    try:
        backend = import_string(settings.STORE["BACKEND"])
        store: VectorStore = backend(
            name=f"{settings.COLLECTION}_v{version.pk}",
            dim=version.dim,
            fields=get_catalog().field_kinds(),
            **settings.STORE.get("OPTIONS", {}),
        )
    except (ImportError, KeyError, TypeError) as error:
        raise ConfigurationError(f'VISUAL_SEARCH["STORE"] can\'t be used: {error}') from error
    return store


def _open_store(version: IndexVersion) -> OpenStore:
    with _lock:
        key = (os.getpid(), version.pk)
        if key not in _stores:
            _stores[key] = OpenStore(new_store(version), version.checkpoint, os.getpid())
        return _stores[key]


@contextmanager
def hold_store(version: IndexVersion) -> Iterator[VectorStore]:
    """Hold the version's store and encoder while the block runs: whatever replaces them waits until it ends."""
    with _lock:
        held = _open_store(version)
        held.users += 1
    try:
        yield held.store
    finally:
        with _lock:
            held.users -= 1
            if not held.is_current:
                _close_replaced()


def replace_store(version: IndexVersion, store: VectorStore) -> None:
    """Let later searches use `store`; the one before is closed when the last search that uses it ends."""
    with _lock:
        _retire((os.getpid(), version.pk))
        _stores[os.getpid(), version.pk] = OpenStore(store, version.checkpoint, os.getpid())
        _close_replaced()


def close_stores() -> None:
    """Close this process's stores. The next query opens and fills them again."""
    with _lock:
        for opened in [*_stores.values(), *_replaced]:
            if opened.pid == os.getpid():
                opened.store.close()
        _stores.clear()
        _replaced.clear()


def release_other_versions(version: IndexVersion) -> None:
    """Release other versions' stores and other checkpoints' encoders, as soon as no search uses them any more."""
    with _lock:
        for key in [key for key in _stores if key[1] != version.pk]:
            _retire(key)
        _close_replaced()
        in_use = {version.checkpoint, *(opened.checkpoint for opened in _replaced)}
        for encoder_key in [key for key in _encoders if key[1] not in in_use]:
            del _encoders[encoder_key]


def _retire(key: tuple[int, int]) -> None:
    if (opened := _stores.pop(key, None)) is not None:
        opened.is_current = False
        _replaced.append(opened)


def _close_replaced() -> None:
    """Close replaced stores that no search uses any more, and release encoders that only they needed."""
    unused = [opened for opened in _replaced if not opened.users or opened.pid != os.getpid()]
    for opened in unused:
        _replaced.remove(opened)
        if opened.pid == os.getpid():
            opened.store.close()
    in_use = {opened.checkpoint for opened in [*_stores.values(), *_replaced]}
    for key in [key for key in _encoders if key[1] in {opened.checkpoint for opened in unused} - in_use]:
        del _encoders[key]


def _replace_lock() -> None:
    """Replace the lock in a forked child: another thread may have held it at the fork."""
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_replace_lock)


def _close_stores_on_change(*, setting: str, **kwargs: object) -> None:
    if setting == SETTING:
        close_stores()


setting_changed.connect(_close_stores_on_change, dispatch_uid="visual_search.components")
