from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from small_settings import ROOT, preset_settings

from ghn.models.config import GHN3_SIZES, GHNConfig
from pipeline.commands.preset import apply_preset
from pipeline.errors import UserError
from pipeline.params import load_params

PARAMS = Path("params.yaml")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copy the project's settings and presets to an empty folder, the working directory."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "params", tmp_path / "params")
    monkeypatch.chdir(tmp_path)


def comments(text: str) -> list[str]:
    return [line.partition("#")[2] for line in text.splitlines()]


def keys(text: str) -> list[str]:
    return [line.partition("#")[0].partition(":")[0] for line in text.splitlines()]


NAMES = ("cifar10", "families", "fashion_mnist", "fashion_mnist_hour", "imagenet", "study", "text", "transfer")


@pytest.mark.parametrize("name", [*NAMES, *GHN3_SIZES])
def test_a_preset_changes_values_and_neither_comments_nor_the_order_of_keys(name: str) -> None:
    before = PARAMS.read_text()
    apply_preset(name, PARAMS)
    after = PARAMS.read_text()
    assert load_params(PARAMS).model_dump() == preset_settings(name)
    assert keys(after) == keys(before)
    assert comments(after) == comments(before)


@pytest.mark.parametrize("name", GHN3_SIZES)
def test_a_ghn3_has_its_published_size(name: str) -> None:
    apply_preset(name, PARAMS)
    settings = load_params(PARAMS)
    config = settings.hypernetwork.model_copy(update={"kernel": 16, "dirac": None}).config(1000, 224)
    assert config == GHNConfig(1000, 224, "ghn3", kernel=16, **GHN3_SIZES[name])


def test_one_size_after_another_is_that_size() -> None:
    for name in ("ghn3_xl", "ghn3_t"):
        apply_preset(name, PARAMS)
    settings = load_params(PARAMS).hypernetwork
    assert (settings.layers, settings.heads, settings.hidden, settings.channels) == (3, 8, 64, 64)


def test_lines_that_a_preset_does_not_name_stay_as_they_are() -> None:
    Path("one.yaml").write_text("train:\n  architecture_clip: null\n  widths: [8]\n")
    before = PARAMS.read_text().splitlines()
    apply_preset("one.yaml", PARAMS)
    changed = [line for old, line in zip(before, PARAMS.read_text().splitlines(), strict=True) if old != line]
    assert [line.partition("#")[0].strip() for line in changed] == ["architecture_clip: null", "widths: [8]"]


def test_values_of_the_user_that_a_preset_does_not_name_are_kept() -> None:
    PARAMS.write_text(PARAMS.read_text().replace("storage: storage", "storage: s3://bucket/mine"))
    apply_preset("imagenet", PARAMS)
    assert load_params(PARAMS).storage == "s3://bucket/mine"


def test_what_changed_is_printed_and_a_second_time_nothing_does(capsys: pytest.CaptureFixture[str]) -> None:
    apply_preset("cifar10", PARAMS)
    assert 'train.schedule.name: "cosine" → "multi_step"' in capsys.readouterr().out
    before = PARAMS.stat().st_mtime_ns
    apply_preset("cifar10", PARAMS)
    assert capsys.readouterr().out == "params.yaml has the values of params/cifar10.yaml\n"
    assert PARAMS.stat().st_mtime_ns == before


def test_an_imported_split_of_a_preset_takes_the_place_of_others() -> None:
    for split in ("train", "test"):
        Path("import.yaml").write_text(yaml.safe_dump({"generate": {"imported": {split: "a/manifest.json"}}}))
        apply_preset("import.yaml", PARAMS)
    assert load_params(PARAMS).generate.imported == {"test": "a/manifest.json"}


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("meta_batch: 0\n", "meta_batch = 0"),
        ("meta_bach: 2\n", "did you mean meta_batch?"),
        ("train:\n  step: 2\n", "did you mean steps?"),
        ("train: 2\n", "train = 2"),
        ("train:\n  workers: 2\n", "train.workers is now workers.number"),
        ("generate:\n  val: 1\n", "train.validation.architectures = 32: must be at most generate.val = 1"),
        ("a list\n", "holds no settings"),
    ],
)
def test_a_preset_that_is_not_possible_is_refused_and_changes_nothing(preset: str, expected: str) -> None:
    Path("bad.yaml").write_text(preset)
    before = PARAMS.read_text()
    with pytest.raises(UserError) as caught:
        apply_preset("bad.yaml", PARAMS)
    assert expected in str(caught.value)
    assert "bad.yaml" in str(caught.value)
    assert PARAMS.read_text() == before


def test_a_settings_file_that_is_not_valid_is_refused_before_it_is_changed() -> None:
    PARAMS.write_text(PARAMS.read_text().replace("meta_batch: 4", "meta_batch: 0"))
    with pytest.raises(UserError, match=r"meta_batch = 0 in params\.yaml"):
        apply_preset("cifar10", PARAMS)


def test_a_name_that_no_preset_has_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        UserError,
        match=r"no preset cifar100: .*cifar10, families, .*, ghn3_l, .*, study, text, transfer",
    ):
        apply_preset("cifar100", PARAMS)


def test_the_command_writes_a_preset() -> None:
    ghn = Path(sys.executable).with_name("ghn")
    done = subprocess.run([ghn, "preset", "fashion_mnist"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert load_params(PARAMS).dataset == "fashion_mnist"
