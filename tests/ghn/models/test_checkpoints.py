from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from examples import CONFIG, sample, tiny_ghn
from hypothesis import given
from hypothesis import strategies as st

from ghn import GHN
from ghn.models.checkpoints import CheckpointError

VARIANTS = ("ghn2", "ghn1", "mlp")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_ghn().save(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def assert_refused(load, path: Path, named: Path, message: str = "") -> None:
    with pytest.raises(CheckpointError) as error:
        load(path)
    assert str(named) in str(error.value)
    assert re.search(message, str(error.value))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_checkpoint_is_read_as_it_was_written(tmp_path: Path, variant: str) -> None:
    ghn = tiny_ghn(variant)
    ghn.save(tmp_path / "runs" / "checkpoint")
    again = GHN.from_pretrained(tmp_path / "runs" / "checkpoint")
    assert again.config == ghn.config and not again.training
    assert all(torch.equal(again.state_dict()[name], weight) for name, weight in ghn.state_dict().items())
    (first,), (second,) = (g.predict_parameters([sample("train", 0)]) for g in (ghn, again))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_checkpoint_replaces_the_one_before_it(folder: Path) -> None:
    tiny_ghn("mlp").save(folder)
    assert GHN.from_pretrained(folder).config.variant == "mlp"
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]


def test_an_interrupted_save_leaves_the_checkpoint_before_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ghn.models.checkpoints.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tiny_ghn("mlp").save(folder)
    assert GHN.from_pretrained(folder).config == CONFIG
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]


def test_a_save_interrupted_at_the_last_moment_leaves_the_checkpoint_before_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        if path.name == "checkpoint" and target == folder:  # not when the one before gets its name back
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tiny_ghn("mlp").save(folder)
    assert GHN.from_pretrained(folder).config == CONFIG
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]


def test_a_folder_with_something_else_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match=r"holds thesis\.txt"):
        tiny_ghn().save(tmp_path)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        tiny_ghn().save(tmp_path / "thesis.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused_with_its_name(folder: Path, name: str, share: float) -> None:
    file = folder / name
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    assert_refused(GHN.from_pretrained, folder, file)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_missing_file_is_refused_with_its_name(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert_refused(GHN.from_pretrained, folder, folder / name, "not found")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@given(garbage=st.binary(max_size=64))
def test_garbage_is_refused_with_its_name(name: str, garbage: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("garbage")
    tiny_ghn().save(folder)
    (folder / name).write_bytes(garbage)
    assert_refused(GHN.from_pretrained, folder, folder / name)


@pytest.mark.parametrize(
    "change",
    [{"hidden": 12}, {"hidden": 8.0}, {"num_classes": "3"}, {"kernel": 1.5}, {"variant": None}, {"depth": 2}],
)
def test_an_impossible_configuration_is_refused_with_its_name(folder: Path, change: dict) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**CONFIG.to_dict(), **change}))
    assert_refused(GHN.from_pretrained, folder, file)


@pytest.mark.parametrize("change", [{"hidden": 16}, {"num_classes": 4}, {"kernel": 5}, {"variant": "ghn1"}])
def test_weights_of_another_shape_are_refused_with_their_file(folder: Path, change: dict) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG.to_dict(), **change}))
    assert_refused(GHN.from_pretrained, folder, folder / "model.safetensors", "does not fit")
