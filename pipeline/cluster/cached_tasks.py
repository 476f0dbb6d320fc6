"""Tasks on a cluster whose results are kept, so that an interrupted stage goes on where it was."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pipeline.params import settings_hash
from pipeline.storage.files import read_folder, remove
from pipeline.storage.paths import TaskCache, task_folder
from pipeline.storage.records import Origin, find_outputs, warn_of_damage, write_output

log = logging.getLogger(__name__)

RESULT_SUFFIX = ".json"


def task_cache_folder(storage: str, stage: TaskCache, settings: Any) -> str:
    """Return the folder where a stage keeps the results of its finished tasks.

    Args:
        settings: everything that a result depends on beside the name of its task, JSON-serialisable. Other settings
            give another folder.
    """
    return task_folder(storage, stage, settings_hash(settings))


def read_task_cache(folder: str) -> dict[str, Any]:
    """Return the results of the finished tasks, by name; a damaged result counts as unfinished."""
    records = find_outputs(folder)
    contents = read_folder(folder, RESULT_SUFFIX) if records else {}
    results = {}
    for file, record in records.items():
        name = file.removesuffix(RESULT_SUFFIX)
        if record.made_from != _made_from(folder, name):
            continue
        if record.describes(contents[file]):
            results[name] = json.loads(contents[file])
        else:
            warn_of_damage(f"{folder}/{file}")
    return results


def clear_task_cache(folder: str) -> None:
    """Remove all results when a stage is finished, so that the same command computes them again."""
    remove(folder)


@contextmanager
def named_when_interrupted(folder: str) -> Iterator[None]:
    """Say where finished tasks are kept when the user interrupts what is done within."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(f"finished tasks are kept in {folder}")
        raise


def run_cached_tasks(
    function: Callable[..., Any], tasks: Mapping[str, tuple], folder: str, **options: Any
) -> Iterator[tuple[str, Any]]:
    """Run `function(*arguments)` for each named task on the cluster, keep its result, and yield (name, result).

    Args:
        tasks: arguments by name, without the tasks of `read_task_cache`.
        folder: where results are kept, which must be JSON-serialisable.
        options: those of `pipeline.cluster.ray_cluster.run_tasks`.
    """
    from pipeline.cluster.ray_cluster import run_tasks  # Ray takes a second to import; stages without tasks need not

    names = list(tasks)
    for position, result in run_tasks(function, list(tasks.values()), **options):
        keep_result(folder, names[position], result)
        yield names[position], result


def keep_result(folder: str, name: str, result: Any) -> None:
    """Write the result of a finished task.

    Raises:
        ValueError: a number in it is not finite.
    """
    content = json.dumps(result, indent=1, allow_nan=False).encode()
    write_output(f"{folder}/{name}{RESULT_SUFFIX}", content, _made_from(folder, name))


def _made_from(folder: str, name: str) -> Origin:
    """Return what a result depends on: the settings, whose hash is the folder's name, and its task."""
    return {"settings_hash": folder.rpartition("/")[2], "task": name}
