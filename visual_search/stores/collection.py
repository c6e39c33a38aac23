"""A Qdrant collection as a whole: its making, payload indexes, options, alias, and the position in its metadata."""

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
    """timeout, write_timeout: seconds for one request that a shopper waits for, and for one that nobody does."""

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
            raise StoreUnavailable(f"Collection {self.name!r} at {self.place} was dropped while it was opened.")
        stored = getattr(info.config.params.vectors, "size", None)
        if stored != self.dim:
            raise DimensionMismatch(
                f"Collection {self.name!r} at {self.place} holds {stored}-dimensional vectors; "
                f"{self.dim} dimensions were wanted. Run `manage.py reset_index`."
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
        named = {known.alias_name: known.collection_name for known in aliases}
        if named.get(alias) == self.name:
            return
        models = engine_models()
        steps: list[Any] = []
        if alias in named:
            steps.append(models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias)))
        target = models.CreateAlias(collection_name=self.name, alias_name=alias)
        steps.append(models.CreateAliasOperation(create_alias=target))
        self.write(
            f"point the alias {alias!r} to",
            lambda client: client.update_collection_aliases(steps, timeout=self.write_timeout),
        )

    def info(self) -> Any:
        """Return what the server says of the collection, or None where it is missing."""
        return self.read(
            "look at",
            lambda client: client.get_collection(self.name) if client.collection_exists(self.name) else None,
        )

    def _create(self) -> None:
        """Create the collection with its payload indexes: on a full collection they would take long."""

        def create(client: QdrantClient) -> None:
            try:
                client.create_collection(
                    self.name,
                    **self._tuning.creation(self.dim),
                    metadata={OPTIONS_KEY: self._tuning.kept()},
                    timeout=self.write_timeout,
                )
            except Exception:
                if not client.collection_exists(self.name):  # otherwise another process was faster
                    raise

        self.write("create", create)
        info = self.info()
        if info is not None:
            self._check_metadata(info)
            self._ensure_indexes(info)

    def _check_metadata(self, info: Any) -> None:
        """Without it there is no position, and such a server ignores the conditions of writes too."""
        if not info.config.metadata:
            raise StoreUnavailable(
                f"The server at {self.place} keeps no metadata of collections: Qdrant 1.16 or newer is wanted."
            )

    def _ensure_indexes(self, info: Any) -> None:
        """Create payload indexes that are missing or of another type: strict mode refuses to filter without them."""
        if self._connection.is_local:
            return  # local mode has none, and warns
        wrong = self.wrong_indexes(info)
        for key, (index_type, existing) in wrong.items():
            self._create_index(key, index_type, replaces=existing is not None)
        if wrong and (left := self.wrong_indexes(self.info())):
            logger.warning("Collection %r at %s still lacks the payload indexes %s", self.name, self.place, list(left))

    def _create_index(self, key: str, index_type: str, *, replaces: bool) -> None:
        schema = engine_models().PayloadSchemaType(index_type)

        def create(client: QdrantClient) -> None:
            if replaces:
                client.delete_payload_index(self.name, key, wait=True, timeout=self.write_timeout)
            client.create_payload_index(self.name, key, schema, wait=True, timeout=self.write_timeout)

        self.write(f"index {key!r} in", create)

    def wrong_indexes(self, info: Any) -> dict[str, tuple[str, str | None]]:
        """Return each wanted index that is not there: its type, and the type that stands there instead."""
        existing = {key: index.data_type.value for key, index in info.payload_schema.items()} if info else {}
        return {
            key: (kind, existing.get(key)) for key, kind in self._wanted_indexes.items() if existing.get(key) != kind
        }

    def _ensure_tuning(self, info: Any) -> None:
        """Bring a collection that was made with other options to these; the server does the work in the background."""
        kept, wanted = (info.config.metadata or {}).get(OPTIONS_KEY), self._tuning.kept()
        if kept == wanted:
            return
        made = (kept or {}).get("cluster", {}).get("shard_number")
        if made != wanted["cluster"]["shard_number"]:
            logger.warning("Collection %r keeps its shards: `manage.py reset_index` makes it anew", self.name)
        try:
            self.write(
                "change the options of",
                lambda client: client.update_collection(
                    self.name, **self._tuning.update(), metadata={OPTIONS_KEY: wanted}, timeout=self.write_timeout
                ),
            )
        except StoreUnavailable as error:  # it waits for running optimizations; searching and feeding go on
            logger.warning("%s The next feed tries again.", error)
        self._check_metadata(self.info() or info)

    def position(self) -> Position | None:
        info = self.info()
        kept = (info.config.metadata or {}).get(POSITION_KEY) if info is not None else None
        return Position(str(kept["epoch"]), int(kept["seq"])) if kept else None

    def set_position(self, position: Position) -> None:
        kept = {POSITION_KEY: {"epoch": position.epoch, "seq": position.seq}}
        self.write(
            "write the position of",
            lambda client: client.update_collection(self.name, metadata=kept, timeout=self.write_timeout),
        )

    def read(self, attempt: str, work: Callable[[QdrantClient], T]) -> T:
        """Call while somebody waits: no attempt begins when the time for one is over."""
        return self._connection.call(f"{attempt} collection {self.name!r}", work, patience_seconds=self.timeout)

    def write(self, attempt: str, work: Callable[[QdrantClient], T]) -> T:
        """Call while nobody waits: every attempt is made. All writes may be repeated without harm."""
        return self._connection.call(f"{attempt} collection {self.name!r}", work, patience_seconds=float("inf"))
