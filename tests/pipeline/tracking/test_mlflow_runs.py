"""Runs are logged to real SQLite stores and to a real MLflow server, and read with a real browser."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from browser import CHROMIUM
from mlflow_server import TrackingServer
from small_settings import ROOT
from user_project import environment, git

from ghn import GHN, GHNConfig
from ghn.deepnets1m.sampling import sample_architecture
from pipeline.errors import UserError
from pipeline.params import flat_settings
from pipeline.stages.study import STUDY_RUNS
from pipeline.tracking.mlflow_runs import stage_run, tracking_uri
from pipeline.workspace import workspace

PARAMETERS = {
    "seed": 7,
    "dataset": "mnist_5k",
    "meta_batch": 8,
    "storage": "",
    "train": {"learning_rate": 0.001, "widths": [16, 32], "amp": False, "limit": None},
}


def runs() -> list:
    """Return all runs of the current store, the oldest first."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri())
    experiment = client.get_experiment_by_name("ghn")
    return client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])


def parents() -> list:
    return [run for run in runs() if "mlflow.parentRunId" not in run.data.tags]


def test_settings_are_flattened_with_dots() -> None:
    assert flat_settings(PARAMETERS) == {
        "seed": "7",
        "dataset": "mnist_5k",
        "meta_batch": "8",
        "storage": "",
        "train.learning_rate": "0.001",
        "train.widths": "[16, 32]",
        "train.amp": "false",
        "train.limit": "null",
    }


def test_the_stages_of_a_pipeline_are_children_of_one_run(project: Path) -> None:
    with stage_run("generate", PARAMETERS):
        pass
    with stage_run("train", PARAMETERS) as run:
        run.set_tags({"workers": 2})
        run.log_data("mnist_5k", "35a422e9e40b")
        run.log_data("mnist_5k", "35a422e9e40b")
        run.log_metrics({"loss": 2.5}, step=3)
        run.summary({"test_top1": np.float32(0.5), "images_per_second": 120.0})
    with stage_run("report", PARAMETERS, last=True):
        pass

    parent, generate, train, report = runs()
    assert [run.info.run_name for run in (generate, train, report)] == ["generate", "train", "report"]
    assert {run.data.tags["mlflow.parentRunId"] for run in (generate, train, report)} == {parent.info.run_id}
    assert {run.info.status for run in runs()} == {"FINISHED"}
    assert parent.info.run_name.startswith("mnist_5k 2")
    assert parent.data.params == flat_settings(PARAMETERS)
    assert parent.data.tags["mlflow.source.git.commit"] == git(project, "rev-parse", "HEAD")
    assert parent.data.tags["git.dirty"] == "false"
    assert parent.data.metrics == {"test_top1": 0.5, "images_per_second": 120.0}
    assert train.data.metrics == {"loss": 2.5} | parent.data.metrics
    assert train.data.tags["workers"] == "2"
    for run in (parent, train):
        (data,) = run.inputs.dataset_inputs
        assert (data.dataset.name, data.dataset.digest) == ("mnist_5k", "35a422e9e40b")
    assert not generate.inputs.dataset_inputs
    assert "train.learning_rate" in train.data.params and "train.learning_rate" not in generate.data.params
    assert not (project / "mlruns").exists()


def test_a_finished_pipeline_is_not_joined_and_other_settings_start_another(project: Path) -> None:
    for seed in (7, 7, 8):
        with stage_run("report", PARAMETERS | {"seed": seed}, last=True):
            pass
    assert [run.data.params["seed"] for run in parents()] == ["7", "7", "8"]


