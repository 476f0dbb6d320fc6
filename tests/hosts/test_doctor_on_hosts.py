"""`ghn doctor` on a cluster of three hosts with faults."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml
from namespaces import GIB, hosts
from small_settings import ROOT, small_settings

pytestmark = pytest.mark.slow

GHN = str(Path(sys.executable).with_name("ghn"))


def test_each_fault_of_a_host_is_one_line_with_its_address_and_no_run_is_begun(tmp_path: Path) -> None:
    settings = small_settings(storage="/tmp/storage", workers={"number": 4})  # each host has its own
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "dvc.yaml").touch()
    package = tmp_path / "site/pyarrow-9.9.9.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: pyarrow\nVersion: 9.9.9\n")
    with hosts(3, tmp_path, disk={2: GIB}) as (head, second, third):
        second.environment |= {"PYTHONPATH": f"/mnt/site:{ROOT}", **second.clock_ahead(3600)}
        for host in (head, second, third):
            host.start_ray(head, gpus=1 if host is third else 0)
        head.environment |= {
            "RAY_ADDRESS": f"{head.address}:6379",
            "MLFLOW_TRACKING_URI": f"http://{third.address}:5000",
        }
        refusal = head.run(sys.executable, str(ROOT / "pipeline/submit.py"), "--repository=/mnt", fails=True)
        lines = head.run(GHN, "doctor", fails=True).splitlines()

    assert "storage = '/tmp/storage' is a folder: " in refusal and "does not see what" in refusal
    assert len(refusal.strip().splitlines()) == 2

    wrong = [line.removeprefix("WRONG  ") for line in lines if line.startswith("WRONG")]
    starts = [
        f"versions: {second.address} has pyarrow 9.9.9, the head ",
        *(f"storage: {host.address} does not see what " for host in (head, second, third)),
        f"clocks: the clock of {second.address} is 3600 s ahead",
        f"disks: {third.address} has ",
        f"GPUs: {third.address}: Ray counts 1 GPUs, PyTorch can use 0",
        "workers: 4 workers of 1 CPUs and 0 GPUs are set, and 3 nodes have room for 3",
        f"MLflow: MLflow cannot use its store (MLFLOW_TRACKING_URI) http://{third.address}:5000",
        "git: ",
    ]
    assert len(wrong) == len(starts), wrong
    assert [(line, start) for line, start in zip(wrong, starts, strict=True) if not line.startswith(start)] == []
    assert [line.split()[1] for line in lines if line.startswith("  ok")] == ["memory"]
