from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from evaluation_examples import ARCHITECTURES, make_ghn, sgd_scores

from ghn import Architecture
from pipeline.architectures.paper_results import PAPER_EPOCHS, import_results
from pipeline.architectures.shards import row, table_of, write_shard
from pipeline.architectures.store import write_manifest
from pipeline.contracts import read_table
from pipeline.errors import UserError
from pipeline.evaluation.networks import Candidate, candidates_of
from pipeline.evaluation.property_features import EMBEDDING
from pipeline.evaluation.property_tables import PropertyCorrelations, PropertyPredictions, PropertyScores
from pipeline.params import Params
from pipeline.results import CHECKPOINT, MANIFEST
from pipeline.stages.properties import properties
from pipeline.storage.tables import write_parquet

RESULTS = Path("results/properties")
ADDRESS = "architectures/{split}/imported-0"
SPLITS = {"val": ARCHITECTURES, "test": ARCHITECTURES[::-1]}


@pytest.fixture
def project(small_project: Callable[..., Params]) -> Params:
    """Make a project folder with architectures, an untrained hypernetwork and made-up results of sgd and evaluate."""
    params = small_project()
    store_splits(SPLITS)
    make_ghn(0).save(CHECKPOINT)
    write_results(params)
    return params


def store_splits(splits: dict[str, Sequence[Architecture]]) -> None:
    entries = {}
    for split, architectures in splits.items():
        folder = ADDRESS.format(split=split)
        table = table_of([row(*item) for item in enumerate(architectures)])
        entries[split] = (folder, [write_shard(f"storage/{folder}/0.parquet", table, {})])
    write_manifest(MANIFEST, entries)


def write_results(params: Params, networks: int = 6) -> None:
    """Write what stages sgd and evaluate make of the first networks of both splits."""
    candidates = [
        candidate
        for split, architectures in SPLITS.items()
        for candidate in candidates_of(split, architectures, params.evaluate, 8)[:networks]
    ]
    source = Candidate("train", 0, "", "0" * 24, candidates[0].network)  # of nearest copies, which the stage leaves out
    write_parquet(Path("results/sgd/scores.parquet"), sgd_scores([source, *candidates]))
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = [
        {
            "split": candidate.split,
            "index": candidate.index,
            "name": "",
            "identity": candidate.network_hash,
            "parameters": 1,
            "nodes": 1,
            "initialisation": initialisation,
            "top1": rng.uniform(0.1, 0.4),
            "top5": 0.5,
            "loss": 2.0,
            "running_top1": 0.3,
            "initialise_seconds": 0.1,
            "seconds": 1.0,
        }
        for candidate in candidates
        if candidate.split == "test"
        for initialisation in ("predicted", "random")
    ]
    write_parquet(Path("results/evaluate/architectures.parquet"), pd.DataFrame(rows))


@pytest.mark.slow
def test_the_stage_scores_every_target_from_all_features(project: Params, capsys: pytest.CaptureFixture[str]) -> None:
    properties(project)
    scores = read_table(RESULTS / "scores.csv", "properties", PropertyScores)
    assert list(scores["target"].unique()) == [
        *("top1_after_1", "top1_after_3", "noisy_top1", "convergence_time", "cpu_seconds"),
        *scores[scores["target"] == "gpu_seconds"]["target"].unique(),
    ]
    assert list(scores["features"][:3]) == [EMBEDDING, "size", "graph"]
    assert (scores["fitted"] == 6).all() and (scores["scored"] == 6).all()
    known = scores.dropna(subset="tau")
    assert len(known) > len(scores) / 2
    assert (known["tau_low"] <= known["tau_high"]).all()
    of_accuracy = known[known["target"] == "top1_after_3"]  # times may follow the size of networks to the last rank
    assert (of_accuracy["tau_low"] < of_accuracy["tau_high"]).all()

    predictions = read_table(RESULTS / "predictions.parquet", "properties", PropertyPredictions)
    assert set(predictions["split"]) == {"val", "test"}
    assert len(predictions) == 12 * len(known)

    correlations = read_table(RESULTS / "correlations.csv", "properties", PropertyCorrelations)
    pairs = set(zip(correlations["first"], correlations["second"], strict=True))
    assert {
        ("top1_after_1", "top1_after_3"),
        ("top1_after_3", "predicted_top1"),
        ("top1_after_3", "parameters"),
    } <= pairs

    metrics = json.loads((RESULTS / "metrics.json").read_text())
    assert metrics["top1_after_3"]["fitted"] == 6
    by_key = known.set_index(["target", "features"])["tau"]
    assert metrics["top1_after_3"].get("size_tau") == by_key.get(("top1_after_3", "size"))

    shown = capsys.readouterr().out
    assert "top1_after_3" in shown and "embedding" in shown


