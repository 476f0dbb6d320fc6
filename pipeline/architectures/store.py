"""The stored architectures: the manifest that names all shards of all splits, and access to any row of them.

The manifest has the checksum of every shard. Each process compares a shard with it before it reads rows from the shard.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import NotRequired

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from typing_extensions import TypedDict

from ghn.deepnets1m.predefined import PREDEFINED
from ghn.design_spaces import DEEPNETS1M
from ghn.networks.network import Network, ScalableNetwork
from pipeline.architectures.shards import (
    ARCHITECTURE_COLUMNS,
    ROWS_IN_GROUP,
    SCHEMAS,
    ArchitectureShard,
    architecture_of_row,
)
from pipeline.errors import UserError
from pipeline.params import settings_hash
from pipeline.results import MANIFEST
from pipeline.storage.files import read_bytes, write_bytes
from pipeline.storage.paths import storage_url
from pipeline.storage.records import checksum_of

SHARDS_IN_MEMORY = 1024
"""Number of shards whose compressed content a process keeps in memory; those of a million rows have 50 MB."""


class Split:
    """The architectures of one split, read on demand.

    Attributes:
        files: places of the split's shards, for any reader of Parquet. The folder may also hold shards that belong to
            a version of the split with fewer rows.
        space: the design space of its architectures.
    """

    def __init__(self, name: str, folder: str, shards: Sequence[ArchitectureShard], space: str = DEEPNETS1M):
        self.name, self.folder, self.shards, self.space = name, folder, tuple(shards), space
        self.files = [f"{folder}/{shard.file}" for shard in shards]
        self._starts = np.cumsum([0, *(shard.rows for shard in shards)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def table(self, *names: str) -> pa.Table:
        """Return whole columns of the split."""
        tables = list(self.tables(*names))
        return pa.concat_tables(tables) if tables else SCHEMAS[self.space].empty_table().select(list(names))

    def tables(self, *names: str) -> Iterator[pa.Table]:
        """Yield whole columns of each shard, one shard after the other."""
        return (self._open(shard).read(list(names)) for shard in range(len(self.shards)))

    def columns(self, *names: str) -> dict[str, np.ndarray]:
        """Return whole columns of the split as arrays (rows,)."""
        table = self.table(*names)
        return {name: table[name].to_numpy() for name in names}

    @property
    def norm_free(self) -> NDArray[np.bool_]:
        """Which architectures are without norm (rows,): none of language models is."""
        if self.space != DEEPNETS1M:
            return np.zeros(len(self), dtype=bool)
        without: NDArray[np.bool_] = self.table("norm")["norm"].is_null().to_numpy()
        return without

    def read(self, index: int) -> ScalableNetwork:
        """Return the architecture at a position."""
        return self._architectures(self.row(index, *ARCHITECTURE_COLUMNS[self.space]))[0]

    def row(self, index: int, *names: str) -> pa.Table:
        """Return columns of the row at a position, as a table of one row."""
        if not 0 <= index < len(self):
            raise IndexError(f"split {self.name} has {len(self)} architectures: there is none at {index}")
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        group, position = divmod(int(index - self._starts[shard]), ROWS_IN_GROUP)
        rows = self._open(shard).read_row_group(group, columns=list(names), use_threads=False)
        return rows.slice(position, 1)

    def read_range(self, first: int, last: int) -> list[ScalableNetwork]:
        """Return the architectures from position `first` up to and without `last`.

        Only the rows that are compressed together with them are read.
        """
        if not 0 <= first <= last <= len(self):
            raise IndexError(f"split {self.name} has {len(self)} architectures: there are none from {first} to {last}")
        architectures: list[ScalableNetwork] = []
        columns = ARCHITECTURE_COLUMNS[self.space]
        for shard, start in enumerate(self._starts[:-1]):
            begin, end = max(first - start, 0), min(last - start, self.shards[shard].rows)
            if begin < end:
                groups = list(range(begin // ROWS_IN_GROUP, -(-end // ROWS_IN_GROUP)))
                rows = self._open(shard).read_row_groups(groups, columns=columns, use_threads=False)
                architectures += self._architectures(rows.slice(begin - groups[0] * ROWS_IN_GROUP, end - begin))
        return architectures

    def read_all(self) -> list[ScalableNetwork]:
        """Return all architectures of the split."""
        return self._architectures(self.table(*ARCHITECTURE_COLUMNS[self.space]))

    def _architectures(self, rows: pa.Table) -> list[ScalableNetwork]:
        return [architecture_of_row(record, self.space) for record in rows.to_pylist()]

    def _open(self, shard: int) -> pq.ParquetFile:
        own = self.shards[shard]
        content, metadata = _checked_shard(self.files[shard], own.rows, own.sha256, self.space)
        return pq.ParquetFile(pa.BufferReader(content), metadata=metadata)  # one per call: threads may not share it


@lru_cache(maxsize=SHARDS_IN_MEMORY)
def _checked_shard(place: str, rows: int, sha256: str, space: str) -> tuple[pa.Buffer, pq.FileMetaData]:
    """Return the content of a shard and its Parquet metadata, after comparing it with the manifest."""
    try:
        content = read_bytes(place)
    except FileNotFoundError as error:
        raise UserError(f"shard {place} is missing\n`dvc repro --force generate` writes what is missing") from error
    if checksum_of(content) != sha256:
        raise UserError(
            f"shard {place} is damaged: its checksum is not the manifest's\n`dvc repro --force generate` mends it"
        )
    file = pq.ParquetFile(pa.BufferReader(content))
    if file.metadata.num_rows != rows:
        raise UserError(f"shard {place} has {file.metadata.num_rows} rows, not {rows} as the manifest says")
    if file.schema_arrow != SCHEMAS[space]:
        raise UserError(f"shard {place} has other columns than this version writes\nimport or generate it again")
    return pa.py_buffer(content), file.metadata


class ShardEntry(TypedDict):
    """The description of a shard in a manifest: see `ArchitectureShard`."""

    file: str
    rows: int
    bytes: int
    sha256: str


class SplitEntry(TypedDict):
    """The description of a split in a manifest.

    `folder` is its address below the storage, and `fingerprint` the settings hash at the end of that.
    """

    folder: str
    fingerprint: str
    rows: int
    bytes: int
    shards: list[ShardEntry]


class Manifest(TypedDict):
    """The content of a manifest: all splits, by name, and the design space, DeepNets-1M if it names none."""

    splits: dict[str, SplitEntry]
    space: NotRequired[str]


class ArchitectureStore:
    """All splits of a manifest, by name, and the networks of split `predefined`, which are part of the code.

    Attributes:
        manifest: its content.
        space: the name of the design space.
        splits: the splits that it names.
    """

    def __init__(self, storage: str, manifest: str | Path | Manifest = MANIFEST):
        """Open a manifest.

        Args:
            manifest: its place, or its content on nodes that have no copy of the file.

        Raises:
            UserError: the manifest is missing or damaged.
        """
        try:
            self.manifest = read_manifest(manifest) if isinstance(manifest, str | Path) else manifest
            self.space = self.manifest.get("space", DEEPNETS1M)
            self.splits = {
                name: Split(
                    name,
                    storage_url(storage, entry["folder"]),
                    [ArchitectureShard(**shard) for shard in entry["shards"]],
                    self.space,
                )
                for name, entry in self.manifest["splits"].items()
            }
        except FileNotFoundError as error:
            raise UserError(f"{manifest} not found: stage generate writes it, run `dvc repro generate`") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{manifest} is damaged: `dvc repro --force generate` writes it again") from error

    @property
    def has_predefined(self) -> bool:
        """Whether the networks of split `predefined` read what the architectures read: images."""
        return self.space == DEEPNETS1M

    @property
    def digest(self) -> str:
        """Hexadecimal digits that change whenever an architecture of any split changes."""
        return content_digest_of(self.manifest)

    def __getitem__(self, split: str) -> Split:
        if split not in self.splits:
            raise UserError(f"split {split!r} is not in the manifest: must be one of {', '.join(self.splits)}")
        return self.splits[split]

    def read(self, split: str, index: int) -> Network:
        """Return the network at a position of a split, which may be `predefined`."""
        if split == "predefined":
            return list(PREDEFINED.values())[index]
        return self[split].read(index)

    def networks(self, split: str, first: int | None = None) -> list[Network]:
        """Return the first networks of a split, which may be `predefined`, or as many as it has; None: all."""
        if split == "predefined":
            return list(PREDEFINED.values())[:first]
        stored = self[split]
        return [*(stored.read_all() if first is None else stored.read_range(0, min(first, len(stored))))]


def content_digest_of(manifest: Manifest) -> str:
    """Return a digest of all shards that a manifest names, hexadecimal."""
    return settings_hash([shard["sha256"] for split in manifest["splits"].values() for shard in split["shards"]])


def read_manifest(place: str | Path) -> Manifest:
    """Return the content of a manifest.

    Raises:
        FileNotFoundError: there is no manifest.
        ValueError: it is not JSON.
    """
    manifest: Manifest = json.loads(read_bytes(place))
    return manifest


def write_manifest(
    place: str | Path, splits: dict[str, tuple[str, list[ArchitectureShard]]], space: str = DEEPNETS1M
) -> None:
    """Write a manifest.

    Args:
        splits: for each split the address of its folder below the storage, and its shards. The name of the folder is
            the hash of the settings that its content depends on.
        space: the design space.
    """
    entries = {
        name: {
            "folder": folder,
            "fingerprint": folder.rpartition("/")[2],
            "rows": sum(shard.rows for shard in shards),
            "bytes": sum(shard.bytes for shard in shards),
            "shards": [asdict(shard) for shard in shards],
        }
        for name, (folder, shards) in splits.items()
    }
    manifest = {"splits": entries} | ({} if space == DEEPNETS1M else {"space": space})
    write_bytes(place, (json.dumps(manifest, indent=1) + "\n").encode())
