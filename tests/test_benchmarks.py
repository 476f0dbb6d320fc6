"""The benchmarks as users run them, made small: they end with a line of JSON, which can be recorded for the README."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_settings import ROOT

from ghn import GHN, GHNConfig

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
def test_ghn3_is_timed_too() -> None:
    command = [sys.executable, str(ROOT / "benchmarks/hypernetwork.py"), *["--variant", "ghn3_t", "--meta-batch", "1"]]
    done = subprocess.run([*command, "--repeats", "1", "--largest", "300"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["nodes"] > 0 and result["growth"][-1]["nodes"] >= 300 and "node_by_node_ratio" not in result


@pytest.mark.slow
def test_ranks_of_predicted_weights_lie_between_one_and_the_highest(tmp_path: Path) -> None:
    torch.manual_seed(0)
    GHN(GHNConfig(num_classes=10, image_size=14, hidden=8, decoder="low_rank")).save(tmp_path / "low_rank")
    command = [sys.executable, str(ROOT / "benchmarks/effective_rank.py"), str(tmp_path / "low_rank")]
    done = subprocess.run([*command, "--architectures", "2"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result) == {str(tmp_path / "low_rank"), "random"}
    for split in ("test", "wide"):
        low, random = (found[split]["share"] for found in result.values())
        assert 0 < low < random < 1


def test_the_effective_rank_is_the_number_of_equal_singular_values() -> None:
    sys.path.append(str(ROOT / "benchmarks"))
    from effective_rank import effective_rank

    basis = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0)))[0]
    for rank in (1, 5, 16):
        weight = basis[:, :rank] @ basis[:rank]
        assert effective_rank(weight.view(16, 4, 2, 2)) == pytest.approx(rank, rel=1e-4)
    assert effective_rank(torch.zeros(8, 8)) == 0


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
