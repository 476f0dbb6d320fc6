"""Shards of architectures: the columns, and Parquet files that hold some rows of one split.

The same rows give the same bytes, whichever worker writes a shard.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ghn.deepnets1m.architecture import Architecture
from ghn.deepnets1m.genotype import Genotype
from ghn.design_spaces import DEEPNETS1M, DESIGN_SPACES, GPT, space_of
from ghn.networks.network import ScalableNetwork
from ghn.networks.summary import Summary
from pipeline.storage.files import read_bytes, write_bytes
from pipeline.storage.records import Origin, checksum_of, read_output, write_record


def _field(name: str, kind: pa.DataType, meaning: str) -> pa.Field:
    return pa.field(name, kind, metadata={"is": meaning})


EDGES = pa.list_(pa.struct([("operation", pa.string()), ("state", pa.int8())]))
STATES = pa.list_(pa.int8())

GENOTYPE = pa.struct([("normal", EDGES), ("normal_concat", STATES), ("reduce", EDGES), ("reduce_concat", STATES)])

GENOTYPE_FIELD = _field(
    "genotype", GENOTYPE, "of each cell the edges, two a state, and the states that are concatenated"
)

OTHER_FIELDS = [
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
"""Fields of an `Architecture` beside its genotype, under their names in the published data set."""

DEEPNETS1M_FIELDS = [GENOTYPE_FIELD, *OTHER_FIELDS]

GPT_FIELDS = [
    _field("blocks", pa.list_(pa.list_(pa.int8(), 2)), "of each block the heads and the width of its MLP, in widths"),
    _field("C", pa.int32(), "width of the tokens"),
    _field("positions", pa.string(), "learned or rotary"),
    _field("activation", pa.string(), "gelu or relu"),
    _field("tied", pa.bool_(), "whether the last layer's weight is the table of the embedding"),
    _field("parallel", pa.bool_(), "whether attention and MLP of a block read the same"),
]
"""Fields of a `ghn.gpt.architecture.GptArchitecture`."""


def _schema(fields: Sequence[pa.Field], inputs: str, one: str, large: str) -> pa.Schema:
    """Return all columns of a design space, whose numbers are counted for some inputs, for one, and for large ones."""
    return pa.schema(
        [
            _field("index", pa.int64(), "position in the split"),
            _field("identity", pa.string(), "24 hexadecimal digits; equal networks, equal identity"),
            *fields,
            _field("nodes", pa.int32(), "nodes of the graph"),
            _field("edges", pa.int32(), "edges of the graph, without virtual ones"),
            _field("depth", pa.int32(), "edges of the longest path of the graph"),
            _field("parameters", pa.int64(), f"elements of all parameters, {inputs}"),
            _field("parameters_large", pa.int64(), f"elements of all parameters, {large}"),
            _field("flops", pa.int64(), f"floating-point operations of a forward pass, {one}"),
            _field("seed", pa.int64(), "of the stream that the architecture was drawn from; null if it was imported"),
            _field("draw", pa.int32(), "which draw of the stream (seed, split, index) it is; null if it was imported"),
        ]
    )


FIELDS = {DEEPNETS1M: DEEPNETS1M_FIELDS, GPT: GPT_FIELDS}

SCHEMAS = {
    DEEPNETS1M: _schema(
        DEEPNETS1M_FIELDS,
        inputs="32x32 images, 10 classes",
        one="one 32x32 image, 10 classes",
        large="224x224 images, 1000 classes",
    ),
    GPT: _schema(
        GPT_FIELDS,
        inputs="texts of 32 tokens out of 10",
        one="one text of 32 tokens out of 10",
        large="texts of 1024 tokens out of 50257",
    ),
}
"""The columns of each design space."""

SCHEMA = SCHEMAS[DEEPNETS1M]
"""The columns of DeepNets-1M."""

ARCHITECTURE_COLUMNS = {space: [field.name for field in fields] for space, fields in FIELDS.items()}
"""The columns that the architectures of each design space are made from."""

ROWS_IN_GROUP = 1000
"""Number of rows that are compressed together. Reading one takes the time of all; smaller groups take more space."""


class Row(NamedTuple):
    """One architecture of a split.

    Attributes:
        position: in the split.
        summary: for the small inputs of its design space: 32×32 images and 10 classes.
        parameters_large: elements of all parameters for the large ones: 224×224 images and 1000 classes.
        seed, attempt: the seed that the architecture was sampled with, and its number in the stream of its position.
            Imported architectures have neither.
    """

    position: int
    architecture: ScalableNetwork
    summary: Summary
    parameters_large: int
    seed: int | None = None
    attempt: int | None = None


def row(position: int, architecture: ScalableNetwork, seed: int | None = None, attempt: int | None = None) -> Row:
    """Return the row of an architecture, after computing what its columns say."""
    large = DESIGN_SPACES[space_of(architecture)].large
    return Row(position, architecture, architecture.summary(32, 10), architecture.num_parameters(*large), seed, attempt)


def table_of(rows: Sequence[Row], space: str = DEEPNETS1M) -> pa.Table:
    """Return rows of architectures of a design space in its columns."""
    schema = SCHEMAS[space]
    summaries = [row.summary for row in rows]
    columns = {
        "index": [row.position for row in rows],
        "identity": [summary.network_hash for summary in summaries],
        **_ARCHITECTURE_ARRAYS[space]([row.architecture for row in rows]),
        "nodes": [summary.nodes for summary in summaries],
        "edges": [summary.edges for summary in summaries],
        "depth": [summary.depth for summary in summaries],
        "parameters": [summary.num_parameters for summary in summaries],
        "parameters_large": [row.parameters_large for row in rows],
        "flops": [summary.flops for summary in summaries],
        "seed": [row.seed for row in rows],
        "draw": [row.attempt for row in rows],
    }
    arrays = [
        values if isinstance(values, pa.Array) else pa.array(values, schema.field(name).type)
        for name, values in columns.items()
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _deepnets1m_arrays(architectures: Sequence[Architecture]) -> dict[str, Any]:
    genotypes = [architecture.genotype for architecture in architectures]
    genotype = pa.StructArray.from_arrays(
        [
            _edges([genotype.normal for genotype in genotypes]),
            pa.array([genotype.normal_concat for genotype in genotypes], STATES),
            _edges([genotype.reduce for genotype in genotypes]),
            pa.array([genotype.reduce_concat for genotype in genotypes], STATES),
        ],
        fields=list(GENOTYPE),
    )
    return {"genotype": genotype, **_values(architectures, OTHER_FIELDS)}


def _values(architectures: Sequence[ScalableNetwork], fields: Sequence[pa.Field]) -> dict[str, Any]:
    return {field.name: [getattr(architecture, field.name) for architecture in architectures] for field in fields}


_ARCHITECTURE_ARRAYS: dict[str, Callable[[Sequence[Any]], dict[str, Any]]] = {
    DEEPNETS1M: _deepnets1m_arrays,
    GPT: lambda architectures: _values(architectures, GPT_FIELDS),
}
"""For each design space, the columns that its architectures are made from."""


def _edges(cells: Sequence[Sequence[tuple[str, int]]]) -> pa.ListArray:
    ends = np.cumsum([0, *map(len, cells)], dtype=np.int32)
    operations = pa.array([operation for cell in cells for operation, _ in cell], pa.string())
    states = pa.array([state for cell in cells for _, state in cell], pa.int8())
    edges = pa.StructArray.from_arrays([operations, states], fields=list(EDGES.value_type))
    return pa.ListArray.from_arrays(pa.array(ends), edges, type=EDGES)


def architecture_of_row(record: dict[str, Any], space: str = DEEPNETS1M) -> ScalableNetwork:
    """Return the architecture of a row with the columns `ARCHITECTURE_COLUMNS` of its design space."""
    if space == GPT:
        return DESIGN_SPACES[GPT].network.from_dict(record)
    cells = record["genotype"]
    normal, reduce = (
        tuple([(edge["operation"], edge["state"]) for edge in cells[cell]]) for cell in ("normal", "reduce")
    )
    genotype = Genotype(normal, tuple(cells["normal_concat"]), reduce, tuple(cells["reduce_concat"]))
    return Architecture(genotype, **{field.name: record[field.name] for field in OTHER_FIELDS})


@dataclass(frozen=True)
class ArchitectureShard:
    """One file of a split, as the manifest names it.

    Attributes:
        rows: number of architectures.
        bytes: size of the file.
        sha256: checksum of the file, hexadecimal.
    """

    file: str
    rows: int
    bytes: int
    sha256: str


def shard_name(first: int, last: int) -> str:
    """Return the name of the file with the rows from `first` up to and without `last`."""
    return f"{first:08d}-{last:08d}.parquet"


def write_shard(place: str, table: pa.Table, made_from: Origin | None = None) -> ArchitectureShard:
    """Write a shard, and its record (see `pipeline.storage.records`) so that an interrupted run can go on.

    Args:
        made_from: what the rows depend on; without it the shard gets no record, and no later run takes it.
    """
    content = _encode(table)
    write_bytes(place, content)
    if made_from is not None:
        write_record(place, content, made_from)
    return _shard(place, len(table), content)


def find_shard(place: str, made_from: Origin) -> tuple[ArchitectureShard, pa.Table] | None:
    """Return a shard that an earlier run has finished, and its rows; None if it is missing, damaged or another one."""
    found = read_output(place, made_from)
    if found is None:
        return None
    content, _ = found
    table = pq.read_table(pa.BufferReader(content))
    return _shard(place, len(table), content), table


def find_shard_without_record(place: str, first: int, last: int) -> tuple[ArchitectureShard, pa.Table] | None:
    """Return a shard of a version that wrote no records, and its rows; None if it is missing, damaged or another one.

    It is intact if encoding the rows that were read gives the same bytes. The caller has to compare what else the rows
    must be.
    """
    try:
        content = read_bytes(place)
        table = pq.read_table(pa.BufferReader(content), page_checksum_verification=True)
    except (FileNotFoundError, pa.ArrowException, OSError):
        return None
    if (
        table.schema not in SCHEMAS.values()
        or table["index"].to_pylist() != list(range(first, last))
        or _encode(table) != content
    ):
        return None
    return _shard(place, len(table), content), table


def _encode(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    # Parquet adds field numbers to the metadata of columns that were read.
    schema = next(schema for schema in SCHEMAS.values() if schema.names == table.schema.names)
    table = table.cast(schema).combine_chunks()
    pq.write_table(table, sink, compression="zstd", row_group_size=ROWS_IN_GROUP, write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def _shard(place: str, rows: int, content: bytes) -> ArchitectureShard:
    return ArchitectureShard(place.rpartition("/")[2], rows, len(content), checksum_of(content))
