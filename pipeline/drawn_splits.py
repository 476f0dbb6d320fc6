"""Shards of drawn architectures, written by the tasks of a cluster.

Shards are drawn in parallel, each architecture from a stream of its own (`ghn.sampling`). Then the identities of a
split are gone through in order, and a row that repeats an earlier one takes the first draw of its stream that is new.
So a row is a function of (seed, split, index) alone: who writes the shards, and how many rows follow, changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from itertools import chain, islice
from typing import Any, NamedTuple

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
    made = _run(make_shard, [(task,) for task in chain.from_iterable(tasks.values())], "generate")
    redrawn = {}
    for own in tasks.values():
        redrawn |= redraw_repeats({task: made[task][1] for task in own}, set(taken))
    shards = {task: shard for task, (shard, _) in made.items()} | _run(
        mend_shard, redrawn.items(), "draw repeats again"
    )
    return {split: [shards[task] for task in own] for split, own in tasks.items()}


def shard_tasks(folder: str, split: str, seed: int, count: int, shard_rows: int) -> list[Task]:
    """The shards of the first `count` rows of a split, below a folder (or an address that fsspec knows)."""
    starts = range(0, count, shard_rows)
    return [Task(folder, split, seed, first, min(first + shard_rows, count)) for first in starts]


def make_shard(task: Task) -> tuple[Shard, pa.Array]:
    """Writes one shard of first draws unless it is there, and returns it with the identities of its rows."""
    found = find_shard(task.place, task.first, task.last)
    if found is None:
        table = table_of([_drawn(task, index) for index in range(task.first, task.last)])
        found = write_shard(task.place, table), table
    shard, table = found
    return shard, table["identity"].combine_chunks()


def redraw_repeats(made: Mapping[Task, pa.Array], taken: set[str]) -> dict[Task, dict[int, int]]:
    """For each row that repeats an earlier one, by shard and index, its first draw that is new.

    Args:
        made: the shards of a split, in order, with the identities of their rows.
        taken: identities that no row may have; those of all rows are added.
    """
    redrawn: dict[Task, dict[int, int]] = {}
    for task, identities in made.items():
        for index, identity in enumerate(identities.to_pylist(), start=task.first):
            if identity in taken:
                stream = (draw.summary.identity for draw in draws(task.seed, task.split, index))
                number, identity = next((n, other) for n, other in enumerate(stream) if other not in taken)
                redrawn.setdefault(task, {})[index] = number
            taken.add(identity)
    return redrawn


def mend_shard(task: Task, redrawn: Mapping[int, int]) -> Shard:
    """Writes one shard again, with other draws for some of its rows: `redrawn` says which, by index."""
    found = find_shard(task.place, task.first, task.last)
    if found is None:
        raise UserError(f"shard {task.place} was removed or damaged meanwhile: the same command goes on from there")
    new = table_of([_drawn(task, index, draw) for index, draw in redrawn.items()])
    places = list(range(task.last - task.first))
    for position, index in enumerate(redrawn):
        places[index - task.first] = len(places) + position
    return write_shard(task.place, pa.concat_tables([found[1], new]).take(places))


def _run(function: Callable[..., Any], arguments: Iterable[tuple], description: str) -> dict[Task, Any]:
    """The results of a function, by the shard that is its first argument; the progress bar counts architectures."""
    arguments = list(arguments)
    tasks = [task for task, *_ in arguments]
    amounts = [task.last - task.first for task in tasks]
    done = run_tasks(function, arguments, description=description, unit="architecture", amounts=amounts)
    return {tasks[position]: result for position, result in done}


def _drawn(task: Task, index: int, draw: int = 0) -> Row:
    architecture, summary, parameters_large = next(islice(draws(task.seed, task.split, index), draw, None))
    return Row(index, architecture, summary, parameters_large, task.seed, draw)
