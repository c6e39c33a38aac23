"""The index in the admin: a reindex action for the shop's product admin, and read-only views of the index."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from visual_search.catalog import get_catalog
from visual_search.index.marks import mark_dirty
from visual_search.models import IndexEntry, IndexMark, IndexVersion

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Any]
else:
    _ModelAdmin = admin.ModelAdmin  # generic only for type checkers


@admin.action(description=_("Reindex selected products"), permissions=["change"])
def reindex_selected_products(modeladmin: admin.ModelAdmin[Any], request: HttpRequest, queryset: QuerySet[Any]) -> None:
    """Mark the products so that all their images are embedded again. Add it to your product admin's `actions`."""
    if not issubclass(queryset.model, get_catalog().model):
        modeladmin.message_user(request, _("The visual search does not index these."), messages.ERROR)
        return
    count = mark_dirty(queryset, kind=IndexMark.Kind.FORCED)
    text = ngettext("%d product will be indexed again.", "%d products will be indexed again.", count) % count
    modeladmin.message_user(request, text, messages.SUCCESS)


class ReadOnlyAdmin(_ModelAdmin):
    """A read-only admin: only the index writes these rows."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(IndexEntry)
class IndexEntryAdmin(ReadOnlyAdmin):
    list_display = ("key", "state", "error", "attempts", "indexed_at", "next_attempt_at")
    list_filter = ("state", "version")
    search_fields = ("=key", "error")
    ordering = ("-indexed_at",)


@admin.register(IndexVersion)
class IndexVersionAdmin(ReadOnlyAdmin):
    list_display = ("id", "checkpoint", "state", "dim", "fingerprint", "created_at")
