"""The script for Slurm, on a Slurm of two hosts."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from launcher import ENVIRONMENT, PROGRAM_FOLDERS
from namespaces import Host, hosts
from repository_copy import copy_repository
from slurm_cluster import start_slurm, why_no_slurm

pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_no_slurm() is not None, reason=str(why_no_slurm()))]

OPTIONS = ("--parsable", "--nodes=2", "--gpus-per-node=0")


@pytest.fixture
def login(tmp_path: Path) -> Iterator[Host]:
    """Yield the host from which jobs are submitted. Repository and storage are in the folder that all hosts share."""
    workers = {"number": 2, "placement": "STRICT_SPREAD", "checkpoint_every": 1}
    copy_repository(tmp_path / "repository", storage="/mnt/storage", train={"steps": 30}, workers=workers)
    with hosts(2, tmp_path) as both:
        for host in both:
            host.environment["PATH"] = f"{ENVIRONMENT / 'bin'}:{PROGRAM_FOLDERS}"
            host.environment["PYTHONPATH"] = "/mnt/repository"
            del host.environment["RAY_AUTH_MODE"]
        start_slurm(both, tmp_path)
        yield both[0]


def test_a_job_that_has_to_give_its_nodes_back_goes_on_from_its_checkpoint(login: Host, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    submitted = login.run("env", "--chdir=/mnt/repository", "sbatch", *OPTIONS, "slurm/pipeline.sbatch", "train")
    job = submitted.strip()
    output = repository / f"ghn-{job}.log"
    wait_until(lambda: output.exists() and re.search(r"\b[1-9]\d*/30 ", output.read_text()), login, job)
    login.run("scancel", "--signal=TERM", "--batch", job)
    wait_until(lambda: "\nterminated " in output.read_text(), login, job)
    wait_until(lambda: state_of(login, job) == "PENDING", login, job)
    login.run("scontrol", "update", f"JobId={job}", "StartTime=now")  # Slurm waits for two minutes by itself
    wait_until(lambda: state_of(login, job) == "COMPLETED", login, job)
    assert "going on from step" in output.read_text()
    metrics = json.loads((repository / "results/train/metrics.json").read_text())
    assert metrics["workers"] == 2


def state_of(login: Host, job: str) -> str:
    fields = login.run("scontrol", "show", "job", job).split()
    (state,) = (field.removeprefix("JobState=") for field in fields if field.startswith("JobState="))
    return state


def wait_until(is_so: Callable[[], Any], login: Host, job: str) -> None:
    """Wait for something that a job does."""
    while not is_so():
        has_ended = state_of(login, job) in ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT")
        assert is_so() or not has_ended, f"job {job} has ended"
        time.sleep(0.5)
