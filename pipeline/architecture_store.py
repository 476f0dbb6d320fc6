"""Architectures in sharded Parquet: the schema, writing a shard, reading any row.

A shard holds the rows `first` to `last` of one split. Its content is a function of (seed, split, rows) alone, so
it does not matter who writes it, or when. The manifest names every shard with its checksum; readers check it.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ghn.architectures import Architecture, Network
from ghn.predefined import PREDEFINED
from ghn.program import Program
from pipeline.errors import UserError
from pipeline.params import fingerprint
from pipeline.results import MANIFEST, storage_url, write_bytes

SCHEMA = pa.schema(
    [
        pa.field("index", pa.int64(), metadata={"is": "position in the split"}),
        pa.field("identity", pa.string(), metadata={"is": "hash of the network; equal networks, equal identity"}),
        pa.field("architecture", pa.string(), metadata={"is": "the record, JSON"}),
        pa.field("cells", pa.int16(), metadata={"is": "number of cells"}),
        pa.field("nodes", pa.int32(), metadata={"is": "nodes of the graph"}),
        pa.field("edges", pa.int32(), metadata={"is": "direct edges of the graph"}),
        pa.field("depth", pa.int32(), metadata={"is": "edges of the longest path of the graph"}),
        pa.field("parameters", pa.int64(), metadata={"is": "elements, 32x32 images, 10 classes"}),
        pa.field("parameters_large", pa.int64(), metadata={"is": "elements, 224x224 images, 1000 classes"}),
        pa.field("flops", pa.int64(), metadata={"is": "of one forward pass, 32x32 images, 10 classes"}),
    ]
)


@dataclass(frozen=True)
class Shard:
    """One file of a split, as the manifest names it."""

    file: str
    rows: int
    bytes: int
    sha256: str


def programs_of_row(architecture: Architecture) -> tuple[Program, Program]:
    """What a row counts in: the program for 32×32 images, 10 classes, and the one for 224×224 images, 1000 classes."""
    return architecture.compile(32, 10), architecture.compile(224, 1000)


def row(index: int, architecture: Architecture, programs: tuple[Program, Program] | None = None) -> dict[str, Any]:
    """The row of one architecture, in the columns of `SCHEMA`; `programs` are `programs_of_row`, if at hand."""
    program, large = programs or programs_of_row(architecture)
    graph = program.graph
    return {
        "index": index,
        "identity": program.identity,
        "architecture": json.dumps(architecture.to_dict(), separators=(",", ":")),
        "cells": architecture.n_cells,
        "nodes": len(graph.nodes),
        "edges": len(graph.edges),
        "depth": int(graph.levels.max()),
        "parameters": program.num_parameters,
        "parameters_large": large.num_parameters,
        "flops": program.flops,
    }


def write_shard(place: str, rows: Sequence[dict[str, Any]]) -> Shard:
    """Writes one shard, all of it or nothing; the same rows give the same bytes."""
    buffer = io.BytesIO()
    table = pa.Table.from_pylist(list(rows), schema=SCHEMA)
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    content = buffer.getvalue()
    write_bytes(place, content)
    return Shard(place.rpartition("/")[2], len(rows), len(content), hashlib.sha256(content).hexdigest())


def find_shard(place: str, rows: int) -> tuple[Shard, pa.Table] | None:
    """An earlier run's shard and its content; None if it is missing or damaged."""
    filesystem, path = fsspec.core.url_to_fs(place)
    if not filesystem.exists(path):
        return None
    content = filesystem.cat_file(path)
    try:
        table = pq.read_table(io.BytesIO(content), page_checksum_verification=True)
    except (pa.ArrowInvalid, OSError):
        return None
    if table.schema != SCHEMA or len(table) != rows:
        return None
    return Shard(place.rpartition("/")[2], rows, len(content), hashlib.sha256(content).hexdigest()), table


