from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from ghn import GHN, GHNConfig
from pipeline.cluster.cached_tasks import keep_result, read_task_cache, task_cache_folder
from pipeline.errors import UserError
from pipeline.evaluation.checkpoint import trained_ghn
from pipeline.storage.tables import write_json

CONFIG = GHNConfig(num_classes=10, image_size=8, hidden=8, kernel=3)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    GHN(CONFIG).save(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_what_is_finished_is_found_again_by_name(tmp_path: Path) -> None:
    folder = task_cache_folder(str(tmp_path), "evaluations", {"batch": 64})
    assert read_task_cache(folder) == {}
    keep_result(folder, "first", [1, 0.5, None])
    keep_result(folder, "second", {"a": "b"})
    assert read_task_cache(folder) == {"first": [1, 0.5, None], "second": {"a": "b"}}


def test_other_settings_find_other_results(tmp_path: Path) -> None:
    keep_result(task_cache_folder(str(tmp_path), "evaluations", {"batch": 64}), "a", 1)
    assert read_task_cache(task_cache_folder(str(tmp_path), "evaluations", {"batch": 32})) == {}
    assert read_task_cache(task_cache_folder(str(tmp_path), "finetuning", {"batch": 64})) == {}


def test_what_is_finished_is_found_again_in_a_bucket(bucket: str) -> None:
    folder = task_cache_folder(bucket, "evaluations", "settings")
    assert folder.startswith("s3://bucket/prefix/evaluations/")
    assert read_task_cache(folder) == {}
    keep_result(folder, "a", [1])
    keep_result(folder, "b", [2])
    assert read_task_cache(folder) == {"a": [1], "b": [2]}


def test_a_damaged_result_counts_as_not_finished(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("whole", "cut", "flipped", "unrecorded"):
        keep_result(str(tmp_path), name, [1])
    (tmp_path / "cut.json").write_text("[")
    (tmp_path / "flipped.json").write_text("[\n 3\n]")
    (tmp_path / "records" / "unrecorded.json.json").unlink()
    assert read_task_cache(str(tmp_path)) == {"whole": [1]}
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}/flipped.json is damaged: it is made again"
    ]


def test_a_result_of_another_task_is_not_taken_even_with_its_record(tmp_path: Path) -> None:
    keep_result(str(tmp_path), "a", [1])
    for folder, suffix in ((tmp_path, ".json"), (tmp_path / "records", ".json.json")):
        (folder / f"a{suffix}").rename(folder / f"b{suffix}")
    assert read_task_cache(str(tmp_path)) == {}


def test_numbers_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_json(tmp_path / "metrics.json", {"top1": math.nan})
    assert not list(tmp_path.iterdir())


def test_a_relative_storage_is_meant_from_the_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / ".dvc" / "tmp" / "exps" / "abc"
    copy.mkdir(parents=True)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(copy)
    assert task_cache_folder("storage", "evaluations", 1).startswith(f"{tmp_path}/storage/evaluations/")


def test_two_checkpoints_have_two_digests(checkpoint: Path) -> None:
    ghn, digest = trained_ghn(checkpoint)
    assert not ghn.training and ghn.config == CONFIG
    assert trained_ghn(checkpoint)[1] == digest
    torch.manual_seed(1)
    GHN(CONFIG).save(checkpoint)
    assert trained_ghn(checkpoint)[1] != digest


def test_a_missing_checkpoint_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing not found: stage train"):
        trained_ghn(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("damage", ["cut", "noise", "missing"])
def test_a_damaged_checkpoint_is_refused_with_the_name_of_the_file(checkpoint: Path, name: str, damage: str) -> None:
    file = checkpoint / name
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        noise = np.random.default_rng(0).integers(0, 256, 500, dtype=np.uint8).tobytes()
        file.write_bytes(content[: len(content) // 2] if damage == "cut" else noise)
    with pytest.raises(UserError) as error:
        trained_ghn(checkpoint)
    assert str(file) in str(error.value)
    assert len(str(error.value).splitlines()) <= 3
