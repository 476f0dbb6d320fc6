"""Import of DeepNets-1M as published: a split in two files becomes Parquet shards in the storage, and a manifest.

The graph of every row is compared with the row's record first, because files that the public generator writes with
current libraries may contradict themselves. Only records are imported; graphs are built from them.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa

from pipeline.architectures.deepnets1m_files.checks import (
    IMAGE_SIZES,
    Disagreement,
    architecture_of_record,
    check_graph,
    check_record,
)
from pipeline.architectures.deepnets1m_files.files import (
    Contents,
    UnreadableGraph,
    content_digest_of_file,
    open_graphs,
    read_contents,
    read_graph,
    read_records,
    require_file,
)
from pipeline.architectures.shards import ArchitectureShard, Row, find_shard, row, shard_name, table_of, write_shard
from pipeline.architectures.store import write_manifest
from pipeline.console import print_table, progress_bar
from pipeline.errors import UserError
from pipeline.params import SAMPLED_SPLITS, settings_hash
from pipeline.storage.files import remove, require_writable
from pipeline.storage.paths import disagreements_file, imported_split_address, manifest_address, storage_url
from pipeline.storage.records import Origin
from pipeline.storage.tables import write_csv

if TYPE_CHECKING:
    import h5py

IMPORTED_FORMAT = f"2, pyarrow {pa.__version__}"
"""Part of an import's address. Raise the number when the same files would give other rows, or pass other checks. The
version of pyarrow is part of it because another version may write other bytes."""

FAULTS_SHOWN = 3
"""Number of rows that an error message names."""


def import_deepnets(
    hdf5: Path, metadata: Path, split: str, storage: str, keep_disagreeing: bool = False, shard_rows: int = 5000
) -> str:
    """Import a split of DeepNets-1M into the storage, and print a summary.

    By default, one row that contradicts itself stops the import. With `keep_disagreeing`, rows are imported whose
    record is valid but differs from the rest of the row. Rows without a valid record, and rows that repeat the network
    of an earlier row, are left out. `disagreeing.csv`, beside the manifest, names all these rows.

    The folder's name is a digest of both files and of the other arguments. So the import of other files overwrites
    nothing, and an interrupted import goes on when it is started again.

    Args:
        hdf5, metadata: the two files, such as `deepnets1m_train.hdf5` and `deepnets1m_train_meta.json`.
        split: any split but `wide`, which is made from `test`.
        shard_rows: architectures per Parquet file.

    Returns:
        The address of the manifest below the storage, a value for the setting `generate.imported`.

    Raises:
        UserError: a file is missing, damaged or without the split, or rows contradict themselves. Nothing is kept then.
    """
    if split not in SAMPLED_SPLITS:
        raise UserError(f"split {split!r} cannot be imported: must be one of {', '.join(SAMPLED_SPLITS)}")
    for file in (hdf5, metadata):
        require_file(file)
    require_writable(storage)
    contents = read_contents(metadata, split)
    with open_graphs(hdf5, contents) as graphs:
        settings = {"format": IMPORTED_FORMAT, "split": split, "keep": keep_disagreeing, "shard_rows": shard_rows}
        digest = settings_hash([settings, content_digest_of_file(hdf5), content_digest_of_file(metadata)])
        address = imported_split_address(split, digest)
        folder = storage_url(storage, address)
        taken = _Import(folder, shard_rows, keep_disagreeing)
        _take_rows(taken, metadata, contents, graphs)
        rows = max(contents.rows, len(graphs))
    if not taken.shards or taken.refuses:
        remove(folder)
        raise UserError(_refusal(taken, rows, hdf5))
    if taken.faults:
        write_csv(disagreements_file(folder), pd.DataFrame(map(asdict, taken.faults)))
    manifest = manifest_address(address)
    write_manifest(storage_url(storage, manifest), {split: (address, taken.shards)})
    _print_summary(taken, split, rows, manifest)
    return manifest


def _take_rows(taken: _Import, metadata: Path, contents: Contents, graphs: h5py.Group) -> None:
    """Import all rows of a split, with a progress bar."""
    records = enumerate(read_records(metadata, contents))
    with (
        _without_cycle_collector(),
        progress_bar("import", "row", contents.rows) as bar,
    ):
        while block := list(islice(records, taken.shard_rows)):
            if taken.find(len(block)):
                bar.update(len(block))
                continue
            for index, record in block:
                taken.take(index, record, graphs, contents)
                bar.update()
    for index in range(contents.rows, len(graphs)):
        taken.leave_out(index, "the JSON file has no record of it")
    taken.write()


@contextmanager
def _without_cycle_collector() -> Iterator[None]:
    """Turn off Python's cycle collector, which takes a fifth of the time on the many small objects of a program."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@dataclass(frozen=True)
