"""The benchmarks as users run them, made small: they end with a line of JSON, which can be recorded for the README."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_settings import ROOT

COMMANDS = {
    "copies": ("--sources 2 --epochs 1", {"itself", "one primitive", "nearest other source", "random parameters"}),
    "depthwise": ("--channels 2 --image-size 4 --batch 2 --repeats 1", {"ratio", "seconds"}),
    "generate": ("--count 200 --workers 1 --shard-rows 100 --compiled 5", {"architectures_per_second", "bytes"}),
    "hypernetwork": ("--meta-batch 1 --repeats 1 --largest 300", {"forward_seconds", "node_by_node_ratio", "growth"}),
    "predict": ("resnet18 --repeats 1", {"seconds", "forward_passes"}),
    "sgd_scaling": ("--networks 2 --repeats 1", {"workers", "sgd", "evaluate"}),
    "similarity": (
        "--embeddings 2000 --architectures 10000 --queries 10 --graphs 5",
        {"search", "kernel_seconds", "kernel_cpu_ms", "compiled_ratio"},
    ),
    "train_step": ("--meta-batch 2 --batch 2 --image-size 8 --architectures 2", {"step_seconds", "plain_loop_seconds"}),
    "training_costs": ("--architectures 8 --batch 2", {"32", "14"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_it_ends_with_its_result_as_json_and_records_it(name: str, tmp_path: Path) -> None:
    options, keys = COMMANDS[name]
    command = [sys.executable, str(ROOT / f"benchmarks/{name}.py"), *options.split(), "--record", str(tmp_path / name)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert keys <= result.keys()
    record = json.loads((tmp_path / f"{name}.json").read_text())
    assert record["result"] == result
    assert record["command"] == f"python benchmarks/{name}.py {options}"
    assert record["machine"] in done.stdout


@pytest.mark.slow
def test_what_is_measured_on_a_gpu_runs_small_anywhere() -> None:
    command = ["sh", str(ROOT / "benchmarks/gpu.sh"), "--small"]
    environment = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert max(result["differences"].values()) < 1e-3
    assert set(result["architectures_per_second"]) == {"1", "2"}
    phases = ("hypernetwork_forward", "target_forward", "target_backward", "hypernetwork_backward")
    for step in (result["step"], result["large_step"]):
        assert 0 < sum(step[name] for name in phases) < 1.5 * step["step_seconds"]


def test_the_table_of_the_readme_is_made_from_what_was_recorded() -> None:
    command = [sys.executable, str(ROOT / "benchmarks/readme_table.py")]
    table = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert table.strip() in (ROOT / "README.md").read_text()
    assert table.count("| `") == len(list((ROOT / "benchmarks/results").glob("*.json"))) > 0
