"""The pipeline as users run it: DVC in a clone of the repository, with settings so small that it takes a minute."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pytest
from ray_for_processes import ray_for_processes
from repository_copy import copy_repository
from small_settings import ROOT

if TYPE_CHECKING:
    from flaky_bucket import FlakyBucket

pytestmark = pytest.mark.slow

NOT_PASSED_ON = ("MLFLOW_TRACKING_URI", "PYTHONDONTWRITEBYTECODE")
README = (ROOT / "README.md").read_text()
STAGES = [
    "check",
    "generate",
    "describe",
    "train",
    "sgd",
    "evaluate",
    "copies",
    "finetune",
    "adapt",
    "condition",
    "detect",
    "properties",
    "study@mlp-0",
    "compare",
    "report",
]

AFTER_TRAINING = ["evaluate", "copies", "finetune", "adapt", "condition", "detect", "properties", "compare", "report"]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield a folder with the files of the repository, committed there with small settings and run once."""
    folder = tmp_path_factory.mktemp("clone")
    copy_repository(folder)
    with ray_for_processes(folder) as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", address)
        output = run(folder, "dvc", "repro")
        assert stages_run(output) == sorted(STAGES)
        save(folder, "run")
        yield folder


def run(folder: Path, *command: str, fails: bool = False) -> str:
    scripts = str(Path(sys.executable).parent)
    environment = {name: value for name, value in os.environ.items() if name not in NOT_PASSED_ON}
    environment |= {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stdout + done.stderr


def stages_run(output: str) -> list[str]:
    """Return the stages that DVC ran, sorted: their order is a matter of DVC's."""
    return sorted(re.findall(r"Running stage '([\w@-]+)'", output))


def save(folder: Path, message: str) -> None:
    run(folder, "git", "add", "--all")
    run(folder, "git", "commit", "--quiet", "--message", message)


@pytest.fixture
def workspace(clone: Path) -> Iterator[Path]:
    """Yield the clone; take it back to its last commit after the test, and to the results that belong to it."""
    yield clone
    run(clone, "git", "checkout", "--quiet", "--", ".")
    run(clone, "dvc", "checkout", "--quiet", "--force")


def test_every_stage_leaves_its_results(clone: Path) -> None:
    results = clone / "results"
    evaluated = pd.read_csv(results / "evaluate/summary.csv")
    assert list(evaluated["split"]) == ["test", "wide", "deep", "dense", "bn_free", "predefined"]
    assert evaluated["predicted_top1"].between(0, 1).all()
    assert len(pd.read_csv(results / "train/history.csv")) == 6
    for stage in (*STAGES[3:12], "study/mlp-0", "compare"):
        json.loads((results / stage / "metrics.json").read_text())
    assert "Beside the published set" in (results / "generate/report/index.html").read_text()
    page = (results / "report/index.html").read_text()
    assert "digits" in page
    for plot in ("accuracy", "training", "finetuning"):
        assert (results / f"report/{plot}.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_run_has_nothing_to_do_and_says_so_at_once(clone: Path) -> None:
    started = time.monotonic()
    output = run(clone, "dvc", "repro")
    assert time.monotonic() - started < 10
    assert "Running stage" not in output
    assert "up to date" in output


def test_an_experiment_repeats_only_what_depends_on_it_and_is_listed_with_its_metrics(workspace: Path) -> None:
    manifest = (workspace / "results/generate/manifest.json").read_bytes()
    before = json.loads((workspace / "results/train/metrics.json").read_text())
    output = run(workspace, "dvc", "exp", "run", "--name", "smaller", "-S", "meta_batch=2", "train")
    assert stages_run(output) == ["check", "train"]
    following = {*AFTER_TRAINING, "study@mlp-0"} - {"compare"}
    assert set(stages_run(run(workspace, "dvc", "repro", "--dry"))) == following
    assert (workspace / "results/generate/manifest.json").read_bytes() == manifest

    table = pd.read_csv(pd.io.common.StringIO(run(workspace, "dvc", "exp", "show", "--csv"))).set_index("Experiment")
    losses = table["results/train/metrics.json:loss"] if "results/train/metrics.json:loss" in table else table["loss"]
    assert losses["smaller"] != pytest.approx(before["loss"])
    rows = table[table["meta_batch"] == 3]
    assert losses[rows.index].notna().any()


def test_another_way_to_run_training_trains_nothing_again(workspace: Path) -> None:
    """Only the check runs, because it checks every setting; no output changes."""
    before = state(workspace / "results")
    changes = ("workers.number=2", "workers.cpus=2", "workers.checkpoint_every=1", "cluster.cpus=3")
    output = run(workspace, "dvc", "exp", "run", *(part for change in changes for part in ("-S", change)))
    assert stages_run(output) == ["check"]
    assert state(workspace / "results") == before


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("pipeline/reporting/templates/page.html.jinja", ["describe", "report"]),
        ("pipeline/reporting/plots.py", ["describe", "report"]),
        ("ghn/tracing/trace.py", ["detect"]),
        ("pipeline/params/measuring.py", ["check"]),
        ("pipeline/tracking/mlflow_runs.py", []),
        ("pipeline/stages/train.py", ["train"]),
        ("pipeline/stages/finetune.py", ["finetune"]),
        ("pipeline/evaluation/sgd.py", ["sgd", *AFTER_TRAINING]),
        ("pipeline/evaluation/summaries.py", AFTER_TRAINING),
        ("pipeline/training/pace.py", ["train", "adapt", "condition", "study@mlp-0", "report"]),
    ],
)
def test_a_change_of_code_runs_the_stages_that_read_it(workspace: Path, file: str, expected: list[str]) -> None:
    """A dry run does not know whether their outputs will change, and with them the stages that follow."""
    path = workspace / file
    comment = "{# another comment #}\n" if path.suffix == ".jinja" else "\n# Another comment.\n"
    path.write_text(path.read_text() + comment)
    assert stages_run(run(workspace, "dvc", "repro", "--dry")) == sorted(expected)


