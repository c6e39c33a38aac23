"""Manage a Qdrant collection: creation, payload indexes, options, alias, and the position in its metadata."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from visual_search.exceptions import DimensionMismatch, StoreUnavailable
from visual_search.stores import mapping
from visual_search.stores.base import FieldKind, Position
from visual_search.stores.connection import Connection, engine_models
from visual_search.stores.tuning import Tuning

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

logger = logging.getLogger(__name__)
T = TypeVar("T")

POSITION_KEY = "visual_search"  # in the collection's metadata
OPTIONS_KEY = "visual_search_options"


class Collection:
    """A collection of a Qdrant server.

    timeout: seconds for a request that a shopper waits for. write_timeout: seconds for any other request.
    """

    def __init__(
        self,
        name: str,
        dim: int,
        *,
        fields: Mapping[str, FieldKind],
        tuning: Tuning,
        connection: Connection,
        timeout: int,
        write_timeout: int,
    ) -> None:
        self.name = name
        self.dim = dim
        self.place = connection.place
        self.timeout, self.write_timeout = timeout, write_timeout
        self._wanted_indexes = {mapping.SEQ: "integer", **mapping.payload_indexes(fields)}
        self._tuning = tuning
        self._connection = connection

    def ensure(self) -> None:
        info = self.info()
        if info is None:
            self._create()
            info = self.info()
        if info is None:
            raise StoreUnavailable(f"Collection {self.name!r} at {self.place} was dropped while it was being opened.")
        stored = getattr(info.config.params.vectors, "size", None)
        if stored != self.dim:
            raise DimensionMismatch(
                f"Collection {self.name!r} at {self.place} holds {stored}-dimensional vectors; "
                f"expected {self.dim} dimensions. Run `manage.py reset_index`."
            )
        self._ensure_indexes(info)
        self._ensure_tuning(info)

    def reset(self) -> None:
        self.drop()
        self._create()

    def drop(self) -> None:
        self.write("drop", lambda client: client.delete_collection(self.name, timeout=self.write_timeout))

    def point_alias(self, alias: str) -> None:
        aliases = self.read("read the aliases of", lambda client: client.get_aliases()).aliases
        targets = {known.alias_name: known.collection_name for known in aliases}
        if targets.get(alias) == self.name:
            return
        models = engine_models()
        operations: list[Any] = []
        if alias in targets:
            operations.append(models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias)))
        create = models.CreateAlias(collection_name=self.name, alias_name=alias)
        operations.append(models.CreateAliasOperation(create_alias=create))
        self.write(
            f"point the alias {alias!r} to",
            lambda client: client.update_collection_aliases(operations, timeout=self.write_timeout),
        )

    def info(self) -> Any:
        """Return the server's description of the collection, or None if it is missing."""
        return self.read(
            "inspect",
            lambda client: client.get_collection(self.name) if client.collection_exists(self.name) else None,
        )

    def _create(self) -> None:
        """Create the collection with its payload indexes, which would take long on a full collection."""

        def create(client: QdrantClient) -> None:
            try:
                client.create_collection(
                    self.name,
                    **self._tuning.create_arguments(self.dim),
                    metadata={OPTIONS_KEY: self._tuning.to_metadata()},
                    timeout=self.write_timeout,
                )
            except Exception:
                if not client.collection_exists(self.name):  # otherwise another process created it first
                    raise

        self.write("create", create)
        info = self.info()
        if info is not None:
            self._check_metadata(info)
            self._ensure_indexes(info)

    def _check_metadata(self, info: Any) -> None:
        """Raise StoreUnavailable for a server without metadata: it has no position and ignores conditions on writes."""
        if not info.config.metadata:
            raise StoreUnavailable(
                f"The server at {self.place} stores no metadata of collections. Use Qdrant 1.16 or newer."
            )

    def _ensure_indexes(self, info: Any) -> None:
        """Create payload indexes that are missing or of the wrong type. Strict mode rejects filters without them."""
        if self._connection.is_local:
            return  # local mode has no indexes, and warns
        wrong = self.wrong_indexes(info)
        for key, (index_type, existing) in wrong.items():
            self._create_index(key, index_type, replaces=existing is not None)
        if wrong and (missing := self.wrong_indexes(self.info())):
            logger.warning("Collection %r at %s still lacks payload indexes: %s", self.name, self.place, list(missing))

    def _create_index(self, key: str, index_type: str, *, replaces: bool) -> None:
        schema = engine_models().PayloadSchemaType(index_type)

        def create(client: QdrantClient) -> None:
            if replaces:
                client.delete_payload_index(self.name, key, wait=True, timeout=self.write_timeout)
            client.create_payload_index(self.name, key, schema, wait=True, timeout=self.write_timeout)

        self.write(f"index {key!r} in", create)

    def wrong_indexes(self, info: Any) -> dict[str, tuple[str, str | None]]:
        """Return the expected indexes that are missing or wrong: key to (expected type, existing type or None)."""
        existing = {key: index.data_type.value for key, index in info.payload_schema.items()} if info else {}
        return {
            key: (kind, existing.get(key)) for key, kind in self._wanted_indexes.items() if existing.get(key) != kind
        }

    def _ensure_tuning(self, info: Any) -> None:
        """Apply changed options to an existing collection. The server does the work in the background."""
        stored, wanted = (info.config.metadata or {}).get(OPTIONS_KEY), self._tuning.to_metadata()
        if stored == wanted:
            return
        shard_number = (stored or {}).get("cluster", {}).get("shard_number")
        if shard_number != wanted["cluster"]["shard_number"]:
            logger.warning("Collection %r keeps its shards; `manage.py reset_index` recreates it", self.name)
        try:
            self.write(
                "change the options of",
                lambda client: client.update_collection(
                    self.name,
                    **self._tuning.update_arguments(),
                    metadata={OPTIONS_KEY: wanted},
                    timeout=self.write_timeout,
                ),
            )
        except StoreUnavailable as error:  # the server waits for running optimizations; searches and feeds continue
            logger.warning("%s The next feed will retry.", error)
        self._check_metadata(self.info() or info)

    def position(self) -> Position | None:
        info = self.info()
        stored = (info.config.metadata or {}).get(POSITION_KEY) if info is not None else None
        return Position(str(stored["epoch"]), int(stored["seq"])) if stored else None

    def set_position(self, position: Position) -> None:
        metadata = {POSITION_KEY: {"epoch": position.epoch, "seq": position.seq}}
        self.write(
            "write the position of",
            lambda client: client.update_collection(self.name, metadata=metadata, timeout=self.write_timeout),
        )

    def read(self, action: str, work: Callable[[QdrantClient], T]) -> T:
        """Call `work` for a waiting shopper: do not retry after the timeout of one request."""
        return self._connection.call(f"{action} collection {self.name!r}", work, retry_within_seconds=self.timeout)

    def write(self, action: str, work: Callable[[QdrantClient], T]) -> T:
        """Call `work` while nobody waits: make every retry. All writes are idempotent."""
        return self._connection.call(f"{action} collection {self.name!r}", work, retry_within_seconds=float("inf"))
