"""The options that a collection of the stand-in was made with and changed to; a server's defaults for the rest."""

from __future__ import annotations

import copy
from typing import Any

DEFAULTS: dict[str, Any] = {  # of Qdrant 1.18.3
    "params": {"shard_number": 1, "replication_factor": 1, "write_consistency_factor": 1, "on_disk_payload": True},
    "hnsw_config": {
        "m": 16,
        "ef_construct": 100,
        "full_scan_threshold": 10000,
        "max_indexing_threads": 0,
        "on_disk": False,
    },
    "optimizer_config": {
        "deleted_threshold": 0.2,
        "vacuum_min_vector_number": 1000,
        "default_segment_number": 0,
        "max_segment_size": None,
        "memmap_threshold": None,
        "indexing_threshold": 10000,
        "flush_interval_sec": 5,
        "max_optimization_threads": None,
        "prevent_unoptimized": None,
    },
    "wal_config": {"wal_capacity_mb": 32, "wal_segments_ahead": 0, "wal_retain_closed": 1},
    "quantization_config": None,
}


def made_with(body: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a collection that is created so."""
    made = copy.deepcopy(DEFAULTS)
    made["params"] |= {name: body[name] for name in DEFAULTS["params"] if body.get(name) is not None}
    change(made, {**body, "vectors": {"": body["vectors"]}})
    return made


def change(config: dict[str, Any], body: dict[str, Any]) -> None:
    """Change a collection's options: a part that is not named stays."""
    config["params"] |= body.get("params") or {}
    config["params"]["vectors"] = config["params"].get("vectors", {}) | (body.get("vectors") or {}).get("", {})
    config["hnsw_config"] |= body.get("hnsw_config") or {}
    config["optimizer_config"] |= body.get("optimizers_config") or {}
    if quantization := body.get("quantization_config"):
        config["quantization_config"] = None if quantization == "Disabled" else quantization
    if strict := body.get("strict_mode_config"):
        config["strict_mode_config"] = config.get("strict_mode_config", {}) | strict
