"""Stages of kept tasks, killed five times: a worker, the stage or a node each time, at moments that a seed chooses."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
from evaluation_examples import ARCHITECTURES, architecture, make_ghn, store_splits
from ray.cluster_utils import Cluster
from training_runs import finished_tasks, processes, wait_for

from pipeline.params import Params
from pipeline.results import CHECKPOINT

pytestmark = pytest.mark.slow

KILLS = ["worker", "node", "stage", "worker", "stage"]
TASKS = {"sgd": Path("storage/sgd/tasks"), "evaluate": Path("storage/evaluations")}
FUNCTIONS = {"sgd": ("held_out_accuracy", "train_and_measure"), "evaluate": ("measure_group",)}
ROWS = {"sgd": "scores.parquet", "evaluate": "architectures.parquet"}
SETTINGS = {"sgd": {"epochs": [1, 2], "architectures": {"val": 1, "test": 3, "wide": 1}, "sources": 2}}
SMALL = architecture("conv_3x3", "skip_connect")
SPLITS = {"train": ARCHITECTURES[:2], "val": [SMALL], "test": 6 * ARCHITECTURES}
SPLITS |= {split: [SMALL] for split in ("wide", "deep", "dense", "bn_free")}


def begin(stage: str) -> subprocess.Popen:
    code = "from pipeline.params import load_params; from pipeline.stages.{0} import {0}; {0}(load_params())"
    command = [sys.executable, "-c", code.format(stage)]
    return subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE)


def end(process: subprocess.Popen) -> None:
    _, output = process.communicate()
    assert process.returncode == 0, output.decode()


def finished(stage: str) -> dict[str, bytes]:
    """Return what the finished tasks have kept, by name."""
    return {file.name: file.read_bytes() for file in finished_tasks(TASKS[stage])}


def tables(stage: str) -> dict[str, Any]:
    """Return what a stage has written, by file, without what its clock says."""
    written: dict[str, Any] = {}
    for file in sorted(Path("results", stage).iterdir()):
        if file.suffix == ".json":
            written[file.name] = without_seconds(json.loads(file.read_text()))
        else:
            table = pd.read_parquet(file) if file.suffix == ".parquet" else pd.read_csv(file, dtype=str)
            written[file.name] = table.drop(columns=[name for name in table if "seconds" in name]).to_csv()
    return written


def without_seconds(value: Any) -> Any:
    if isinstance(value, list):
        return [without_seconds(item) for item in value]
    if isinstance(value, dict):
        return {name: without_seconds(item) for name, item in value.items() if "seconds" not in name}
    return value


def seconds_of_tasks(kept: Mapping[str, bytes]) -> set[float]:
    """Return how long each network took, which no other measurement takes to the last digit."""
    results = [json.loads(content) for content in kept.values()]
    rows = [row for result in results for row in (result if isinstance(result, list) else [result])]
    return {row["seconds"] for row in rows if isinstance(row, dict)}  # the others are of the search for a rate


def seconds_of_rows(stage: str) -> set[float]:
    return set(pd.read_parquet(Path("results", stage, ROWS[stage]))["seconds"])


def kill_busy(stage: str, cluster: Cluster, process: subprocess.Popen, moments: random.Random) -> None:
    """Wait for processes that are at a task of the stage, and kill one of them."""
    busy: list[psutil.Process] = []

    def found() -> bool:
        busy[:] = [worker for name in FUNCTIONS[stage] for worker in processes(cluster, f"ray::{name}")]
        return bool(busy)

    wait_for(found, process)
    moments.choice(busy).kill()


@pytest.mark.parametrize("stage", ["sgd", "evaluate"])
def test_five_kills_change_no_table_and_nothing_finished_is_done_again(
    stage: str, cluster: Cluster, small_project: Callable[..., Params]
) -> None:
    small_project(**SETTINGS)
    store_splits(SPLITS)
    make_ghn(0).save(CHECKPOINT)
    end(begin(stage))
    undisturbed = tables(stage)
    shutil.rmtree(f"results/{stage}")
    shutil.rmtree(TASKS[stage])

    seed = int.from_bytes(os.urandom(4), "big")
    print(f"random kills and moments: seed {seed}")
    moments = random.Random(seed)
    kept: dict[str, bytes] = {}
    process = begin(stage)
    for kill in moments.sample(KILLS, len(KILLS)):
        enough = len(finished(stage)) + moments.choice([0, 1])
        wait_for(lambda enough=enough: len(finished(stage)) >= enough, process)
        if kill == "worker":
            kill_busy(stage, cluster, process, moments)
        elif kill == "node":
            cluster.remove_node(moments.choice(sorted(cluster.worker_nodes, key=id)), allow_graceful=False)
            cluster.add_node(num_cpus=1)
        else:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        kept |= finished(stage)
        if kill == "stage":
            process = begin(stage)
    end(process)

    assert tables(stage) == undisturbed
    assert kept and seconds_of_tasks(kept) <= seconds_of_rows(stage)
