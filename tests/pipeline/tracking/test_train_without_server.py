"""Stage `train` as a process of its own, whose MLflow server is killed after its first steps."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pandas as pd
import psutil
import pytest
from evaluation_examples import ARCHITECTURES, store_splits
from mlflow import MlflowClient
from mlflow_server import TrackingServer
from ray_for_processes import ray_for_processes
from training_runs import checkpoints, last_step, wait_for

from pipeline.params import Params

pytestmark = pytest.mark.slow

GHN_COMMAND = Path(sys.executable).with_name("ghn")
STEPS = 400


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    with ray_for_processes() as address:
        yield address


@pytest.fixture
def train(
    project: Path,
    ray_address: str,
    small_project: Callable[..., Params],
    tracking_server: TrackingServer,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[], subprocess.Popen]:
    """Return a function that starts the stage and waits until its first steps are in MLflow."""
    monkeypatch.chdir(project)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_server.address)
    monkeypatch.setenv("RAY_ADDRESS", ray_address)
    small_project(train={"steps": STEPS, "validation": {"every": None}}, workers={"checkpoint_every": 10_000})
    store_splits({"train": ARCHITECTURES, "val": ARCHITECTURES})

    def start() -> subprocess.Popen:
        process = subprocess.Popen([GHN_COMMAND, "train"], start_new_session=True, stderr=subprocess.PIPE)
        wait_for(lambda: last_step() > 0, process)
        return process

    return start


def kept_steps() -> int:
    """Return how many entries of the run under way wait for MLflow."""
    return len(list(Path(".ghn/outbox").glob("*/0*.json")))


def logged() -> pd.DataFrame:
    """Return the losses in the database: a row for each, with its step."""
    with closing(sqlite3.connect("file:mlflow.db?mode=ro", uri=True)) as database:
        return pd.read_sql_query("SELECT step, value FROM metrics WHERE key = 'loss' ORDER BY step", database)


def assert_all_steps_are_logged_once() -> None:
    history = pd.read_csv("results/train/history.csv")
    assert list(logged()["step"]) == list(range(1, STEPS + 1))
    assert list(logged()["value"]) == pytest.approx(list(history["loss"]))


def status(address: str) -> str:
    (run,) = MlflowClient(address).search_runs(["1"], "attributes.run_name = 'train'")
    return run.info.status


def test_a_server_that_comes_back_gets_all_steps_once(
    train: Callable[[], subprocess.Popen], tracking_server: TrackingServer
) -> None:
    process = train()
    tracking_server.stop()
    wait_for(lambda: kept_steps() > 2, process)
    assert process.poll() is None
    tracking_server.start()
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr.decode()
    assert stderr.decode().count("does not answer") == 1
    assert "are kept in" not in stderr.decode()
    assert_all_steps_are_logged_once()
    assert status(tracking_server.address) == "FINISHED"
    assert not list(Path(".ghn/outbox").iterdir())


def test_training_succeeds_without_its_server_and_says_how_to_deliver_the_rest(
    train: Callable[[], subprocess.Popen], tracking_server: TrackingServer
) -> None:
    process = train()
    tracking_server.stop()
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr.decode()
    assert stderr.decode().count("does not answer") == 1
    (line,) = [line for line in stderr.decode().splitlines() if "entries for MLflow are kept in" in line]
    assert line.endswith("`ghn deliver` delivers them")
    assert Path("results/train/checkpoint").exists()

    away = subprocess.run([GHN_COMMAND, "deliver"], capture_output=True, text=True)
    assert away.returncode == 1
    assert away.stderr.startswith(f"error: MLflow at {tracking_server.address} does not answer")
    tracking_server.start()
    done = subprocess.run([GHN_COMMAND, "deliver"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "entries delivered" in done.stdout
    assert_all_steps_are_logged_once()
    assert status(tracking_server.address) == "FINISHED"
    assert [version.version for version in MlflowClient(tracking_server.address).search_model_versions()] == ["1"]
    assert not list(Path(".ghn/outbox").iterdir())


def test_sigterm_ends_a_training_whose_server_is_away_as_usual(
    train: Callable[[], subprocess.Popen], tracking_server: TrackingServer
) -> None:
    process = train()
    children = psutil.Process(process.pid).children(recursive=True)
    tracking_server.stop()
    wait_for(lambda: kept_steps() > 2, process)
    began = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 143, stderr.decode()
    assert time.monotonic() - began < 40
    assert "the same command goes on from there" in stderr.decode()
    assert "Traceback" not in stderr.decode() and "SIGTERM received" not in stderr.decode()
    assert len(checkpoints()) == 1
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
