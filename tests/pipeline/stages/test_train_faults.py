"""Training runs that lose workers, nodes, their controller and their driver."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from ray.cluster_utils import Cluster
from small_settings import small_settings
from training_runs import (
    Run,
    checkpoints,
    history,
    in_background,
    last_step,
    processes,
    reference_run,
    take_architectures,
    wait_for,
    wait_for_checkpoint,
    weights,
)

from pipeline.architectures.splits import store_architectures
from pipeline.params import Params, load_params, with_changes

pytestmark = pytest.mark.slow

SETTINGS = {
    "train": {"steps": 60, "validation": {"every": 20}},
    "workers": {"number": 2, "checkpoint_every": 2, "max_failures": 10},
}


@pytest.fixture
def undisturbed(tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> Run:
    one_worker = with_changes(SETTINGS, {"workers": {"number": 1}})  # which learns the same
    return reference_run(tmp_path_factory.mktemp("undisturbed"), Params.model_validate(small_settings(**one_worker)))


def test_a_run_that_is_killed_again_and_again_ends_with_the_weights_of_an_undisturbed_one(
    undisturbed: Run, cluster: Cluster, small_project: Callable[..., Params]
) -> None:
    take_architectures(undisturbed)
    small_project(**SETTINGS)
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"random moments: seed {seed}")
    moments = random.Random(seed)

    def at_a_random_moment() -> None:
        wait_for_checkpoint(driver)
        time.sleep(moments.uniform(0, 0.5))

    driver = in_background()
    at_a_random_moment()
    moments.choice(processes(cluster, "RayTrainWorker")).kill()
    at_a_random_moment()
    processes(cluster, "TrainController")[0].kill()
    at_a_random_moment()
    driver.kill()
    driver.wait()
    driver = in_background()
    at_a_random_moment()
    cluster.remove_node(moments.choice(sorted(cluster.worker_nodes, key=id)), allow_graceful=False)
    cluster.add_node(num_cpus=1)

    _, output = driver.communicate()
    assert driver.returncode == 0, output.decode()
    assert weights() == undisturbed.weights
    assert list(history()["step"]) == list(range(1, 61))
    assert history()["loss"].equals(undisturbed.history["loss"])


class Metadata(BaseHTTPRequestHandler):
    """The metadata service of an instance that will be taken back in twelve seconds."""

    def do_PUT(self) -> None:
        self.answer("token")

    def do_GET(self) -> None:
        assert self.headers["X-aws-ec2-metadata-token"] == "token"
        end = datetime.now(UTC) + timedelta(seconds=12)
        self.answer(json.dumps({"action": "terminate", "time": f"{end:%Y-%m-%dT%H:%M:%SZ}"}))

    def answer(self, text: str) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *arguments: object) -> None:
        pass


def test_a_node_that_is_taken_back_leaves_a_checkpoint_of_its_last_moment_and_one_worker_goes_on(
    cluster: Cluster, small_project: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "30")  # for so long it tries two workers
    endless = {
        "train": {"steps": 100_000, "validation": {"every": None}},
        "workers": {"checkpoint_every": 100_000, "minimum": 1},
    }
    small_project(**with_changes(SETTINGS, endless))
    store_architectures(load_params())
    driver = in_background()
    wait_for(lambda: last_step() > 0, driver)
    assert len(processes(cluster, "RayTrainWorker")) == 2
    assert not checkpoints()

    node = cluster.worker_nodes.copy().pop()
    service = HTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=service.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{service.server_port}")
    watch = [
        sys.executable,
        "-m",
        "pipeline.cluster.spot_notice",
        "--address",
        cluster.address,
        "--node-id",
        node.node_id,
    ]
    subprocess.run(watch, check=True)
    service.shutdown()
    wait_for(lambda: bool(checkpoints()), driver)
    before = set(processes(cluster, "RayTrainWorker"))
    cluster.remove_node(node, allow_graceful=False)
    wait_for(lambda: bool(set(processes(cluster, "RayTrainWorker")) - before), driver)
    reached = last_step()
    wait_for(lambda: last_step() > reached, driver)
    assert len(processes(cluster, "RayTrainWorker")) == 1
    driver.terminate()
    _, output = driver.communicate()
    began, ended = re.findall(r"(?:going on from|terminated after) step ([\d,]+)", output.decode())
    assert 0 < int(began.replace(",", "")) < int(ended.replace(",", ""))
