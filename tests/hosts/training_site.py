"""Hosts on which a stage runs while they, their links and the services that they use fail."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from flaky_bucket import FlakyBucket
from namespaces import Host
from small_settings import small_settings

from pipeline.params import with_changes

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
        "max_failures": 100,
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
    """Hosts, and a project in their shared folder whose storage is a bucket on this machine.

    Attributes:
        nodes: the hosts of the cluster, the head first.
        services: the host of MLflow and of Redis.
        bucket: the object store.
        project: the folder of the project.
    """

    nodes: list[Host]
    services: Host
    bucket: FlakyBucket
    project: Path

    def set_up(self, **changes: Any) -> None:
        """Write the settings of the project; `changes` are values of whole keys, or of keys in sections."""
        settings = small_settings(**with_changes(SETTINGS, changes))
        (self.project / "params.yaml").write_text(yaml.safe_dump(settings))

    def boot(self) -> None:
        """Switch the hosts of the cluster off and on, and start a Ray on them."""
        for node in self.nodes:
            node.die()
            node.boot()
        for node in self.nodes:
            self.start_ray(node)

    def start_ray(self, node: Host) -> None:
        """Start a node of the cluster; the head has no core for workers."""
        node.start_ray(self.nodes[0], cpus=0 if node is self.nodes[0] else 1)

    def start(self, stage: str, **variables: str) -> Stage:
        """Start a stage on the head, with environment variables."""
        environment = [f"{name}={value}" for name, value in variables.items()]
        command = self.nodes[0].command("env", f"--chdir=/mnt/{self.project.name}", *environment, GHN, stage)
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
