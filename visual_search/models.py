"""The tables of the index. The database is the source of truth; stores are derived from `Embedding`.

A product is dirty while it has a mark. A drain claims dirty products (their entries hold the lease), embeds what
changed, and finishes: it writes embeddings with a sequence number and entries, and deletes the marks.
"""

from __future__ import annotations

import uuid
from typing import Any

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

POINT_NAMESPACE = uuid.UUID("5d6a7c0e-8b0f-5c52-9f0e-3f6a0c5a1f5e")


class IndexMark(models.Model):
    """A row changed. The table is append-only, so writing a mark never waits for another transaction."""

    class Kind(models.TextChoices):
        CHANGED = "changed"
        RETRY = "retry"
        FORCED = "forced"

    model_label = models.CharField(max_length=100, help_text="The product model, or one that products are related to.")
    key = models.CharField(max_length=255)
    kind = models.CharField(max_length=10, choices=Kind, default=Kind.CHANGED)
    is_bulk = models.BooleanField(
        default=False,
        db_default=False,
        help_text="Of many products at once: a product that was saved by itself goes first.",
    )
    expanded_through = models.CharField(
        max_length=255,
        blank=True,
        default="",
        db_default="",
        help_text="Of a related row: its products up to this key are marked.",
    )
    marked_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        indexes = [
            models.Index(fields=["model_label", "key"], name="visual_search_mark_key"),
            models.Index(fields=["is_bulk", "id"], name="visual_search_mark_order"),
        ]

    def __str__(self) -> str:
        return f"{self.model_label} {self.key}"


class IndexVersion(models.Model):
    """A whole index made with one checkpoint. Searches use the one active version."""

    class State(models.TextChoices):
        BUILDING = "building"
        ACTIVE = "active"
        RETIRED = "retired"
        DELETING = "deleting"

    checkpoint = models.CharField(max_length=500)
    fingerprint = models.CharField(max_length=64)
    dim = models.PositiveIntegerField()
    state = models.CharField(max_length=10, choices=State, default=State.BUILDING)
    photo_threshold = models.FloatField(
        null=True,
        blank=True,
        help_text="Score that a product must reach where photos alone are searched with; calibrated.",
    )
    text_threshold = models.FloatField(null=True, blank=True, help_text="The same for texts alone.")
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    activated_at = models.DateTimeField(null=True, blank=True, editable=False, help_text="When it last became active.")

    class Meta:
        constraints = [
            models.UniqueConstraint("state", condition=Q(state="active"), name="visual_search_one_active_version")
        ]

    def __str__(self) -> str:
        return f"{self.pk} ({self.checkpoint}, {self.state})"

    @property
    def encoder_fingerprint(self) -> str:
        """The encoder's part of the fingerprint."""
        return self.fingerprint.partition("+")[0]

    @property
    def preparation(self) -> str:
        """How product images are prepared: the second part of the fingerprint, or `none`."""
        return self.fingerprint.partition("+")[2] or "none"


def index_fingerprint(encoder: str, preparation: str) -> str:
    """Return an index's fingerprint: the encoder's, followed by the preparation unless that is `none`."""
    return encoder if preparation == "none" else f"{encoder}+{preparation}"


class IndexEntry(models.Model):
    """The state of one product in one version. Drains and builds write it."""

    class State(models.TextChoices):
        PENDING = "pending"
        INDEXED = "indexed"
        PARTIAL = "partial"
        FAILED = "failed"
        REMOVED = "removed"

    version = models.ForeignKey(IndexVersion, models.CASCADE, related_name="entries")
    key = models.CharField(max_length=255)
    state = models.CharField(max_length=10, choices=State, default=State.PENDING)
    content_digest = models.CharField(max_length=64, blank=True, default="")
    error = models.TextField(blank=True, default="")
    indexed_at = models.DateTimeField(null=True, blank=True)
    claim_token = models.UUIDField(null=True, blank=True)
    lease_until = models.DateTimeField(null=True, blank=True)
    claimed_through = models.BigIntegerField(default=0, help_text="The newest mark that the last claim saw.")
    attempts = models.PositiveIntegerField(default=0)
    next_attempt_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        verbose_name_plural = "index entries"
        constraints = [models.UniqueConstraint("version", "key", name="visual_search_one_entry_per_product")]
        indexes = [
            models.Index(fields=["version", "state"], name="visual_search_entry_state"),
            models.Index(
                "next_attempt_at", condition=Q(next_attempt_at__isnull=False), name="visual_search_entry_retry"
            ),
            models.Index("lease_until", condition=Q(lease_until__isnull=False), name="visual_search_entry_lease"),
        ]

    def __str__(self) -> str:
        return f"{self.key} ({self.state})"


