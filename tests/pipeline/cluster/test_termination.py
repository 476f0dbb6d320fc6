"""Stages that receive SIGTERM, as a scheduler sends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from evaluation_examples import ARCHITECTURES, make_ghn, store_splits
from mlflow import MlflowClient
from training_runs import finished_tasks, wait_for

from pipeline.errors import Terminated
from pipeline.params import Params
from pipeline.results import CHECKPOINT
from pipeline.termination import sigterm_raises_terminated

GHN_COMMAND = Path(sys.executable).with_name("ghn")
FINETUNE = {"steps": 30, "evaluate_every": 10, "learning_rates": [0.01, 0.03], "architectures": 2}


@pytest.fixture
def project(small_project: Callable[..., Params]) -> Params:
    """Make a project folder with architectures of all splits and an untrained hypernetwork."""
    params = small_project(finetune=FINETUNE)
    splits = {"test": ARCHITECTURES[:4], "wide": ARCHITECTURES[:1], "deep": ARCHITECTURES[4:]}
    splits |= {"dense": ARCHITECTURES[2:3], "bn_free": ARCHITECTURES[4:5], "train": ARCHITECTURES}
    store_splits(splits)
    make_ghn(0).save(CHECKPOINT)
    return params


def begin(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen([GHN_COMMAND, *arguments], start_new_session=True, stderr=subprocess.PIPE)


def messages(stderr: bytes) -> list[str]:
    """Return the lines of a stage, without progress bars and what it says of images."""
    lines = stderr.decode().replace("\r", "\n").splitlines()
    return [line for line in lines if line.strip() and "%|" not in line and not line.startswith("decoded ")]


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "cache"), [("evaluate", "evaluations"), ("finetune", "finetuning")])
def test_a_stage_keeps_what_is_finished_and_says_how_to_go_on(project: Params, stage: str, cache: str) -> None:
    def kept() -> list[Path]:
        return finished_tasks(Path("storage", cache))

    process = begin(stage)
    wait_for(lambda: bool(kept()), process)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    began = time.monotonic()
    process.terminate()
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 143, stderr.decode()
    assert messages(stderr) == ["terminated: the same command goes on from there"]
    assert time.monotonic() - began < 30
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    assert kept()
    assert statuses(stage) == ["KILLED"]


def statuses(stage: str) -> list[str]:
    """Return the status of the stage's runs, the newest first."""
    client = MlflowClient(f"sqlite:///{Path('mlflow.db').absolute()}")
    return [run.info.status for run in client.search_runs(["1"], f"attributes.run_name = '{stage}'")]


def test_only_the_first_sigterm_raises_and_the_handler_before_is_restored() -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        with pytest.raises(Terminated), sigterm_raises_terminated() as install:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as a library does
            install()
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]


def test_blocks_inside_each_other_raise_once() -> None:
    ended: list[Any] = []
    with pytest.raises(Terminated), sigterm_raises_terminated():
        try:
            with sigterm_raises_terminated():
                os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            ended.append("cleaned up")
    assert ended == ["cleaned up"]


def test_a_library_that_replaces_the_exception_by_that_of_ctrl_c_changes_nothing() -> None:
    with pytest.raises(Terminated), sigterm_raises_terminated():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Terminated:
            raise KeyboardInterrupt from None  # as Ray's C++ code does while it waits for tasks
    with pytest.raises(KeyboardInterrupt) as caught, sigterm_raises_terminated():
        raise KeyboardInterrupt
    assert not isinstance(caught.value, Terminated)
