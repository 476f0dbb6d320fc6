"""The documented commands, from `ray up` to `ray down`, on three hosts, beside the same stages on this machine alone.

The settings of the cluster are those of cluster.yaml with hosts in place of AWS. The storage is a bucket on this
machine, and MLflow runs on one of the hosts and keeps its files in the bucket.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import yaml
from flaky_bucket import FlakyBucket
from launcher import SECRETS, LaunchedCluster, let_in_ssh, mlflow_server, of_hosts, on_node, why_no_launcher
from mlflow import MlflowClient
from namespaces import Host, hosts
from repository_copy import copy_repository
from small_settings import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_no_launcher() is not None, reason=str(why_no_launcher()))]

STAGES = ("generate", "train", "evaluate")
SETTINGS = {"train": {"micro_batches": 3}}
DOCTOR = "cd ~/repository && RAY_ADDRESS=auto ghn doctor --storage s3://bucket/prefix"  # as README has it


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LaunchedCluster]:
    """Yield a cluster of three hosts, after `ray up`."""
    shared = tmp_path_factory.mktemp("hosts")
    repository = shared / "repository"
    copy_repository(repository, **SETTINGS)
    with hosts(4, shared) as (laptop, *nodes):
        bucket = FlakyBucket(laptop.outside)
        for node in nodes:
            let_in_ssh(node, shared, **(bucket.environment | SECRETS))
        configuration = yaml.safe_load((repository / "cluster.yaml").read_text())
        (repository / "cluster.yaml").write_text(yaml.safe_dump(of_hosts(configuration, nodes[0], nodes[1:])))
        launched = LaunchedCluster(laptop, nodes, repository, bucket)
        launched.type("ray get-auth-token --generate")
        launched.type("ray up --yes cluster.yaml")
        yield launched
        bucket.close()


@pytest.fixture(scope="module")
def mlflow(cluster: LaunchedCluster) -> Iterator[str]:
    """Yield the address of an MLflow server on the second host."""
    with mlflow_server(cluster.nodes[1], "s3://bucket/mlflow") as address:
        yield address


@pytest.fixture(scope="module")
def output(cluster: LaunchedCluster, mlflow: str) -> str:
    """Return what the pipeline has printed, run by `ray submit` up to the evaluation; its results are on the laptop."""
    return submit(cluster, mlflow, "evaluate")


def submit(cluster: LaunchedCluster, mlflow: str, stage: str = "", **settings: str) -> str:
    """Return what the pipeline prints up to a stage, or to its end, and fetch its results."""
    settings = {"storage": cluster.bucket.url, "workers.number": "3", "workers.placement": "STRICT_SPREAD"} | settings
    options = " ".join(f"-S {name}={value}" for name, value in settings.items())
    command = f"ray submit cluster.yaml pipeline/submit.py -- {options} --mlflow-tracking-uri {mlflow} {stage}"
    started = time.monotonic()
    printed = cluster.type(command)
    print(printed, f"\n{stage or 'all'}: {time.monotonic() - started:.0f} s")
    (fetch,) = re.findall(r"^ray rsync-down [^\r\n]*", printed, re.MULTILINE)
    cluster.type(fetch)
    return printed


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, output: str) -> Path:
    """Return the results of the same stages on this machine, with one worker."""
    folder = tmp_path_factory.mktemp("alone") / "repository"
    copy_repository(folder, **SETTINGS)
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "OMP_NUM_THREADS")}
    for stage in STAGES:
        command = [str(Path(sys.executable).with_name("ghn")), stage]
        subprocess.run(
            command, cwd=folder, env=environment | {"PYTHONPATH": str(ROOT)}, check=True, capture_output=True
        )
    return folder / "results"


def test_three_hosts_find_what_one_machine_finds_to_the_last_digit(
    cluster: LaunchedCluster, output: str, alone: Path
) -> None:
    assert "running on a cluster of up to 3 nodes" in output
    results = cluster.repository / "results"
    for file in ("generate/manifest.json", "train/checkpoint/model.safetensors"):
        assert (results / file).read_bytes() == (alone / file).read_bytes(), file
    losses = [pd.read_csv(folder / "train/history.csv")["loss"] for folder in (results, alone)]
    assert losses[0].equals(losses[1])
    assert (results / "evaluate/summary.csv").read_bytes() == (alone / "evaluate/summary.csv").read_bytes()
    assert json.loads((results / "train/metrics.json").read_text())["workers"] == 3


def test_runs_are_in_mlflow_on_another_host_and_their_files_in_the_bucket(
    cluster: LaunchedCluster, mlflow: str, output: str
) -> None:
    client = MlflowClient(mlflow)
    runs = {run.info.run_name: run.info.status for run in client.search_runs(["1"])}
    assert runs.items() >= dict.fromkeys(STAGES, "FINISHED").items()
    (version,) = client.search_model_versions("name='ghn'")
    assert version.status == "READY"
    assert any(re.match("PUT /bucket/mlflow/.*safetensors", request) for request in cluster.bucket.requests)


def test_the_doctor_finds_nothing_wrong_with_the_cluster(cluster: LaunchedCluster, output: str) -> None:
    lines = cluster.type(f"ray exec cluster.yaml '{DOCTOR}'").splitlines()
    assert sum(line.startswith("  ok") for line in lines) == 9
    assert not [line for line in lines if line.startswith("WRONG")]


def test_no_secret_is_in_anything_that_is_kept_or_printed(cluster: LaunchedCluster, output: str) -> None:
    """Neither in the repository on the head, with what DVC keeps there, nor in Ray's files, nor in MLflow's."""
    token = cluster.laptop.run("cat", "/tmp/.ray/auth_token").strip()
    secrets = f"{SECRETS['AWS_SECRET_ACCESS_KEY']}|{token}"
    assert not re.search(secrets, output)
    search = f"grep --recursive --extended-regexp '{secrets}' --exclude=.bashrc --exclude=auth_token ~ /tmp"
    for node in cluster.nodes:
        done = subprocess.run(on_node(node, search), capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (1, ""), done.stderr
    kept = (path for path in cluster.repository.rglob("*") if path.is_file())
    assert not any(re.search(secrets.encode(), path.read_bytes()) for path in kept)


def test_hosts_come_with_the_work_and_go_without_it(cluster: LaunchedCluster, output: str) -> None:
    """Three workers on hosts of their own have trained, where `ray up` has started the head alone."""
    wait_for_the_head_alone(cluster)
    assert runs_ray(cluster.nodes[0])


@pytest.mark.night
@pytest.mark.timeout(7200)
def test_all_stages_run_on_the_hosts(cluster: LaunchedCluster, mlflow: str, output: str, alone: Path) -> None:
    submit(cluster, mlflow)
    results = cluster.repository / "results"
    assert (results / "report/index.html").stat().st_size > 0
    for file in ("train/checkpoint/model.safetensors", "evaluate/summary.csv"):
        assert (results / file).read_bytes() == (alone / file).read_bytes(), file


@pytest.mark.night
@pytest.mark.timeout(7200)
def test_hosts_that_come_later_join_a_run(cluster: LaunchedCluster, mlflow: str, output: str) -> None:
    """A run that may begin with one worker does so on the first host that comes, and goes on with three."""
    wait_for_the_head_alone(cluster)
    settings = {"workers.minimum": "1", "workers.checkpoint_every": "20", "train.steps": "2000"}
    printed = submit(cluster, mlflow, "train", **settings)
    assert re.search(r"going on from step [\d,]+ with 3 workers", printed)
    assert len(pd.read_csv(cluster.repository / "results/train/history.csv")) == 2000


def test_down_ends_ray_on_all_hosts(cluster: LaunchedCluster, output: str) -> None:
    cluster.type("ray down --yes cluster.yaml")
    while any(runs_ray(host) for host in cluster.nodes):
        time.sleep(1)


def wait_for_the_head_alone(cluster: LaunchedCluster) -> None:
    """Wait until the launcher has stopped all other hosts, which have nothing to do."""
    while any(runs_ray(host) for host in cluster.nodes[1:]):
        time.sleep(1)


def runs_ray(host: Host) -> bool:
    return subprocess.run(on_node(host, "pgrep raylet || pgrep gcs_server"), capture_output=True).returncode == 0
