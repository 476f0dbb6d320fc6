"""The journal of a run: a folder of entries for MLflow, numbered in the order in which they were logged.

    .ghn/outbox/<run id>/store.json          the address of the store, without a user and a password
    .ghn/outbox/<run id>/lock                held by the process that delivers the entries
    .ghn/outbox/<run id>/00000012.json       an entry
    .ghn/outbox/<run id>/00000012/           its files

An entry is removed once MLflow has it, so what is left in a folder is what MLflow does not have.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from pipeline.secrets import without_user_info
from pipeline.tracking.entries import Entry, can_merge, from_json, merge, to_json
from pipeline.tracking.store import is_outage, tracking_uri
from pipeline.workspace import workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient

STORE = "store.json"
LOCK = "lock"


def outbox_folder() -> Path:
    """Return the folder of the workspace's journals."""
    return workspace() / ".ghn" / "outbox"


def journals() -> list[Journal]:
    """Return the journals of the workspace, the oldest first."""
    stores = sorted(outbox_folder().glob(f"*/{STORE}"), key=lambda file: file.stat().st_mtime)
    return [Journal(file.parent) for file in stores]


@dataclass(frozen=True)
class Delivery:
    """What came of an entry: the value that its delivery returned, or why MLflow refused it."""

    number: int
    value: Any = None
    refusal: Exception | None = None


@dataclass(frozen=True)
class Journal:
    """The entries of one run, stored in `folder`."""

    folder: Path

    @classmethod
    def create(cls, run_id: str, stage: str, uri: str) -> Journal:
        """Make an empty journal of a stage's run for the store at `uri`."""
        journal = cls(outbox_folder() / run_id)
        journal.folder.mkdir(parents=True)
        (journal.folder / STORE).write_text(json.dumps({"stage": stage, "uri": without_user_info(uri)}))
        return journal

    @property
    def stage(self) -> str:
        """The name of the stage that wrote the entries."""
        return json.loads((self.folder / STORE).read_text())["stage"]

    @property
    def uri(self) -> str:
        """The address of the store that the entries are for, with the password of the environment if it names it."""
        uri, current = json.loads((self.folder / STORE).read_text())["uri"], tracking_uri()
        return current if without_user_info(current) == uri else uri

    def lock(self) -> FileLock:
        """Return the lock of the process that delivers the entries."""
        return FileLock(self.folder / LOCK, thread_local=False)

    def numbers(self) -> list[int]:
        """Return the numbers of the entries that are left, in order."""
        return sorted(int(file.stem) for file in self.folder.glob("[0-9]*.json"))

    def is_empty(self) -> bool:
        """Return whether MLflow has all entries."""
        return next(self.folder.glob("[0-9]*.json"), None) is None

    def files(self, number: int) -> Path:
        """Return the place of an entry's own folder."""
        return self.folder / f"{number:08d}"

    def write(self, number: int, entry: Entry) -> None:
        """Store an entry, completely or not at all."""
        file = self._file(number)
        partial = file.with_suffix(".partial")
        partial.write_text(to_json(entry))
        partial.rename(file)

    def read(self, number: int) -> Entry:
        """Return an entry."""
        return from_json(self._file(number).read_text())

    def remove(self, number: int) -> None:
        """Remove an entry and its files."""
        self._file(number).unlink()
        shutil.rmtree(self.files(number), ignore_errors=True)

    def delete(self) -> None:
        """Delete the journal, with all that is left in it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def deliver(self, client: MlflowClient) -> Iterator[Delivery]:
        """Deliver the entries that are there now, in order, and remove each.

        Raises:
            Exception: an outage (`store.is_outage`). The entry and those after it are left.
        """
        for numbers, entry in self._requests():
            yield from self._deliver(client, numbers, entry)

    def _deliver(self, client: MlflowClient, numbers: Sequence[int], entry: Entry) -> Iterator[Delivery]:
        try:
            value, refusal = entry.deliver(client, self.files(numbers[0])), None
        except Exception as error:
            if is_outage(error):
                raise
            if len(numbers) > 1:  # which of them is refused?
                for number in numbers:
                    yield from self._deliver(client, [number], self.read(number))
                return
            value, refusal = None, error
        for number in numbers:
            self.remove(number)
            yield Delivery(number, value, refusal)

    def _requests(self) -> Iterator[tuple[list[int], Entry]]:
        """Return the entries, with neighbours merged that fit into one request."""
        numbers: list[int] = []
        entries: list[Entry] = []
        for number in self.numbers():
            entry = self.read(number)
            if entries and not can_merge([*entries, entry]):
                yield numbers, merge(entries)
                numbers, entries = [], []
            numbers.append(number)
            entries.append(entry)
        if entries:
            yield numbers, merge(entries)

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:08d}.json"
