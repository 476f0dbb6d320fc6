"""Results of stages: the folders they are written to, and what an interrupted stage finds again.

Files appear whole or not at all: under a temporary name first, then renamed; on object stores in one put.
Places are local paths, or addresses that fsspec knows (`s3://bucket/prefix`).
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import fsspec

from ghn.checkpoints import CheckpointError
from ghn.hypernetwork import GHN
from pipeline.errors import UserError
from pipeline.params import fingerprint
from pipeline.tracking import workspace

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

RESULTS = Path("results")
MANIFEST = RESULTS / "generate" / "manifest.json"
CHECKPOINT = RESULTS / "train" / "checkpoint"


def results_folder(stage: str) -> Path:
    """`results/<stage>`, which exists afterwards."""
    folder = RESULTS / stage
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def trained_ghn(folder: str | Path = CHECKPOINT) -> tuple[GHN, str]:
    """The hypernetwork of a checkpoint folder, in evaluation mode, and a digest of its files.

    Raises UserError, naming the file, if one is missing or damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} not found: stage train writes it, run `dvc repro train`")
    try:
        ghn = GHN.from_pretrained(folder)
    except CheckpointError as error:
        raise UserError(f"{error}\n`dvc repro --force train` trains it again") from error
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(folder.iterdir()):
        digest.update(file.name.encode() + file.read_bytes())
    return ghn, digest.hexdigest()


def write_bytes(place: str | Path, content: bytes) -> None:
    """Writes a file, atomically, and the folders that it lies in."""
    filesystem, path = fsspec.core.url_to_fs(str(place))
    if "file" not in filesystem.protocol:
        filesystem.pipe_file(path, content)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid4().hex}")
    try:
        partial.write_bytes(content)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def write_json(place: str | Path, value: Any) -> None:
    """Writes a JSON file; raises ValueError if a number in it is not finite."""
    write_bytes(place, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def write_csv(place: str | Path, frame: pd.DataFrame) -> None:
    """Writes a table with a header and without its index; what is missing stays empty."""
    write_bytes(place, frame.to_csv(index=False).encode())


def write_parquet(place: str | Path, frame: pd.DataFrame) -> None:
    """Writes a table with its column types and without its index."""
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    write_bytes(place, buffer.getvalue())


def image_cache(storage: str) -> Path:
    """The folder for decoded images: in a local storage, or in the home where none can be mapped."""
    if "://" in storage:
        return Path.home() / ".cache" / "ghn" / "images"
    return workspace() / Path(storage).expanduser() / "images"


def storage_url(storage: str, path: str) -> str:
    """The place of `path` below a storage: a local path or an address that fsspec knows.

    A relative storage is meant from the workspace, which a DVC experiment in a temporary copy shares.
    """
    place = storage if "://" in storage else str(workspace() / Path(storage).expanduser())
    return f"{place.rstrip('/')}/{path}"


def finished_folder(storage: str, kind: str, settings: Any) -> str:
    """`<storage>/<kind>/<fingerprint of settings>`: where a stage keeps the tasks it has finished.

    `settings` (JSON-serialisable) are all that the result of a task depends on beside its name, so that other
    settings find other results.
    """
    return storage_url(storage, f"{kind}/{fingerprint(settings)}")


def read_finished(folder: str) -> dict[str, Any]:
    """The results of the tasks that are finished, by name. A damaged file counts as not finished."""
    filesystem, path = fsspec.core.url_to_fs(folder)
    filesystem.invalidate_cache()  # other processes may have written since it was last listed
    files = sorted(filesystem.glob(f"{path}/*.json"))
    contents = filesystem.cat(files) if files else {}
    finished = {}
    for file, content in contents.items():
        try:
            finished[Path(file).stem] = json.loads(content)
        except ValueError:
            log.warning("%s is damaged: its part is computed again", file)
    return finished


def forget_finished(folder: str) -> None:
    """Removes the results of the tasks that are finished, once the stage is: asked for again, it does all again."""
    filesystem, path = fsspec.core.url_to_fs(folder)
    if filesystem.exists(path):
        filesystem.rm(path, recursive=True)


def finish_tasks(
    function: Callable[..., Any], tasks: Mapping[str, tuple], folder: str, **options: Any
) -> Iterator[tuple[str, Any]]:
    """Runs `function(*arguments)` for each named task on the cluster, keeps and yields each (name, result).

    Results (JSON-serialisable) are kept in `folder`, where `read_finished` finds them. `options` are those of
    `pipeline.cluster.run_tasks`. Who calls leaves out the tasks that are finished.
    """
    from pipeline.cluster import run_tasks

    names = list(tasks)
    try:
        for position, result in run_tasks(function, list(tasks.values()), **options):
            write_json(f"{folder}/{names[position]}.json", result)
            yield names[position], result
    except KeyboardInterrupt:
        log.warning("interrupted: what is finished is kept in %s, and the same command goes on from there", folder)
        raise


def print_table(title: str, rows: list[dict[str, str]]) -> None:
    """Prints rows, all with the same keys, as a table; the first column is left-aligned."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for position, column in enumerate(rows[0]):
        table.add_column(column, justify="right" if position else "left")
    for row in rows:
        table.add_row(*row.values())
    Console().print(table)


def percent(share: float, error: float | None = None) -> str:
    """A share (0 to 1) in percent, without the sign; with its standard error where there is one."""
    text = f"{100 * share:.1f}"
    return text if error is None or math.isnan(error) else f"{text} ± {100 * error:.1f}"
