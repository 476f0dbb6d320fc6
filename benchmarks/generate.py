"""Generating architectures: stage `generate` without its page, into an empty folder.

    python benchmarks/generate.py [--count 100000] [--workers 2] [--split train] [--shard-rows 10000]

The time is that of the stage's own tasks on a local Ray cluster that has started: sampling, all rejections, hashes,
counts, both passes, writing. Compares, on one core, adding up the summaries of blocks with compiling programs and
graphs operation by operation. The last line is JSON: `architectures_per_second`,
`architectures_per_second_per_core`, `bytes`, `peak_rss_bytes` (the largest of the workers and this process), `seconds`,
`compiled_ratio` (time of compiling programs and graphs over that of adding up blocks).
"""

from __future__ import annotations

import platform
import resource
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Annotated

import typer
from frame import RecordName, finish, introduce

from ghn.deepnets1m.architecture import Architecture
from ghn.deepnets1m.sampling import sample_architecture
from ghn.networks.summary import summarise
from pipeline.architectures.sampled_splits import sample_splits, shard_tasks
from pipeline.cluster.ray_cluster import ray_cluster

SEED = 0


def main(
    count: Annotated[int, typer.Option(min=1, help="Architectures.")] = 100_000,
    workers: Annotated[int, typer.Option(min=1, help="Processes, a core each.")] = 2,
    split: Annotated[str, typer.Option(help="Any that is sampled.")] = "train",
    shard_rows: Annotated[int, typer.Option(min=1, help="Architectures a file.")] = 10_000,
    compiled: Annotated[int, typer.Option(min=1, help="Architectures that are compiled for comparison.")] = 300,
    record: RecordName = None,
) -> None:
    """Time stage `generate`."""
    introduce(f"{workers} workers", f"Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as folder, ray_cluster("local", workers):
        sample_splits({split: shard_tasks(f"{folder}/warm", split, SEED + 1, 10 * workers, 10)})
        tasks = shard_tasks(f"{folder}/{split}", split, SEED, count, shard_rows)
        started = perf_counter()
        shards = sample_splits({split: tasks})[split]
        seconds = perf_counter() - started
        peak = max(peak_of_workers(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    rate, size = count / seconds, sum(shard.bytes for shard in shards)
    print(f"{count:,} architectures of split {split} in {seconds:.1f} s")
    print(f"{rate:,.0f} a second, {rate / workers:,.0f} a second and core; at most {peak / 2**20:.0f} MiB per process")
    print(f"{len(shards)} files, {size / 1e6:.1f} MB, {size / count:.1f} bytes each")
    architectures = [sample_architecture(SEED, split, index) for index in range(compiled)]
    blocks, whole = seconds_each(add_up_blocks, architectures), seconds_each(compile_whole, architectures)
    print(f"hash, costs and graph size of one architecture: {1e3 * blocks:.2f} ms from summaries of blocks;")
    print(f"from programs and graphs {1e3 * whole:.2f} ms, {whole / blocks:.1f} times as long")
    result = {
        "architectures_per_second": round(rate, 1),
        "architectures_per_second_per_core": round(rate / workers, 1),
        "bytes": size,
        "peak_rss_bytes": peak,
        "seconds": round(seconds, 1),
        "compiled_ratio": round(whole / blocks, 1),
    }
    finish(result, record)


def add_up_blocks(architecture: Architecture) -> object:
    return architecture.summary(32, 10), architecture.num_parameters(224, 1000)


def compile_whole(architecture: Architecture) -> object:
    return summarise(architecture.compile(32, 10)), architecture.compile(224, 1000).num_parameters


def seconds_each(function: Callable[[Architecture], object], architectures: list[Architecture]) -> float:
    """Return the mean seconds per architecture, once each was seen before."""
    for architecture in architectures:
        function(architecture)
    started = perf_counter()
    for architecture in architectures:
        function(architecture)
    return (perf_counter() - started) / len(architectures)


def peak_of_workers() -> int:
    """Return the most memory, in bytes, that a Ray worker of this machine has had so far."""
    peaks = [0]
    for status in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError):  # it has ended meanwhile
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
            if fields["Name"].strip().startswith("ray::") and "VmHWM" in fields:  # a zombie has no memory left
                peaks.append(1024 * int(fields["VmHWM"].split()[0]))
    return max(peaks)


if __name__ == "__main__":
    typer.run(main)
