"""Shards of drawn architectures, written by the tasks of a cluster.

Shards are drawn in parallel, each architecture from a stream of its own (`ghn.sampling`). Then the identities of a
split are gone through in order, and a row that repeats an earlier one takes the first draw of its stream that is new.
So a row is a function of (seed, split, index) alone: who writes the shards, and how many rows follow, changes nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Set
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ghn.sampling import draws
from pipeline.architecture_store import Row, Shard, find_shard, shard_name, table_of, write_shard
from pipeline.cluster import run_tasks
from pipeline.errors import UserError

FORMAT = 2
"""Part of every shard's address: raise it when the same settings would give other rows."""


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


def draw_splits(tasks: Mapping[str, list[Task]], taken: Set[str] = frozenset()) -> dict[str, list[Shard]]:
    """The shards of some splits, after those that are missing were written on the cluster.

    Args:
        tasks: the shards of each split.
        taken: identities of networks that may be in none of them.
    """
    waiting = deque(chain.from_iterable(tasks.values()))
    seen = {split: set(taken) for split in tasks}
    shards: dict[Task, Shard] = {}
    identities: dict[Task, pa.Array] = {}
    redrawn: dict[Task, pa.Table] = {}
    for made, result in _run(make_shard, [(task,) for task in waiting], "generate"):
        shards[made], identities[made] = result
        while waiting and waiting[0] in identities:  # in order, while workers go on with the next ones
            task = waiting.popleft()
            if rows := redraw_repeats(task, identities.pop(task).to_pylist(), seen[task.split]):
                redrawn[task] = table_of(rows)
    shards |= _run(mend_shard, list(redrawn.items()), "replace repeats")
    return {split: [shards[task] for task in own] for split, own in tasks.items()}


def shard_tasks(folder: str, split: str, seed: int, count: int, shard_rows: int) -> list[Task]:
    """The shards of the first `count` rows of a split, below a folder (or an address that fsspec knows)."""
    starts = range(0, count, shard_rows)
    return [Task(folder, split, seed, first, min(first + shard_rows, count)) for first in starts]


def make_shard(task: Task) -> tuple[Shard, pa.Array]:
    """Writes one shard of first draws unless it is there, and returns it with the identities of its rows."""
    found = find_shard(task.place, task.first, task.last)
    if found is None:
        indices = range(task.first, task.last)
        firsts = [Row(index, *next(draws(task.seed, task.split, index)), task.seed, 0) for index in indices]
        table = table_of(firsts)
        found = write_shard(task.place, table), table
    shard, table = found
    return shard, table["identity"].combine_chunks()


def redraw_repeats(task: Task, identities: list[str], seen: set[str]) -> list[Row]:
    """For each row of a shard that repeats an earlier one, the row with the first draw that is new.

    Args:
        identities: those of the shard's rows.
        seen: those of all rows before, which none may have; takes those of these rows.
    """
    rows = []
    for index, identity in enumerate(identities, start=task.first):
        if identity in seen:
            stream = enumerate(draws(task.seed, task.split, index))
            number, draw = next((n, draw) for n, draw in stream if draw.summary.identity not in seen)
            rows.append(Row(index, *draw, task.seed, number))
            identity = draw.summary.identity
        seen.add(identity)
    return rows


def mend_shard(task: Task, rows: pa.Table) -> Shard:
    """Writes one shard again, with other rows in place of those of the same index."""
    found = find_shard(task.place, task.first, task.last)
    if found is None:
        raise UserError(f"shard {task.place} was removed or damaged meanwhile: the same command goes on from there")
    _, table = found
    order = np.arange(len(table))
    order[rows["index"].to_numpy() - task.first] = len(table) + np.arange(len(rows))
    return write_shard(task.place, pa.concat_tables([table, rows]).take(order))


def _run(function: Callable[..., Any], arguments: list[tuple], description: str) -> Iterator[tuple[Task, Any]]:
    """The results of a function as each is there, with the shard that is its first argument; counts architectures."""
    amounts = [task.last - task.first for task, *_ in arguments]
    done = run_tasks(function, arguments, description=description, unit="architecture", amounts=amounts)
    return ((arguments[position][0], result) for position, result in done)
