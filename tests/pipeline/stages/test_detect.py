"""Stage detect: detectors on a ResNet and on a stored architecture, from each initialisation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from evaluation_examples import ARCHITECTURES, make_ghn, store_splits
from training_runs import finished_tasks

from pipeline.errors import UserError
from pipeline.params import Params
from pipeline.results import CHECKPOINT
from pipeline.stages.detect import detect

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_on_this_machine")]

INITIALISATIONS = ["predicted", "random", "predicted_orthogonal"]


@pytest.fixture
def project(small_project: Callable[..., Params], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable:
    """Return a function from changes to the settings of a project with a checkpoint, and none of torchvision."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "none"))
    store_splits({"test": ARCHITECTURES[:1]})
    make_ghn(0).save(CHECKPOINT)
    return lambda **changes: small_project(detect=changes)


def test_it_compares_initialisations_of_each_backbone(project: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.stages.detect.clear_task_cache", lambda folder: None)
    params = project(backbones=["resnet18", "test/0"], epochs=2, seeds=2, learning_rates=[0.01, 0.02])
    detect(params)
    curves = pd.read_parquet("results/detect/curves.parquet")
    assert len(curves) == 2 * 3 * 2 * 2  # backbones, initialisations, seeds, epochs
    summary = pd.read_csv("results/detect/summary.csv")
    assert summary["initialisation"].tolist() == INITIALISATIONS * 2
    assert summary["early_difference"].notna().tolist() == [True, False, True] * 2
    rates = pd.read_csv("results/detect/learning_rates.csv")
    assert rates.groupby(["backbone", "initialisation"])["is_chosen"].sum().tolist() == [1] * 6
    shown = json.loads(Path("results/detect/shown.json").read_text())
    assert len(shown["scenes"]) == 2
    assert set(json.loads(Path("results/detect/metrics.json").read_text())) >= {
        "resnet18_predicted_ap50",
        "test_0_random_ap",
    }

    kept = {file: file.stat().st_mtime_ns for file in finished_tasks(Path("storage/detection"))}
    for lost in sorted(kept)[::3]:
        lost.unlink()
        del kept[lost]
    detect(params)
    pd.testing.assert_frame_equal(pd.read_parquet("results/detect/curves.parquet"), curves)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept


def test_an_architecture_that_is_not_stored_is_refused(project: Callable) -> None:
    with pytest.raises(UserError, match=r"detect.backbones has test/1: split test has 1 architectures"):
        detect(project(backbones=["test/1"]))
