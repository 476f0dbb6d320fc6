from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import psutil
import pytest
import ray
from ray.cluster_utils import Cluster
from small_settings import ROOT, small_settings

from ghn import GHN
from pipeline.cluster import ray_cluster
from pipeline.errors import UserError
from pipeline.generate import generate
from pipeline.params import Params
from pipeline.train import train

pytestmark = pytest.mark.slow  # Ray and its training workers start for each run

MEASURED = ["loss", "top1", "dropped", "step", "learning_rate", "gradient_norm"]
TRAIN = "from pipeline import params, train; train.train(params.load_params())"
RUN = {"steps": 20, "slices": 4, "workers": 1}  # of a meta-batch of 3: three slices


@dataclass(frozen=True)
class Reference:
    """A run of one worker: its storage and manifest as they were before, and what came out."""

    storage: Path
    manifest: Path
    history: pd.DataFrame
    weights: bytes
    metrics: dict[str, float]


@pytest.fixture(scope="module")
def ray_on_this_machine() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        with ray_cluster(num_cpus=4):
            yield


@pytest.fixture(scope="module")
def reference(ray_on_this_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    folder = tmp_path_factory.mktemp("reference")
    params = Params.model_validate(small_settings(train=RUN))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        (folder / "params.yaml").touch()  # marks the workspace
        generate(params)
        shutil.copytree("storage", "kept")
        train(params)
        assert not list(Path("storage/training").iterdir())  # a run that ended well leaves nothing to resume
        metrics = json.loads(Path("results/train/metrics.json").read_text())
        return Reference(folder / "kept", folder / "results/generate", history(), weights(), metrics)


@pytest.fixture
def project(reference: Reference, small_project: Callable[..., Params]) -> Callable[..., Params]:
    """A project with the reference's architectures; called, it makes its settings, with other `train` settings."""
    shutil.copytree(reference.storage, "storage")
    shutil.copytree(reference.manifest, "results/generate")

    def settings(train: dict | None = None, **changes: object) -> Params:
        return small_project(train=RUN | (train or {}), **changes)

    return settings


def history() -> pd.DataFrame:
    return pd.read_csv("results/train/history.csv")[MEASURED]


def weights() -> bytes:
    return Path("results/train/checkpoint/model.safetensors").read_bytes()


def runs() -> list:
    from mlflow import MlflowClient

    return MlflowClient("sqlite:///mlflow.db").search_runs(["1"])


def in_background() -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", TRAIN], start_new_session=True, stderr=subprocess.PIPE)


def wait_for_checkpoint(process: subprocess.Popen) -> None:
    """Until Ray Train has noted a checkpoint as one to go on from."""
    deadline = time.monotonic() + 120
    while not any("checkpoint_" in file.read_text() for file in Path("storage/training").glob("*/*snapshot.json")):
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def kill_all(process: subprocess.Popen) -> None:
    """The driver, and the Ray that it started, with all that runs there."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        member.kill()
    process.wait()
    psutil.wait_procs(family)


def test_the_reference_run_learned_and_left_what_it_promises(reference: Reference) -> None:
    assert list(reference.history["step"]) == list(range(1, 21))
    assert reference.history["loss"].nunique() == 20
    assert reference.metrics["steps"] == 20
    assert reference.metrics["dropped"] == 0
    assert reference.metrics["loss"] == pytest.approx(reference.history["loss"].median())


@pytest.mark.parametrize("workers", [2, 4])  # of four, one has nothing to do
def test_the_number_of_workers_does_not_change_the_run(reference: Reference, project, workers: int) -> None:
    train(project({"workers": workers}))
    pd.testing.assert_frame_equal(history(), reference.history, rtol=1e-6)
    assert GHN.from_pretrained("results/train/checkpoint").config.num_classes == 10


def test_the_same_settings_give_the_same_bytes(reference: Reference, project) -> None:
    train(project())
    pd.testing.assert_frame_equal(history(), reference.history, check_exact=True)
    assert weights() == reference.weights


def test_rows_can_be_means_of_several_steps(reference: Reference, project) -> None:
    train(project({"log_every": 8, "checkpoint_every": 10}))
    means = reference.history.groupby((reference.history["step"] - 1) // 8)[["loss", "top1"]].mean()
    assert list(history()["step"]) == [8, 16, 20]  # the last row is of what is left
    pd.testing.assert_frame_equal(history()[["loss", "top1"]], means, check_index_type=False, check_names=False)


def test_a_killed_run_goes_on_from_its_checkpoint_with_another_number_of_workers(reference: Reference, project) -> None:
    project({"checkpoint_every": 5})
    process = in_background()
    wait_for_checkpoint(process)
    kill_all(process)
    assert not Path("results/train").exists()

    train(project({"workers": 2}))
    pd.testing.assert_frame_equal(history(), reference.history, rtol=1e-6)


def test_a_killed_worker_is_replaced_and_no_gradient_is_lost(reference: Reference, project) -> None:
    project({"workers": 2, "checkpoint_every": 5})
    process = in_background()
    wait_for_checkpoint(process)
    family = psutil.Process(process.pid).children(recursive=True)
    workers = [member for member in family if "RayTrainWorker" in " ".join(member.cmdline())]
    assert len(workers) == 2
    workers[1].kill()
    _, output = process.communicate(timeout=200)
    assert process.returncode == 0, output.decode()
    pd.testing.assert_frame_equal(history(), reference.history, rtol=1e-6)


def test_ctrl_c_is_said_to_be_harmless_and_is(reference: Reference, project) -> None:
    project({"checkpoint_every": 5})
    command = [Path(sys.executable).with_name("ghn"), "train"]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE)
    wait_for_checkpoint(process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the driver and all that it started
    _, output = process.communicate(timeout=100)
    assert process.returncode == 130, output.decode()
    assert "the same command goes on from what is finished" in output.decode()
    assert "Traceback" not in output.decode()
    (run,) = [run for run in runs() if run.info.run_name == "train"]
    assert run.info.status == "KILLED"

    train(project())
    pd.testing.assert_frame_equal(history(), reference.history, rtol=1e-6)


def test_a_damaged_checkpoint_of_an_interrupted_run_is_named(project) -> None:
    settings = {"steps": 500, "max_failures": 0}
    project(settings)
    process = in_background()
    wait_for_checkpoint(process)
    kill_all(process)
    for file in Path("storage/training").glob("*/checkpoint_*/ghn/model.safetensors"):
        file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"model\.safetensors") as caught:
        train(project(settings))
    assert len(str(caught.value).splitlines()) <= 3


def test_what_cannot_be_trained_is_said_before_any_work(project) -> None:
    with pytest.raises(UserError, match=r"train.workers = 5 need 5 CPUs, the cluster has 4"):
        train(project({"slices": 5, "workers": 5}))
    with pytest.raises(UserError, match="nope"):
        train(project(dataset="nope"))
    Path("results/generate/manifest.json").unlink()
    with pytest.raises(UserError, match=r"manifest\.json not found.*dvc repro generate"):
        train(project())
    assert not Path("results/train").exists()


def test_a_run_that_diverges_is_an_error_and_writes_no_checkpoint(project) -> None:
    with pytest.raises(UserError, match=r"diverged at step \d+.*\n.*learning_rate"):
        train(project({"steps": 100, "learning_rate": 1e30, "architecture_clip": None}))
    assert not Path("results/train/checkpoint").exists()


def test_too_few_nodes_for_a_meta_batch_are_explained(project) -> None:
    with pytest.raises(UserError, match="max_nodes = 10") as caught:
        train(project({"max_nodes": 10, "max_failures": 0}))
    assert len(str(caught.value).splitlines()) <= 3


def test_workers_on_several_nodes_train_together(
    reference: Reference, project, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray.shutdown()  # the last test: the others share a Ray of one node
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        train(project({"workers": 2}))
    finally:
        ray.shutdown()
        cluster.shutdown()
    pd.testing.assert_frame_equal(history(), reference.history, rtol=1e-6)
