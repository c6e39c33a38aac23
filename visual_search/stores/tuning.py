"""Options for storing, indexing and searching a Qdrant collection: groups of options with defaults and reasons.

None leaves a value to the server.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal

from visual_search.exceptions import ConfigurationError
from visual_search.stores.connection import engine_models

OptionGroup = Mapping[str, Any]

DEFAULTS: dict[str, dict[str, Any]] = {
    "vectors": {
        "on_disk": True,  # full vectors are only read for rescoring; the data that every search reads stays in memory
    },
    "quantization": {  # int8: a quarter of the memory
        "quantile": 0.99,  # Qdrant's advice: the outermost 1 % would widen the scale for all others
        "always_ram": True,
    },
    "hnsw": {
        "m": 16,  # Qdrant's default; 32 gives better recall at many millions of points, but doubles the graph's memory
        "ef_construct": 128,  # higher than Qdrant's 100, because the graph is built once and searched often
        "full_scan_threshold": None,
        "max_indexing_threads": None,
        "on_disk": None,
        "payload_m": None,
    },
    "search": {
        "hnsw_ef": 128,  # the server raises it if a search asks for more points
        "rescore": True,  # int8 finds the candidates, full vectors give the scores shown and thresholded
        "oversampling": 2.0,  # candidates per requested point
    },
    "optimizers": dict.fromkeys(
        (
            "deleted_threshold",
            "vacuum_min_vector_number",
            "default_segment_number",
            "max_segment_size",
            "memmap_threshold",
            "indexing_threshold",
            "flush_interval_sec",
            "max_optimization_threads",
        )
    ),
    "cluster": {
        "shard_number": None,  # fixed on creation; by default, the number of nodes
        "replication_factor": None,  # 2 or more tolerates the failure of a node
        "write_consistency_factor": None,  # replicas that must confirm a write
        "write_ordering": "medium",  # through one replica at a time, so that "newer than" means the same on all of them
    },
}


class Tuning:
    """The given options, checked and merged with the defaults."""

    def __init__(self, **given: OptionGroup | Literal[False] | None) -> None:
        """Raises ConfigurationError for an unknown key, suggesting the closest known one."""
        self.is_quantized = given.get("quantization") is not False
        self.values = {group: _with_defaults(group, given.get(group) or {}) for group in DEFAULTS}

    def to_metadata(self) -> dict[str, Any]:
        """Return the options to store in the collection's metadata: all but `search`, which may change at any time."""
        metadata: dict[str, Any] = {name: values for name, values in self.values.items() if name != "search"}
        return metadata | {"quantization": self.values["quantization"] if self.is_quantized else None}

    def create_arguments(self, dim: int) -> dict[str, Any]:
        """Return the arguments that create a collection."""
        models = engine_models()
        cluster = {name: value for name, value in self.values["cluster"].items() if name != "write_ordering"}
        vectors = models.VectorParams(size=dim, distance=models.Distance.COSINE, **self.values["vectors"])
        return {"vectors_config": vectors, "quantization_config": self._quantization(), **self._indexing(), **cluster}

    def update_arguments(self) -> dict[str, Any]:
        """Return the arguments that apply these options to an existing collection. Its shards don't change."""
        models = engine_models()
        factors = {name: self.values["cluster"][name] for name in ("replication_factor", "write_consistency_factor")}
        return {
            "vectors_config": {"": models.VectorParamsDiff(**self.values["vectors"])},
            "quantization_config": self._quantization() or models.Disabled.DISABLED,
            "collection_params": models.CollectionParamsDiff(**factors),
            **self._indexing(),
        }

    def search_params(self) -> Any:
        models = engine_models()
        search = self.values["search"]
        rescoring = models.QuantizationSearchParams(rescore=search["rescore"], oversampling=search["oversampling"])
        return models.SearchParams(hnsw_ef=search["hnsw_ef"], quantization=rescoring if self.is_quantized else None)

    def ordering(self) -> Any:
        models = engine_models()
        return models.WriteOrdering(self.values["cluster"]["write_ordering"])

    def _quantization(self) -> Any:
        models = engine_models()
        if not self.is_quantized:
            return None
        scalar = models.ScalarQuantizationConfig(type=models.ScalarType.INT8, **self.values["quantization"])
        return models.ScalarQuantization(scalar=scalar)

    def _indexing(self) -> dict[str, Any]:
        models = engine_models()
        return {
            "hnsw_config": models.HnswConfigDiff(**self.values["hnsw"]),
            "optimizers_config": models.OptimizersConfigDiff(**self.values["optimizers"]),
        }


def _with_defaults(group: str, given: OptionGroup) -> dict[str, Any]:
    known = DEFAULTS[group]
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"The store's option {group!r} is {given!r}; expected a dict.")
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known keys: {', '.join(known)}."
            raise ConfigurationError(f"The store's option {group!r} has no key {key!r}. {hint}")
    return {**known, **given}
