"""A store that goes away in the middle of a run: a real MLflow server is killed, a real database is locked."""

from __future__ import annotations

import logging
import shutil
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import pandas
import pytest
import torch
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow_server import TrackingServer

from ghn import GHN, GHNConfig
from pipeline.commands.deliver import deliver
from pipeline.errors import UserError
from pipeline.tracking.journal import outbox_folder
from pipeline.tracking.mlflow_runs import StageRun, stage_run, tracking_uri

SETTINGS = {"seed": 7, "dataset": "mnist_5k"}
TABLE = pandas.DataFrame({"split": ["test", "deep"], "top1": [0.25, None]})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("trained") / "checkpoint"
    GHN(GHNConfig(num_classes=10, image_size=8, hidden=8)).eval().save(folder)
    return folder


def log_everything(run: StageRun, checkpoint: Path) -> None:
    """Log one of each that a stage can log."""
    run.log_data("mnist_5k", "35a422e9e40b")
    run.summary({"test_top1": 0.5})
    run.log_table(TABLE, "tables/summary")
    figure = Figure()
    figure.subplots().plot([1, 2])
    run.log_figure(figure, "accuracy")
    Path("notes.txt").write_text("a")
    run.log_artifact("notes.txt")
    Path("notes.txt").unlink()  # what was logged is kept as it was
    run.set_tags({"workers": 2})
    run.log_ghn(checkpoint)


def assert_everything_is_there_once(run: StageRun) -> None:
    client = MlflowClient(tracking_uri())
    stored, pipeline = client.get_run(run.run_id), client.get_run(run.pipeline_id)
    for each in (stored, pipeline):
        assert each.data.metrics["test_top1"] == 0.5
        (data,) = each.inputs.dataset_inputs
        assert data.dataset.digest == "35a422e9e40b"
    assert stored.data.tags["workers"] == "2"
    assert {file.path for file in client.list_artifacts(run.run_id)} == {"tables", "accuracy.png", "notes.txt"}
    table = client.load_table(run.experiment_id, "tables/summary.json", [run.run_id])
    pandas.testing.assert_frame_equal(table, TABLE)
    (version,) = client.search_model_versions("name = 'ghn'")
    assert pipeline.data.tags["model"] == f"models:/ghn/{version.version}"
    assert len(client.search_logged_models([run.experiment_id])) == 1


def steps(run: StageRun) -> list[int]:
    history = MlflowClient(tracking_uri()).get_metric_history(run.run_id, "loss")
    return [metric.step for metric in history]


def log_steps(run: StageRun, numbers: range) -> None:
    for step in numbers:
        run.log_history([{"step": step, "loss": 1 / step}])


def statuses(run: StageRun) -> tuple[str, str]:
    """Return the status of the stage's run and of its pipeline's."""
    client = MlflowClient(tracking_uri())
    stored: list[Run] = [client.get_run(run_id) for run_id in (run.run_id, run.pipeline_id)]
    return stored[0].info.status, stored[1].info.status


def warnings(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if text in record.getMessage()]


