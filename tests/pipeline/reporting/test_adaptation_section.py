from __future__ import annotations

import pandas as pd
import pytest

from pipeline.reporting.adaptation_section import adaptation_accuracies, adaptation_findings, adaptation_table
from pipeline.training.adaptation_tables import (
    ADAPTED,
    ALONE,
    SCRATCH,
    AdaptationScores,
    adapted_accuracies,
    summarise_adaptation,
)

MEANS = {ADAPTED: 0.6, SCRATCH: 0.2, ALONE: 0.5}


def scores(numbers: tuple[int, ...] = (10,), seeds: int = 2) -> pd.DataFrame:
    """Return accuracies that differ by start, a little by network, and by 0.02 from seed to seed."""
    rows = [
        {
            "dataset": "digits",
            "images_per_class": number,
            "start": start,
            "learning_rate": 0.003,
            "rate_is_inside": start != SCRATCH,
            "seed": seed,
            "architecture": architecture,
            "test_top1": mean + 0.001 * architecture * (1 + (start == SCRATCH)) + 0.02 * seed,
        }
        for number in numbers
        for start, mean in MEANS.items()
        for seed in range(seeds)
        for architecture in range(5)
    ]
    return AdaptationScores.validate(pd.DataFrame(rows))


def summary(**changes: object) -> pd.DataFrame:
    cost = {ADAPTED: 20_000, SCRATCH: 20_000, ALONE: 5_000}
    return summarise_adaptation(
        scores(**changes), {"digits": 10}, {"digits": 100}, cost, {("digits", 10, ADAPTED): 30.0}
    )


def test_means_are_over_networks_and_errors_over_seeds() -> None:
    rows = summary().set_index("start")
    assert rows.loc[ADAPTED, "test_top1"] == pytest.approx(0.612)
    assert rows.loc[ADAPTED, "test_top1_error"] == pytest.approx(0.01)
    assert (rows["architectures"] == 5).all() and (rows["seeds"] == 2).all()
    assert summary(seeds=1)["test_top1_error"].isna().all()


def test_others_are_compared_with_the_adapted_hypernetwork_in_pairs_of_networks() -> None:
    rows = summary().set_index("start")
    assert pd.isna(rows.loc[ADAPTED, "difference"])
    assert rows.loc[SCRATCH, "difference"] == pytest.approx(-0.4 + 0.002)
    assert rows.loc[ALONE, "difference"] == pytest.approx(-0.1)
    assert rows.loc[SCRATCH, "corrected_p_value"] < 1e-6


def test_a_row_says_images_rate_cost_and_time() -> None:
    table = adaptation_table(summary(numbers=(10, 100)))
    assert table.rows[0] == (*("digits", "10", "the adapted hypernetwork", "0.003", "61.2 ± 1.0", "", "20 k", "30"),)
    assert table.rows[1][3:] == ("0.003 (end)", "21.4 ± 1.0", "−39.8 ± 0.1*", "20 k", "")  # noqa: RUF001 (a minus sign)
    assert table.rows[3][1] == "all (100)"


def test_a_sentence_says_what_is_predicted_and_what_training_alone_costs() -> None:
    (sentence,) = adaptation_findings(summary())
    assert "From 10 images of each class of digits, the adapted hypernetwork predicts 61.2 ± 1.0% for 5 net" in sentence
    assert "one from scratch 21.4 ± 1.0%" in sentence
    assert sentence.endswith("51.2 ± 1.0%, at 0.25 times the cost in images.")
    (sentence,) = adaptation_findings(summary(numbers=(100,)))
    assert sentence.startswith("From all images of digits,")


def test_the_figure_has_a_line_for_each_start() -> None:
    (axes,) = adaptation_accuracies(summary(numbers=(1, 10, 100))).axes
    lines = [container.lines[0] for container in axes.containers]
    assert [line.get_xdata().tolist() for line in lines] == [[1, 10, 100]] * 3
    assert lines[-1].get_ydata()[0] == pytest.approx(0.612)  # the adapted one lies above the others


def test_mlflow_knows_the_means_by_short_names() -> None:
    assert adapted_accuracies(summary())["digits_10_adapted_top1"] == pytest.approx(0.612)
