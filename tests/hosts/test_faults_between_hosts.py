"""Training on two hosts, with the driver on a third, while hosts, links and services fail.

Whatever fails, what is found in the end is what an undisturbed run finds, to the last digit.

    python -m pytest -m night -rP tests/hosts/test_faults_between_hosts.py

prints what users saw and how long it took.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from flaky_bucket import FlakyBucket
from namespaces import MIB, Host, hosts
from small_settings import small_settings

pytestmark = [pytest.mark.slow, pytest.mark.night]

GHN = str(Path(sys.executable).with_name("ghn"))
STEPS = 60
CHECKPOINT_EVERY = 5
SETTINGS = {
    "storage": FlakyBucket.url,
    "train": {"steps": STEPS, "micro_batches": 2, "validation": {"every": None}},
    "workers": {
        "number": 2,
        "minimum": 1,
        "placement": "STRICT_SPREAD",
        "checkpoint_every": CHECKPOINT_EVERY,
        "max_failures": 20,
    },
}


@dataclass
class Stage:
    """A stage that runs on the head, and what it has printed so far."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines += [line for line in re.split(r"[\r\n]+", line) if line.strip()]

    def end(self) -> int:
        """Return the status of the stage, once it has ended."""
        self._reader.join()
        return self.process.wait()

    def printed(self) -> str:
        """Return what has been printed, without the states of the bar."""
        return "\n".join(line for line in self.lines if not line.startswith("train: "))


@dataclass
class Site:
    """Hosts, and a project in their shared folder whose storage is a bucket on this machine."""

    nodes: list[Host]
    bucket: FlakyBucket
    project: Path

    def boot(self) -> None:
        """Switch all hosts off and on, and start a Ray on them: the head has no core for workers."""
        for node in self.nodes:
            node.die()
            node.boot()
        for node in self.nodes:
            node.start_ray(self.nodes[0], cpus=0 if node is self.nodes[0] else 1)

    def start(self, stage: str) -> Stage:
        """Start a stage on the head."""
        command = self.nodes[0].command("env", f"--chdir=/mnt/{self.project.name}", GHN, stage)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return Stage(process)

    def checkpoints(self) -> int:
        """Return how many checkpoints of this run have been written."""
        found = (re.match(r"PUT .*/training/.*/(checkpoint_[^/]+)/", request) for request in self.bucket.requests)
        return len({match[1] for match in found if match})

    def wait_for_checkpoints(self, number: int, stage: Stage) -> None:
        """Wait until that many have been written since the last call."""
        self.bucket.requests.clear()
        while self.checkpoints() < number:
            assert stage.process.poll() is None, stage.printed()
            time.sleep(0.1)

    def weights(self) -> bytes:
        return (self.project / "results/train/checkpoint/model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    shared = tmp_path_factory.mktemp("faults")
    with hosts(3, shared, disk={2: 800 * MIB}) as nodes:
        bucket = FlakyBucket(nodes[0].outside)
        for node in nodes:
            node.environment |= {
                "AWS_ENDPOINT_URL": bucket.endpoint,
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_EC2_METADATA_DISABLED": "true",
                "RAY_ADDRESS": f"{nodes[0].address}:6379",
            }
        project = shared / "project"
        project.mkdir()
        (project / "params.yaml").write_text(yaml.safe_dump(small_settings(**SETTINGS)))
        yield Site(nodes, bucket, project)
        bucket.close()


@pytest.fixture(scope="module")
def undisturbed(site: Site) -> bytes:
    """Return the weights of a run that nothing disturbs."""
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


FAULTS = [host_off, link_cut, link_cut_for_30_s, disk_full, bucket_fails_for_20_s, bucket_drops_connections_for_20_s]


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