def test_another_commit_or_dvc_experiment_starts_another_run(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with stage_run("train", PARAMETERS):
        pass
    monkeypatch.setenv("DVC_EXP_NAME", "puffy-mule")
    with stage_run("train", PARAMETERS):
        pass
    (project / "code.py").write_text("x = 2\n")
    git(project, "commit", "--quiet", "-am", "second")
    with stage_run("train", PARAMETERS):
        pass
    first, experiment, commit = parents()
    assert first.data.tags["dvc.experiment"] == "none"
    assert experiment.info.run_name == commit.info.run_name == "puffy-mule"
    assert experiment.data.tags["mlflow.source.git.commit"] != commit.data.tags["mlflow.source.git.commit"]


def test_uncommitted_code_is_told_and_kept(project: Path) -> None:
    from mlflow.artifacts import load_text

    (project / "code.py").write_text("x = 3\n")
    with stage_run("train", PARAMETERS):
        pass
    (parent,) = parents()
    assert parent.data.tags["git.dirty"] == "true"
    assert "+x = 3" in load_text(f"{parent.info.artifact_uri}/uncommitted.diff")


def unreadable_for_git(project: Path) -> None:
    os.chown(project, 12345, 12345)  # git refuses what belongs to another user


def without_repository(project: Path) -> None:
    shutil.rmtree(project / ".git")


def without_commit(project: Path) -> None:
    shutil.rmtree(project / ".git")
    git(project, "init", "--quiet")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a folder to another user")
@pytest.mark.parametrize("change", [unreadable_for_git, without_repository, without_commit])
def test_where_git_does_not_answer_commit_and_changes_are_unknown(
    change: Callable[[Path], None], project: Path
) -> None:
    change(project)
    with stage_run("train", PARAMETERS):
        pass
    parent, child = runs()
    assert parent.data.tags["git.dirty"] == "unknown"
    assert {run.data.tags["mlflow.source.git.commit"] for run in (parent, child)} == {"unknown"}


def test_passwords_are_in_no_tag_and_no_diff(project: Path) -> None:
    from mlflow.artifacts import load_text

    address = "https://somebody:not-for-others@example.org"
    git(project, "remote", "add", "origin", f"{address}/repository.git")
    (project / "code.py").write_text(f"url = '{address}'\n")
    with pytest.raises(ValueError, match="no answer"), stage_run("train", PARAMETERS) as run:
        run.set_tags({"source": address})
        raise ValueError(f"no answer from {address}")
    assert "not-for-others" not in str([each.data.tags for each in runs()])
    assert runs()[1].data.tags["source"] == "https://***@example.org"
    assert "+url = 'https://***@example.org'" in load_text(f"{parents()[0].info.artifact_uri}/uncommitted.diff")


def test_changed_settings_are_not_uncommitted_code(project: Path) -> None:
    (project / "params.yaml").write_text("seed: 8\n")
    with stage_run("train", PARAMETERS):
        pass
    assert parents()[0].data.tags["git.dirty"] == "false"


def test_a_failed_stage_says_why_and_its_pipeline_is_joined_again(project: Path) -> None:
    with pytest.raises(ValueError, match="no images"), stage_run("train", PARAMETERS):
        raise ValueError("no images")
    parent, failed = runs()
    assert (parent.info.status, failed.info.status) == ("FAILED", "FAILED")
    assert "ValueError: no images" in failed.data.tags["mlflow.note.content"]

    with stage_run("train", PARAMETERS):
        assert parents()[0].info.status == "RUNNING"
    with stage_run("report", PARAMETERS, last=True):
        pass
    assert [run.info.status for run in runs()] == ["FINISHED", "FAILED", "FINISHED", "FINISHED"]
    assert len(parents()) == 1


def test_an_interrupted_stage_is_killed(project: Path) -> None:
    with pytest.raises(KeyboardInterrupt), stage_run("train", PARAMETERS):
        raise KeyboardInterrupt
    parent, child = runs()
    assert (parent.info.status, child.info.status) == ("FAILED", "KILLED")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("nan")])
def test_a_value_that_is_not_finite_is_refused_with_its_name_and_fails_the_stage(project: Path, value: float) -> None:
    refused = pytest.raises(UserError, match=r"val_loss = \S+ at step 4 of stage train")
    with refused, stage_run("train", PARAMETERS) as run:
        run.log_history([{"step": 3, "val_loss": 1.0}, {"step": 4, "loss": 1.0, "val_loss": value}])
    assert [run.info.status for run in runs()] == ["FAILED", "FAILED"]
    assert runs()[1].data.metrics == {}


def test_thousands_of_rows_are_logged_in_a_few_seconds(project: Path) -> None:
    from mlflow import MlflowClient

    rows = [{"step": step, "loss": 1 / (step + 1), "images_per_second": 100.0} for step in range(3000)]
    with stage_run("train", PARAMETERS) as run:
        started = time.monotonic()
        run.log_history(rows)
        assert time.monotonic() - started < 10
    history = MlflowClient(tracking_uri()).get_metric_history(run.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(row["step"], row["loss"]) for row in rows]


