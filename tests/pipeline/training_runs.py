"""Training runs of tests: a reference run with its architectures, and processes to find and kill."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import psutil
import pytest

from pipeline.architectures.splits import make_splits
from pipeline.architectures.store import write_manifest
from pipeline.cluster.ray_cluster import ray_cluster
from pipeline.params import Params
from pipeline.results import MANIFEST
from pipeline.stages.train import train

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

MEASURED = ["loss", "top1", "dropped", "step", "learning_rate", "gradient_norm", "architecture_norm_max"]
TRAIN = "from pipeline.params import load_params; from pipeline.stages.train import train; train(load_params())"


@dataclass(frozen=True)
class Run:
    """A finished run: its storage and manifest as they were before, its history and its weights."""

    storage: Path
    manifest: Path
    history: pd.DataFrame
    weights: bytes


def reference_run(folder: Path, params: Params) -> Run:
    """Train in a folder, and return the run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        (folder / "params.yaml").touch()  # marks the workspace
        with ray_cluster(params.cluster.address, params.cluster.cpus):
            write_manifest(MANIFEST, make_splits(params))
        shutil.copytree("storage", "kept")
        train(params)
        assert not Path("storage/training").exists() or not list(Path("storage/training").iterdir())
        return Run(folder / "kept", folder / "results/generate", history(), weights())


def take_architectures(run: Run, storage: bool = True) -> None:
    """Copy the architectures of a run to the working directory, with or without the storage."""
    if storage:
        shutil.copytree(run.storage, "storage")
    shutil.copytree(run.manifest, "results/generate")


def history() -> pd.DataFrame:
    return pd.read_csv("results/train/history.csv")


def weights() -> bytes:
    return Path("results/train/checkpoint/model.safetensors").read_bytes()


def assert_same_run(run: Run, rtol: float = 1e-6) -> None:
    """Assert that the history in the working directory is that of a run."""
    pd.testing.assert_frame_equal(history()[MEASURED], run.history[MEASURED], rtol=rtol)


def in_background() -> subprocess.Popen:
    """Start stage train in another process."""
    return subprocess.Popen([sys.executable, "-c", TRAIN], start_new_session=True, stderr=subprocess.PIPE)


def checkpoints() -> set[str]:
    """Return the checkpoints that Ray Train's records name as ones to go on from."""
    records = "".join(file.read_text() for file in Path("storage/training").glob("*/*snapshot.json"))
    return {path.name for path in Path("storage/training").glob("*/checkpoint_*") if path.name in records}


def last_step() -> int:
    """Return the last step that the current run has logged to MLflow; 0 before the first."""
    try:
        with closing(sqlite3.connect("file:mlflow.db?mode=ro", uri=True)) as database:
            (step,) = database.execute("SELECT max(step) FROM metrics WHERE key = 'loss'").fetchone()
    except sqlite3.OperationalError:  # there is no database yet, or no table
        return 0
    return step or 0


def wait_for(happened: Callable[[], bool], process: subprocess.Popen, seconds: float = 1200) -> None:
    """Wait for a condition while a process runs."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline, "timeout"
        time.sleep(0.02)


def wait_for_checkpoint(process: subprocess.Popen) -> None:
    """Wait until there is a checkpoint that was not there before."""
    before = checkpoints()
    wait_for(lambda: bool(checkpoints() - before), process)


def named(processes: Iterator[psutil.Process] | list[psutil.Process], name: str) -> list[psutil.Process]:
    """Return the processes with `name` in their title, which Ray sets."""
    found = []
    for process in processes:
        with suppress(psutil.Error):  # it has ended meanwhile
            if name in " ".join(process.cmdline()):
                found.append(process)
    return found


def processes(cluster: Cluster, name: str) -> list[psutil.Process]:
    """Return the processes of a cluster with `name` in their title."""
    raylets = [node.all_processes["raylet"][0].process.pid for node in cluster.list_all_nodes()]
    return named((child for pid in raylets for child in psutil.Process(pid).children(recursive=True)), name)


def finished_tasks(cache: Path) -> list[Path]:
    """Return the results of a stage's finished tasks: those with a record, which is written after the result."""
    return [record.parents[1] / record.stem for record in cache.glob("*/records/*.json")]
