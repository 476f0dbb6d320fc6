"""The pipeline's first stages on two hosts with one core each, beside the same on this machine alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from namespaces import hosts
from small_settings import ROOT, small_settings

pytestmark = pytest.mark.slow

GHN = str(Path(sys.executable).with_name("ghn"))
STAGES = ("generate", "train")


def write_settings(folder: Path, **workers: object) -> None:
    folder.mkdir()
    settings = small_settings(storage="storage", workers=workers, train={"micro_batches": 2})
    (folder / "params.yaml").write_text(yaml.safe_dump(settings))


def test_two_hosts_learn_what_one_machine_learns_to_the_last_digit(tmp_path: Path) -> None:
    write_settings(tmp_path / "cluster", number=2, placement="STRICT_SPREAD")
    write_settings(tmp_path / "alone", number=1)
    with hosts(2, tmp_path) as (head, other):
        for host in (head, other):
            host.start_ray(head)
        head.environment["RAY_ADDRESS"] = f"{head.address}:6379"
        for stage in STAGES:
            head.run("env", "--chdir=/mnt/cluster", GHN, stage)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for stage in STAGES:
        subprocess.run([GHN, stage], cwd=tmp_path / "alone", env=environment, check=True, capture_output=True)

    here, there = (tmp_path / name / "results" for name in ("alone", "cluster"))
    for file in ("generate/manifest.json", "train/checkpoint/model.safetensors"):
        assert (here / file).read_bytes() == (there / file).read_bytes(), file
    losses = [pd.read_csv(results / "train/history.csv")["loss"] for results in (here, there)]
    assert losses[0].equals(losses[1])
    assert [json.loads((results / "train/metrics.json").read_text())["workers"] for results in (here, there)] == [1, 2]