class Fault:
    """A row of the files that contradicts itself, why, and whether its record was imported nevertheless."""

    index: int
    imported: bool
    reason: str


class _Import:
    """The state of an import: shards that are written, rows that wait for the next shard, and faults so far."""

    def __init__(self, folder: str, shard_rows: int, keep_disagreeing: bool):
        self.folder, self.shard_rows, self.keep_disagreeing = folder, shard_rows, keep_disagreeing
        self.shards: list[ArchitectureShard] = []
        self.faults: list[Fault] = []
        self.duplicates = 0
        self._index_of: dict[str, int] = {}  # by network hash
        self._imported = 0
        self._rows: list[Row] = []  # imported rows that are in no shard yet

    @property
    def refuses(self) -> bool:
        """Whether a fault was found that stops the import."""
        return bool(self.faults) and not self.keep_disagreeing

    def find(self, rows: int) -> bool:
        """Take over the shard of the next rows from an earlier run; return whether there is one."""
        if self.keep_disagreeing or self.refuses:  # a shard does not tell the faults of its rows
            return False
        first, last = self._imported, self._imported + rows
        found = find_shard(self._place(first, last), self._made_from(first, last))
        if found is None:
            return False
        shard, table = found
        hashes = table["identity"].to_pylist()
        self._index_of.update(zip(hashes, range(first, last), strict=True))
        self._imported = last
        self.shards.append(shard)
        return True

    def take(self, index: int, record: Any, graphs: h5py.Group, contents: Contents) -> None:
        """Check the row at a position of the files, and import it if it is valid."""
        try:
            architecture = architecture_of_record(record)
            programs = [architecture.compile(size, 10) for size in IMAGE_SIZES.values()]
        except ValueError as error:
            self.leave_out(index, f"its record is no architecture: {error}")
            return
        program, _ = programs
        earlier = self._index_of.setdefault(program.network_hash, index)
        if earlier != index:
            self.duplicates += 1
            self.leave_out(index, f"the same network as row {earlier}")
            return
        try:
            check_record(record, architecture, programs)
            check_graph(read_graph(graphs, index), program.graph, contents.primitives)
        except (Disagreement, UnreadableGraph) as error:
            self.faults.append(Fault(index, self.keep_disagreeing, str(error)))
        if not self.refuses:
            self._rows.append(row(self._imported, architecture))
            self._imported += 1
            if len(self._rows) == self.shard_rows:
                self.write()

    def leave_out(self, index: int, reason: str) -> None:
        """Record that a row is not imported, and why."""
        self.faults.append(Fault(index, False, reason))

    def write(self) -> None:
        """Write a shard of the imported rows that are in none yet, unless an earlier run has, or the import stops."""
        if not self._rows or self.refuses:
            return
        first, last = self._imported - len(self._rows), self._imported
        place, made_from = self._place(first, last), self._made_from(first, last)
        found = find_shard(place, made_from)
        self.shards.append(found[0] if found else write_shard(place, table_of(self._rows), made_from))
        self._rows = []

    def _place(self, first: int, last: int) -> str:
        return f"{self.folder}/{shard_name(first, last)}"

    def _made_from(self, first: int, last: int) -> Origin:
        return {"content_digest": self.folder.rpartition("/")[2], "first": first, "last": last}


def _refusal(taken: _Import, rows: int, hdf5: Path) -> str:
    """Return an error message of at most three lines that says why nothing is imported."""
    if not rows:
        return f"{hdf5} has no rows to import"
    named = "; ".join(f"row {fault.index}: {fault.reason[:200]}" for fault in taken.faults[:FAULTS_SHOWN])
    more = "; …" if len(taken.faults) > FAULTS_SHOWN else ""
    lines = [
        f"{len(taken.faults)} of {rows} rows of {hdf5} are not as they should be: nothing is imported",
        named + more,
    ]
    if not taken.keep_disagreeing:
        lines.append(
            "`--keep-disagreeing` imports those whose record is valid, with a new graph of it, but no network twice, "
            "and names them all in disagreeing.csv"
        )
    return "\n".join(lines)


def _print_summary(taken: _Import, split: str, rows: int, manifest: str) -> None:
    summary = {
        "split": split,
        "rows": rows,
        "imported": sum(shard.rows for shard in taken.shards),
        "disagreeing": len(taken.faults) - taken.duplicates,
        "duplicates": taken.duplicates,
        "bytes": sum(shard.bytes for shard in taken.shards),
    }
    print_table("Imported architectures", [{name: str(value) for name, value in summary.items()}])
    print(f"to use them, set in params.yaml, with the same storage:\n\ngenerate:\n  imported: {{{split}: {manifest}}}")
