"""The files of all splits: sampled, imported, or made from split test with larger widths."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from itertools import combinations
from typing import Any

from ghn.design_spaces import DEEPNETS1M
from ghn.networks.program import LARGE_IMAGE
from pipeline.architectures.imported_splits import find_imported_splits
from pipeline.architectures.sampled_splits import SAMPLED_FORMAT, Task, sample_splits, shard_tasks
from pipeline.architectures.shards import ArchitectureShard, find_shard, row, table_of, write_shard
from pipeline.architectures.store import ArchitectureStore, Split, write_manifest
from pipeline.cluster.ray_cluster import ray_cluster
from pipeline.params import Params, settings_hash
from pipeline.results import MANIFEST
from pipeline.storage.paths import sampled_split_address, storage_url

log = logging.getLogger(__name__)

SplitFiles = tuple[str, list[ArchitectureShard]]
"""A split's folder below the storage, and its shards."""


def store_architectures(params: Params) -> ArchitectureStore:
    """Write the shards that are missing, then the manifest, and return the store of all.

    Raises:
        UserError: an import is missing or damaged, or the storage cannot be written.
    """
    with ray_cluster(params.cluster.address, params.cluster.cpus):
        splits = make_splits(params)
    write_manifest(MANIFEST, splits, params.generate.space)
    return ArchitectureStore(params.storage)


def make_splits(params: Params) -> dict[str, SplitFiles]:
    """Write the shards that are missing, on the cluster, and return the files of all splits."""
    splits = find_imported_splits(params)
    imported = {split: _network_hashes(params.storage, split, files) for split, files in splits.items()}
    _warn_of_repeats(imported)
    # A row of the small splits takes many samples. They come before train, so that workers finish at the same time.
    names = params.generate.splits
    sampled = sorted((split for split in names if split not in (*splits, "wide")), key="train".__eq__)
    shards = sample_splits({split: _tasks(params, split) for split in sampled}, set().union(*imported.values()))
    splits |= {split: (_folder(params, split), shards[split]) for split in sampled}
    splits["wide"] = (_folder(params, "wide"), _widened(params, splits["test"]))
    return {split: splits[split] for split in names}


def _folder(params: Params, split: str) -> str:
    """Return the address of a split's shards, which changes with every setting that changes their content."""
    settings: dict[str, Any] = {
        "format": SAMPLED_FORMAT,
        "seed": params.seed,
        "shard_rows": params.generate.shard_rows,
    }
    space = params.generate.space
    if space != DEEPNETS1M:
        settings["space"] = space
    elif split == "wide":
        settings["large"] = params.images.size >= LARGE_IMAGE
    if params.generate.imported:  # their addresses change with their content
        settings["imported"] = dict(params.generate.imported)
    return sampled_split_address(split, settings_hash(settings))


def _tasks(params: Params, split: str) -> list[Task]:
    folder = storage_url(params.storage, _folder(params, split))
    settings = params.generate
    return shard_tasks(folder, split, params.seed, getattr(settings, split), settings.shard_rows, settings.space)


def _widened(params: Params, test_files: SplitFiles) -> list[ArchitectureShard]:
    """Write the shards of split wide: the first architectures of split test with larger widths."""
    folder, test_shards = test_files
    test = Split("test", storage_url(params.storage, folder), test_shards, params.generate.space)
    origins = test.table("seed", "draw").to_pylist()
    shards = []
    for task in _tasks(params, "wide"):
        table = table_of(
            [
                row(index, test.read(index).widened(params.images.size), *origins[index].values())
                for index in range(task.first, task.last)
            ],
            task.space,
        )
        found = find_shard(task.place, task.made_from)
        if found is not None and found[1].equals(table):
            shards.append(found[0])
        else:
            shards.append(write_shard(task.place, table, task.made_from))
    return shards


def _network_hashes(storage: str, split: str, files: SplitFiles) -> set[str]:
    folder, shards = files
    return set(Split(split, storage_url(storage, folder), shards).table("identity")["identity"].to_pylist())


def _warn_of_repeats(imported: Mapping[str, set[str]]) -> None:
    """Warn of architectures that two imported splits share; sampled splits share none with any split."""
    for split, other in combinations(imported, 2):
        if shared := len(imported[split] & imported[other]):
            log.warning("%d architectures are in split %s and in %s, which are both imported", shared, split, other)
