"""Stage condition: one small hypernetwork for two data sets, told which by a few images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from evaluation_examples import ARCHITECTURES, store_splits
from training_runs import finished_tasks

from pipeline.errors import UserError
from pipeline.params import Params
from pipeline.stages.condition import condition

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_on_this_machine")]

SETTINGS = {
    "datasets": ["digits", "faces"],
    "unseen": ["mnist_5k"],
    "images_per_class": 4,
    "seeds": 1,
    "architectures": 2,
    "tuning_architectures": 2,
    "steps": 3,
    "batch": 16,
    "validate_every": 2,
}


@pytest.fixture
def project(small_project: Callable[..., Params]) -> Callable[..., Params]:
    """Return a function from changes to the settings of a project with architectures."""
    store_splits({"train": ARCHITECTURES, "val": ARCHITECTURES[:2], "test": ARCHITECTURES[:2]})
    return lambda **changes: small_project(condition=SETTINGS | changes, train={"architectures": None})


def test_one_for_all_is_compared_with_one_for_each_and_measured_on_others(
    project: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.stages.condition.clear_task_cache", lambda folder: None)
    condition(project())
    scores = pd.read_parquet("results/condition/networks.parquet")
    assert len(scores) == (3 + 1 + 1) * 2  # data sets of each hypernetwork, networks
    assert not scores[scores["dataset"] == "mnist_5k"]["is_learned"].any()
    summary = pd.read_csv("results/condition/summary.csv").set_index("dataset")
    assert summary["is_learned"].tolist() == [True, True, False]
    assert summary["classes"].tolist() == [10, 2, 10]
    assert summary["single_top1"].notna().tolist() == [True, True, False]
    for dataset, own in scores[scores["hypernetwork"] == "together"].groupby("dataset"):
        assert summary.loc[dataset, "together_top1"] == pytest.approx(own["test_top1"].mean())
    assert set(json.loads(Path("results/condition/metrics.json").read_text())) == {
        *(f"{name}_together_top1" for name in ("digits", "faces", "mnist_5k")),
        *(f"{name}_single_top1" for name in ("digits", "faces")),
    }

    kept = {file: file.stat().st_mtime_ns for file in finished_tasks(Path("storage/conditioning"))}
    assert len(kept) == 3
    lost = min(kept)
    lost.unlink()
    del kept[lost]
    condition(project())
    pd.testing.assert_frame_equal(pd.read_parquet("results/condition/networks.parquet"), scores)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept


def test_more_networks_than_stored_are_refused(project: Callable[..., Params]) -> None:
    params = project()
    changed = params.model_copy(update={"condition": params.condition.model_copy(update={"architectures": 3})})
    with pytest.raises(UserError, match=r"condition.architectures = 3: must be at most 2"):
        condition(changed)
