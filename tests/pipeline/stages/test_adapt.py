"""Stage adapt: a small hypernetwork learns from images of other classes than it was trained for."""

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
from pipeline.stages.adapt import adapt
from pipeline.training.adaptation_tables import ADAPTED, ALONE, SCRATCH

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_on_this_machine")]

SETTINGS = {
    "datasets": ["faces"],
    "images_per_class": [4, 1000],
    "all_images": True,
    "seeds": 2,
    "architectures": 2,
    "steps": 12,
    "batch": 16,
    "validate_every": 4,
    "learning_rates": [0.003, 0.01],
    "learning_rate_limits": [0.003, 0.01],
    "tuning_architectures": 2,
    "alone_steps": 4,
}


@pytest.fixture
def params(small_project: Callable[..., Params]) -> Params:
    """Return settings of a project with a checkpoint for ten classes; faces have two."""
    settings = small_project(adapt=SETTINGS, train={"architectures": None})
    store_splits({"train": ARCHITECTURES, "val": ARCHITECTURES[:2], "test": ARCHITECTURES[:2]})
    make_ghn(0).save(CHECKPOINT)
    return settings


def test_it_compares_starts_on_the_same_networks_and_images(params: Params) -> None:
    adapt(params)
    scores = pd.read_parquet("results/adapt/networks.parquet")
    summary = pd.read_csv("results/adapt/summary.csv")
    numbers = [4, summary["images_per_class"].max()]
    assert set(summary["images_per_class"]) == set(numbers)  # 1,000 of a class are too many, all are 40 to 100
    for _, own in summary.groupby("is_all"):
        assert own["start"].tolist() == [ADAPTED, SCRATCH, ALONE]
    keys = ["images_per_class", "start", "seed", "architecture"]
    assert len(scores) == len(scores.drop_duplicates(keys)) == 2 * 3 * 2 * 2
    mean = scores.groupby(["images_per_class", "start"])["test_top1"].mean()
    for row in summary.itertuples():
        assert row.test_top1 == pytest.approx(mean[row.images_per_class, row.start])
    rates = pd.read_csv("results/adapt/learning_rates.csv")
    assert rates.groupby(["images_per_class", "start"])["is_chosen"].sum().tolist() == [1] * 4
    metrics = json.loads(Path("results/adapt/metrics.json").read_text())
    assert set(metrics["faces"]["4_images"]) == {"adapted_top1", "scratch_top1", "alone_top1"}


def test_an_interrupted_stage_trains_nothing_twice(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.stages.adapt.clear_task_cache", lambda folder: None)
    adapt(params)
    whole = pd.read_parquet("results/adapt/networks.parquet")
    kept = {file: file.stat().st_mtime_ns for file in finished_tasks(Path("storage/adaptation"))}
    for lost in sorted(kept)[::3]:
        lost.unlink()
        del kept[lost]
    adapt(params)
    pd.testing.assert_frame_equal(pd.read_parquet("results/adapt/networks.parquet"), whole)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept


def test_more_networks_than_stored_are_refused(params: Params) -> None:
    changed = params.model_copy(update={"adapt": params.adapt.model_copy(update={"architectures": 3})})
    with pytest.raises(UserError, match=r"adapt.architectures = 3: must be at most 2"):
        adapt(changed)
