"""Architectures in sharded Parquet: the schema, writing a shard, reading any row.

A shard holds the rows `first` to `last` of one split. Its content is a function of (seed, split, rows) alone, so
it does not matter who writes it, or when. The manifest names every shard with its checksum; readers check it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ghn.architectures import Architecture, Genotype, Network
from ghn.outlines import Summary
from ghn.predefined import PREDEFINED
from pipeline.errors import UserError
from pipeline.params import fingerprint
from pipeline.results import MANIFEST
from pipeline.storage import read_bytes, storage_url, write_bytes


def _field(name: str, kind: pa.DataType, meaning: str) -> pa.Field:
    return pa.field(name, kind, metadata={"is": meaning})


EDGES = pa.list_(pa.struct([("operation", pa.string()), ("state", pa.int8())]))
STATES = pa.list_(pa.int8())

GENOTYPE = pa.struct([("normal", EDGES), ("normal_concat", STATES), ("reduce", EDGES), ("reduce_concat", STATES)])

SETTINGS = [
    _field("n_cells", pa.int16(), "number of cells"),
    _field("C", pa.int32(), "channels of the first cell"),
    _field("C_mult", pa.int8(), "factor of the channels at each of the two reduction cells"),
    _field("ks", pa.int8(), "kernel of the stem's first convolution"),
    _field("stem_type", pa.int8(), "0: one convolution; 1: three, which halve the resolution"),
    _field("stem_pool", pa.bool_(), "whether a max-pool ends stem 0"),
    _field("norm", pa.string(), "bnorm, or null for a network without norm"),
    _field("preproc", pa.bool_(), "whether cells begin with 1x1 convolutions of their two inputs"),
    _field("glob_avg", pa.bool_(), "global average pool before the head, else flatten"),
    _field("fc_layers", pa.int8(), "linear layers of the head"),
    _field("fc_dim", pa.int32(), "width between them, if there are two"),
]
"""The fields of an `Architecture` beside its genotype, under the names that the published data set has for them."""

SCHEMA = pa.schema(
    [
        _field("index", pa.int64(), "position in the split"),
        _field("identity", pa.string(), "24 hexadecimal digits; equal networks, equal identity"),
        _field("genotype", GENOTYPE, "of each cell the edges, two a state, and the states that are concatenated"),
        *SETTINGS,
        _field("nodes", pa.int32(), "nodes of the graph"),
        _field("edges", pa.int32(), "edges of the graph, without virtual ones"),
        _field("depth", pa.int32(), "edges of the longest path of the graph"),
        _field("parameters", pa.int64(), "elements of all parameters, 32x32 images, 10 classes"),
        _field("parameters_large", pa.int64(), "elements of all parameters, 224x224 images, 1000 classes"),
        _field("flops", pa.int64(), "floating-point operations of a forward pass, one 32x32 image, 10 classes"),
        _field("seed", pa.int64(), "of the stream that the architecture was drawn from; null if it was imported"),
        _field("draw", pa.int32(), "which draw of the stream (seed, split, index) it is; null if it was imported"),
    ]
)

RECORD = ["genotype", *(field.name for field in SETTINGS)]

ROWS_IN_GROUP = 1000
"""Rows that are compressed together: reading one takes the time of all, and fewer take more space."""

SHARDS_IN_MEMORY = 128
"""A process keeps the compressed content of that many shards; 100 of 10,000 rows have 50 MB."""


class Row(NamedTuple):
    """One architecture of a split; `seed` and `draw` say how it was drawn, if it was."""

    index: int
    architecture: Architecture
    summary: Summary
    """For 32×32 images, 10 classes."""
    parameters_large: int
    """Elements of all parameters for 224×224 images, 1000 classes."""
    seed: int | None = None
    draw: int | None = None


def row(index: int, architecture: Architecture, seed: int | None = None, draw: int | None = None) -> Row:
    """The row of an architecture of which nothing else is known yet."""
    summary, parameters_large = architecture.summary(32, 10), architecture.num_parameters(224, 1000)
    return Row(index, architecture, summary, parameters_large, seed, draw)


def table_of(rows: Sequence[Row]) -> pa.Table:
    """Rows in the columns of `SCHEMA`."""
    architectures = [row.architecture for row in rows]
    genotypes = [architecture.genotype for architecture in architectures]
    summaries = [row.summary for row in rows]
    columns = {
        "index": [row.index for row in rows],
        "identity": [summary.identity for summary in summaries],
        "genotype": pa.StructArray.from_arrays(
            [
                _edges([genotype.normal for genotype in genotypes]),
                pa.array([genotype.normal_concat for genotype in genotypes], STATES),
                _edges([genotype.reduce for genotype in genotypes]),
                pa.array([genotype.reduce_concat for genotype in genotypes], STATES),
            ],
            fields=list(GENOTYPE),
        ),
        **{field.name: [getattr(a, field.name) for a in architectures] for field in SETTINGS},
        "nodes": [summary.nodes for summary in summaries],
        "edges": [summary.edges for summary in summaries],
        "depth": [summary.depth for summary in summaries],
        "parameters": [summary.num_parameters for summary in summaries],
        "parameters_large": [row.parameters_large for row in rows],
        "flops": [summary.flops for summary in summaries],
        "seed": [row.seed for row in rows],
        "draw": [row.draw for row in rows],
    }
    arrays = [
        values if isinstance(values, pa.Array) else pa.array(values, SCHEMA.field(name).type)
        for name, values in columns.items()
    ]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def _edges(cells: Sequence[Sequence[tuple[str, int]]]) -> pa.ListArray:
    ends = np.cumsum([0, *map(len, cells)], dtype=np.int32)
    operations = pa.array([operation for cell in cells for operation, _ in cell], pa.string())
    states = pa.array([state for cell in cells for _, state in cell], pa.int8())
    edges = pa.StructArray.from_arrays([operations, states], fields=list(EDGES.value_type))
    return pa.ListArray.from_arrays(pa.array(ends), edges, type=EDGES)


def architecture_of(record: dict[str, Any]) -> Architecture:
    """The architecture of a row's columns `RECORD`."""
    genotype = record["genotype"]
    edges = {
        cell: tuple([(edge["operation"], edge["state"]) for edge in genotype[cell]]) for cell in ("normal", "reduce")
    }
    concat = {name: tuple(genotype[name]) for name in ("normal_concat", "reduce_concat")}
    return Architecture(Genotype(**edges, **concat), **{field.name: record[field.name] for field in SETTINGS})


