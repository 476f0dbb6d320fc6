"""Results of stages: the folders they are written to, and what an interrupted stage finds again."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.params import fingerprint
from pipeline.storage import read_folder, remove, storage_url, write_bytes

if TYPE_CHECKING:
    import pandas as pd

    from ghn.hypernetwork import GHN

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
    from ghn.checkpoints import CheckpointError
    from ghn.hypernetwork import GHN

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


def image_cache(storage: str) -> Path | str:
    """Where decoded images are kept: a folder in a local storage, or an address in a bucket."""
    place = storage_url(storage, "images")
    return place if "://" in storage else Path(place)


def finished_folder(storage: str, kind: str, settings: Any) -> str:
    """`<storage>/<kind>/<fingerprint of settings>`: where a stage keeps the tasks it has finished.

    `settings` (JSON-serialisable) are all that the result of a task depends on beside its name, so that other
    settings find other results.
    """
    return storage_url(storage, f"{kind}/{fingerprint(settings)}")


def read_finished(folder: str) -> dict[str, Any]:
    """The results of the tasks that are finished, by name. A damaged file counts as not finished."""
    finished = {}
    for file, content in read_folder(folder, ".json").items():
        try:
            finished[file.removesuffix(".json")] = json.loads(content)
        except ValueError:
            log.warning("%s/%s is damaged: its part is computed again", folder, file)
    return finished


def forget_finished(folder: str) -> None:
    """Removes the results of the tasks that are finished, once the stage is: asked for again, it does all again."""
    remove(folder)


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
