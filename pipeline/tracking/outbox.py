"""The outbox of a stage: what it logs goes into a journal on disk, and a thread delivers it to MLflow in order.

While MLflow answers, logging waits until its entry is delivered, so that an error of the call is raised by the call.
While MLflow does not answer, logging returns at once, the entries wait in the journal, and the thread tries again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.console import log_above_bar
from pipeline.secrets import hidden
from pipeline.tracking.entries import Entry
from pipeline.tracking.journal import Delivery, Journal
from pipeline.tracking.store import reason_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 5.0
"""How long a call waits for its delivery. After a call that waited in vain, calls do not wait until MLflow has all."""

RETRY_SECONDS = 3.0
"""Between two attempts while MLflow does not answer."""

GRACE_SECONDS = 10.0
"""How long MLflow may have been silent when a stage ends before its entries are kept for later."""

DELIVERY_SECONDS = 180.0
"""How long the end of a stage waits for one delivery of a store that neither answers nor fails."""

INTERRUPTED_SECONDS = 3.0
"""How long an interrupted stage waits for all deliveries."""

JOIN_SECONDS = 1.0
"""How long a closing outbox waits for the attempt that goes on."""


class Outbox:
    """The entries of one run on their way to MLflow.

    One thread puts entries in. Fields below `changed` are guarded by it.
    """

    def __init__(self, client: MlflowClient, journal: Journal):
        self.client, self.journal = client, journal
        self.written = 0  # the number of the last entry
        self.lock = journal.lock()
        self.lock.acquire()
        self.changed = threading.Condition()
        self.awaited: int | None = None  # the entry that a call waits for
        self.delivery: Delivery | None = None  # of that entry
        self.is_late = False  # a call has waited in vain, and MLflow does not have all entries yet
        self.silent_since: float | None = None  # the first failure after the last delivery
        self.failures = 0
        self.delivered_at = time.monotonic()
        self.is_hurried = self.is_closing = False
        self.sender = threading.Thread(target=self._send, name="outbox", daemon=True)
        self.sender.start()

    def put(
        self, entry: Entry, write_files: Callable[[Path], object] | None = None, patience: float | None = None
    ) -> Any:
        """Store an entry and wait for its delivery; return what the delivery returned.

        Return None without waiting while MLflow does not answer, and after `patience` seconds: the entry is delivered
        later. `write_files` writes the files of the entry into the folder that it is given.

        Raises:
            Exception: MLflow refuses the entry.
        """
        self.written += 1
        number = self.written
        if write_files is not None:
            self.journal.files(number).mkdir()
            write_files(self.journal.files(number))
        with self.changed:
            self.journal.write(number, entry)
            self.changed.notify_all()
            if self.silent_since is not None or (self.is_late and patience is None):
                return None
            return self._wait_for(number, PATIENCE_SECONDS if patience is None else patience)

    def _wait_for(self, number: int, patience: float) -> Any:
        self.awaited, self.delivery = number, None
        try:
            self.changed.wait_for(lambda: self.delivery or self.silent_since is not None, patience)
        finally:
            self.awaited = None
        if self.delivery is None:
            self.is_late = True
            return None
        if self.delivery.refusal is not None:
            raise self.delivery.refusal
        return self.delivery.value

    def flush(self, interrupted: bool = False) -> None:
        """Wait for the deliveries.

        Waiting ends as soon as an attempt fails and MLflow has been silent for `GRACE_SECONDS`, `DELIVERY_SECONDS`
        after the last delivery, and in an interrupted stage after `INTERRUPTED_SECONDS`.
        """
        started = time.monotonic()
        with self.changed:
            failures, self.is_hurried = self.failures, True
            self.changed.notify_all()
            while not self.journal.is_empty():
                now = time.monotonic()
                silent = now - self.silent_since if self.silent_since is not None else 0.0
                if (
                    (interrupted and now - started > INTERRUPTED_SECONDS)
                    or (self.failures > failures and silent > GRACE_SECONDS)
                    or now - max(started, self.delivered_at) > DELIVERY_SECONDS
                ):
                    return
                self.changed.wait(0.2)

    def close(self) -> int:
        """Stop the thread; return how many entries are left in the journal, which is deleted if it is empty."""
        with self.changed:
            self.is_closing = True
            self.changed.notify_all()
        self.sender.join(JOIN_SECONDS)
        left = len(self.journal.numbers())
        if not left:
            self.journal.delete()
        return left

    def _send(self) -> None:
        """Deliver entries until the outbox closes."""
        try:
            while self._wait_for_entries():
                try:
                    for delivery in self.journal.deliver(self.client):
                        self._note(delivery)
                        if self.is_closing:
                            return
                except Exception as error:
                    self._note_failure(error)
        finally:
            self.lock.release()

    def _wait_for_entries(self) -> bool:
        """Return True once there are entries, False once the outbox closes."""
        with self.changed:
            self.changed.wait_for(lambda: self.is_closing or not self.journal.is_empty())
            return not self.is_closing

    def _note(self, delivery: Delivery) -> None:
        with self.changed:
            was_silent, self.silent_since = self.silent_since is not None, None
            self.delivered_at = time.monotonic()
            is_awaited = delivery.number == self.awaited
            if is_awaited:
                self.delivery = delivery
            if delivery.number == self.written:
                self.is_late = False
            self.changed.notify_all()
        if delivery.refusal is not None and not is_awaited:
            log_above_bar(
                log, logging.WARNING, f"MLflow refuses what stage {self.journal.stage} logged: {delivery.refusal}"
            )
        if was_silent:
            log_above_bar(log, logging.INFO, f"MLflow at {hidden(self.client.tracking_uri)} answers again")

    def _note_failure(self, error: Exception) -> None:
        """Warn of the first failure of an outage, and wait until the next attempt."""
        with self.changed:
            is_first = self.silent_since is None
            self.silent_since = self.silent_since or time.monotonic()
            self.failures += 1
            self.changed.notify_all()
        if is_first:
            log_above_bar(
                log,
                logging.WARNING,
                f"MLflow at {hidden(self.client.tracking_uri)} does not answer ({reason_of(error)}): "
                "the stage goes on, and what it logs is kept until MLflow answers",
            )
        with self.changed:
            self.changed.wait_for(lambda: self.is_closing or self.is_hurried, RETRY_SECONDS)
            self.is_hurried = False
