"""The way of a run's rows from rank 0 to the user's terminal and to MLflow, and of the driver's requests to rank 0.

Rank 0 writes to the metrics buffer, an actor (see `pipeline.training.driver_link`); the driver drains it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.console import log_above_bar, progress_bar
from pipeline.errors import Terminated
from pipeline.tracking.mlflow_runs import StageRun
from pipeline.training.history import DroppedArchitecture, Row

log = logging.getLogger(__name__)

DRAIN_SECONDS = 0.5
"""Seconds between two drains of the metrics buffer by the driver."""

SILENCE_SECONDS = 120.0
"""Seconds without a step after which the terminal says what may be missing."""

TERMINATION_SECONDS = 25.0
"""Most seconds that a run may take to write its checkpoint after SIGTERM. Kubernetes kills a pod after thirty."""

MAX_NAMED = 10
"""Most dropped architectures that are named in the terminal; the results have all of them."""


@dataclass
class Updates:
    """The events of a run since the driver last drained the metrics buffer.

    Attributes:
        resumed: the steps from which workers went on, and how many went on.
        messages: lines for the user.
        rows: new rows of the history.
        dropped: architectures that were dropped.
        polled: whether rank 0 has asked if it is to stop, which shows that it is alive.
    """

    resumed: list[tuple[int, int]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    dropped: list[DroppedArchitecture] = field(default_factory=list)
    polled: bool = False


class MetricsBuffer:
    """An actor that takes rows from rank 0, which does not wait, and keeps them until the driver drains it.

    It runs on the driver's node and outlives every worker: what it holds survives their restarts.
    """

    def __init__(self) -> None:
        self.updates = Updates()
        self.files: dict[str, bytes] = {}
        self.stopping = False

    def resume(self, step: int, workers: int, history: Sequence[Row], dropped: Sequence[DroppedArchitecture]) -> None:
        """Take all that was logged until a checkpoint. A driver that was killed may not have passed it on."""
        self.updates.resumed.append((step, workers))
        self.add(history, dropped)

    def add(self, rows: Sequence[Row], dropped: Sequence[DroppedArchitecture]) -> None:
        """Take new rows and the architectures that were dropped."""
        self.updates.rows.extend(rows)
        self.updates.dropped.extend(dropped)

    def announce(self, message: str) -> None:
        """Take a line for the user."""
        self.updates.messages.append(message)

    def drain(self) -> Updates:
        """Return the pending updates and clear them."""
        drained, self.updates = self.updates, Updates()
        return drained

    def keep(self, name: str, content: bytes) -> None:
        """Keep a file for the results."""
        self.files[name] = content

    def kept(self) -> dict[str, bytes]:
        """Return the content of the kept files by their names."""
        return self.files

    def stop(self) -> None:
        """Ask the workers to write a checkpoint and end."""
        self.stopping = True

    def is_stopping(self) -> bool:
        """Return whether the workers are to end; rank 0 asks this after a step, at most every second."""
        self.updates.polled = True
        return self.stopping


def start_metrics_buffer(name: str | None = None) -> Any:
    """Start the actor on this node, and return its handle; workers find it by its name."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(MetricsBuffer).options(name=name, num_cpus=0, scheduling_strategy=here).remote()


