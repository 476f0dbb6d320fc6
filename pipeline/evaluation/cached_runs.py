"""Training runs as tasks on the cluster: results are kept, read again, and computed where they are missing."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from pipeline.cluster.cached_tasks import read_task_cache, run_cached_tasks
from pipeline.evaluation.networks import gpus_of_task

Run = TypeVar("Run", bound=Hashable)
Key = TypeVar("Key", bound=Hashable)

Function = Callable[..., Any]
"""What is computed of a run, in a task; its result is JSON."""


class CachedRuns(Generic[Run]):
    """Training runs of one stage, and the results of those that are finished.

    This process must be connected to a cluster when results are missing.

    Args:
        folder: where finished runs keep their results; those of an interrupted stage are read from there.
        name_of: the name of a task, given its function and its run. It changes with everything that the result depends
            on, but for what the folder stands for.
        arguments_of: the arguments of the function, given a run.
        cost_of: what the time of a run grows with.
    """

    def __init__(
        self,
        folder: str,
        name_of: Callable[[Function, Run], str],
        arguments_of: Callable[[Run], tuple],
        cost_of: Callable[[Run], float],
    ):
        self.folder = folder
        self.name_of = name_of
        self.arguments_of = arguments_of
        self.cost_of = cost_of
        self._finished = read_task_cache(folder)

    def results(self, function: Function, runs: Sequence[Run], title: str) -> dict[Run, Any]:
        """Return what a function returns for each run.

        The most expensive runs begin first, so that the last ones end together.

        Args:
            title: of the progress bar.
        """
        names = {run: self.name_of(function, run) for run in runs}
        waiting = [run for run, name in names.items() if name not in self._finished]
        todo = {names[run]: self.arguments_of(run) for run in sorted(waiting, key=self.cost_of, reverse=True)}
        gpus = gpus_of_task()
        for name, result in run_cached_tasks(function, todo, self.folder, description=title, unit="run", num_gpus=gpus):
            self._finished[name] = result
        return {run: self._finished[name] for run, name in names.items()}

    def means(self, function: Function, runs: Mapping[Key, Sequence[Run]], title: str) -> dict[Key, float]:
        """Return the mean of what a function returns for the runs of each key."""
        results = self.results(function, [run for of_key in runs.values() for run in of_key], title)
        return {key: float(np.mean([results[run] for run in of_key])) for key, of_key in runs.items()}

    def forget(self, function: Function, runs: Sequence[Run]) -> None:
        """Let runs count as unfinished."""
        for run in runs:
            self._finished.pop(self.name_of(function, run), None)
