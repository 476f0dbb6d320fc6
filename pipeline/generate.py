"""Stage `generate`: architectures of all splits, as sharded Parquet in the storage and a manifest in results/.

Shards are drawn in parallel, each architecture from a stream of its own (`ghn.sampling`). Then the identities of a
split are gone through in order, and a row that repeats an earlier one takes the first draw of its stream that is new.
So a row is a function of (seed, split, index) alone: who writes the shards, and how many rows follow, changes nothing.

Splits are drawn, but for those that `generate.imported` names: of these the manifest takes the shards as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Set
from itertools import chain, combinations, islice
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa

from ghn.program import LARGE_IMAGE
from ghn.sampling import draws, widen
from pipeline.architecture_store import (
    Row,
    Shard,
    Split,
    find_shard,
    row,
    shard_name,
    table_of,
    write_manifest,
    write_shard,
)
from pipeline.cluster import ray_cluster, run_tasks
from pipeline.errors import UserError
from pipeline.imported_splits import find_imported_splits
from pipeline.params import DRAWN, SPLITS, Params, fingerprint
from pipeline.results import MANIFEST, print_table
from pipeline.storage import storage_url
from pipeline.tracking import stage_run

log = logging.getLogger(__name__)

FORMAT = 2
"""Part of every shard's address: raise it when the same settings would give other rows."""

SplitFiles = tuple[str, list[Shard]]
"""A split's folder below the storage, and its shards."""


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


def generate(params: Params) -> None:
    """Writes the shards that are missing and then the manifest."""
    with stage_run("generate", params.model_dump(), experiment=params.tracking.experiment) as run:
        with ray_cluster(params.cluster.address, params.cluster.cpus):
            splits = make_splits(params)
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
        found = find_shard(task.place, task.first, task.last)
        if found is None:
            rows = [
                row(index, widen(test.read(index), params.images.size), **drawn[index])
                for index in range(task.first, task.last)
            ]
            shards.append(write_shard(task.place, table_of(rows)))
        else:
            shards.append(found[0])
    return shards


def _identities(storage: str, split: str, files: SplitFiles) -> set[str]:
    folder, shards = files
    return set(Split(split, storage_url(storage, folder), shards).table("identity")["identity"].to_pylist())


def _warn_of_repetitions(imported: Mapping[str, set[str]]) -> None:
    """Says how many architectures two imported splits have in common; what is drawn has none with any other split."""
    for split, other in combinations(imported, 2):
        if shared := len(imported[split] & imported[other]):
            log.warning("%d architectures are in split %s and in %s, which are both imported", shared, split, other)