class Progress:
    """The display of a run for the user while it goes on: a progress bar, warnings, and every row in MLflow.

    After a restart from a checkpoint rank 0 sends the rows since then again, with the same values: each is logged once.

    Args:
        buffer: the handle of the metrics buffer.
        steps: steps of the whole run.
        run: the MLflow run that takes the rows; None: they are not logged.
        is_elastic: whether the run goes on with fewer workers when some are lost.
    """

    def __init__(self, buffer: Any, steps: int, run: StageRun | None, is_elastic: bool = False):
        self.buffer, self.run, self.is_elastic = buffer, run, is_elastic
        self.step = 0
        self.named: set[tuple[int, int]] = set()
        self.shown_messages: set[str] = set()
        self.last_sign, self.silence_is_explained = time.monotonic(), False
        self.bar = progress_bar("train", "step", steps, smoothing=0.05)
        self.postfix: dict[str, str] = {}

    def follow(self, training: Future[Any], stop: Event) -> None:
        """Show the run until `training` is done; once `stop` is set, ask the workers to end.

        Raises:
            Terminated: the workers were asked to end, and did not write a checkpoint in time.
        """
        stop_time: float | None = None
        with self.bar:
            while True:
                is_done = bool(wait([training], DRAIN_SECONDS).done)
                if stop.is_set() and stop_time is None:
                    stop_time = time.monotonic()
                    self.buffer.stop.remote()
                    print_above_bar("asked to end: the workers finish their step and write a checkpoint")
                self._show(self._drain(is_stopping=stop_time is not None))
                if is_done:
                    return
                if stop_time is not None and time.monotonic() - stop_time > TERMINATION_SECONDS:
                    raise Terminated("terminated before the workers had written another checkpoint")

    def _drain(self, is_stopping: bool) -> Updates:
        try:
            return ray.get(self.buffer.drain.remote(), timeout=TERMINATION_SECONDS)
        except RayError:
            if is_stopping:  # SIGTERM has reached Ray too, which has ended
                raise Terminated("terminated without another checkpoint") from None
            raise

    def _show(self, updates: Updates) -> None:
        self._show_resumed(updates.resumed)
        self._show_messages(updates.messages)
        self._name_dropped(updates.dropped)
        self._log_rows(updates.rows)
        self._explain_silence(bool(updates.rows) or updates.polled)

    def _show_resumed(self, resumed: list[tuple[int, int]]) -> None:
        for step, workers in resumed:
            print_above_bar(f"going on from step {step:,} with {workers} worker{'s' if workers > 1 else ''}")
            if step > self.bar.n:  # these steps took no time of this process: they do not count for the rate
                self.bar.initial = self.bar.n = step
                self.bar.start_t = self.bar.last_print_t = time.time()

    def _show_messages(self, messages: list[str]) -> None:
        for message in messages:
            if message not in self.shown_messages:  # it comes again after a restart
                self.shown_messages.add(message)
                print_above_bar(message)

    def _name_dropped(self, dropped: list[DroppedArchitecture]) -> None:
        for architecture in dropped:
            key = architecture["step"], architecture["index"]
            if key in self.named:  # it comes again after a restart
                continue
            self.named.add(key)
            if len(self.named) <= MAX_NAMED:
                print_above_bar(
                    f"step {architecture['step']:,}: architecture {architecture['index']} "
                    f"({architecture['identity']}) was dropped: its loss or gradient is not finite"
                    + (" (more are not named)" if len(self.named) == MAX_NAMED else "")
                )

    def _log_rows(self, rows: list[Row]) -> None:
        new = []
        for row in rows:
            if row["step"] > self.step:  # the others were logged before a restart
                self.step = int(row["step"])
                new.append(row)
        if not new:
            return
        if self.run is not None:
            self.run.log_history(
                [{name: value for name, value in row.items() if value == value} for row in new]
            )  # no NaN
        for row in new:
            self.postfix |= {"loss": f"{row['loss']:.3f}", "top1": f"{row['top1']:.1%}"}
            if row.get("val_top1") is not None:
                self.postfix["val"] = f"{row['val_top1']:.1%}"
        self.bar.set_postfix(self.postfix, refresh=False)
        self.bar.update(self.step - self.bar.n)

    def _explain_silence(self, is_alive: bool) -> None:
        if is_alive:
            self.last_sign, self.silence_is_explained = time.monotonic(), False
        elif time.monotonic() - self.last_sign > SILENCE_SECONDS and not self.silence_is_explained:
            self.silence_is_explained = True
            free = ray.available_resources()
            what_follows = (
                "where nodes were lost, the run goes on with the others"
                if self.is_elastic
                else "where nodes were lost, the run waits for others (workers.minimum lets it go on without)"
            )
            print_above_bar(
                f"no step for {SILENCE_SECONDS:.0f} s: the cluster has {free.get('CPU', 0):g} CPUs and "
                f"{free.get('GPU', 0):g} GPUs free; {what_follows}"
            )


def print_above_bar(message: str) -> None:
    """Write a line for the user above the progress bar."""
    log_above_bar(log, logging.WARNING, message)
