"""What tables and sentences say about fine-tuning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.reporting.finetuning_tables import budgets_table, finetuning_findings, finetuning_table
from pipeline.reporting.numbers import MINUS_SIGN
from pipeline.reporting.read_results import Results, read_results

LABELS = {"predicted": "predicted parameters", "random": "random initialisation"}


@pytest.fixture
def read(results_of_a_run: Path) -> Results:
    return read_results(results_of_a_run)


def changed(budgets: pd.DataFrame, *changes: tuple[str, int, float, float, float]) -> pd.DataFrame:
    """Return the budgets without any difference, but for (data set, images per class, budget, difference, p-value)."""
    compared = budgets["difference"].notna()
    budgets = budgets.assign(
        difference=np.where(compared, 0.01, np.nan), corrected_p_value=np.where(compared, 1, np.nan)
    )
    for dataset, number, budget, difference, p_value in changes:
        row = (budgets["dataset"] == dataset) & (budgets["images_per_class"] == number) & (budgets["budget"] == budget)
        budgets.loc[row & compared, ["difference", "corrected_p_value"]] = (difference, p_value)
    return budgets


def test_the_table_shows_early_and_final_accuracies_and_marks_significant_differences(read: Results) -> None:
    budgets = changed(read.budgets, ("digits", 10, 0.1, 0.123, 0.01), ("digits", 10, 1.0, -0.2, 0.06))
    table = finetuning_table(read.finetuning, budgets)
    rows = {row[:3]: row for row in table.rows}
    predicted, random = rows["digits", "10", "predicted"], rows["digits", "10", "random"]
    assert predicted[3] == "0.1"
    assert predicted[5].startswith("+12.3 ±") and predicted[5].endswith("*")
    assert predicted[7].startswith(f"{MINUS_SIGN}20.0 ±") and not predicted[7].endswith("*")
    final = read.finetuning.query("dataset == 'digits' and images_per_class == 10")["test_top1"]
    assert predicted[6].startswith(f"{100 * final.iloc[0]:.1f} ±")
    assert (random[5], random[7]) == ("", "")
    assert len(table.columns) == len(predicted)


def test_the_table_says_where_the_best_learning_rate_is_at_the_end_of_the_search(read: Results) -> None:
    rows = finetuning_table(read.finetuning, read.budgets).rows
    assert {(row[2], row[3]) for row in rows} == {("predicted", "0.1"), ("random", "0.033 (end)")}


def test_the_table_of_budgets_has_a_column_for_each_and_no_row_of_the_baseline(read: Results) -> None:
    table = budgets_table(read.budgets)
    assert table.columns[3:] == tuple(f"{share}% of the steps" for share in (5, 10, 20, 50, 100))
    assert [row[:3] for row in table.rows][:2] == [("digits", "1", "predicted"), ("digits", "10", "predicted")]
    assert {row[2] for row in table.rows} == {"predicted"}


def test_the_findings_say_where_predictions_win_and_where_they_lose(read: Results) -> None:
    budgets = changed(
        read.budgets,
        ("digits", 1, 0.1, 0.1, 0.001),
        ("digits", 10, 0.1, 0.1, 0.001),
        ("faces", 1, 0.1, 0.1, 0.001),
        ("digits", 100, 1.0, -0.1, 0.001),
        ("faces", 10, 1.0, 0.1, 0.2),
    )
    assert finetuning_findings(budgets, LABELS) == [
        "Predicted parameters against random initialisation: at 10% of the steps ahead on digits (1 and 10 per class) "
        "and faces (1), not distinguishable elsewhere; at the end behind on digits (100 per class), not "
        "distinguishable elsewhere."
    ]
    assert "at the end not distinguishable." in finetuning_findings(changed(read.budgets), LABELS)[0]


def test_a_single_run_is_not_compared(read: Results) -> None:
    budgets = changed(read.budgets).assign(corrected_p_value=np.nan, difference_error=np.nan)
    (finding,) = finetuning_findings(budgets, LABELS)
    assert "single run" in finding
    assert all("nan" not in cell for row in budgets_table(budgets).rows for cell in row)
