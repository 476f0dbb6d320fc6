"""Training on two hosts, with the driver on a third, while hosts, links and services fail.

Whatever fails, what is found in the end is what an undisturbed run finds, to the last digit.

    python -m pytest -m night -rP tests/hosts/test_faults_between_hosts.py

prints what users saw and how long it took.
"""

from __future__ import annotations

import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
from flaky_bucket import FlakyBucket
from launcher import ENVIRONMENT, PROGRAM_FOLDERS, mlflow_server
from mlflow import MlflowClient
from namespaces import MIB, Host, hosts
from training_site import STEPS, Site

pytestmark = [pytest.mark.slow, pytest.mark.night, pytest.mark.timeout(7200)]

HOUR = 3600
REDIS_PORT = 6390
RANDOM_FAULTS = 20


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    shared = tmp_path_factory.mktemp("faults")
    with hosts(4, shared, disk={2: 800 * MIB}) as (*nodes, services):
        bucket = FlakyBucket(nodes[0].outside)
        for host in (*nodes, services):
            host.environment |= bucket.environment | {"RAY_ADDRESS": f"{nodes[0].address}:6379"}
        project = shared / "project"
        project.mkdir()
        yield Site(nodes, services, bucket, project)
        bucket.close()


@pytest.fixture(scope="module")
def undisturbed(site: Site) -> bytes:
    """Return the weights of a run that nothing disturbs."""
    site.set_up()
    site.boot()
    for stage in ("generate", "train"):
        running = site.start(stage)
        assert running.end() == 0, running.printed()
    return site.weights()


def host_off(site: Site) -> None:
    """Switch off the host of a worker."""
    site.nodes[2].die()


def link_cut(site: Site) -> None:
    """Cut the link of a worker's host for good."""
    site.nodes[2].unplug()


def link_cut_for_30_s(site: Site) -> None:
    """Cut the link of a worker's host for 30 s."""
    site.nodes[2].unplug()
    time.sleep(30)
    site.nodes[2].plug()


def disk_full(site: Site) -> None:
    """Fill the disk of a worker's host."""
    site.nodes[2].run("sh", "-c", "cat /dev/zero > /tmp/full 2>/dev/null || true")


def bucket_fails_for_20_s(site: Site) -> None:
    """Let the object store answer 503 for 20 s."""
    site.bucket.answer(seconds=20)
    time.sleep(20)


def bucket_drops_connections_for_20_s(site: Site) -> None:
    """Let the object store close all connections for 20 s."""
    site.bucket.drop_connections(seconds=20)
    time.sleep(20)


def bucket_is_slow_for_20_s(site: Site) -> None:
    """Let the object store take 3 s for each answer, for 20 s."""
    site.bucket.answer_late(3, seconds=20)
    time.sleep(20)


OF_A_HOST = [host_off, link_cut, link_cut_for_30_s, disk_full]
FAULTS = [
    *OF_A_HOST,
    bucket_fails_for_20_s,
    bucket_drops_connections_for_20_s,
    bucket_is_slow_for_20_s,
]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_costs_time_and_nothing_else(site: Site, undisturbed: bytes, fault: Callable[[Site], None]) -> None:
    site.boot()
    stage = site.start("train")
    site.wait_for_checkpoints(2, stage)
    began = time.monotonic()
    fault(site)
    site.wait_for_checkpoints(1, stage)
    print(f"{fault.__name__}: next checkpoint after {time.monotonic() - began:.0f} s")
    assert stage.end() == 0, stage.printed()
    print(stage.printed())
    assert site.weights() == undisturbed


def test_a_lost_head_costs_the_steps_since_the_last_checkpoint(site: Site, undisturbed: bytes) -> None:
    site.boot()
    stage = site.start("train")
    site.wait_for_checkpoints(2, stage)
    site.nodes[0].die()
    assert stage.end() != 0
    site.boot()
    again = site.start("train")
    assert again.end() == 0, again.printed()
    assert "going on from step" in again.printed()
    assert site.weights() == undisturbed


