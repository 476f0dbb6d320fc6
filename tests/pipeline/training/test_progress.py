"""What a driver shows of a run, with the real actor that the workers talk to."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from threading import Event, Thread, Timer

import pytest
import ray
from mlflow import MlflowClient

from pipeline.errors import Terminated
from pipeline.params import Params
from pipeline.tracking.mlflow_runs import stage_run
from pipeline.training import progress
from pipeline.training.progress import MAX_NAMED, Progress, start_metrics_buffer

RAY_CORES = 1


@pytest.fixture
def buffer(ray_on_this_machine: None, small_project: Callable[..., Params]) -> Iterator[ray.actor.ActorHandle]:
    small_project()
    actor = start_metrics_buffer()
    yield actor
    ray.kill(actor)


def row(step: int, **more: float) -> dict[str, float]:
    return {"step": step, "loss": 1 / step, "top1": 0.5, **more}


def follow(
    buffer: ray.actor.ActorHandle, steps: int, training: Future | None = None, stop: Event | None = None
) -> None:
    """Follow a run to its end; without `training`, it is over already."""
    if training is None:
        training = Future()
        training.set_result(None)
    with stage_run("train", {"seed": 1}) as run:
        Progress(buffer, steps, run).follow(training, stop or Event())


def logged(metric: str) -> list[tuple[int, float]]:
    client = MlflowClient(f"sqlite:///{Path('mlflow.db').absolute()}")
    (run,) = client.search_runs(["1"], "attributes.run_name = 'train'")
    return [(value.step, value.value) for value in client.get_metric_history(run.info.run_id, metric)]


def test_steps_that_come_again_after_a_restart_are_logged_once(
    buffer, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    rows = [row(step) for step in (1, 2, 3, 4)]
    ray.get(buffer.add.remote(rows[:3], []))
    ray.get(buffer.resume.remote(2, 3, rows[:2], []))
    ray.get(buffer.add.remote(rows[2:], []))
    follow(buffer, steps=4)
    assert logged("loss") == [(step, 1 / step) for step in (1, 2, 3, 4)]
    shown = capfd.readouterr().err
    assert "going on from step 2 with 3 workers" in caplog.text
    assert "4/4" in shown and "loss=0.250, top1=50.0%" in shown


def test_validation_is_shown_and_nan_is_not_logged(buffer, capfd: pytest.CaptureFixture[str]) -> None:
    ray.get(buffer.add.remote([row(1, val_top1=0.25), row(2, gradient_norm=float("nan"))], []))
    follow(buffer, steps=2)
    assert logged("val_top1") == [(1, 0.25)]
    assert logged("gradient_norm") == []
    assert "val=25.0%" in capfd.readouterr().err


def test_dropped_architectures_are_named_once_and_only_the_first_ones(buffer, caplog: pytest.LogCaptureFixture) -> None:
    dropped = [{"step": step, "index": 100 + step, "identity": f"id{step}"} for step in range(1, 21)]
    ray.get(buffer.add.remote([], dropped[:2]))
    ray.get(buffer.resume.remote(2, 1, [], dropped[:2]))  # the same again, after a restart
    ray.get(buffer.add.remote([], dropped[2:]))
    follow(buffer, steps=20)
    named = [record.message for record in caplog.records if "was dropped" in record.message]
    assert len(named) == MAX_NAMED
    assert [f"architecture {100 + step} (id{step})" in line for step, line in enumerate(named, 1)] == [True] * 10
    assert "more are not named" in named[-1]


def test_a_message_of_the_workers_is_shown_once(buffer, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):  # the second time by workers that begin again, because one was lost
        ray.get(buffer.announce.remote("precision auto: fp32 (because)"))
    follow(buffer, steps=1)
    assert [record.message for record in caplog.records].count("precision auto: fp32 (because)") == 1


def test_a_driver_that_is_asked_to_end_asks_the_workers_and_waits_for_their_checkpoint(buffer) -> None:
    training, stop = Future(), Event()
    stop.set()
    Timer(1.0, training.set_result, [None]).start()
    follow(buffer, 5, training, stop)
    assert ray.get(buffer.is_stopping.remote())


def test_a_driver_waits_only_so_long_for_workers_to_end(buffer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "TERMINATION_SECONDS", 1.0)
    stop = Event()
    stop.set()
    with pytest.raises(Terminated, match="another checkpoint"):  # a slow actor does not answer in a second either
        follow(buffer, 5, Future(), stop)


def test_a_long_silence_is_explained_once_and_a_worker_that_asks_is_not_silent(
    buffer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "SILENCE_SECONDS", 1.5)
    training, asked = Future(), []

    def hints() -> list[logging.LogRecord]:
        return [record for record in caplog.records if "no step for" in record.message]

    def work() -> None:
        for _ in range(8):  # steps without a row
            asked.append(time.time())
            ray.get(buffer.is_stopping.remote())
            time.sleep(0.3)
        while not hints() and time.time() < asked[-1] + 30:
            time.sleep(0.1)
        time.sleep(2.0)  # as long as before
        training.set_result(None)

    Thread(target=work).start()
    follow(buffer, 5, training)
    (hint,) = hints()
    assert "the cluster has 1 CPUs and 0 GPUs free" in hint.message and "waits for others" in hint.message
    assert hint.created - asked[-1] > 1.5


def test_files_are_kept_for_the_driver(buffer) -> None:
    ray.get(buffer.keep.remote("trace.json.gz", b"\x00\x01"))
    assert ray.get(buffer.kept.remote()) == {"trace.json.gz": b"\x00\x01"}
