"""Tasks on a cluster whose results are kept, so that an interrupted stage goes on where it was."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pipeline.params import settings_hash
from pipeline.storage.files import read_folder, remove
from pipeline.storage.paths import storage_url
from pipeline.storage.tables import write_json

log = logging.getLogger(__name__)


def task_cache_folder(storage: str, kind: str, settings: Any) -> str:
    """`<storage>/<kind>/<hash of the settings>`: where a stage keeps the tasks it has finished.

    `settings` (JSON-serialisable) are all that the result of a task depends on beside its name, so that other
    settings find other results.
    """
    return storage_url(storage, f"{kind}/{settings_hash(settings)}")


def read_task_cache(folder: str) -> dict[str, Any]:
    """The results of the tasks that are finished, by name. A damaged file counts as not finished."""
    finished = {}
    for file, content in read_folder(folder, ".json").items():
        try:
            finished[file.removesuffix(".json")] = json.loads(content)
        except ValueError:
            log.warning("%s/%s is damaged: its part is computed again", folder, file)
    return finished


def clear_task_cache(folder: str) -> None:
    """Removes the results of the tasks that are finished, once the stage is: asked for again, it does all again."""
    remove(folder)


def run_cached_tasks(
    function: Callable[..., Any], tasks: Mapping[str, tuple], folder: str, **options: Any
) -> Iterator[tuple[str, Any]]:
    """Runs `function(*arguments)` for each named task on the cluster, keeps and yields each (name, result).

    Results (JSON-serialisable) are kept in `folder`, where `read_task_cache` finds them. `options` are those of
    `pipeline.cluster.ray_cluster.run_tasks`. Who calls leaves out the tasks that are finished.
    """
    from pipeline.cluster.ray_cluster import run_tasks

    names = list(tasks)
    try:
        for position, result in run_tasks(function, list(tasks.values()), **options):
            write_json(f"{folder}/{names[position]}.json", result)
            yield names[position], result
    except KeyboardInterrupt:
        log.warning("interrupted: what is finished is kept in %s, and the same command goes on from there", folder)
        raise
