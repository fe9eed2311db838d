"""Codes in the vector engines that teams already run; each adapter imports its engine when it is first used."""

from __future__ import annotations

from skcompressae.engines._elasticsearch import (
    elasticsearch_mapping,
    elasticsearch_query,
    write_elasticsearch_bulk,
)
from skcompressae.engines._milvus import MilvusIndex
from skcompressae.engines._postgres import PostgresIndex
from skcompressae.engines._qdrant import QdrantIndex
from skcompressae.engines._signs import join_signs, rerank_signed, split_signs

__all__ = [
    "MilvusIndex",
    "PostgresIndex",
    "QdrantIndex",
    "elasticsearch_mapping",
    "elasticsearch_query",
    "join_signs",
    "rerank_signed",
    "split_signs",
    "write_elasticsearch_bulk",
]
