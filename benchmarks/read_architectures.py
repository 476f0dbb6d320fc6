"""Reading stored architectures: opening a set, rows at random, memory.

    python benchmarks/read_architectures.py [--count 1000000] [--reads 2000]

The set is made for the occasion: the same 10,000 architectures in every shard, under other indices. A process of its
own opens and reads it. Compares with reading a row's whole shard each time. The last line is JSON: `open_seconds` (with
the imports), `row_seconds`, `first_row_seconds` (of a shard that was not read before), `shard_ratio`, `peak_rss_bytes`.
"""

from __future__ import annotations

import multiprocessing
import platform
import random
import resource
import statistics
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Annotated

import typer
from frame import RecordName, finish, introduce

SHARD_ROWS = 10_000


def main(
    count: Annotated[int, typer.Option(min=SHARD_ROWS, help="Architectures, a multiple of 10,000.")] = 1_000_000,
    reads: Annotated[int, typer.Option(min=100, help="Rows that are read at random.")] = 2000,
    record: RecordName = None,
) -> None:
    """Time the store of architectures."""
    with tempfile.TemporaryDirectory() as folder:
        write(folder, count)
        with multiprocessing.get_context("spawn").Pool(1) as pool:  # a process that has imported nothing yet
            measured = pool.apply(measure, (folder, reads))
    introduce(f"Python {platform.python_version()}")
    print(f"{count:,} architectures opened in {measured['open_seconds']:.2f} s, imports included")
    print(f"a row at random: {1e3 * measured['row_seconds']:.2f} ms (median of {reads:,}), ", end="")
    print(f"{1e3 * measured['first_row_seconds']:.1f} ms where its shard was not read and checked before")
    measured["shard_ratio"] = measured.pop("shard_seconds") / measured["row_seconds"]
    print(f"reading its whole shard takes {measured['shard_ratio']:.0f} times as long")
    print(f"at most {measured['peak_rss_bytes'] / 2**20:.0f} MiB of memory")
    finish({name: round(value, 6) for name, value in measured.items()}, record)


def write(folder: str, count: int) -> None:
    """Write a manifest and shards of split train."""
    import pyarrow as pa

    from pipeline.architectures.sampled_splits import finish_shard, sample_shard, shard_tasks
    from pipeline.architectures.shards import SCHEMA, shard_name, table_of, write_shard
    from pipeline.architectures.store import Split, write_manifest

    (task,) = shard_tasks(f"{folder}/sampled", "train", 0, SHARD_ROWS, SHARD_ROWS)
    sample_shard(task)
    shard = finish_shard(task, table_of([]))
    table = Split("train", f"{folder}/sampled", [shard]).table(*SCHEMA.names)
    shards = []
    for first in range(0, count, SHARD_ROWS):
        indices = pa.array(range(first, first + SHARD_ROWS))
        place = f"{folder}/train/{shard_name(first, first + SHARD_ROWS)}"
        shards.append(write_shard(place, table.set_column(0, "index", indices)))
    write_manifest(f"{folder}/manifest.json", {"train": ("train", shards)})


def measure(folder: str, reads: int) -> dict[str, float]:
    """Return what opening and reading takes, in seconds and bytes; the imports are part of it."""
    started = perf_counter()
    import pyarrow.parquet as pq

    from pipeline.architectures.shards import ARCHITECTURE_COLUMNS, DEEPNETS1M
    from pipeline.architectures.store import ArchitectureStore

    split = ArchitectureStore(folder, Path(folder) / "manifest.json")["train"]
    measured = {"open_seconds": perf_counter() - started}

    def seconds(index: int) -> float:
        started = perf_counter()
        split.read(index)
        return perf_counter() - started

    rng = random.Random(0)
    first = [seconds(rng.randrange(start, start + SHARD_ROWS)) for start in range(0, len(split), SHARD_ROWS)]
    again = [seconds(rng.randrange(len(split))) for _ in range(reads)]
    measured["first_row_seconds"] = statistics.median(first)
    measured["row_seconds"] = statistics.median(again)
    measured["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    started = perf_counter()
    for file in split.files[:10]:
        pq.read_table(file, columns=ARCHITECTURE_COLUMNS[DEEPNETS1M]).slice(7, 1).to_pylist()
    measured["shard_seconds"] = (perf_counter() - started) / len(split.files[:10])
    return measured


if __name__ == "__main__":
    typer.run(main)