@dataclass(frozen=True)
class Shard:
    """One file of a split, as the manifest names it."""

    file: str
    rows: int
    bytes: int
    sha256: str


def shard_name(first: int, last: int) -> str:
    """The name of the file with the rows from `first` up to and without `last`."""
    return f"{first:08d}-{last:08d}.parquet"


def write_shard(place: str, table: pa.Table) -> Shard:
    """Writes one shard, all of it or nothing; the same rows give the same bytes."""
    content = _encode(table)
    write_bytes(place, content)
    return _shard(place, len(table), content)


def find_shard(place: str, first: int, last: int) -> tuple[Shard, pa.Table] | None:
    """The shard with these rows that an earlier run has left, and its content; None if it is missing or damaged.

    There is no checksum to compare it with before there is a manifest. But it is whole if writing the rows that were
    read gives it, to the last byte.
    """
    try:
        content = read_bytes(place)
        table = pq.read_table(pa.BufferReader(content), page_checksum_verification=True)
    except (FileNotFoundError, pa.ArrowException, OSError):
        return None
    if table.schema != SCHEMA or table["index"].to_pylist() != list(range(first, last)) or _encode(table) != content:
        return None
    return _shard(place, len(table), content), table


def _encode(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    table = table.cast(SCHEMA).combine_chunks()  # columns that were read have numbers among their metadata
    pq.write_table(table, sink, compression="zstd", row_group_size=ROWS_IN_GROUP, write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def _shard(place: str, rows: int, content: bytes) -> Shard:
    return Shard(place.rpartition("/")[2], rows, len(content), hashlib.sha256(content).hexdigest())


class Split:
    """The architectures of one split, read when they are asked for.

    `files` are the places of its shards, for whoever reads Parquet: the folder may hold those of smaller splits too.
    """

    def __init__(self, name: str, folder: str, shards: Sequence[Shard]):
        self.name, self.folder, self.shards = name, folder, tuple(shards)
        self.files = [f"{folder}/{shard.file}" for shard in shards]
        self._starts = np.cumsum([0, *(shard.rows for shard in shards)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def table(self, *names: str) -> pa.Table:
        """Whole columns of the split."""
        tables = [self._open(shard).read(list(names)) for shard in range(len(self.shards))]
        return pa.concat_tables(tables) if tables else SCHEMA.empty_table().select(list(names))

    def columns(self, *names: str) -> dict[str, np.ndarray]:
        """Whole columns of the split as arrays."""
        table = self.table(*names)
        return {name: table[name].to_numpy() for name in names}

    def read(self, index: int) -> Architecture:
        """The architecture at a position."""
        return architecture_of(self.row(index, *RECORD).to_pylist()[0])

    def row(self, index: int, *names: str) -> pa.Table:
        """Columns of the row at a position."""
        if not 0 <= index < len(self):
            raise IndexError(f"split {self.name} has {len(self)} architectures: there is none at {index}")
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        group, position = divmod(int(index - self._starts[shard]), ROWS_IN_GROUP)
        rows = self._open(shard).read_row_group(group, columns=list(names), use_threads=False)
        return rows.slice(position, 1)

    def read_all(self) -> list[Architecture]:
        """All architectures of the split."""
        return [architecture_of(record) for record in self.table(*RECORD).to_pylist()]

    def _open(self, shard: int) -> pq.ParquetFile:
        content, metadata = _checked_shard(self.files[shard], self.shards[shard].sha256)
        return pq.ParquetFile(pa.BufferReader(content), metadata=metadata)  # one a caller: threads may not share it


@lru_cache(maxsize=SHARDS_IN_MEMORY)
def _checked_shard(place: str, sha256: str) -> tuple[pa.Buffer, pq.FileMetaData]:
    """The content of a shard, which is what the manifest says, and its description of itself."""
    try:
        content = read_bytes(place)
    except FileNotFoundError as error:
        raise UserError(f"shard {place} is missing\n`dvc repro --force generate` writes what is missing") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(
            f"shard {place} is damaged: its checksum is not the manifest's\n`dvc repro --force generate` mends it"
        )
    file = pq.ParquetFile(pa.BufferReader(content))
    if file.schema_arrow != SCHEMA:
        raise UserError(f"shard {place} has other columns than this version writes\nimport or generate it again")
    return pa.py_buffer(content), file.metadata


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
        return self[split].read_all()


def digest_of(manifest: dict[str, Any]) -> str:
    """A digest of all shards that a manifest names."""
    return fingerprint([shard["sha256"] for split in manifest["splits"].values() for shard in split["shards"]])


def read_manifest(place: str | Path) -> dict[str, Any]:
    """A manifest's content. Raises FileNotFoundError if there is none, ValueError if it is no JSON."""
    return json.loads(read_bytes(place))


def write_manifest(place: str | Path, splits: dict[str, tuple[str, list[Shard]]]) -> None:
    """Writes a manifest: for each split its folder below the storage and its shards.

    A folder is named after the fingerprint of the settings that its content depends on.
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
    write_bytes(place, (json.dumps({"splits": entries}, indent=1) + "\n").encode())
