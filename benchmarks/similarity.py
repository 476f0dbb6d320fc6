"""The nearest of many architectures: by embeddings, and by the Weisfeiler-Lehman kernel of their graphs.

    python benchmarks/similarity.py [--embeddings 1000000] [--architectures 100000] [--queries 1000] [--workers 2]

Embeddings are random numbers in memory. Architectures are stored as stage generate does, the same 10,000 in every
shard, and are compared as stage evaluate does, in tasks on a local Ray cluster that has started: rows are read, tables
of nodes put together, features counted and multiplied with those of the queries. Compares tables that are put together
from blocks with those of compiled programs. CPU seconds do not depend on what else the machine does. The last line is
JSON: `search` (for each length of an embedding `seconds` and `cpu_seconds`), `kernel_seconds`, `kernel_cpu_ms` (of one
architecture, by part), `compiled_ratio` (time of a table from a program over that from blocks).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import Annotated, Any

import numpy as np
import typer
from frame import RecordName, finish, introduce
from read_architectures import SHARD_ROWS, write

from ghn.deepnets1m.sampling import sample_architecture
from ghn.networks.node_table import table_of
from ghn.similarity import cosine
from ghn.similarity.weisfeiler_lehman import Features, features, similarities
from pipeline.architectures.store import read_manifest
from pipeline.cluster.ray_cluster import ray_cluster
from pipeline.evaluation.embeddings import StoredArchitectures
from pipeline.evaluation.networks import Candidate
from pipeline.evaluation.similarity import ROWS_IN_TASK, nearest_by_kernel

SEED = 0
HIDDEN = (32, 64)
WIDTH, HEAD_WIDTH, IMAGE_SIZE, CLASSES = 32, 256, 32, 10


def main(
    embeddings: Annotated[int, typer.Option(min=1, help="Candidates of the search by embeddings.")] = 1_000_000,
    architectures: Annotated[int, typer.Option(min=SHARD_ROWS, help="A multiple of 10,000.")] = 100_000,
    queries: Annotated[int, typer.Option(min=1, help="Networks whose nearest are found, by embeddings.")] = 1000,
    graphs: Annotated[int, typer.Option(min=1, help="Networks whose nearest are found, by their graphs.")] = 300,
    workers: Annotated[int, typer.Option(min=1, help="Processes, a core each.")] = 2,
    record: RecordName = None,
) -> None:
    """Time the search for similar architectures."""
    introduce(f"{workers} workers", f"load {os.getloadavg()[0]:.1f}")
    search = {hidden: timed_search(embeddings, queries, hidden) for hidden in HIDDEN}
    for hidden, taken in search.items():
        print(f"{queries:,} queries in {embeddings:,} embeddings of {hidden}: {taken['seconds']:.1f} s, ", end="")
        print(f"{taken['cpu_seconds']:.1f} s of CPU")
    networks = [sample_architecture(SEED, "test", index).with_width(WIDTH, HEAD_WIDTH) for index in range(graphs)]
    with tempfile.TemporaryDirectory() as folder:
        write(folder, architectures)
        stored = stored_in(folder, architectures)
        parts, ratio = cpu_of_parts(networks, stored)
        seconds = timed_kernel(networks, stored, workers)
    print(f"{graphs:,} graphs compared with {architectures:,} by the Weisfeiler-Lehman kernel: {seconds:.1f} s")
    print(f"milliseconds of CPU an architecture: {', '.join(f'{part} {ms:.2f}' for part, ms in parts.items())}")
    print(f"a table of nodes from its program takes {ratio:.1f} times as long as from blocks")
    result = {
        "search": search,
        "kernel_seconds": round(seconds, 1),
        "kernel_cpu_ms": parts,
        "compiled_ratio": round(ratio, 1),
    }
    finish(result, record)


def timed_search(count: int, queries: int, hidden: int) -> dict[str, float]:
    """Return the seconds, and those of CPU, of a search among random embeddings."""
    rng = np.random.default_rng(SEED)
    candidates_NH = rng.standard_normal((count, hidden), dtype=np.float32)
    queries_QH = rng.standard_normal((queries, hidden), dtype=np.float32)
    started, cpu = perf_counter(), process_time()
    cosine.nearest(queries_QH, candidates_NH)
    return {"seconds": round(perf_counter() - started, 2), "cpu_seconds": round(process_time() - cpu, 2)}


def stored_in(folder: str, count: int) -> StoredArchitectures:
    """Return the architectures that a folder holds, at the width of the comparison."""
    manifest = read_manifest(Path(folder) / "manifest.json")
    return StoredArchitectures(folder, manifest, "train", count, WIDTH, HEAD_WIDTH, IMAGE_SIZE, CLASSES)


def timed_kernel(networks: list[Any], stored: StoredArchitectures, workers: int) -> float:
    """Return the seconds in which the nearest of all stored architectures are found, on a cluster that has started."""
    candidates = [Candidate("test", index, "", f"{index}", network) for index, network in enumerate(networks)]
    few = StoredArchitectures(**{**vars(stored), "count": min(stored.count, workers * ROWS_IN_TASK)})
    with ray_cluster("local", workers):
        nearest_by_kernel(candidates, few)  # so that all processes have imported everything
        started = perf_counter()
        nearest_by_kernel(candidates, stored)
        return perf_counter() - started


def cpu_of_parts(networks: list[Any], stored: StoredArchitectures) -> tuple[dict[str, float], float]:
    """Return milliseconds of CPU an architecture by part, and the time of a table from a program over from blocks."""
    taken: dict[str, float] = {}

    def timed(part: str, function: Callable[[], Any]) -> Any:
        started = process_time()
        value = function()
        taken[part] = round(1e3 * (process_time() - started) / ROWS_IN_TASK, 4)
        return value

    queries: Features = features([network.node_table(IMAGE_SIZE, CLASSES) for network in networks])
    rows = timed("read", lambda: stored.read(0, ROWS_IN_TASK))
    tables = timed("tables", lambda: [network.node_table(IMAGE_SIZE, CLASSES) for network in rows])
    found = timed("features", lambda: features(tables))
    timed("compare", lambda: similarities(queries, found))
    parts = dict(taken)
    some = rows[:: max(1, ROWS_IN_TASK // 200)]
    timed("compiled", lambda: [table_of(network.compile(IMAGE_SIZE, CLASSES).graph) for network in some])
    return parts, taken["compiled"] * ROWS_IN_TASK / len(some) / parts["tables"]


if __name__ == "__main__":
    typer.run(main)