class Embedding(models.Model):
    """One embedded image of one product in one version; a tombstone if the vector is NULL."""

    id = models.UUIDField(primary_key=True, editable=False)
    version = models.ForeignKey(IndexVersion, models.CASCADE, related_name="embeddings")
    product_key = models.CharField(max_length=255)
    image_key = models.CharField(max_length=255)
    image_identity = models.TextField()
    digest = models.CharField(max_length=64, help_text="SHA-256 of the image's bytes.")
    is_main = models.BooleanField()
    vector = models.BinaryField(null=True, help_text="Float16, unit length.")
    payload = models.JSONField(default=dict)
    seq = models.BigIntegerField(help_text="Follows the order of commits; stores are fed by it.")
    written_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        constraints = [models.UniqueConstraint("version", "seq", name="visual_search_seq")]
        indexes = [
            models.Index(fields=["version", "product_key"], name="visual_search_embedding_key"),
            models.Index("written_at", condition=Q(vector__isnull=True), name="visual_search_tombstone"),
        ]

    def __str__(self) -> str:
        return f"{self.product_key}/{self.image_key} at {self.seq}"


class FeedState(models.Model):
    """One row: the sequence by which stores are fed."""

    epoch = models.UUIDField(default=uuid.uuid4, help_text="Changes when stores must forget what they hold.")
    last_seq = models.BigIntegerField(default=0)
    pruned_through = models.BigIntegerField(default=0, help_text="Tombstones up to here are gone.")

    def __str__(self) -> str:
        return f"{self.epoch} at {self.last_seq}"


class FeedLease(models.Model):
    """Which process feeds a version's shared store, and how far it has come. One row per version."""

    version = models.OneToOneField(IndexVersion, models.CASCADE, primary_key=True, related_name="feed_lease")
    token = models.UUIDField(null=True, blank=True)
    lease_until = models.DateTimeField(null=True, blank=True)
    epoch = models.CharField(
        max_length=36, blank=True, default="", help_text="Of the position; empty before the first."
    )
    seq = models.BigIntegerField(default=0, help_text="The position; the store keeps it too.")
    must_compare = models.BooleanField(
        default=False,
        db_default=False,
        help_text="The store may hold points that the table does not know: all of it has to be compared.",
    )
    compared_through = models.UUIDField(
        null=True, blank=True, help_text="The sweep goes on comparing points with the table from here."
    )

    def __str__(self) -> str:
        return f"{self.version_id} at {self.seq}"


class QueueState(models.Model):
    """One row: state shared by web, workers and sweep. Separate from FeedState, which finishing drains lock."""

    drain_requested_at = models.DateTimeField(null=True, blank=True)
    drain_error = models.TextField(blank=True, default="", help_text="Why the last drain stopped; empty if it did not.")
    swept_product = models.CharField(max_length=255, blank=True, default="", help_text="The sweep goes on after it.")
    swept_entry = models.BigIntegerField(default=0, help_text="The sweep goes on after it.")
    swept_at = models.DateTimeField(null=True, blank=True)

    def __str__(self) -> str:
        return f"swept at {self.swept_at}"


def point_id(version_id: int, product_key: str, image_key: str) -> uuid.UUID:
    """Return the id of an image's point; it is the same in every process and every run."""
    return uuid.uuid5(POINT_NAMESPACE, f"{version_id}\0{product_key}\0{image_key}")


def model_label(model: type[models.Model]) -> str:
    """Return the label that marks of this model carry: that of its concrete model."""
    return model._meta.concrete_model._meta.label_lower  # type: ignore[union-attr]


def get_singleton(model: type[Any], database: str) -> Any:
    """Return the row of a one-row table; create it if it is missing."""
    return model.objects.using(database).get_or_create(pk=1)[0]