@pytest.mark.slow
def test_all_but_the_times_is_the_same_again(project: Params) -> None:
    def results() -> pd.DataFrame:
        properties(project)
        scores = pd.read_csv(RESULTS / "scores.csv")
        return scores[~scores["target"].str.endswith("_seconds")]

    pd.testing.assert_frame_equal(results(), results())


def test_too_few_trained_networks_are_said_and_leave_no_figure(
    project: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    write_results(project, networks=3)
    properties(project)
    scores = pd.read_csv(RESULTS / "scores.csv")
    assert set(scores["reason"]) == {"3 networks to fit on: must be at least 5"}
    assert scores["tau"].isna().all()
    assert "3 networks to" in capsys.readouterr().out
    assert json.loads((RESULTS / "metrics.json").read_text())["noisy_top1"] == {"fitted": 3, "scored": 3}
    assert read_table(RESULTS / "predictions.parquet", "properties", PropertyPredictions).empty


def test_trained_networks_that_are_not_stored_are_refused(project: Params) -> None:
    store_splits({"val": ARCHITECTURES[::-1], "test": ARCHITECTURES})
    with pytest.raises(UserError, match="stage generate has another one there"):
        properties(project)


def test_missing_results_name_the_stage_that_writes_them(project: Params) -> None:
    Path("results/sgd/scores.parquet").unlink()
    with pytest.raises(UserError, match=r"results/sgd/scores.parquet not found: stage sgd writes it"):
        properties(project)


@pytest.mark.slow
def test_published_results_go_through_the_same_regressions(
    small_project: Callable[..., Params], project: Params
) -> None:
    records = {
        split: {
            str(index): {
                "val_acc": [50.0 + 5 * budget + 3 * index for budget in range(len(PAPER_EPOCHS))],
                "val_acc_noise": [30.0 + index % 4] * len(PAPER_EPOCHS),
                "params": architecture.num_parameters(8, 10),
                "time": 2.0 + index,
                "converge_time": 2.0 if index == 2 else 0.1 + 0.1 * index,
                "ghn2_test_acc": 60.0 - index,
            }
            for index, architecture in enumerate(architectures)
        }
        for split, architectures in SPLITS.items()
    }
    Path("published.json").write_text(json.dumps(records))
    address = import_results(Path("published.json"), "storage")
    imported = {split: f"{ADDRESS.format(split=split)}/manifest.json" for split in SPLITS}
    properties(small_project(properties={"published": address}, generate={"imported": imported}))
    scores = read_table(RESULTS / "scores.csv", "properties", PropertyScores)
    published = scores[scores["target"].str.startswith("published_")]
    targets = [f"published_top1_after_{epochs}" for epochs in PAPER_EPOCHS]
    targets += ["published_noisy_top1", "published_seconds", "published_convergence_time"]
    assert list(published["target"].unique()) == targets
    assert len(published) == 3 * len(targets)
    assert (published["scored"] == 6).all()
    correlations = pd.read_csv(RESULTS / "correlations.csv").set_index(["first", "second"])["tau"]
    assert correlations["published_top1_after_1", "published_top1_after_50"] == 1
    assert correlations["published_top1_after_50", "published_predicted_top1"] == -1
