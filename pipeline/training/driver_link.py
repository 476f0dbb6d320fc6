"""The connection of a worker to the driver, by way of the driver's metrics buffer."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import ray

from pipeline.training.history import DroppedArchitecture, Row

POLL_SECONDS = 1.0
"""Seconds at least between two calls in which rank 0 asks whether the run is to stop."""


class DriverLink:
    """Rank 0's connection to the metrics buffer. The other workers have one too, on which every method does nothing.

    Rank 0 waits for an answer in `keep_file` and `poll_stop` alone.
    """

    def __init__(self, rank: int, metrics_buffer: str):
        self._buffer = ray.get_actor(metrics_buffer) if rank == 0 else None
        self._last_asked = perf_counter()

    def resume(self, step: int, workers: int, history: list[Row], dropped: list[DroppedArchitecture]) -> None:
        """Report from which step how many workers go on, and send again all that the run has logged before."""
        if self._buffer:
            self._buffer.resume.remote(step, workers, history, dropped)

    def send(self, rows: Sequence[Row], dropped: Sequence[DroppedArchitecture]) -> None:
        """Send new rows of the history, and the architectures that were dropped since the last ones."""
        if self._buffer and (rows or dropped):
            self._buffer.add.remote(list(rows), list(dropped))

    def announce(self, message: str) -> None:
        """Let the driver print a line."""
        if self._buffer:
            self._buffer.announce.remote(message)

    def keep_file(self, name: str, content: bytes) -> None:
        """Send a file for the results, and wait until it has arrived."""
        if self._buffer:
            ray.get(self._buffer.keep.remote(name, content))

    def poll_stop(self) -> tuple[bool, bool]:
        """Return whether the driver asks the workers to stop, and whether this call has asked the driver."""
        if self._buffer is None or perf_counter() - self._last_asked < POLL_SECONDS:
            return False, False
        self._last_asked = perf_counter()
        return bool(ray.get(self._buffer.is_stopping.remote())), True
