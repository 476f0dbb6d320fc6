from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml
from evaluation_examples import architecture, digits, make_ghn
from small_settings import ROOT

from ghn import GHN
from pipeline.architectures.shards import row, table_of, write_shard
from pipeline.architectures.store import write_manifest
from pipeline.errors import UserError
from pipeline.evaluation.finetuning import FinetuneRun, Target, chosen_rates, target_of, train_all
from pipeline.evaluation.initialisations import INITIALISATIONS
from pipeline.params import FinetuneSettings, load_params
from pipeline.results import CHECKPOINT, MANIFEST
from pipeline.stages.finetune import finetune

SETTINGS = FinetuneSettings(
    datasets=["digits"],
    architectures=1,
    images_per_class=10,
    seeds=2,
    steps=4,
    batch=16,
    learning_rates=[0.01, 0.1],
    evaluate_every=3,
)
NETWORK = architecture("conv_3x3", "skip_connect", C=16, fc_layers=2, fc_dim=16)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return target_of(digits(tmp_path_factory.mktemp("images")), images_per_class=10, seeds=2, seed=0)


@pytest.fixture(scope="module")
def ghn() -> GHN:
    """Return a hypernetwork for another number of classes than the target has."""
    return make_ghn(0, num_classes=7)


def test_the_learning_rate_is_the_best_on_average_for_each_initialisation() -> None:
    accuracies = {
        ("predicted", 0.01): (0.5, 0.9),
        ("predicted", 0.1): (0.6, 0.7),
        ("random", 0.01): (0.1, 0.1),
    }
    accuracies[("random", 0.1)] = (0.2, 0.1)
    held_out = {
        FinetuneRun("digits", architecture, initialisation, rate, 0): value
        for (initialisation, rate), values in accuracies.items()
        for architecture, value in enumerate(values)
    }
    assert chosen_rates(held_out) == {("digits", "predicted"): 0.01, ("digits", "random"): 0.1}
    tie = {FinetuneRun("digits", 0, "random", rate, 0): 0.5 for rate in (0.1, 0.01)}
    assert chosen_rates(tie) == {("digits", "random"): 0.01}


def test_runs_that_are_finished_are_not_trained_again(
    ray_on_this_machine: None, target: Target, ghn: GHN, tmp_path: Path
) -> None:
    def train(**settings: object) -> pd.DataFrame:
        changed = SETTINGS.model_copy(update=settings)
        return train_all([NETWORK], INITIALISATIONS, ghn, {"digits": target}, changed, 0, str(tmp_path))

    few = train(seeds=1)
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.json")}
    assert len(kept) == 4  # two initialisations, two learning rates
    more = train(seeds=2)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert len(list(tmp_path.glob("*.json"))) == 6
    pd.testing.assert_frame_equal(more[more["seed"] == 0].reset_index(drop=True), few)
    assert len(more) == len(INITIALISATIONS) * 2 * 3  # seeds, measurements

    train(seeds=1, batch=8)
    assert len(list(tmp_path.glob("*.json"))) == 10  # another budget shares nothing


@pytest.mark.slow
def test_the_stage_writes_curves_and_summary(
    ray_on_this_machine: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["images"]["size"] = 8
    values["evaluate"] |= {"width": 8, "head_width": 16}
    values["finetune"] |= {"architectures": 2, "seeds": 2, "steps": 4, "evaluate_every": 2}
    Path("params.yaml").write_text(yaml.safe_dump(values))
    params = load_params()
    networks = [NETWORK, replace(NETWORK, norm=None)]
    shard = write_shard("storage/test/0.parquet", table_of([row(*item) for item in enumerate(networks)]))
    write_manifest(MANIFEST, {"test": ("test", [shard])})
    make_ghn(0).save(CHECKPOINT)
    finetune(params)

    curves = pd.read_parquet("results/finetune/curves.parquet")
    assert len(curves) == 2 * 2 * 2 * 2 * 3  # data sets, architectures, initialisations, seeds, measurements
    assert curves["test_top1"].between(0, 1).all()
    summary = pd.read_csv("results/finetune/summary.csv")
    assert summary["runs"].tolist() == [4] * 4
    assert set(json.loads(Path("results/finetune/metrics.json").read_text())) == {"digits", "faces"}

    too_many = params.model_copy(update={"finetune": params.finetune.model_copy(update={"architectures": 3})})
    with pytest.raises(UserError, match=r"finetune.architectures = 3: must be at most 2"):
        finetune(too_many)