def test_tables_figures_and_files_are_artifacts_next_to_the_store(project: Path) -> None:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

    frame = pandas.DataFrame({"split": ["test", "deep"], "top1": [0.25, None]})
    (project / "plots").mkdir()
    (project / "plots" / "a.txt").write_text("a")
    with stage_run("evaluate", PARAMETERS) as run:
        run.log_table(frame, "tables/summary")
        figure = Figure()
        figure.subplots().plot([1, 2])
        run.log_figure(figure, "accuracy")
        run.log_artifact("plots")
        run.log_artifact(project / "params.yaml", folder="settings")

    folder = project / "mlartifacts" / "ghn" / run.run_id / "artifacts"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    tables = {"tables/summary.json", "tables/summary.csv"}
    assert files == {*tables, "accuracy.png", "plots/a.txt", "settings/params.yaml"}
    client = MlflowClient(tracking_uri())
    loaded = client.load_table(run.experiment_id, "tables/summary.json", [run.run_id])
    pandas.testing.assert_frame_equal(loaded, frame)
    pandas.testing.assert_frame_equal(pandas.read_csv(folder / "tables/summary.csv"), frame)


def test_the_store_is_the_same_from_any_folder_of_the_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(project / "deep" / "er")
    assert workspace() == project
    assert tracking_uri() == f"sqlite:///{project}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    assert tracking_uri() == f"sqlite:///{project}/other.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking_uri() == "http://127.0.0.1:5000"


def test_a_temporary_copy_of_dvc_has_the_workspace_of_the_original(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = project / ".dvc" / "tmp" / "exps" / "tmpab12"
    (copy / ".dvc").mkdir(parents=True)
    monkeypatch.chdir(copy)
    assert workspace() == project
    monkeypatch.setenv("DVC_ROOT", str(project))
    assert workspace() == project
    monkeypatch.setenv("DVC_ROOT", str(copy))
    assert workspace() == project


def test_a_store_that_cannot_be_used_is_refused_with_its_address(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "htp://127.0.0.1:5000")
    refused = pytest.raises(UserError, match=r"MLFLOW_TRACKING_URI\) htp://127\.0\.0\.1:5000")
    with refused, stage_run("train", PARAMETERS):
        pass


def test_a_deleted_experiment_is_refused_with_the_command_that_restores_it(project: Path) -> None:
    from mlflow import MlflowClient

    with stage_run("train", PARAMETERS) as run:
        pass
    MlflowClient(tracking_uri()).delete_experiment(run.experiment_id)
    command = f"mlflow experiments restore --experiment-id {run.experiment_id}"
    with pytest.raises(UserError, match=command), stage_run("train", PARAMETERS):
        pass


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict], list[dict]]:
    """Return a checkpoint, architecture records, and what the checkpoint predicts for them."""
    torch.manual_seed(0)
    ghn = GHN(GHNConfig(num_classes=10, image_size=8, hidden=8)).eval()
    folder = tmp_path_factory.mktemp("trained") / "checkpoint"
    ghn.save(folder)
    architectures = [sample_architecture(seed=1, split="train", index=index) for index in range(2)]
    predicted = ghn.predict_parameters(architectures)
    arrays = [{name: tensor.detach().numpy() for name, tensor in each.items()} for each in predicted]
    return folder, [architecture.to_dict() for architecture in architectures], arrays


