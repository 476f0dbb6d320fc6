from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml
from evaluation_examples import architecture, digits, make_ghn, store_splits
from small_settings import ROOT

from ghn import GHN
from pipeline.errors import UserError
from pipeline.evaluation.finetuning import Finetuned, train_all
from pipeline.evaluation.initialisations import INITIALISATIONS
from pipeline.evaluation.targets import Target, target_of
from pipeline.params import FinetuneSettings, load_params
from pipeline.results import CHECKPOINT
from pipeline.stages.finetune import finetune

SETTINGS = FinetuneSettings(
    datasets=["digits"],
    architectures=1,
    images_per_class=[10],
    seeds=2,
    steps=4,
    batch=16,
    learning_rates=[0.01, 0.1],
    learning_rate_limits=[0.01, 0.1],
    tuning_architectures=1,
    evaluate_every=3,
)
NETWORK = architecture("conv_3x3", "skip_connect", C=16, fc_layers=2, fc_dim=16)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return target_of(digits(tmp_path_factory.mktemp("images")), images_per_class=[10], seeds=2, seed=0)


@pytest.fixture(scope="module")
def ghn() -> GHN:
    """Return a hypernetwork for another number of classes than the target has."""
    return make_ghn(0, num_classes=7)


TWO = {name: INITIALISATIONS[name] for name in ("predicted", "random")}


def train(ghn: GHN, target: Target, folder: Path, **changes: object) -> Finetuned:
    settings = SETTINGS.model_copy(update=changes)
    return train_all([NETWORK], TWO, ghn, {"digits": target}, settings, 0, str(folder))


def test_runs_that_are_finished_are_not_trained_again(
    ray_on_this_machine: None, target: Target, ghn: GHN, tmp_path: Path
) -> None:
    few = train(ghn, target, tmp_path, seeds=1).curves
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.json")}
    assert len(kept) == 6  # two learning rates and a seed of two initialisations
    more = train(ghn, target, tmp_path, seeds=2).curves
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert len(list(tmp_path.glob("*.json"))) == 8
    pd.testing.assert_frame_equal(more[more["seed"] == 0].reset_index(drop=True), few)
    assert len(more) == 2 * 2 * 5  # initialisations, seeds, measurements

    train(ghn, target, tmp_path, seeds=1, batch=8)
    assert len(list(tmp_path.glob("*.json"))) == 14  # another budget shares nothing


def test_the_search_for_a_learning_rate_ends_inside_or_at_a_limit_and_goes_on_when_it_was_interrupted(
    ray_on_this_machine: None, target: Target, ghn: GHN, tmp_path: Path
) -> None:
    search = {"learning_rates": [0.01, 0.1], "learning_rate_limits": [0.01, 1e3], "seeds": 1, "steps": 8}
    whole = train(ghn, target, tmp_path / "whole", **search)
    rates = whole.rates
    assert rates.groupby("initialisation")["is_chosen"].sum().tolist() == [1, 1]
    for name, own in rates.groupby("initialisation"):
        accuracies = own.set_index("learning_rate")["held_out_top1"]
        curves = whole.curves[whole.curves["initialisation"] == name]
        chosen = own.loc[own["is_chosen"], "learning_rate"].item()
        assert set(curves["learning_rate"]) == {chosen}
        assert accuracies[chosen] == accuracies.max()
        inside = accuracies.index.min() < chosen < accuracies.index.max()
        assert curves["rate_is_inside"].tolist() == [inside] * len(curves)
        assert inside or chosen in (0.01, 1e3)
    assert len(rates) > 4

    train(ghn, target, tmp_path / "parts", **search | {"learning_rate_limits": [0.01, 1.0]})
    for file in list((tmp_path / "parts").glob("*.json"))[::2]:
        file.unlink()
    resumed = train(ghn, target, tmp_path / "parts", **search)
    pd.testing.assert_frame_equal(resumed.rates, rates)
    pd.testing.assert_frame_equal(resumed.curves, whole.curves)


@pytest.mark.slow
def test_the_stage_writes_curves_and_summary(
    ray_on_this_machine: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["images"]["size"] = 8
    values["evaluate"] |= {"width": 8, "head_width": 16}
    values["finetune"] |= {
        "architectures": 2,
        "seeds": 2,
        "steps": 4,
        "evaluate_every": 2,
        "images_per_class": [1, 100],
    }
    values["finetune"] |= {"learning_rates": [0.1], "tuning_architectures": 1}
    Path("params.yaml").write_text(yaml.safe_dump(values))
    params = load_params()
    networks = [NETWORK, replace(NETWORK, norm=None)]
    store_splits({"test": networks})
    make_ghn(0).save(CHECKPOINT)
    finetune(params)

    curves = pd.read_parquet("results/finetune/curves.parquet")
    cases = 3  # digits with 1 and 100 images per class, faces with 1, because it has too few images for 100
    assert len(curves) == cases * len(INITIALISATIONS) * 2 * 2 * 4  # architectures, seeds, measurements
    assert curves["test_top1"].between(0, 1).all()
    summary = pd.read_csv("results/finetune/summary.csv")
    assert summary["runs"].tolist() == [4] * cases * len(INITIALISATIONS)
    budgets = pd.read_csv("results/finetune/budgets.csv")
    assert len(budgets) == 5 * len(summary)
    assert budgets["corrected_p_value"].notna().sum() == 5 * cases * (len(INITIALISATIONS) - 1)
    assert pd.read_csv("results/finetune/learning_rates.csv")["is_chosen"].all()
    metrics = json.loads(Path("results/finetune/metrics.json").read_text())
    assert {name: set(of_images) for name, of_images in metrics.items()} == {
        "digits": {"1_images", "100_images"},
        "faces": {"1_images"},
    }

    too_many = params.model_copy(update={"finetune": params.finetune.model_copy(update={"architectures": 3})})
    with pytest.raises(UserError, match=r"finetune.architectures = 3: must be at most 2"):
        finetune(too_many)