class Split:
    """The architectures of one split, read shard by shard when they are asked for."""

    def __init__(self, name: str, folder: str, shards: Sequence[Shard]):
        self.name, self.folder, self.shards = name, folder, tuple(shards)
        self._starts = np.cumsum([0, *(shard.rows for shard in shards)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def columns(self, *names: str) -> dict[str, np.ndarray]:
        """Whole columns of the split as arrays."""
        tables = [self._table(shard).select(list(names)) for shard in range(len(self.shards))]
        return {name: pa.concat_tables(tables)[name].to_numpy() for name in names}

    def read(self, index: int) -> Architecture:
        """The architecture at a position."""
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        record = self._table(shard)["architecture"][int(index - self._starts[shard])].as_py()
        return Architecture.from_dict(json.loads(record))

    def _table(self, shard: int) -> pa.Table:
        return _read_shard(f"{self.folder}/{self.shards[shard].file}", self.shards[shard].sha256)


@lru_cache(maxsize=64)
def _read_shard(place: str, sha256: str) -> pa.Table:
    filesystem, path = fsspec.core.url_to_fs(place)
    if not filesystem.exists(path):
        raise UserError(f"shard {place} is missing\n`dvc repro --force generate` writes what is missing")
    content = filesystem.cat_file(path)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(
            f"shard {place} is damaged: its checksum is not the manifest's\n`dvc repro --force generate` mends it"
        )
    return pq.read_table(io.BytesIO(content))


class ArchitectureStore:
    """All splits that the manifest names (`splits`, by name), and `predefined`.

    `manifest` is its place, or its content where that is not at hand: on other nodes.
    Raises UserError if it is missing or damaged.
    """

    def __init__(self, storage: str, manifest: str | Path | dict[str, Any] = MANIFEST):
        try:
            self.manifest = manifest if isinstance(manifest, dict) else read_manifest(manifest)
            self.splits = {
                name: Split(name, storage_url(storage, entry["folder"]), [Shard(**s) for s in entry["shards"]])
                for name, entry in self.manifest["splits"].items()
            }
        except FileNotFoundError as error:
            raise UserError(f"{manifest} not found: stage generate writes it, run `dvc repro generate`") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{manifest} is damaged: `dvc repro --force generate` writes it again") from error

    @property
    def digest(self) -> str:
        """Hexadecimal digits that change whenever an architecture of any split does."""
        return digest_of(self.manifest)

    def __getitem__(self, split: str) -> Split:
        if split not in self.splits:
            raise UserError(f"split {split!r} is not in the manifest: must be one of {', '.join(self.splits)}")
        return self.splits[split]

    def read(self, split: str, index: int) -> Network:
        """The network at a position of a split; `predefined` too."""
        if split == "predefined":
            return list(PREDEFINED.values())[index]
        return self[split].read(index)

    def networks(self, split: str) -> list[Network]:
        """All networks of a split; `predefined` too."""
        if split == "predefined":
            return list(PREDEFINED.values())
        return [self.read(split, index) for index in range(len(self[split]))]


def digest_of(manifest: dict[str, Any]) -> str:
    """A digest of all shards that a manifest names."""
    return fingerprint([shard["sha256"] for split in manifest["splits"].values() for shard in split["shards"]])


def read_manifest(place: str | Path) -> dict[str, Any]:
    """A manifest's content. Raises FileNotFoundError if there is none, ValueError if it is no JSON."""
    filesystem, path = fsspec.core.url_to_fs(str(place))
    if not filesystem.isfile(path):
        raise FileNotFoundError(place)
    return json.loads(filesystem.cat_file(path))


def write_manifest(place: str | Path, splits: dict[str, tuple[str, list[Shard]]]) -> None:
    """Writes a manifest: for each split its folder below the storage and its shards."""
    entries = {
        name: {
            "folder": folder,
            "rows": sum(shard.rows for shard in shards),
            "bytes": sum(shard.bytes for shard in shards),
            "shards": [asdict(shard) for shard in shards],
        }
        for name, (folder, shards) in splits.items()
    }
    write_bytes(place, (json.dumps({"splits": entries}, indent=1) + "\n").encode())
