"""Signal receivers that mark what changed: one INSERT in the same transaction, a drain request after its commit.

They are connected only to the catalogue's models: a receiver for every sender would disable Django's fast deletes
in the whole project.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from django.apps import apps
from django.core.signals import setting_changed
from django.db import router, transaction
from django.db.models import Model
from django.db.models.signals import m2m_changed, post_delete, post_save, pre_delete, pre_save

from visual_search.catalog import get_catalog
from visual_search.conf import SETTING
from visual_search.exceptions import ConfigurationError
from visual_search.index import relations
from visual_search.index.marks import Target, have_tables, mark, mark_dirty
from visual_search.index.queue import is_drain_requested
from visual_search.index.relations import Relation
from visual_search.models import model_label

logger = logging.getLogger(__name__)

STASH = "_visual_search_marks"  # attribute of an instance: what to mark once its change is written


def connect() -> None:
    """Connect receivers to the catalogue's models, replacing earlier ones. System checks report a broken catalogue."""
    disconnect()
    try:
        catalog, related = get_catalog(), relations.relations()
    except (ConfigurationError, AttributeError):
        return
    for sender in _with_subclasses(catalog.model):
        post_save.connect(_product_changed, sender=sender, dispatch_uid=_dispatch_uid(sender, "product"))
        post_delete.connect(_product_changed, sender=sender, dispatch_uid=_dispatch_uid(sender, "product"))
    for model in {relation.model for relation in related} | {relation.through for relation in related}:
        for sender in _with_subclasses(model) if model is not None else ():
            pre_save.connect(_before_related_save, sender=sender, dispatch_uid=_dispatch_uid(sender, "related"))
            post_save.connect(_after_related_save, sender=sender, dispatch_uid=_dispatch_uid(sender, "related"))
            pre_delete.connect(_before_related_delete, sender=sender, dispatch_uid=_dispatch_uid(sender, "related"))
            post_delete.connect(_after_related_delete, sender=sender, dispatch_uid=_dispatch_uid(sender, "related"))
    for through in {relation.through for relation in related if relation.through is not None}:
        m2m_changed.connect(_members_changed, sender=through, dispatch_uid=_dispatch_uid(through, "members"))


def disconnect() -> None:
    for sender in apps.get_models(include_auto_created=True):
        for signal in (pre_save, post_save, pre_delete, post_delete, m2m_changed):
            for purpose in ("product", "related", "members"):
                signal.disconnect(sender=sender, dispatch_uid=_dispatch_uid(sender, purpose))


def _receiver(handler: Callable[..., None]) -> Callable[..., None]:
    """Make a signal receiver that passes over rows of other databases and never raises.

    An error of ours must not stop a save, an order or a migration: it is logged, and the sweep finds the change.
    Whoever sends these signals by hand may leave out arguments that Django's own senders pass.
    """

    @functools.wraps(handler)
    def receive(sender: type[Model], **kwargs: Any) -> None:
        try:
            using = kwargs.get("using") or kwargs["instance"]._state.db or router.db_for_write(sender)
            if using == get_catalog().database:
                with _contained(using) as may_write:
                    if may_write:
                        handler(**{"sender": sender, "raw": False, "update_fields": None} | kwargs | {"using": using})
        except Exception:
            logger.exception("A change of %s was not marked; the sweep will find it", sender._meta.label)

    return receive


@contextmanager
def _contained(using: str) -> Iterator[bool]:
    """Keep an error of the block out of the transaction around it. Gives whether marks can be written at all.

    A savepoint for the first mark of a transaction alone: where that one could be written, later ones can, and
    PostgreSQL slows down with more than 64 of them in a transaction.
    """
    connection = transaction.get_connection(using)
    if connection.needs_rollback or not have_tables(using):
        yield False
    elif connection.in_atomic_block and not is_drain_requested(connection):
        with transaction.atomic(using=using):
            yield True
    else:
        yield True


@_receiver
def _product_changed(sender: type[Model], instance: Model, using: str, **kwargs: Any) -> None:
    catalog = get_catalog()
    # A multi-table child is saved with its own key; the product's key is that of the parent row.
    key = getattr(instance, catalog.model._meta.pk.attname)
    mark([(model_label(catalog.model), str(key))], using=using)


