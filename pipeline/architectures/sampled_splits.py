"""Shards of drawn architectures, written by the tasks of a cluster.

The first samples of all rows are made in parallel, each from a stream of its own (`ghn.deepnets1m.sampling`), and kept as drafts.
The hashes of a split are gone through in order, and a row that repeats an earlier one takes the first draw of its
stream that is new. Then the shards are written, once and for all. So a row is a function of (seed, split, index) alone,
and a shard one of its rows: who writes it, and how many rows follow, changes nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Set
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ghn.deepnets1m.sampling import SPLIT_RULES, samples, share_of
from pipeline.architectures.shards import ArchitectureShard, Row, find_shard, shard_name, table_of, write_shard
from pipeline.cluster.ray_cluster import run_tasks
from pipeline.errors import UserError
from pipeline.storage.files import remove

SAMPLED_FORMAT = f"2, pyarrow {pa.__version__}"
"""Part of every shard's address: raise the number when the same settings would give other rows. Another version of the
library writes other bytes."""


class Task(NamedTuple):
    """One shard: the rows of a split from `first` up to and without `last`."""

    folder: str
    split: str
    seed: int
    first: int
    last: int

    @property
    def place(self) -> str:
        return f"{self.folder}/{shard_name(self.first, self.last)}"

    @property
    def drafts(self) -> str:
        """The folder of the split's first samples."""
        return f"{self.folder}-drafts"

    @property
    def draft(self) -> str:
        return f"{self.drafts}/{shard_name(self.first, self.last)}"


def sample_splits(tasks: Mapping[str, list[Task]], taken: Set[str] = frozenset()) -> dict[str, list[ArchitectureShard]]:
    """The shards of some splits, after those that are missing were written on the cluster.

    Args:
        tasks: the shards of each split.
        taken: hashes of networks that may be in none of them.
    """
    waiting = deque(chain.from_iterable(tasks.values()))
    seen = {split: set(taken) for split in tasks}
    shards: dict[Task, ArchitectureShard] = {}
    hashes: dict[Task, pa.Array] = {}
    unfinished: list[tuple[Task, pa.Table]] = []
    for drawn, (shard, of_rows) in _run(sample_shard, [(task,) for task in waiting], "draw"):
        hashes[drawn] = of_rows
        if shard is not None:
            shards[drawn] = shard
        while waiting and waiting[0] in hashes:  # in order, while workers go on with the next ones
            task = waiting.popleft()
            rows = resample_repeats(task, hashes.pop(task).to_pylist(), seen[task.split])
            if rows or task not in shards:
                unfinished.append((task, table_of(rows)))
    shards |= _run(finish_shard, unfinished, "write")
    for drafts in {task.drafts for task, _ in unfinished}:
        remove(drafts)
    return {split: [shards[task] for task in own] for split, own in tasks.items()}


def shard_tasks(folder: str, split: str, seed: int, count: int, shard_rows: int) -> list[Task]:
    """The shards of the first `count` rows of a split, below a folder (or an address that fsspec knows)."""
    starts = range(0, count, shard_rows)
    return [Task(folder, split, seed, first, min(first + shard_rows, count)) for first in starts]


def sample_shard(task: Task) -> tuple[ArchitectureShard | None, pa.Array]:
    """A shard if it is there, else None and its first samples are kept as a draft; and the hashes of the rows."""
    if (found := _find(task, task.place)) is not None:
        shard, table = found
        return shard, table["identity"].combine_chunks()
    if (found := _find(task, task.draft)) is not None:
        _, table = found
    else:
        indices = range(task.first, task.last)
        table = table_of([Row(i, *next(samples(task.seed, task.split, i)), task.seed, 0) for i in indices])
        write_shard(task.draft, table)
    return None, table["identity"].combine_chunks()


def resample_repeats(task: Task, hashes: list[str], seen: set[str]) -> list[Row]:
    """For each row of a shard that repeats an earlier one, the row with the first draw that is new.

    Args:
        hashes: those of the shard's rows.
        seen: those of all rows before, which none may have; takes those of these rows.
    """
    rows = []
    for index, network_hash in enumerate(hashes, start=task.first):
        if network_hash in seen:
            stream = enumerate(samples(task.seed, task.split, index))
            number, draw = next((n, draw) for n, draw in stream if draw.summary.network_hash not in seen)
            rows.append(Row(index, *draw, task.seed, number))
            network_hash = draw.summary.network_hash
        seen.add(network_hash)
    return rows


def finish_shard(task: Task, rows: pa.Table) -> ArchitectureShard:
    """Writes a shard: its draft, with some rows in place of those of the same index.

    Raises:
        UserError: the draft is not there any more.
    """
    found = _find(task, task.draft) or _find(task, task.place)  # another run on the same storage may have finished it
    if found is None:
        raise UserError(f"{task.draft} was removed or damaged meanwhile: the same command goes on from there")
    _, table = found
    order = np.arange(len(table))
    order[rows["index"].to_numpy() - task.first] = len(table) + np.arange(len(rows))
    return write_shard(task.place, pa.concat_tables([table, rows]).take(order))


def _find(task: Task, place: str) -> tuple[ArchitectureShard, pa.Table] | None:
    """What an earlier run has left, if it is whole and was drawn for this split with this seed."""
    found = find_shard(place, task.first, task.last)
    if found is not None:
        _, table = found
        shares = {share_of(network_hash) for network_hash in table["identity"].to_pylist()}
        if table["seed"].unique().to_pylist() == [task.seed] and shares <= set(SPLIT_RULES[task.split].shares):
            return found
    return None


def _run(function: Callable[..., Any], arguments: list[tuple], description: str) -> Iterator[tuple[Task, Any]]:
    """The results of a function as each is there, with the shard that is its first argument; counts architectures."""
    amounts = [task.last - task.first for task, *_ in arguments]
    done = run_tasks(function, arguments, description=description, unit="architecture", amounts=amounts)
    return ((arguments[position][0], result) for position, result in done)
