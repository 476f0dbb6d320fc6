from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import psutil
import pytest
from small_settings import small_settings
from training_runs import (
    Run,
    assert_same_run,
    checkpoints,
    named,
    reference_run,
    take_architectures,
    wait_for,
    wait_for_checkpoint,
    weights,
)

from pipeline.errors import UserError
from pipeline.params import Params, with_changes
from pipeline.stages.train import train

pytestmark = pytest.mark.slow  # Ray and its training workers start for each run

RAY_CORES = 4
RUN = {"steps": 20, "micro_batches": 4, "validation": {"every": 6}}  # of a meta-batch of 3: three micro-batches
GHN_COMMAND = Path(sys.executable).with_name("ghn")


@pytest.fixture(scope="module")
def reference(ray_on_this_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run of one worker."""
    return reference_run(tmp_path_factory.mktemp("reference"), Params.model_validate(small_settings(train=RUN)))


@pytest.fixture
def project(reference: Run, small_project: Callable[..., Params]) -> Callable[..., Params]:
    """Make a project with the reference's architectures; the function writes settings, with other ones of `train`."""
    take_architectures(reference)

    def settings(train: dict | None = None, **changes: object) -> Params:
        return small_project(train=with_changes(RUN, train or {}), **changes)

    return settings


def runs() -> list:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{Path('mlflow.db').absolute()}").search_runs(["1"])


def test_a_run_leaves_what_it_promises_and_the_same_settings_give_the_same_bytes(
    reference: Run, project, caplog: pytest.LogCaptureFixture
) -> None:
    assert list(reference.history["step"]) == list(range(1, 21))
    assert reference.history["loss"].nunique() == 20
    validated = reference.history.dropna(subset="val_top1")
    assert list(validated["step"]) == [6, 12, 18, 20]

    train(project(workers={"profile_steps": 2}))  # recording changes nothing
    assert_same_run(reference, rtol=0)
    assert weights() == reference.weights
    assert sum(record.message.startswith("precision auto: fp32 (") for record in caplog.records) == 1
    metrics = json.loads(Path("results/train/metrics.json").read_text())
    assert metrics["steps"] == 20
    assert metrics["dropped"] == 0
    assert (metrics["precision"], metrics["workers"], metrics["device"]) == ("fp32", 1, "cpu")
    assert metrics["loss"] == pytest.approx(reference.history["loss"].median())
    best = validated.loc[validated["val_top1"].idxmax()]
    assert (metrics["val_top1"], metrics["best_step"]) == (best["val_top1"], best["step"])
    events = json.loads(gzip.decompress(Path("results/profile/trace.json.gz").read_bytes()))["traceEvents"]
    names = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    assert names.count("hypernetwork_backward") == 2 * 3  # steps, micro-batches
    assert names.count("target_forward") == 2 * 3


def test_sigterm_writes_a_checkpoint_first_from_which_other_workers_go_on(reference: Run, project) -> None:
    project(workers={"checkpoint_every": 1000})
    process = subprocess.Popen([GHN_COMMAND, "train"], start_new_session=True, stderr=subprocess.PIPE)
    wait_for(lambda: bool(named(psutil.Process(process.pid).children(recursive=True), "RayTrainWorker")), process)
    assert not checkpoints()
    process.terminate()
    _, output = process.communicate()
    assert process.returncode == 143, output.decode()
    assert "the same command goes on from there" in output.decode()
    assert "Traceback" not in output.decode()
    assert len(checkpoints()) == 1
    (run,) = [run for run in runs() if run.info.run_name == "train"]
    assert run.info.status == "KILLED"

    train(project(workers={"number": 3}))
    assert_same_run(reference, rtol=0)
    assert weights() == reference.weights


def test_ctrl_c_is_said_to_be_harmless_and_is(reference: Run, project) -> None:
    project(workers={"checkpoint_every": 5})
    process = subprocess.Popen([GHN_COMMAND, "train"], start_new_session=True, stderr=subprocess.PIPE)
    wait_for_checkpoint(process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the driver and all that it started
    _, output = process.communicate()
    assert process.returncode == 130, output.decode()
    assert "the same command goes on from what is finished" in output.decode()
    assert "Traceback" not in output.decode()
    (run,) = [run for run in runs() if run.info.run_name == "train"]
    assert run.info.status == "KILLED"

    for file in Path("storage/training").glob("*/checkpoint_*/ghn/model.safetensors"):
        file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"model\.safetensors") as caught:
        train(project(workers={"checkpoint_every": 5, "max_failures": 0}))
    assert len(str(caught.value).splitlines()) <= 3


def test_a_run_that_is_impossible_is_refused_before_any_work(project) -> None:
    with pytest.raises(UserError, match=r"workers.number = 5 need 5 CPUs, the cluster has 4"):
        train(project({"micro_batches": 5}, workers={"number": 5}))
    with pytest.raises(UserError, match="nope"):
        train(project(dataset="nope"))
    Path("results/generate/manifest.json").unlink()
    with pytest.raises(UserError, match=r"manifest\.json not found.*dvc repro generate"):
        train(project())
    assert not Path("results/train").exists()


def test_a_run_that_diverges_is_an_error_and_writes_no_checkpoint(project, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError, match=r"diverged at step \d+.* times\)\n.*learning_rate"):
        train(
            project(
                {
                    "steps": 100,
                    "architecture_clip": None,
                    "log_every": 4,
                    "optimizer": {"learning_rate": 1e30},
                    "validation": {"every": None},
                }
            )
        )
    assert not Path("results/train/checkpoint").exists()
    identities = pd.read_parquet(next(Path("storage/architectures/train").rglob("*.parquet")))["identity"]
    assert any(identity in caplog.text for identity in identities)  # which architecture was dropped


def test_too_few_nodes_for_a_meta_batch_are_explained(project) -> None:
    with pytest.raises(UserError, match="max_nodes = 10") as caught:
        train(project({"max_nodes": 10}, workers={"max_failures": 0}))
    assert len(str(caught.value).splitlines()) <= 3