@_receiver
def _before_related_save(
    sender: type[Model], instance: Model, using: str, raw: bool, update_fields: Iterable[str] | None, **kwargs: Any
) -> None:
    """Stash the parents that a row is about to leave; they are marked after the save."""
    if raw or instance._state.adding:
        return
    for relation, key in _parent_foreign_keys(sender):
        if update_fields is not None and not {key.name, key.attname} & set(update_fields):
            continue
        old = sender._base_manager.using(using).filter(pk=instance.pk).values_list(key.attname, flat=True).first()
        if old is not None and old != getattr(instance, key.attname):
            _stash(instance, [(model_label(relation.parent), str(old))])


@_receiver
def _after_related_save(sender: type[Model], instance: Model, using: str, **kwargs: Any) -> None:
    shared = [(model_label(model), str(instance.pk)) for model in _referenced_models(sender)]
    mark([*_parents(sender, instance), *shared, *_unstash(instance)], using=using)


@_receiver
def _before_related_delete(sender: type[Model], instance: Model, using: str, **kwargs: Any) -> None:
    """Mark the products that point at this row: after the delete, SET_NULL has removed the link to them."""
    for model in _referenced_models(sender):
        mark_dirty(relations.affected_products(model_label(model), [str(instance.pk)], database=using))


@_receiver
def _after_related_delete(sender: type[Model], instance: Model, using: str, **kwargs: Any) -> None:
    mark(_parents(sender, instance), using=using)


@_receiver
def _members_changed(
    sender: type[Model], instance: Model, action: str, pk_set: set[Any] | None, using: str, **kwargs: Any
) -> None:
    if action not in ("post_add", "post_remove", "pre_clear", "post_clear"):
        return
    targets: list[Target] = []
    for relation in relations.relations():
        if relation.through is not sender:
            continue
        parent = model_label(relation.parent)
        if isinstance(instance, relation.parent):
            targets.append((parent, str(instance.pk)))
        elif action == "pre_clear":
            members = relations.affected_products(model_label(relation.model), [str(instance.pk)], database=using)
            products = model_label(get_catalog().model)
            _stash(instance, [(products, str(key)) for key in members.values_list("pk", flat=True)])
        else:
            targets += [(parent, str(key)) for key in pk_set or ()]
    if action != "pre_clear":
        mark([*targets, *_unstash(instance)], using=using)


def _parents(sender: type[Model], instance: Model) -> list[Target]:
    """Return the parents that a row points at."""
    keys = [(relation, getattr(instance, key.attname)) for relation, key in _parent_foreign_keys(sender)]
    return [(model_label(relation.parent), str(key)) for relation, key in keys if key is not None]


def _parent_foreign_keys(sender: type[Model]) -> Iterator[tuple[Relation, Any]]:
    """Yield the relations in which rows of `sender` point at their parent, each with its foreign key."""
    concrete = sender._meta.concrete_model or sender
    for relation in relations.relations():
        for key in concrete._meta.concrete_fields:
            is_child = relation.foreign_key == key.attname and issubclass(concrete, relation.model)
            is_through = concrete is relation.through and key.related_model is relation.parent
            if is_child or is_through:
                yield relation, key


def _referenced_models(sender: type[Model]) -> set[type[Model]]:
    """Return the watched models that `sender` is or inherits from and whose rows the parents point at."""
    concrete = sender._meta.concrete_model or sender
    return {
        relation.model
        for relation in relations.relations()
        if not relation.foreign_key and issubclass(concrete, relation.model)
    }


def _stash(instance: Model, targets: list[Target]) -> None:
    instance.__dict__.setdefault(STASH, []).extend(targets)


def _unstash(instance: Model) -> list[Target]:
    return instance.__dict__.pop(STASH, [])  # type: ignore[no-any-return]


def _with_subclasses(model: type[Model]) -> list[type[Model]]:
    """Return the model, its proxies and its multi-table children: each is a separate sender."""
    models = apps.get_models(include_auto_created=True)
    return [sender for sender in models if issubclass(sender._meta.concrete_model or sender, model)]


def _dispatch_uid(sender: type[Model], purpose: str) -> str:
    return f"visual_search.{purpose}.{sender._meta.label_lower}"


def _reconnect(*, setting: str, **kwargs: Any) -> None:
    if setting == SETTING:
        relations.clear_cache()
        connect()


setting_changed.connect(_reconnect, dispatch_uid="visual_search.index.signals")
