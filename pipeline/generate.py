"""Stage `generate`: architectures of all splits, as sharded Parquet in the storage; in results/ a manifest and a page.

Splits are drawn, but for those that `generate.imported` names: of these the manifest takes the shards as they are.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import combinations
from typing import Any

from ghn.program import LARGE_IMAGE
from ghn.sampling import widen
from pipeline.architecture_report import write_architecture_report
from pipeline.architecture_shards import Shard, find_shard, row, table_of, write_shard
from pipeline.architecture_statistics import statistics_of
from pipeline.architecture_store import ArchitectureStore, Split, write_manifest
from pipeline.cluster import ray_cluster
from pipeline.drawn_splits import FORMAT, Task, draw_splits, shard_tasks
from pipeline.imported_splits import find_imported_splits
from pipeline.page import file_size, git_state, versions
from pipeline.params import DRAWN, SPLITS, Params, fingerprint
from pipeline.results import MANIFEST, print_table, results_folder
from pipeline.storage import storage_url
from pipeline.tracking import stage_run

log = logging.getLogger(__name__)

SplitFiles = tuple[str, list[Shard]]
"""A split's folder below the storage, and its shards."""


def generate(params: Params) -> None:
    """Writes the shards that are missing, then the manifest and the page about them."""
    with stage_run("generate", params.model_dump(), experiment=params.tracking.experiment) as run:
        store = store_architectures(params)
        statistics = statistics_of(store)
        folder = results_folder("generate") / "report"
        page = write_architecture_report(store, statistics, provenance(params, store), folder)
        run.log_artifact(MANIFEST)
        run.log_artifact(folder)
        run.log_data("architectures", store.digest)
        run.log_table(statistics.splits.reset_index(), "tables/architectures")
        run.log_metrics({f"architectures_{split}": len(files) for split, files in store.splits.items()})
    _print_summary(store)
    print(page)


def store_architectures(params: Params) -> ArchitectureStore:
    """Writes the shards that are missing and then the manifest."""
    with ray_cluster(params.cluster.address, params.cluster.cpus):
        splits = make_splits(params)
    write_manifest(MANIFEST, splits)
    return ArchitectureStore(params.storage)


def make_splits(params: Params) -> dict[str, SplitFiles]:
    """The files of all splits, after those that are missing were written on the cluster."""
    splits = find_imported_splits(params)
    imported = {split: _identities(params.storage, split, files) for split, files in splits.items()}
    _warn_of_repetitions(imported)
    # Rows of the small splits take many draws each: they come first, so that no worker is left alone with them.
    drawn = sorted((split for split in DRAWN if split not in splits), key="train".__eq__)
    shards = draw_splits({split: _tasks(params, split) for split in drawn}, set().union(*imported.values()))
    splits |= {split: (_folder(params, split), shards[split]) for split in drawn}
    splits["wide"] = (_folder(params, "wide"), _widened(params, splits["test"]))
    return {split: splits[split] for split in SPLITS}


def provenance(params: Params, store: ArchitectureStore) -> dict[str, str]:
    """Where the page about the architectures comes from: code, seed, data, versions, date."""
    imported = ", ".join(f"{split} from {address}" for split, address in params.generate.imported.items())
    return {
        "code": git_state(),
        "DVC experiment": os.environ.get("DVC_EXP_NAME") or "none",
        "seed": str(params.seed),
        "imported": imported or "none",
        "architectures": f"digest {store.digest}",
        "versions": versions("pyarrow", "ray", "mlflow", "dvc"),
        "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    }


def _print_summary(store: ArchitectureStore) -> None:
    entries = store.manifest["splits"].items()
    print_table(
        "Architectures",
        [
            {
                "split": split,
                "architectures": f"{entry['rows']:,}",
                "files": f"{len(entry['shards']):,}",
                "size": file_size(entry["bytes"]),
            }
            for split, entry in entries
        ],
    )


def _folder(params: Params, split: str) -> str:
    """Where a split's shards lie below the storage; another place when a setting changes their content."""
    settings: dict[str, Any] = {
        "format": FORMAT,
        "seed": params.seed,
        "shard_rows": params.generate.shard_rows,
    }
    if split == "wide":
        settings["large"] = params.images.size >= LARGE_IMAGE
    if params.generate.imported:  # addresses that change with the content
        settings["imported"] = dict(params.generate.imported)
    return f"architectures/{split}/{fingerprint(settings)}"


def _tasks(params: Params, split: str) -> list[Task]:
    folder = storage_url(params.storage, _folder(params, split))
    return shard_tasks(folder, split, params.seed, getattr(params.generate, split), params.generate.shard_rows)


def _widened(params: Params, test_files: SplitFiles) -> list[Shard]:
    """The shards of split wide: the first architectures of split test, widened."""
    folder, test_shards = test_files
    test = Split("test", storage_url(params.storage, folder), test_shards)
    drawn = test.table("seed", "draw").to_pylist()
    shards = []
    for task in _tasks(params, "wide"):
        table = table_of(
            [
                row(index, widen(test.read(index), params.images.size), **drawn[index])
                for index in range(task.first, task.last)
            ]
        )
        found = find_shard(task.place, task.first, task.last)
        shards.append(found[0] if found and found[1].equals(table) else write_shard(task.place, table))
    return shards


def _identities(storage: str, split: str, files: SplitFiles) -> set[str]:
    folder, shards = files
    return set(Split(split, storage_url(storage, folder), shards).table("identity")["identity"].to_pylist())


def _warn_of_repetitions(imported: Mapping[str, set[str]]) -> None:
    """Says how many architectures two imported splits have in common; what is drawn has none with any other split."""
    for split, other in combinations(imported, 2):
        if shared := len(imported[split] & imported[other]):
            log.warning("%d architectures are in split %s and in %s, which are both imported", shared, split, other)
