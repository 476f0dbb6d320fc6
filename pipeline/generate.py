"""Stage `generate`: architectures of all splits, as sharded Parquet in the storage and a manifest in results/.

Splits are drawn, but for those that `generate.imported` names: of these the manifest takes the shards as they are.
"""

from __future__ import annotations

import json
import logging
from typing import Any

import pandas as pd

from ghn.architectures import Architecture
from ghn.program import LARGE_IMAGE
from ghn.sampling import sample_architecture, widen
from pipeline.architecture_store import Shard, Split, find_shard, row, write_manifest, write_shard
from pipeline.cluster import ray_cluster, run_tasks
from pipeline.imported_splits import find_imported_splits
from pipeline.params import DRAWN, SPLITS, Params, fingerprint
from pipeline.results import MANIFEST, print_table, storage_url
from pipeline.tracking import stage_run

log = logging.getLogger(__name__)

FORMAT = 1
"""Part of every shard's address: raise it when the same settings would give other rows."""

Task = tuple[str, str, int, int, int]


def generate(params: Params) -> None:
    """Writes the shards that are missing and then the manifest."""
    splits = find_imported_splits(params)
    imported, drawn = list(splits), [split for split in DRAWN if split not in splits]
    tasks = [task for split in drawn for task in _tasks(params, split)]
    with stage_run("generate", params.model_dump(), experiment=params.tracking.experiment) as run:
        with ray_cluster(params.cluster.address, params.cluster.cpus):
            amounts = [last - first for _, _, _, first, last in tasks]
            done = run_tasks(make_shard, tasks, description="generate", unit="architecture", amounts=amounts)
            made = dict(done)
        by_split: dict[str, list[tuple[Task, Shard, list[str]]]] = {split: [] for split in drawn}
        for index, task in enumerate(tasks):
            by_split[task[1]].append((task, *made[index]))
        splits |= {split: (_folder(params, split), _distinct(by_split[split])) for split in drawn}
        splits["wide"] = (_folder(params, "wide"), _widened(params, *splits["test"]))
        splits = {split: splits[split] for split in SPLITS}
        _warn_of_repetitions(params.storage, splits, imported)
        write_manifest(MANIFEST, splits)
        rows = [
            {
                "split": split,
                "architectures": str(sum(s.rows for s in shards)),
                "bytes": str(sum(s.bytes for s in shards)),
            }
            for split, (_, shards) in splits.items()
        ]
        print_table("Architectures", rows)
        run.log_table(pd.DataFrame(rows), "architectures")
        run.log_artifact(MANIFEST)
        run.log_metrics({split: sum(s.rows for s in shards) for split, (_, shards) in splits.items()})


def _folder(params: Params, split: str) -> str:
    """Where a split's shards lie below the storage; another place when a setting changes their content."""
    settings: dict[str, Any] = {
        "format": FORMAT,
        "seed": params.seed,
        "shard_rows": params.generate.shard_rows,
    }
    if split == "wide":
        settings["large"] = params.images.size >= LARGE_IMAGE
        if "test" in params.generate.imported:
            settings["test"] = params.generate.imported["test"]  # an address that changes with the content
    return f"architectures/{split}/{fingerprint(settings)}"


def _tasks(params: Params, split: str) -> list[Task]:
    count, rows = getattr(params.generate, split), params.generate.shard_rows
    folder = storage_url(params.storage, _folder(params, split))
    return [(folder, split, params.seed, first, min(first + rows, count)) for first in range(0, count, rows)]


def make_shard(
    folder: str, split: str, seed: int, first: int, last: int, taken: dict[int, set[str]] | None = None
) -> tuple[Shard, list[str]]:
    """Writes one shard unless it is there, and returns it with the identities of its rows.

    Args:
        taken: for rows that must be drawn again, the identities that they may not have.
    """
    place = _place(folder, first, last)
    found = find_shard(place, last - first)
    if found is not None and not taken:
        shard, table = found
        return shard, table["identity"].to_pylist()
    records = {} if found is None else dict(enumerate(found[1]["architecture"].to_pylist(), start=first))
    rows: list[dict[str, Any]] = []
    identities: set[str] = set()
    for index in range(first, last):
        if index in records and not (taken and index in taken):
            architecture = Architecture.from_dict(json.loads(records[index]))
        else:
            architecture = sample_architecture(seed, split, index, identities | (taken or {}).get(index, set()))
        rows.append(row(index, architecture))
        identities.add(rows[-1]["identity"])
    return write_shard(place, rows), [r["identity"] for r in rows]


def _place(folder: str, first: int, last: int) -> str:
    return f"{folder}/{first:08d}-{last:08d}.parquet"


def _widened(params: Params, test_folder: str, test_shards: list[Shard]) -> list[Shard]:
    """The shards of split wide: the first architectures of split test, widened."""
    test = Split("test", storage_url(params.storage, test_folder), test_shards)
    shards = []
    for folder, _, _, first, last in _tasks(params, "wide"):
        found = find_shard(_place(folder, first, last), last - first)
        if found is None:
            rows = [row(index, widen(test.read(index), params.images.size)) for index in range(first, last)]
            shards.append(write_shard(_place(folder, first, last), rows))
        else:
            shards.append(found[0])
    return shards


def _distinct(made: list[tuple[Task, Shard, list[str]]]) -> list[Shard]:
    """The shards of a split after rows that repeat an earlier shard's architecture were drawn again.

    Going through rows in order, each is only changed because of earlier ones, so a split that grows keeps its
    first rows.
    """
    seen: set[str] = set()
    shards: list[Shard] = []
    for task, shard, identities in made:
        first = task[3]
        repeated = {first + i: seen for i, identity in enumerate(identities) if identity in seen}
        while repeated:
            shard, identities = make_shard(*task, repeated)
            repeated = {first + i: seen for i, identity in enumerate(identities) if identity in seen}
        seen.update(identities)
        shards.append(shard)
    return shards


def _warn_of_repetitions(storage: str, splits: dict[str, tuple[str, list[Shard]]], imported: list[str]) -> None:
    """Says how many architectures an imported split has in common with others: drawn ones have none with each other."""

    def identities(split: str) -> set[str]:
        folder, shards = splits[split]
        return set(Split(split, storage_url(storage, folder), shards).columns("identity")["identity"])

    for position, split in enumerate(imported):
        own = identities(split)
        for other in splits:
            if other not in imported[: position + 1] and (shared := own & identities(other)):
                log.warning("%d architectures of split %s, which is imported, are in %s too", len(shared), split, other)
