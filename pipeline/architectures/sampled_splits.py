"""Shards of sampled architectures, written by tasks on the cluster.

First, workers take the first sample of each row, each from its own stream (`ghn.deepnets1m.sampling`), and keep them as
drafts. Then the driver goes through the hashes of a split in order: a row that repeats an earlier one takes the first
sample of its stream that is new. Last, workers write the shards. So a row is a function of (seed, split, index) alone,
and a shard a function of its rows: neither the number of workers nor that of later rows changes a byte.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Set
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ghn.design_spaces import DEEPNETS1M, DESIGN_SPACES
from ghn.networks.sample import hash_bucket_of
from pipeline.architectures.shards import (
    ArchitectureShard,
    Row,
    find_shard,
    find_shard_without_record,
    shard_name,
    table_of,
    write_shard,
)
from pipeline.cluster.ray_cluster import run_tasks
from pipeline.errors import UserError
from pipeline.storage.files import remove
from pipeline.storage.paths import drafts_folder
from pipeline.storage.records import Origin, has_record

SAMPLED_FORMAT = f"2, pyarrow {pa.__version__}"
"""Part of every shard's address. Raise the number when the same settings would give other rows. The version of pyarrow
is part of it because another version may write other bytes."""


class Task(NamedTuple):
    """One shard: the rows of a split from `first` up to and without `last`.

    Attributes:
        folder: place of the split, whose name is a hash of all settings that its rows depend on.
        space: the design space that its rows are sampled from.
    """

    folder: str
    split: str
    seed: int
    first: int
    last: int
    space: str = DEEPNETS1M

    @property
    def place(self) -> str:
        """The place of the shard."""
        return f"{self.folder}/{shard_name(self.first, self.last)}"

    @property
    def made_from(self) -> Origin:
        """The settings that the shard's rows depend on, for its record."""
        return {
            "settings_hash": self.folder.rpartition("/")[2],
            "split": self.split,
            "seed": self.seed,
            "first": self.first,
            "last": self.last,
        }

    @property
    def drafts(self) -> str:
        """The folder of the split's first samples."""
        return drafts_folder(self.folder)

    @property
    def draft(self) -> str:
        """The place of the first samples of the shard's rows."""
        return f"{self.drafts}/{shard_name(self.first, self.last)}"

    @property
    def draft_made_from(self) -> Origin:
        """The settings that the draft's rows depend on, for its record."""
        return self.made_from | {"step": "first samples"}


def sample_splits(tasks: Mapping[str, list[Task]], taken: Set[str] = frozenset()) -> dict[str, list[ArchitectureShard]]:
    """Write the missing shards of some splits on the cluster, and return all their shards.

    Args:
        tasks: the shards of each split.
        taken: hashes of networks that may be in none of the splits.
    """
    waiting = deque(chain.from_iterable(tasks.values()))
    seen = {split: set(taken) for split in tasks}
    shards: dict[Task, ArchitectureShard] = {}
    hashes: dict[Task, pa.Array] = {}
    unfinished: list[tuple[Task, pa.Table]] = []
    for sampled, (shard, of_rows) in _run(sample_shard, [(task,) for task in waiting], "sample"):
        hashes[sampled] = of_rows
        if shard is not None:
            shards[sampled] = shard
        while waiting and waiting[0] in hashes:  # in order, while workers sample the next shards
            task = waiting.popleft()
            rows = resample_repeats(task, hashes.pop(task).to_pylist(), seen[task.split])
            if rows or task not in shards:
                unfinished.append((task, table_of(rows, task.space)))
    shards |= _run(finish_shard, unfinished, "write")
    for drafts in {task.drafts for task, _ in unfinished}:
        remove(drafts)
    return {split: [shards[task] for task in own] for split, own in tasks.items()}


def shard_tasks(folder: str, split: str, seed: int, count: int, shard_rows: int, space: str = DEEPNETS1M) -> list[Task]:
    """Return the shards of the first `count` rows of a split, which lie in `folder`."""
    starts = range(0, count, shard_rows)
    return [Task(folder, split, seed, first, min(first + shard_rows, count), space) for first in starts]


def sample_shard(task: Task) -> tuple[ArchitectureShard | None, pa.Array]:
    """Return a shard if it is finished, else None after keeping a draft of it; and the network hashes of its rows."""
    if found := find_shard(task.place, task.made_from) or _adopt_shard(task):
        shard, table = found
        return shard, table["identity"].combine_chunks()
    if found := find_shard(task.draft, task.draft_made_from):
        _, table = found
    else:
        samples = DESIGN_SPACES[task.space].samples
        indices = range(task.first, task.last)
        rows = [Row(i, *next(samples(task.seed, task.split, i)), task.seed, 0) for i in indices]
        table = table_of(rows, task.space)
        write_shard(task.draft, table, task.draft_made_from)
    return None, table["identity"].combine_chunks()


def resample_repeats(task: Task, hashes: list[str], seen: set[str]) -> list[Row]:
    """Return, for each row of a shard that repeats an earlier one, the row with the first sample that is new.

    Args:
        hashes: network hashes of the shard's rows.
        seen: network hashes of all earlier rows; those of this shard are added.
    """
    rows = []
    for index, network_hash in enumerate(hashes, start=task.first):
        if network_hash in seen:
            stream = enumerate(DESIGN_SPACES[task.space].samples(task.seed, task.split, index))
            attempt, sample = next((n, sample) for n, sample in stream if sample.summary.network_hash not in seen)
            rows.append(Row(index, *sample, task.seed, attempt))
            network_hash = sample.summary.network_hash
        seen.add(network_hash)
    return rows


def finish_shard(task: Task, rows: pa.Table) -> ArchitectureShard:
    """Write a shard: its draft, with `rows` in place of those at the same positions.

    Raises:
        UserError: another process has removed the draft.
    """
    # Without a draft, the shard itself may be there: another run on the same storage has finished it.
    found = find_shard(task.draft, task.draft_made_from) or find_shard(task.place, task.made_from)
    if found is None:
        raise UserError(f"{task.draft} was removed or damaged meanwhile: the same command goes on from there")
    _, table = found
    order = np.arange(len(table))
    order[rows["index"].to_numpy() - task.first] = len(table) + np.arange(len(rows))
    return write_shard(task.place, pa.concat_tables([table, rows]).take(order), task.made_from)


def _adopt_shard(task: Task) -> tuple[ArchitectureShard, pa.Table] | None:
    """Return a shard that a version without records has written, and its rows, after writing its record.

    Its rows show whether it belongs here, by their seed and by their hashes, which decide on the split.
    """
    found = None if has_record(task.place) else find_shard_without_record(task.place, task.first, task.last)
    if found is None:
        return None
    _, table = found
    buckets = {hash_bucket_of(network_hash) for network_hash in table["identity"].to_pylist()}
    own = set(DESIGN_SPACES[task.space].hash_buckets[task.split])
    if table["seed"].unique().to_pylist() != [task.seed] or not buckets <= own:
        return None
    return write_shard(task.place, table, task.made_from), table


def _run(function: Callable[..., Any], arguments: list[tuple], description: str) -> Iterator[tuple[Task, Any]]:
    """Yield the results of a function as they come, with the task that is its first argument; count architectures."""
    amounts = [task.last - task.first for task, *_ in arguments]
    done = run_tasks(function, arguments, description=description, unit="architecture", amounts=amounts)
    return ((arguments[position][0], result) for position, result in done)
