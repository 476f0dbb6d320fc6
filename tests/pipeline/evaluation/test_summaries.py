from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from pipeline.evaluation import finetuning
from pipeline.evaluation.finetuning import FinetuneRun
from pipeline.evaluation.learning_rates import ChosenRate
from pipeline.evaluation.summaries import (
    final_accuracies,
    initialisations_of,
    summarise_architectures,
    summarise_curves,
)
from pipeline.stages import evaluate, finetune


def scores(split: str, index: int, initialisation: str, top1: float, loss: float = 2.0) -> dict:
    return {
        "split": split,
        "index": index,
        "initialisation": initialisation,
        "top1": top1,
        "top5": {"predicted": 0.9, "random": 0.5}[initialisation],
        "loss": loss,
        "running_top1": top1 / 2 if split == "test" and index == 0 else np.nan,
    }


def test_the_summary_has_mean_standard_error_and_maximum_of_each_split() -> None:
    rows = [
        scores("test", 0, "predicted", 0.2),
        scores("test", 0, "random", 0.1, loss=np.nan),
        scores("test", 1, "predicted", 0.4, loss=np.nan),
        scores("test", 1, "random", 0.1, loss=np.nan),
        scores("bn_free", 0, "predicted", 0.3),
        scores("bn_free", 0, "random", 0.1),
    ]
    summary = summarise_architectures(pd.DataFrame(rows)).set_index("split")
    assert list(summary.index) == ["test", "bn_free"]
    assert list(summary) == [
        "architectures",
        *("predicted_top1", "predicted_top1_error", "predicted_top1_max", "predicted_top5", "predicted_running_top1"),
        *("random_top1", "random_top1_error", "random_top1_max", "random_top5", "random_running_top1"),
        *("nonfinite", "predicted_nonfinite", "random_nonfinite"),
    ]
    assert summary.loc["test", "predicted_top1"] == pytest.approx(0.3)
    assert summary.loc["test", "predicted_top1_error"] == pytest.approx(0.1)
    assert summary.loc["test", "predicted_top1_max"] == 0.4
    assert summary["predicted_top5"].tolist() == [0.9, 0.9]
    assert summary["random_top5"].tolist() == [0.5, 0.5]
    assert summary["predicted_running_top1"].tolist() == pytest.approx([0.1, np.nan], nan_ok=True)
    assert summary["nonfinite"].to_dict() == {"test": 1, "bn_free": 0}
    assert summary["random_nonfinite"].to_dict() == {"test": 2, "bn_free": 0}
    assert summary["architectures"].to_dict() == {"test": 2, "bn_free": 1}
    metrics = evaluate.metrics_of(summary.reset_index())
    assert metrics["bn_free"]["predicted_top1"] == 0.3
    assert list(metrics["test"]) == [
        "predicted_top1",
        "predicted_top1_max",
        "predicted_running_top1",
        "random_top1",
        "random_top1_max",
        "random_running_top1",
        "nonfinite",
    ]
    assert "predicted_running_top1" not in metrics["bn_free"]
    json.dumps(metrics, allow_nan=False)


def test_the_initialisations_of_a_summary_are_read_off_its_columns() -> None:
    columns = ["split", "architectures", "b_top1", "b_top1_error", "b_top1_max", "b_running_top1", "a_top1", "a_top5"]
    assert initialisations_of(pd.DataFrame(columns=columns)) == ["b", "a"]


def test_the_summary_counts_the_steps_to_the_final_accuracy_of_random_initialisation() -> None:
    curves = {
        FinetuneRun("digits", 10, 0, "predicted", 0.01, 0): [(0, 0.1), (10, 0.6), (20, 0.9)],
        FinetuneRun("digits", 10, 0, "predicted", 0.01, 1): [(0, 0.1), (10, 0.5), (20, 0.7)],
        FinetuneRun("digits", 10, 0, "random", 0.1, 0): [(0, 0.1), (10, 0.2), (20, 0.4)],
        FinetuneRun("digits", 10, 0, "random", 0.1, 1): [(0, 0.1), (10, 0.4), (20, 0.6)],
        FinetuneRun("digits", 1, 0, "predicted", 0.1, 0): [(0, 0.1), (10, 0.1), (20, 0.2)],
        FinetuneRun("digits", 1, 0, "random", 0.1, 0): [(0, 0.1), (10, 0.2), (20, 0.2)],
        FinetuneRun("faces", 10, 0, "predicted", 0.01, 0): [(0, 0.5), (10, 0.5), (20, 0.6)],
        FinetuneRun("faces", 10, 0, "random", 0.01, 0): [(0, 0.5), (10, 0.6), (20, 0.7)],
    }
    chosen = {run.competition: ChosenRate(run.learning_rate, run.learning_rate > 0.01) for run in curves}
    summary = summarise_curves(finetuning.curves_table(curves, chosen), {"digits": 10, "faces": 2})
    assert list(zip(summary["dataset"], summary["images_per_class"], summary["initialisation"], strict=True)) == [
        ("digits", 10, "predicted"),
        ("digits", 10, "random"),
        ("digits", 1, "predicted"),
        ("digits", 1, "random"),
        ("faces", 10, "predicted"),
        ("faces", 10, "random"),
    ]
    assert summary["test_top1"].tolist() == pytest.approx([0.8, 0.5, 0.2, 0.2, 0.6, 0.7])
    assert summary["test_top1_error"].tolist()[:2] == pytest.approx([0.1, 0.1])
    assert summary["target_top1"].tolist() == pytest.approx([0.5, 0.5, 0.2, 0.2, 0.7, 0.7])
    assert summary["steps_to_target"].tolist() == [10, 20, 20, 10, pd.NA, 20]
    assert summary["share_to_target"].fillna(-1).tolist() == [0.5, 1, 1, 0.5, -1, 1]
    assert summary["rate_is_inside"].tolist() == [False, True, True, True, False, False]
    assert summary["runs"].tolist() == [2, 2, 1, 1, 1, 1]
    assert summary["classes"].tolist() == [10, 10, 10, 10, 2, 2]
    metrics = finetune.metrics_of(summary)
    assert metrics["faces"]["10_images"] == {"predicted_top1": 0.6, "random_top1": 0.7, "random_share_to_target": 1}
    json.dumps(metrics, allow_nan=False)
    assert final_accuracies(summary)["digits_1_random_top1"] == 0.2
