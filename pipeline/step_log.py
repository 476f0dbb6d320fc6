"""The steps of a training run on their way from the workers to the user's terminal and to MLflow."""

from __future__ import annotations

import sys
from concurrent.futures import Future, wait
from typing import Any

import ray
from tqdm import tqdm

from pipeline.tracking import StageRun

POLL_SECONDS = 1.0


@ray.remote
class StepLog:
    """Takes rows from the first worker, which does not wait, and keeps them until they are fetched."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def add(self, rows: list[dict[str, float]]) -> None:
        self.rows.extend(rows)

    def take(self) -> list[dict[str, float]]:
        rows, self.rows = self.rows, []
        return rows


def follow(log: Any, steps: int, run: StageRun, training: Future) -> None:
    """Shows a progress bar and logs every step, until `training` is done and all rows are through.

    After a restart from a checkpoint the steps since then come again, with the same values: they are logged once.
    """
    interval = 0.5 if sys.stderr.isatty() else 30.0
    logged = 0
    with tqdm(total=steps, desc="train", unit="step", mininterval=interval, dynamic_ncols=True, smoothing=0.05) as bar:
        while True:
            last = bool(wait([training], POLL_SECONDS).done)
            rows = [row for row in ray.get(log.take.remote()) if row["step"] > logged]
            if rows:
                run.log_history([{name: v for name, v in row.items() if v == v} for row in rows])
                logged = int(rows[-1]["step"])
                bar.set_postfix(loss=f"{rows[-1]['loss']:.3f}", top1=f"{rows[-1]['top1']:.1%}", refresh=False)
                bar.update(logged - bar.n)
            if last:
                return