@pytest.mark.slow
def test_a_server_that_was_away_has_everything_once_and_in_order_when_the_stage_ends(
    tracking_server: TrackingServer, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pipeline")
    with stage_run("report", SETTINGS, last=True) as run:
        log_steps(run, range(1, 11))
        tracking_server.stop()
        began = time.monotonic()
        log_steps(run, range(11, 31))
        log_everything(run, checkpoint)
        assert time.monotonic() - began < 15
        (warning,) = warnings(caplog, "does not answer")
        assert tracking_server.address in warning
        tracking_server.start()
        log_steps(run, range(31, 41))
    assert steps(run) == list(range(1, 41))
    assert_everything_is_there_once(run)
    assert statuses(run) == ("FINISHED", "FINISHED")
    assert len(warnings(caplog, "answers again")) == 1
    assert not warnings(caplog, "are kept")
    assert list(outbox_folder().iterdir()) == []


@pytest.mark.slow
def test_what_a_server_that_stays_away_has_missed_is_delivered_later_and_once(
    tracking_server: TrackingServer,
    checkpoint: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    with stage_run("report", SETTINGS, last=True) as run:
        log_steps(run, range(1, 4))
        tracking_server.stop()
        log_steps(run, range(4, 2001))
        log_everything(run, checkpoint)
        began = time.monotonic()
    assert time.monotonic() - began < 20
    (journal,) = outbox_folder().iterdir()
    (kept,) = warnings(caplog, "are kept")
    assert str(journal) in kept and "`ghn deliver`" in kept

    with pytest.raises(
        UserError, match=r"does not answer: Connection refused\n.* entries of stage report are still kept"
    ):
        deliver()
    shutil.copytree(journal, tmp_path / "copy")
    tracking_server.start()
    assert statuses(run) == ("RUNNING", "RUNNING")
    deliver()
    assert f"entries delivered to {tracking_server.address}" in capsys.readouterr().out
    for _ in range(2):
        assert sorted(steps(run)) == list(range(1, 2001))
        assert_everything_is_there_once(run)
        assert statuses(run) == ("FINISHED", "FINISHED")
        assert not journal.exists()
        shutil.copytree(tmp_path / "copy", journal)  # as if the entries had been delivered but not yet removed
        deliver()
    deliver()
    assert "nothing is kept" in capsys.readouterr().out


@pytest.mark.slow
def test_a_late_delivery_does_not_end_a_pipeline_that_goes_on(
    tracking_server: TrackingServer, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ValueError, match="no images"), stage_run("train", SETTINGS) as failed:
        tracking_server.stop()
        raise ValueError("no images")
    tracking_server.start()
    with stage_run("train", SETTINGS) as run:
        deliver()
        assert statuses(failed) == ("FAILED", "RUNNING")
        assert run.pipeline_id == failed.pipeline_id
    note = MlflowClient(tracking_uri()).get_run(failed.run_id).data.tags["mlflow.note.content"]
    assert "ValueError: no images" in note


@pytest.mark.slow
def test_an_interrupted_stage_does_not_wait_for_a_server_that_is_away(tracking_server: TrackingServer) -> None:
    with pytest.raises(KeyboardInterrupt), stage_run("train", SETTINGS) as run:
        tracking_server.stop()
        log_steps(run, range(1, 4))
        began = time.monotonic()
        raise KeyboardInterrupt
    assert time.monotonic() - began < 6
    tracking_server.start()
    deliver()
    assert steps(run) == [1, 2, 3]
    assert statuses(run) == ("KILLED", "FAILED")


@pytest.mark.slow
def test_a_server_that_accepts_and_does_not_answer_delays_a_stage_by_seconds(
    tracking_server: TrackingServer, caplog: pytest.LogCaptureFixture
) -> None:
    with stage_run("train", SETTINGS) as run:
        log_steps(run, range(1, 4))
        tracking_server.freeze()
        began = time.monotonic()
        log_steps(run, range(4, 11))
        run.set_tags({"workers": 2})
        assert time.monotonic() - began < 10
        tracking_server.thaw()
    assert sorted(steps(run)) == list(range(1, 11))
    assert statuses(run)[0] == "FINISHED"
    assert not warnings(caplog, "are kept")


@pytest.mark.slow
def test_a_locked_database_is_an_outage(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    def lock() -> None:
        with closing(sqlite3.connect(project / "mlflow.db", isolation_level=None)) as database:
            database.execute("BEGIN EXCLUSIVE")
            locked.set()
            time.sleep(25)  # MLflow waits for 20 seconds
            database.execute("ROLLBACK")

    locked, locker = threading.Event(), threading.Thread(target=lock)
    with stage_run("train", SETTINGS) as run:
        locker.start()
        locked.wait()
        began = time.monotonic()
        log_steps(run, range(1, 11))
        assert time.monotonic() - began < 15
        time.sleep(20)
    locker.join()
    assert warnings(caplog, "database is locked")
    assert sorted(steps(run)) == list(range(1, 11))
    assert statuses(run)[0] == "FINISHED"


def test_a_server_that_does_not_answer_when_a_stage_begins_is_an_error_within_seconds(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(UserError, match=r"MLFLOW_TRACKING_URI\) http://127\.0\.0\.1:9"), stage_run("train", SETTINGS):
        pass
    assert time.monotonic() - began < 20
    assert not outbox_folder().exists()


def test_what_mlflow_refuses_is_raised_by_the_call_and_not_kept(project: Path) -> None:
    with pytest.raises(MlflowException, match=r"a\?b"), stage_run("train", SETTINGS) as run:
        run.log_metrics({"a?b": 1.0})
    assert statuses(run)[0] == "FAILED"
    assert list(outbox_folder().iterdir()) == []


def test_a_journal_of_a_running_stage_is_left_to_it(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with stage_run("train", SETTINGS):
        deliver()
    assert "train: the stage is running" in capsys.readouterr().out