def assert_same_parameters(predicted: list[dict], expected: list[dict]) -> None:
    assert [each.keys() for each in predicted] == [each.keys() for each in expected]
    for ours, theirs in zip(predicted, expected, strict=True):
        for name, array in ours.items():
            np.testing.assert_allclose(array, theirs[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_logged_ghn_loads_in_one_line_and_predicts(
    project: Path, trained: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    folder, records, expected = trained
    with stage_run("train", PARAMETERS) as run:
        run.summary({"test_top1": 0.5})
        assert run.log_ghn(folder) == "models:/ghn/1"
        assert run.log_ghn(folder) == "models:/ghn/2"
    assert "MLFLOW_TRACKING_URI" not in os.environ
    assert parents()[0].data.tags["model"] == "models:/ghn/2"
    assert not (project / "mlruns").exists()
    files = list((project / "mlartifacts" / "ghn" / "models").rglob("*"))
    assert [file for file in files if file.suffix in (".pkl", ".pickle", ".pt")] == []

    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri())
    model = mlflow.pyfunc.load_model("models:/ghn/1")
    assert_same_parameters(model.predict(records), expected)
    logged = mlflow.MlflowClient().get_logged_model(model.model_id)
    assert logged.experiment_id == run.experiment_id and logged.source_run_id == run.run_id
    assert logged.params == flat_settings(PARAMETERS)
    assert {metric.key: metric.value for metric in logged.metrics} == {"test_top1": 0.5}


LOAD = """
    import json, sys
    import mlflow, numpy
    (parameters,) = mlflow.pyfunc.load_model("models:/ghn/1").predict(json.loads(sys.argv[1]))
    import ghn
    print(ghn.__file__)
    numpy.savez("predicted.npz", **parameters)
"""


@pytest.mark.slow
def test_a_registered_ghn_brings_its_code(project: Path, trained: tuple, tmp_path: Path) -> None:
    folder, records, expected = trained
    with stage_run("train", PARAMETERS) as run:
        run.log_ghn(folder)
    command = [sys.executable, "-c", textwrap.dedent(LOAD), json.dumps(records[:1])]
    elsewhere = environment(PYTHONPATH="", MLFLOW_TRACKING_URI=tracking_uri())
    done = subprocess.run(command, cwd=tmp_path, env=elsewhere, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert str(ROOT) not in done.stdout
    assert_same_parameters([dict(np.load(tmp_path / "predicted.npz"))], expected[:1])


STAGE = """
    import os, signal, sys
    from pipeline.tracking.mlflow_runs import stage_run

    stage, end = sys.argv[1:]
    with stage_run(stage, {"dataset": "digits", "seed": 1}, last=end == "last") as run:
        run.log_history([{"step": step, f"{stage}_loss": 1.0} for step in range(1500)])
        run.summary({f"{stage}_top1": 0.75})
        if end == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
"""


def stage_process(folder: Path, stage: str, end: str = "", **more: str) -> subprocess.Popen:
    command = [sys.executable, "-c", textwrap.dedent(STAGE), stage, end]
    return subprocess.Popen(command, cwd=folder, env=environment(**more), stderr=subprocess.PIPE, text=True)


def test_stages_in_parallel_processes_share_a_parent_and_a_killed_one_is_joined(project: Path) -> None:
    evaluate, finetune = stage_process(project, "evaluate"), stage_process(project, "finetune", "killed")
    assert [evaluate.communicate()[1], finetune.communicate()[1]] == ["", ""]
    assert [evaluate.returncode, finetune.returncode] == [0, -signal.SIGKILL]
    (parent,) = parents()
    assert parent.info.status == "RUNNING"
    assert parent.data.metrics == {"evaluate_top1": 0.75, "finetune_top1": 0.75}
    assert {run.info.run_name: run.info.status for run in runs()[1:]} == {
        "evaluate": "FINISHED",
        "finetune": "RUNNING",
    }

    with stage_run("finetune", {"dataset": "digits", "seed": 1}):
        pass
    assert [run.info.run_id for run in parents()] == [parent.info.run_id]
    assert [run.info.status for run in runs() if run.info.run_name == "finetune"] == ["KILLED", "FINISHED"]


@pytest.mark.slow
def test_the_first_run_of_all_creates_the_store_in_silence(project: Path) -> None:
    (project / "mlflow.db").unlink()
    process = stage_process(project, "report", "last")
    assert process.communicate()[1] == ""
    assert [run.info.status for run in runs()] == ["FINISHED", "FINISHED"]


@pytest.mark.slow
def test_a_dvc_experiment_in_a_temporary_copy_logs_to_the_same_store(project: Path) -> None:
    def dvc(*arguments: str) -> None:
        command = [sys.executable, "-m", "dvc", *arguments]
        done = subprocess.run(command, cwd=project, env=environment(DVC_NO_ANALYTICS="1"), capture_output=True)
        assert done.returncode == 0, done.stderr.decode()

    (project / "stage.py").write_text(textwrap.dedent(STAGE))
    (project / "dvc.yaml").write_text(
        textwrap.dedent(
            f"""
            stages:
              train:
                cmd: '"{sys.executable}" stage.py train ok && echo 1 > trained.txt'
                params: [seed]
                outs: [trained.txt]
              report:
                cmd: '"{sys.executable}" stage.py report last'
                deps: [trained.txt]
            """
        )
    )
    (project / ".gitignore").write_text("mlflow.db\nmlartifacts\n")
    dvc("init", "--quiet")
    git(project, "add", ".")
    git(project, "commit", "--quiet", "-m", "pipeline")
    dvc("exp", "run", "--temp", "--name", "wide-otter", "-S", "seed=9")

    parent, *children = runs()
    assert parent.info.run_name == "wide-otter"
    assert parent.data.tags["mlflow.source.git.commit"] == git(project, "rev-parse", "HEAD")
    assert parent.data.tags["git.dirty"] == "false"
    assert [run.info.run_name for run in children] == ["train", "report"]
    assert {run.info.status for run in runs()} == {"FINISHED"}


def browse(url: str, screenshot: Path) -> str:
    """Return the text of the page, as a browser without a screen shows it after its scripts ran."""
    if CHROMIUM is None:
        pytest.skip("needs chromium or google-chrome")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1900,1000"]
    command += [f"--user-data-dir={screenshot.with_suffix('')}", "--virtual-time-budget=30000"]
    subprocess.run([*command, f"--screenshot={screenshot}", url], check=True, capture_output=True, timeout=120)
    page = subprocess.run([*command, "--dump-dom", url], check=True, capture_output=True, timeout=120, text=True)
    return page.stdout


@pytest.mark.slow
def test_a_server_takes_the_runs_and_its_page_shows_them(
    project: Path,
    tracking_server: TrackingServer,
    trained: tuple,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mlflow.artifacts import load_text

    monkeypatch.setenv("DVC_EXP_NAME", "puffy-mule")
    with stage_run("train", PARAMETERS) as run:
        run.log_history([{"step": step, "loss": 1 / (step + 1)} for step in range(1500)])
        run.log_table(pandas.DataFrame({"split": ["test"], "top1": [0.25]}), "summary")
        run.summary({"test_top1": 0.25})
        assert run.log_ghn(trained[0]) == "models:/ghn/1"
    with stage_run("report", PARAMETERS, last=True):
        pass
    parent = parents()[0]
    assert parent.data.params == flat_settings(PARAMETERS)
    assert load_text(f"mlflow-artifacts:/{run.experiment_id}/{run.run_id}/artifacts/summary.csv") == (
        "split,top1\ntest,0.25\n"
    )

    address = f"{tracking_server.address}/#/experiments/{run.experiment_id}/runs"
    view = "workflowType=machine_learning&viewStateShareKey=ghn"
    page = browse(f"{address}?{view}", tmp_path / "runs.png")
    for shown in ("puffy-mule", "mnist_5k", "test_top1", "0.25"):
        assert shown in page
    page = browse(f"{address}/{parent.info.run_id}", tmp_path / "run.png")
    for shown in ("puffy-mule", "train.learning_rate", "test_top1", "models:/ghn/1"):
        assert shown in page


@pytest.mark.slow
def test_the_shared_chart_of_a_study_has_a_line_for_each_run(tracking_server: TrackingServer, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    params, metrics = ["variant", "seed", "meta_batch"], ["wide_top1", "test_top1"]
    for seed, (variant, meta_batch) in enumerate((("ghn2", 8), ("one_architecture", 1))):
        own = {"variant": variant, "seed": seed, "meta_batch": meta_batch}
        with stage_run(f"study-{variant}-{seed}", PARAMETERS, own=own) as run:
            run.log_history([{"step": step, "loss": 2 / step} for step in (1, 2, 3)])
            run.log_metrics({"test_top1": 0.5 + 0.1 * seed, "wide_top1": 0.25})
            run.share_study_view(STUDY_RUNS, params, metrics, curves=["loss"])
    with stage_run("compare", PARAMETERS):
        pass
    client = MlflowClient(tracking_server.address)
    view = json.loads(client.get_experiment(run.experiment_id).tags["mlflow.sharedViewState.study"])
    found = client.search_runs([run.experiment_id], view["searchFilter"])
    assert {found.info.run_name for found in found} == {"study-ghn2-0", "study-one_architecture-1"}
    for one in found:
        assert set(params) <= set(one.data.params) and set(metrics) <= set(one.data.metrics)

    address = f"{tracking_server.address}/#/experiments/{run.experiment_id}/runs"
    view_of_charts = "workflowType=machine_learning&compareRunsMode=CHART&viewStateShareKey=study"
    page = browse(f"{address}?{view_of_charts}", tmp_path / "study.png")
    for shown in ("parcoords", "Study", "Splits", "Curves", "study-ghn2-0", "study-one_architecture-1"):
        assert shown in page
    assert ">compare<" not in page
