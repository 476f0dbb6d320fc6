from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from pipeline.evaluation.worth import epochs_worth, worth_of_predictions

SECONDS = pd.DataFrame({"predict_seconds": [0.1, 0.1], "epoch_seconds": [2.0, 2.0]}, index=["test", "deep"])


@pytest.mark.parametrize(
    ("predicted", "worth"), [(0.05, 0), (0.1, 0), (0.2, 0.5), (0.3, 1), (0.45, 3), (0.6, 5), (0.61, math.inf)]
)
def test_the_worth_lies_where_the_mean_accuracy_of_sgd_is_that_of_predictions(predicted: float, worth: float) -> None:
    assert epochs_worth(predicted, [0, 1, 5], [0.1, 0.3, 0.6]) == pytest.approx(worth)


def test_an_accuracy_that_falls_with_more_epochs_is_reached_at_the_first_of_them() -> None:
    assert epochs_worth(0.4, [0, 1, 2, 3], [0.1, 0.5, 0.3, 0.6]) == pytest.approx(0.75)


def accuracies(count: int, noise: float) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for split, predicted in (("test", 0.4), ("deep", 0.9)):
        for index in range(count):
            level = rng.normal(0, noise)
            sgd = {0: 0.1, 1: 0.3 + level, 5: 0.7 + level}
            rows.append({"split": split, "index": index, "predicted": predicted + rng.normal(0, noise), **sgd})
    return pd.DataFrame(rows)


def test_the_interval_contains_the_worth_and_narrows_with_more_architectures() -> None:
    few, many = (worth_of_predictions(accuracies(count, 0.05), SECONDS).set_index("split") for count in (8, 200))
    for table in (few, many):
        row = table.loc["test"]
        assert row["epochs_low"] <= row["epochs"] <= row["epochs_high"]
        assert row["epochs"] == pytest.approx(2, abs=1)
    narrow, wide = (table.loc["test", "epochs_high"] - table.loc["test", "epochs_low"] for table in (many, few))
    assert narrow < 0.5 * wide


def test_what_no_number_of_epochs_reached_is_worth_more_than_all() -> None:
    row = worth_of_predictions(accuracies(20, 0.01), SECONDS).set_index("split").loc["deep"]
    assert row["epochs"] == row["epochs_low"] == math.inf
    assert row["most_epochs"] == 5


def test_architectures_without_spread_have_an_interval_of_one_point() -> None:
    row = worth_of_predictions(accuracies(5, 0.0), SECONDS).set_index("split").loc["test"]
    assert [row["epochs_low"], row["epochs"], row["epochs_high"]] == pytest.approx([2, 2, 2])
