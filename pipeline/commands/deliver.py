"""Command `deliver`: give MLflow what stages logged while it did not answer."""

from __future__ import annotations

import logging

from filelock import Timeout

from pipeline.errors import UserError
from pipeline.secrets import hidden
from pipeline.tracking.journal import Journal, journals
from pipeline.tracking.store import client_of, is_outage, reason_of

log = logging.getLogger(__name__)


def deliver() -> None:
    """Deliver all entries that stages of this workspace have kept, in order, and remove them.

    Journals of stages that are running are left to them.

    Raises:
        UserError: the store does not answer; what it does not have is still kept.
    """
    kept = journals()
    if not kept:
        print("MLflow has everything: nothing is kept")
    for journal in kept:
        try:
            with journal.lock().acquire(timeout=0):
                _deliver(journal)
        except Timeout:
            print(f"{journal.stage}: the stage is running, and delivers what it logs itself")


def _deliver(journal: Journal) -> None:
    stage, uri = journal.stage, journal.uri
    delivered = 0
    try:
        for delivery in journal.deliver(client_of(uri)):
            if delivery.refusal is None:
                delivered += 1
            else:
                log.warning("MLflow refuses what stage %s logged: %s", stage, delivery.refusal)
    except Exception as error:
        if not is_outage(error):
            raise
        raise UserError(
            f"MLflow at {uri} does not answer: {reason_of(error)}\n"
            f"{len(journal.numbers())} entries of stage {stage} are still kept in {journal.folder}"
        ) from error
    journal.delete()
    print(f"{stage}: {delivered} entries delivered to {hidden(uri)}")
