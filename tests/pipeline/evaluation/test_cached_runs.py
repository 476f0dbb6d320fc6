from __future__ import annotations

import sys
from pathlib import Path

import pytest
import ray

from pipeline.cluster.cached_tasks import read_task_cache
from pipeline.evaluation.cached_runs import CachedRuns, Function

# Workers cannot import a test module: what it defines travels with the task.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def square(run: int, notes: str) -> float:
    """Note that the run has begun, and return its square."""
    with Path(notes).open("a") as file:
        file.write(f"{run}\n")
    return float(run * run)


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    return tmp_path / "begun.txt"


def cached_runs(folder: Path, notes: Path) -> CachedRuns[int]:
    def name_of(function: Function, run: int) -> str:
        return f"{function.__name__}-{run}"

    return CachedRuns(str(folder), name_of, lambda run: (run, str(notes)), cost_of=lambda run: run)


def test_a_finished_run_is_read_and_not_run_again(ray_on_this_machine: None, tmp_path: Path, notes: Path) -> None:
    folder = tmp_path / "tasks"
    assert cached_runs(folder, notes).results(square, [1, 2], "runs") == {1: 1, 2: 4}
    another = cached_runs(folder, notes)  # of the same stage, begun again
    assert another.results(square, [3, 2, 1], "runs") == {3: 9, 2: 4, 1: 1}
    assert another.results(square, [3], "runs") == {3: 9}
    assert sorted(notes.read_text().split()) == ["1", "2", "3"]
    assert set(read_task_cache(str(folder))) == {"square-1", "square-2", "square-3"}


def test_a_run_that_is_forgotten_is_run_again_and_no_other(
    ray_on_this_machine: None, tmp_path: Path, notes: Path
) -> None:
    runs = cached_runs(tmp_path / "tasks", notes)
    runs.results(square, [1, 2], "runs")
    runs.forget(square, [2, 5])
    assert runs.results(square, [1, 2], "runs") == {1: 1, 2: 4}
    assert sorted(notes.read_text().split()) == ["1", "2", "2"]


def test_keys_have_the_mean_of_their_runs_and_may_share_some(
    ray_on_this_machine: None, tmp_path: Path, notes: Path
) -> None:
    runs = cached_runs(tmp_path / "tasks", notes)
    assert runs.means(square, {"few": [1, 3], "more": [1, 2, 3, 4]}, "runs") == {"few": 5, "more": 7.5}
    assert sorted(notes.read_text().split()) == ["1", "2", "3", "4"]
