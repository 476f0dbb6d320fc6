"""What users type, and what they read when it is wrong: each a process of its own, where that takes no seconds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from evaluation_examples import ARCHITECTURES, make_ghn, store_splits
from small_settings import small_settings
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.params import Params

STAGES = (
    "check",
    "generate",
    "describe",
    "train",
    "sgd",
    "evaluate",
    "copies",
    "finetune",
    "properties",
    "study",
    "compare",
    "report",
)


def ghn(*arguments: str) -> tuple[int, str]:
    """Exit status and what was printed on the standard error."""
    command = [Path(sys.executable).with_name("ghn"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stderr.strip()


def ghn_in_this_process(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, arguments)
    return done.exit_code, done.stderr.strip()


def assert_refused(*arguments: str, names: tuple[str, ...], run: Callable[..., tuple[int, str]] = ghn) -> None:
    status, message = run(*arguments)
    assert status == 1, message
    assert message.startswith("error: ")
    assert len(message.splitlines()) <= 3
    assert all(name in message for name in names), message


def test_valid_settings_are_confirmed(small_project: Callable[..., Params]) -> None:
    small_project()
    done = subprocess.run([Path(sys.executable).with_name("ghn"), "check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "params.yaml is valid"


def test_every_stage_has_a_command_that_says_what_it_does() -> None:
    done = subprocess.run([Path(sys.executable).with_name("ghn"), "--help"], capture_output=True, text=True)
    assert all(stage in done.stdout for stage in STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_impossible_settings_stop_every_stage(small_project: Callable[..., Params], stage: str) -> None:
    small_project()
    Path("params.yaml").write_text(yaml.safe_dump(small_settings(meta_batch=0)))
    arguments = {"study": ("mlp", "0")}.get(stage, ())
    assert_refused(stage, *arguments, names=("meta_batch = 0", "must be", "params.yaml"))
    assert {path.name for path in Path().iterdir()} == {"params.yaml"}


def test_a_misspelt_key_is_named_with_the_right_one(small_project: Callable[..., Params]) -> None:
    small_project()
    Path("params.yaml").write_text(yaml.safe_dump({**small_settings(), "meta_bath": 3}))
    assert_refused("train", names=("meta_bath", "did you mean meta_batch?"))


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"dataset": "nope"}, ("nope", "mnist_5k")),
        ({"dataset": "pictures"}, ("pictures/cats", "no images")),
        ({"finetune": {"datasets": ["digit"]}}, ("digit", "did you mean digits?")),
        ({"storage": "/proc/storage"}, ("storage = /proc/storage", "cannot be written")),
        ({"storage": "s4://bucket"}, ("storage = s4://bucket", "s3://bucket/prefix")),
    ],
)
def test_places_that_cannot_be_used_are_named(
    small_project: Callable[..., Params], changes: dict, names: tuple
) -> None:
    small_project()
    for name in ("cats", "dogs"):
        Path("pictures", name).mkdir(parents=True)
    settings = small_settings(**changes)
    Path("params.yaml").write_text(yaml.safe_dump(settings))
    assert_refused("check", names=names)


@pytest.mark.slow
def test_bad_inputs_of_training_are_named_and_nothing_is_written(
    ray_on_this_machine: None, small_project: Callable[..., Params]
) -> None:
    def assert_no_training(*names: str) -> None:
        assert_refused("train", names=names, run=ghn_in_this_process)

    small_project()
    assert_no_training("results/generate/manifest.json", "dvc repro generate")
    store_splits({"train": ARCHITECTURES, "val": ARCHITECTURES})

    small_project(dataset="nope")
    assert_no_training("nope", "mnist_5k")
    Path("pictures/cats").mkdir(parents=True)
    small_project(dataset="pictures")
    assert_no_training("pictures")

    small_project()
    shard = next(Path("storage/train").rglob("*.parquet"))
    shard.unlink()
    # In a process of its own, because this one has read the shard.
    assert_refused("train", names=(shard.name, "missing", "dvc repro --force generate"))
    assert not Path("results/train").exists()


@pytest.mark.slow
def test_a_truncated_checkpoint_is_named(small_project: Callable[..., Params]) -> None:
    small_project()
    store_splits(dict.fromkeys(("train", "val", "test", "wide", "deep", "dense", "bn_free"), ARCHITECTURES))
    folder = Path("results/train/checkpoint")
    make_ghn(0).save(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    for stage in ("evaluate", "finetune"):
        assert_refused(stage, names=(str(weights), "dvc repro --force train"), run=ghn_in_this_process)
        assert not Path(f"results/{stage}").exists()
