"""The steps of a training run on their way from the workers to the user's terminal and to MLflow, and the way back."""

from __future__ import annotations

import logging
import sys
import time
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import ray
from ray.exceptions import RayError
from tqdm import tqdm

from pipeline.errors import Terminated
from pipeline.tracking.mlflow_runs import StageRun

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
SILENCE_SECONDS = 120.0
"""Without a step for so long, the user is told what may be missing."""

TERMINATION_SECONDS = 25.0
"""How long a run that was asked to end may take to write its checkpoint: Kubernetes, for one, kills after thirty."""

MOST_NAMED = 10
"""Dropped architectures that are named in the terminal; all are in the results."""

Row = dict[str, float]
DroppedArchitecture = dict[str, Any]


@dataclass
class Updates:
    """What a run has to tell since the last time.

    `resumed` are steps from which the workers went on, `asking` is whether they have asked if they are to stop.
    """

    resumed: list[int] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    dropped: list[DroppedArchitecture] = field(default_factory=list)
    asking: bool = False


@ray.remote
class MetricsBuffer:
    """Takes rows from the first worker, which does not wait, and keeps them until they are fetched.

    It lives on the driver's node, and longer than any worker: what it holds survives their restarts.
    """

    def __init__(self) -> None:
        self.news = Updates()
        self.files: dict[str, bytes] = {}
        self.stopping = False

    def resume(self, step: int, history: list[Row], dropped: list[DroppedArchitecture]) -> None:
        """Takes what the steps until a checkpoint gave, which a driver that was killed may have had no time to tell."""
        self.news.resumed.append(step)
        self.add(history, dropped)

    def add(self, rows: list[Row], dropped: list[DroppedArchitecture]) -> None:
        self.news.rows.extend(rows)
        self.news.dropped.extend(dropped)

    def take(self) -> Updates:
        """What is new; it is told once."""
        taken, self.news = self.news, Updates()
        return taken

    def keep(self, name: str, content: bytes) -> None:
        self.files[name] = content

    def kept(self) -> dict[str, bytes]:
        return self.files

    def stop(self) -> None:
        """Asks the workers to write a checkpoint and end."""
        self.stopping = True

    def is_stopping(self) -> bool:
        """What the workers ask after a step, at most every second."""
        self.news.asking = True
        return self.stopping


class Progress:
    """What a driver tells of a run while it goes on: a progress bar, warnings, and every step in MLflow.

    After a restart from a checkpoint the steps since then come again, with the same values: they are logged once.
    """

    def __init__(self, log: Any, steps: int, run: StageRun):
        self.log, self.run = log, run
        self.step = 0
        self.dropped: set[tuple[int, int]] = set()
        self.heard, self.hinted = time.monotonic(), False
        self.bar = tqdm(
            total=steps,
            desc="train",
            unit="step",
            mininterval=0.5 if sys.stderr.isatty() else 30.0,
            dynamic_ncols=True,
            smoothing=0.05,
        )
        self.shown: dict[str, str] = {}

    def follow(self, training: Future, stop: Event) -> None:
        """Until `training` is done and all that it had to say is told; once `stop` is set, asks the workers to end."""
        asked: float | None = None
        with self.bar:
            while True:
                last = bool(wait([training], POLL_SECONDS).done)
                if stop.is_set() and asked is None:
                    asked = time.monotonic()
                    self.log.stop.remote()
                    print_above_bar("asked to end: the workers finish their step and write a checkpoint")
                try:
                    news = ray.get(self.log.take.remote(), timeout=TERMINATION_SECONDS)
                except RayError:
                    if asked is not None:  # Ray was asked to end too, and did
                        raise Terminated("terminated without another checkpoint") from None
                    raise
                self._begin_at(news.resumed)
                self._name(news.dropped)
                self._add(news.rows)
                self._explain_silence(bool(news.rows) or news.asking)
                if not last and asked is not None and time.monotonic() - asked > TERMINATION_SECONDS:
                    raise Terminated("terminated before the workers had written another checkpoint")
                if last:
                    return

    def _begin_at(self, resumed: list[int]) -> None:
        for step in resumed:
            print_above_bar(f"going on from step {step:,}")
            if step > self.bar.n:  # what an earlier process has done took no time now
                self.bar.initial = self.bar.n = step
                self.bar.start_t = self.bar.last_print_t = time.time()

    def _add(self, taken: list[Row]) -> None:
        newest, rows = self.step, []
        for row in taken:  # what comes again after a restart was logged before
            if row["step"] > newest:
                newest = row["step"]
                rows.append(row)
        if rows:
            self.run.log_history([{name: value for name, value in row.items() if value == value} for row in rows])
            self.step = int(rows[-1]["step"])
            for row in rows:
                self.shown |= {"loss": f"{row['loss']:.3f}", "top1": f"{row['top1']:.1%}"}
                if row.get("val_top1") is not None:
                    self.shown["val"] = f"{row['val_top1']:.1%}"
            self.bar.set_postfix(self.shown, refresh=False)
            self.bar.update(self.step - self.bar.n)

    def _explain_silence(self, heard: bool) -> None:
        if heard:
            self.heard, self.hinted = time.monotonic(), False
        elif time.monotonic() - self.heard > SILENCE_SECONDS and not self.hinted:
            self.hinted = True
            have = ray.available_resources()
            print_above_bar(
                f"no step for {SILENCE_SECONDS:.0f} s: the cluster has {have.get('CPU', 0):g} CPUs and "
                f"{have.get('GPU', 0):g} GPUs free; lost nodes are waited for unless train.min_workers is set"
            )

    def _name(self, dropped: list[DroppedArchitecture]) -> None:
        for item in dropped:
            drop = item["step"], item["index"]
            if drop in self.dropped:  # it comes again after a restart
                continue
            self.dropped.add(drop)
            if len(self.dropped) <= MOST_NAMED:
                print_above_bar(
                    f"step {item['step']:,}: architecture {item['index']} ({item['identity']}) was dropped: its loss "
                    "or gradient is not finite" + (" (more are not named)" if len(self.dropped) == MOST_NAMED else "")
                )


def print_above_bar(message: str) -> None:
    """Writes a line above the progress bar."""
    with tqdm.external_write_mode(sys.stderr):
        log.warning(message)