def test_the_python_examples_of_the_readme_run(clone: Path) -> None:
    examples = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert len(examples) == 4
    for example in examples:
        run(clone, sys.executable, "-c", example.replace(".read(1234)", ".read(7)"))  # the small split has 12 rows


def test_the_commands_of_the_readme_for_any_network_run(clone: Path, tmp_path: Path) -> None:
    """ResNet-18 takes the place of ResNet-50, and golden files that of published ones."""
    (tmp_path / "results").symlink_to(clone / "results")
    for golden, published in (
        ("ghn2.pt", "ghn2_cifar10.pt"),
        ("ghn3.pt", "ghn3tm8.pt"),
        ("deepnets1m_train.hdf5", "deepnets1m_train.hdf5"),
        ("deepnets1m_train_meta.json", "deepnets1m_train_meta.json"),
    ):
        shutil.copy(ROOT / "tests/golden" / golden, tmp_path / published)
    section = README.partition("## Any network\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    commands = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    names = [name for _, name, *_ in commands]
    imports = ["import-ghn", "import-ghn", "predict", "graph", "export-ghn", "import-deepnets"]
    assert names == ["list", "predict", "graph", *imports, "predict", "adapt"]
    commands[-1] += ["--steps", "2"]
    outputs = [run(tmp_path, *(word.replace("resnet50", "resnet18") for word in command)) for command in commands]
    assert "resnet50" in outputs[0].split()
    assert "top-1 on the 1000 test images of mnist_5k" in outputs[1]
    files = ("resnet18.safetensors", "docs/resnet18.svg", "gpt.svg", "checkpoint/model.safetensors", "ghn.pt")
    for file in (*files, "gpt2/model.safetensors.index.json", "adapted/model.safetensors"):
        assert (tmp_path / file).stat().st_size > 0, file
    (manifest,) = tmp_path.glob("storage/architectures/train/imported-*/manifest.json")
    assert json.loads(manifest.read_text())["splits"]["train"]["rows"] > 0


def test_dvc_renders_the_history_of_training(clone: Path) -> None:
    plots = json.loads(run(clone, "dvc", "plots", "show", "--json"))["data"]
    points = {name: plot[0]["content"]["data"]["values"] for name, plot in plots.items()}
    assert set(points) == {"Loss", "Top-1 accuracy", "Validation"}
    assert all(len(values) == 6 for values in points.values())
    assert [float(row["val_top1"]) >= 0 for row in points["Validation"] if row["val_top1"]] == [True, True]


def test_a_bucket_holds_what_a_folder_does_and_a_second_run_has_nothing_to_do(
    workspace: Path, flaky_bucket: FlakyBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS")  # each machine of a cluster has its own right to the bucket
    manifest = (workspace / "results/generate/manifest.json").read_bytes()
    output = run(workspace, "dvc", "exp", "run", "-S", f"storage={flaky_bucket.url}", "generate")
    assert stages_run(output) == ["check", "generate"]
    assert (workspace / "results/generate/manifest.json").read_bytes() == manifest
    written = {line for line in flaky_bucket.requests if re.fullmatch(r"PUT .*/\w+/\d+-\d+\.parquet", line)}
    assert len(written) == sum(len(split["shards"]) for split in json.loads(manifest)["splits"].values())
    flaky_bucket.requests.clear()
    assert "Running stage" not in run(workspace, "dvc", "repro", "generate")
    assert flaky_bucket.requests == []


@pytest.mark.parametrize(
    ("setting", "expected"),
    [("meta_batch=0", "meta_batch = 0"), ("dataset=nope", "nope"), ("+meta_bach=2", "did you mean meta_batch?")],
)
def test_a_bad_setting_stops_an_experiment_before_any_work(workspace: Path, setting: str, expected: str) -> None:
    results = state(workspace / "results")
    output = run(workspace, "dvc", "exp", "run", "-S", setting, fails=True)
    lines = output[output.index("error: ") :].splitlines()
    message = lines[: next(number for number, line in enumerate(lines) if line.startswith("ERROR"))]
    assert expected in message[0]
    assert len("\n".join(message).strip().splitlines()) <= 3
    assert stages_run(output) == ["check"]
    assert state(workspace / "results") == results


def test_a_key_that_dvc_does_not_know_is_refused(workspace: Path) -> None:
    output = run(workspace, "dvc", "exp", "run", "-S", "meta_bach=2", fails=True)
    assert "meta_bach" in output
    assert stages_run(output) == []


def state(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return size and time of change of all files, but for those of the check."""
    statuses = {path: path.stat() for path in folder.rglob("*") if path.is_file() and "check" not in path.parts}
    return {path: (status.st_size, status.st_mtime_ns) for path, status in statuses.items()}