def test_a_clock_that_is_an_hour_ahead_changes_nothing(
    site: Site, undisturbed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = site.nodes[2]
    monkeypatch.setattr(host, "environment", host.environment | host.clock_ahead(HOUR))
    site.boot()
    stage = site.start("train")
    assert stage.end() == 0, stage.printed()
    assert site.weights() == undisturbed


def test_what_a_run_logs_while_the_host_of_mlflow_is_off_arrives_later(site: Site, undisturbed: bytes) -> None:
    """The database is on a disk that outlives the host."""

    def server() -> AbstractContextManager[str]:
        def in_shell(host: Host, command: str) -> list[str]:
            return host.command("sh", "-c", f"export PATH={ENVIRONMENT / 'bin'}:{PROGRAM_FOLDERS}; {command}")

        return mlflow_server(site.services, "s3://bucket/mlflow", folder="/mnt", shell=in_shell)

    site.boot()
    with server() as address:
        stage = site.start("train", MLFLOW_TRACKING_URI=address, MLFLOW_HTTP_REQUEST_TIMEOUT="5")
        site.wait_for_checkpoints(2, stage)
        site.services.die()
    site.wait_for_checkpoints(3, stage)
    site.services.boot()
    with server():
        assert stage.end() == 0, stage.printed()
        print(stage.printed())
        client = MlflowClient(address)
        (run,) = client.search_runs(["1"], "attributes.run_name = 'train'")
        logged = client.get_metric_history(run.info.run_id, "loss")
    assert run.info.status == "FINISHED"
    assert [metric.step for metric in logged] == list(range(1, STEPS + 1))
    assert "does not answer" in stage.printed() and "answers again" in stage.printed()
    assert site.weights() == undisturbed


RESTART_GCS = """
import os, psutil, subprocess
(gcs,) = (process for process in psutil.process_iter() if process.name() == "gcs_server")
command, environment = gcs.cmdline(), gcs.environ()
gcs.kill()
gcs.wait()
subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
"""


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="Redis is not installed")
def test_a_run_outlives_the_cluster_s_own_server_where_redis_keeps_its_tables(
    site: Site, undisturbed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The global control store is killed, and started again by what supervises it."""
    site.services.run(
        "redis-server", "--bind", site.services.address, "--port", str(REDIS_PORT), "--protected-mode", "no",
        "--save", "", "--daemonize", "yes",
    )  # fmt: skip
    monkeypatch.setitem(site.nodes[0].environment, "RAY_REDIS_ADDRESS", f"{site.services.address}:{REDIS_PORT}")
    site.boot()
    stage = site.start("train")
    site.wait_for_checkpoints(2, stage)
    site.nodes[0].run(sys.executable, "-c", RESTART_GCS)
    assert stage.end() == 0, stage.printed()
    print(stage.printed())
    assert "going on from step" not in stage.printed()
    assert site.weights() == undisturbed


def test_random_faults_in_one_run_cost_time_and_nothing_else(site: Site, undisturbed: bytes) -> None:
    """A worker's host that is lost is replaced by another one."""
    moments = random.Random(0)
    site.set_up(train={"steps": 10 * RANDOM_FAULTS})
    site.boot()
    calm = site.start("train")
    assert calm.end() == 0, calm.printed()
    expected = site.weights()
    stage = site.start("train")
    for number in range(RANDOM_FAULTS):
        site.wait_for_checkpoints(1, stage)
        time.sleep(moments.uniform(0, 1))
        fault, began = moments.choice(FAULTS), time.monotonic()
        fault(site)
        if fault in OF_A_HOST:
            site.nodes[2].die()
            site.nodes[2].boot()
            site.start_ray(site.nodes[2])
        print(f"{number + 1}: {fault.__name__}, {time.monotonic() - began:.0f} s")
    assert stage.end() == 0, stage.printed()
    print(stage.printed())
    assert site.weights() == expected
