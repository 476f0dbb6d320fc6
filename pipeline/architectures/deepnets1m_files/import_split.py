"""Import of DeepNets-1M as published: a split of two files becomes Parquet shards in the storage, and a manifest.

Every row is compared with its own record before it is taken: files that the public generator writes with current
libraries are not always what they say. What is kept is the record; the graph is ours.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
from tqdm import tqdm

from pipeline.architectures.deepnets1m_files.checks import (
    IMAGE_SIZES,
    Disagreement,
    architecture_of,
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
from pipeline.cluster.cached_tasks import clear_task_cache
from pipeline.console import print_table
from pipeline.errors import UserError
from pipeline.params import SAMPLED_SPLITS, settings_hash
from pipeline.stages.check import require_writable
from pipeline.storage.paths import storage_url
from pipeline.storage.tables import write_csv

if TYPE_CHECKING:
    import h5py

IMPORTED_FORMAT = f"2, pyarrow {pa.__version__}"
"""Part of an import's address: raise the number when the same files would give other rows, or pass other checks.
Another version of the library writes other bytes."""

NAMED = 3
"""Rows that a refusal names."""


def import_deepnets(
    hdf5: Path, metadata: Path, split: str, storage: str, keep_disagreeing: bool = False, shard_rows: int = 5000
) -> str:
    """Imports a split of DeepNets-1M into the storage, and prints what came of it.

    All or nothing, unless `keep_disagreeing`: then also rows are imported whose record is valid, but is not what the
    rest of the row says. Rows without a valid record, and those that repeat the network of an earlier row, are left
    out. `disagreeing.csv`, beside the manifest, names them all.

    Everything is written to `architectures/<split>/imported-<digest>`, where the digest is one of both files and of
    the other arguments. So the import of other files overwrites nothing, and one that was interrupted goes on.

    Args:
        hdf5, metadata: the two files, such as `deepnets1m_train.hdf5` and `deepnets1m_train_meta.json`.
        split: where the architectures belong: any split but `wide`, which is made from `test`.
        shard_rows: architectures a Parquet file.

    Returns:
        The address of the manifest below the storage, which the setting `generate.imported` takes.

    Raises:
        UserError: a file is missing or damaged or does not hold the split, or rows disagree: nothing is written.
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
        address = f"architectures/{split}/imported-{digest}"
        folder = storage_url(storage, address)
        taken = _Import(folder, shard_rows, keep_disagreeing)
        _take_rows(taken, metadata, contents, graphs)
        rows = max(contents.rows, len(graphs))
    if not taken.shards or taken.refuses:
        clear_task_cache(folder)
        raise UserError(_refusal(taken, rows, hdf5))
    if taken.faults:
        write_csv(f"{folder}/disagreeing.csv", pd.DataFrame(map(asdict, taken.faults)))
    write_manifest(f"{folder}/manifest.json", {split: (address, taken.shards)})
    manifest = f"{address}/manifest.json"
    _print_summary(taken, split, rows, manifest)
    return manifest


def _take_rows(taken: _Import, metadata: Path, contents: Contents, graphs: h5py.Group) -> None:
    """Takes all rows of a split, and shows how far it is."""
    records = enumerate(read_records(metadata, contents))
    every = 0.2 if sys.stderr.isatty() else 30.0
    with (
        _without_cycle_collector(),
        tqdm(desc="import", unit="row", total=contents.rows, mininterval=every, dynamic_ncols=True) as bar,
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
    """Python's search for cycles is off: programs are many small objects, it takes a fifth of the time, finds none."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@dataclass(frozen=True)
class Fault:
    """What is wrong with a row of the files, and whether its record was imported nevertheless."""

    index: int
    imported: bool
    reason: str


class _Import:
    """The rows on their way into shards, and what is wrong with those that are not as they should be."""

    def __init__(self, folder: str, shard_rows: int, keep_disagreeing: bool):
        self.folder, self.shard_rows, self.keep_disagreeing = folder, shard_rows, keep_disagreeing
        self.shards: list[ArchitectureShard] = []
        self.faults: list[Fault] = []
        self.duplicates = 0
        self._index_of: dict[str, int] = {}  # by identity
        self._imported = 0
        self._rows: list[Row] = []  # the last of those imported, of which no shard is written yet

    @property
    def refuses(self) -> bool:
        return bool(self.faults) and not self.keep_disagreeing

    def find(self, rows: int) -> bool:
        """Takes the next rows as an earlier run has left them, if it has."""
        if self.keep_disagreeing or self.refuses:  # what was wrong with rows is not in their shard
            return False
        first, last = self._imported, self._imported + rows
        found = find_shard(self._place(first, last), first, last)
        if found is None:
            return False
        shard, table = found
        identities = table["identity"].to_pylist()
        self._index_of.update(zip(identities, range(first, last), strict=True))
        self._imported = last
        self.shards.append(shard)
        return True

    def take(self, index: int, record: Any, graphs: h5py.Group, contents: Contents) -> None:
        """Checks the row at a position of the files and imports it, if it may be."""
        try:
            architecture = architecture_of(record)
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
        self.faults.append(Fault(index, False, reason))

    def write(self) -> None:
        """Writes the rows that are imported and in no shard yet, unless an earlier run has, or none will be."""
        if not self._rows or self.refuses:
            return
        first, last = self._imported - len(self._rows), self._imported
        place = self._place(first, last)
        found = find_shard(place, first, last)
        self.shards.append(found[0] if found else write_shard(place, table_of(self._rows)))
        self._rows = []

    def _place(self, first: int, last: int) -> str:
        return f"{self.folder}/{shard_name(first, last)}"


def _refusal(taken: _Import, rows: int, hdf5: Path) -> str:
    """Why nothing is imported, in three lines at most."""
    if not rows:
        return f"{hdf5} has no rows to import"
    named = "; ".join(f"row {fault.index}: {fault.reason[:200]}" for fault in taken.faults[:NAMED])
    more = "; …" if len(taken.faults) > NAMED else ""
    lines = [
        f"{len(taken.faults)} of {rows} rows of {hdf5} are not as they should be: nothing is imported",
        named + more,
    ]
    if not taken.keep_disagreeing:
        lines.append(
            "`--keep-disagreeing` imports those whose record is valid, with our graph of it, but no network twice, "
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
