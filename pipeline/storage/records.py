"""Finished outputs of work that may be interrupted: an output is written first, then a record of it.

The record of `<folder>/<file>` is `<folder>/records/<file>.json`: the output's size and checksum, what it was made
from, and data that would take long to compute again. An output is finished if it has a record and the size in its
record. A writer that is killed leaves an output without a record, which the next run makes again.

An output of other settings is not taken, even a whole one in the wrong place, because the reader says what the output
must have been made from. Damage of the content is noticed by the checksum when the output is read.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.params import settings_hash
from pipeline.storage.files import file_sizes, read_bytes, read_folder, write_bytes
from pipeline.storage.paths import records_folder

log = logging.getLogger(__name__)

RECORD_SUFFIX = ".json"

Origin = dict[str, str | int]
"""What an output was made from: all that its content depends on, or hashes of that."""


@dataclass(frozen=True)
class Record:
    """The description of a finished output.

    Attributes:
        size: bytes of the output.
        checksum: SHA-256 of the output, hexadecimal.
        made_from: what the output was made from.
        data: what the writer wants to know again without reading the output, JSON-serialisable.
    """

    size: int
    checksum: str
    made_from: Origin
    data: dict[str, Any]

    def describes(self, content: bytes) -> bool:
        """Return whether an output with this content is intact."""
        return len(content) == self.size and checksum_of(content) == self.checksum


def checksum_of(content: bytes) -> str:
    """Return the SHA-256 of a file's content, hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def write_output(place: str, content: bytes, made_from: Origin, data: Mapping[str, Any] | None = None) -> Record:
    """Write an output and then its record."""
    write_bytes(place, content)
    return write_record(place, content, made_from, data)


def write_record(place: str, content: bytes, made_from: Origin, data: Mapping[str, Any] | None = None) -> Record:
    """Write the record of an output that is at its place already."""
    record = Record(len(content), checksum_of(content), made_from, dict(data or {}))
    fields = asdict(record)
    write_bytes(_record_place(place), json.dumps(fields | {"record_hash": settings_hash(fields)}).encode())
    return record


def find_outputs(folder: str) -> dict[str, Record]:
    """Return the records of the finished outputs that lie directly in a folder, by file name.

    Contents are not read: compare them with `Record.describes` before they are used.
    """
    sizes = file_sizes(folder)
    if not sizes:
        return {}
    contents = read_folder(records_folder(folder), RECORD_SUFFIX)
    records = {name.removesuffix(RECORD_SUFFIX): _parse(content) for name, content in contents.items()}
    return {file: record for file, record in records.items() if record and sizes.get(file) == record.size}


def read_output(place: str, made_from: Origin) -> tuple[bytes, Record] | None:
    """Return the content and the record of one output; None if it is not finished or is not made from this.

    Warns if the output is damaged, because it will be made again.
    """
    try:
        record = _parse(read_bytes(_record_place(place)))
        if record is None or record.made_from != made_from:
            return None
        content = read_bytes(place)
    except FileNotFoundError:
        return None
    if not record.describes(content):
        warn_of_damage(place)
        return None
    return content, record


def has_record(place: str) -> bool:
    """Return whether there is a record of an output, whatever it says."""
    try:
        read_bytes(_record_place(place))
    except FileNotFoundError:
        return False
    return True


def warn_of_damage(place: str) -> None:
    """Log that an output is damaged and will be made again."""
    log.warning("%s is damaged: it is made again", place)


def _record_place(place: str) -> str:
    folder, _, file = place.rpartition("/")
    return f"{records_folder(folder)}/{file}{RECORD_SUFFIX}"


def _parse(content: bytes) -> Record | None:
    """Return the record that a file holds; None if the file is damaged, or the record of an older version."""
    try:
        fields = json.loads(content)
        return Record(**fields) if fields.pop("record_hash") == settings_hash(fields) else None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
