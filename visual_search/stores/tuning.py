"""How a Qdrant collection is laid out, indexed and searched: one dict a concept, each key with its default and reason.

None leaves a value to the server.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal

from visual_search.exceptions import ConfigurationError
from visual_search.stores.connection import engine_models

Concept = Mapping[str, Any]

DEFAULTS: dict[str, dict[str, Any]] = {
    "vectors": {
        "on_disk": True,  # full vectors are read for rescoring alone; what every search reads stays in memory
    },
    "quantization": {  # int8: a quarter of the memory
        "quantile": 0.99,  # Qdrant's advice: the outermost 1 % would stretch the scale of all others
        "always_ram": True,
    },
    "hnsw": {
        "m": 16,  # Qdrant's default; 32 for recall at many millions, at twice the memory of the graph
        "ef_construct": 128,  # above Qdrant's 100: built once, searched often
        "full_scan_threshold": None,
        "max_indexing_threads": None,
        "on_disk": None,
        "payload_m": None,
    },
    "search": {
        "hnsw_ef": 128,  # raised by the server where a search wants more points than that
        "rescore": True,  # int8 finds the candidates, full vectors give the scores that are shown and thresholded
        "oversampling": 2.0,  # candidates for each point wanted
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
        "shard_number": None,  # fixed when a collection is made; the server takes the number of its nodes
        "replication_factor": None,  # 2 or more lets a node fail
        "write_consistency_factor": None,  # replicas that must have a write before it counts
        "write_ordering": "medium",  # through one replica at a time, so "newer than" means the same on all of them
    },
}


class Tuning:
    """The options as given, checked, over the defaults."""

    def __init__(self, **given: Concept | Literal[False] | None) -> None:
        """Raises ConfigurationError for a key that there is not, with the nearest one."""
        self.is_quantized = given.get("quantization") is not False
        self.values = {concept: _merged(concept, given.get(concept) or {}) for concept in DEFAULTS}

    def kept(self) -> dict[str, Any]:
        """Return what the collection's metadata remembers of how it was made; searches may change at any time."""
        kept: dict[str, Any] = {name: values for name, values in self.values.items() if name != "search"}
        return kept | {"quantization": self.values["quantization"] if self.is_quantized else None}

    def creation(self, dim: int) -> dict[str, Any]:
        """Return the arguments that a collection is made with."""
        models = engine_models()
        cluster = {name: value for name, value in self.values["cluster"].items() if name != "write_ordering"}
        vectors = models.VectorParams(size=dim, distance=models.Distance.COSINE, **self.values["vectors"])
        return {"vectors_config": vectors, "quantization_config": self._quantization(), **self._indexing(), **cluster}

    def update(self) -> dict[str, Any]:
        """Return the arguments that bring an existing collection to these options; its shards stay as they are."""
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


def _merged(concept: str, given: Concept) -> dict[str, Any]:
    known = DEFAULTS[concept]
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"The store's option {concept!r} is {given!r}; a dict was wanted.")
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(known)}."
            raise ConfigurationError(f"The store's option {concept!r} has no key {key!r}. {hint}")
    return {**known, **given}
