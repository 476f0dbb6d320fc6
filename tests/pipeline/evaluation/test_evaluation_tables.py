from __future__ import annotations

from io import StringIO

import numpy as np
import pandas as pd
import pandera.pandas as pa
import pytest

from pipeline.evaluation.budgets import compare_budgets
from pipeline.evaluation.finetuning import FinetuneRun, curves_table, rates_table
from pipeline.evaluation.learning_rates import ChosenRate
from pipeline.evaluation.summaries import summarise_architectures, summarise_curves
from pipeline.evaluation.tables import (
    ArchitectureScores,
    CopyScores,
    FinetuningBudgets,
    FinetuningCurves,
    FinetuningSummary,
    LearningRates,
    SgdLearningRates,
    SgdScores,
    SplitSummary,
)

SCORES = pd.DataFrame(
    {
        "split": split,
        "index": index,
        "name": "",
        "identity": "12",
        "parameters": 100,
        "nodes": 10,
        "initialisation": initialisation,
        "top1": 0.2,
        "top5": 0.5,
        "loss": None,
        "running_top1": None,
        "initialise_seconds": 0.05,
        "seconds": 0.1,
    }
    for split, index in (("test", 0), ("test", 1), ("deep", 0))
    for initialisation in ("predicted", "random")
)
RUNS = [FinetuneRun("digits", 10, 0, name, 0.1, 0) for name in ("predicted", "random")]
CURVES = curves_table(
    {run: [(0, 0.1), (1, 0.1), (2, 0.15), (5, 0.2)] for run in RUNS},
    {run.competition: ChosenRate(0.1, is_inside=True) for run in RUNS},
)
RATES = rates_table({run.competition: {0.03: 0.1, 0.1: 0.2} for run in RUNS})
SGD_SCORES = pd.DataFrame(
    {
        "split": split,
        "index": 0,
        "name": "",
        "identity": "12",
        "parameters": 100,
        "nodes": 10,
        "epochs": epochs,
        "learning_rate": 0.1,
        "rate_is_inside": True,
        "top1": 0.2,
        "top5": 0.5,
        "loss": None,
        "running_top1": 0.2,
        "noisy_top1": 0.1,
        "convergence_steps": None,
        "steps": 60 * epochs,
        "train_seconds": 0.1,
        "seconds": 0.2,
    }
    for split in ("train", "test")
    for epochs in (1, 3)
)
COPY_SCORES = SCORES.assign(source=3, similarity=0.8, share_copied=0.9, source_top1=0.7, source_train_seconds=4.0)
SGD_RATES = pd.DataFrame(
    {"epochs": 1, "learning_rate": [0.03, 0.1], "held_out_top1": [0.1, 0.2], "is_chosen": [False, True]}
)


def refusal(model: type[pa.DataFrameModel], table: pd.DataFrame) -> tuple[str, str, str]:
    """Return the column, what it must be and the value, as the report reads them."""
    with pytest.raises(pa.errors.SchemaErrors) as error:
        model.validate(table, lazy=True)
    first = error.value.failure_cases.iloc[0]
    return first["column"], first["check"], str(first["failure_case"])


@pytest.mark.parametrize(
    ("column", "value", "must_be"),
    [
        ("top1", 1.01, "a share, 0 to 1"),
        ("top5", -0.1, "a share, 0 to 1"),
        ("top1", np.nan, "not_nullable"),
        ("running_top1", 1.01, "a share, 0 to 1"),
        ("loss", np.inf, "finite"),
        ("seconds", np.inf, "finite"),
        ("parameters", 0, "a whole number, at least 1"),
        ("index", -1, "a whole number, at least 0"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_column(column: str, value: float, must_be: str) -> None:
    table = ArchitectureScores.validate(SCORES)
    table.loc[:1, column] = value  # of both initialisations
    assert refusal(ArchitectureScores, table) == (column, must_be, str(value))


@pytest.mark.parametrize(
    ("column", "value", "must_be"),
    [
        ("share_copied", 1.01, "a share, 0 to 1"),
        ("similarity", 1.01, "a number from -1 to 1"),
        ("source", -1, "a whole number, at least 0"),
        ("source_train_seconds", np.inf, "finite"),
        ("top1", -0.1, "a share, 0 to 1"),
    ],
)
def test_a_value_of_a_copy_out_of_range_is_refused_with_its_column(column: str, value: float, must_be: str) -> None:
    table = CopyScores.validate(COPY_SCORES)
    table.loc[:1, column] = value
    assert refusal(CopyScores, table) == (column, must_be, str(value))


def test_a_loss_may_be_missing_and_hashes_of_digits_stay_texts() -> None:
    table = ArchitectureScores.validate(SCORES)
    assert table["loss"].isna().all() and table["loss"].dtype == float
    assert table["identity"].tolist() == ["12"] * 6


def test_an_architecture_without_one_of_the_initialisations_is_refused() -> None:
    _, must_be, _ = refusal(ArchitectureScores, SCORES.drop(index=3))
    assert must_be == "a table with every initialisation of each architecture"


def test_a_row_that_is_there_twice_is_refused() -> None:
    table = pd.concat([SCORES, SCORES[:1]], ignore_index=True)
    with pytest.raises(pa.errors.SchemaErrors, match="unique"):
        ArchitectureScores.validate(table, lazy=True)


@pytest.mark.parametrize(
    "model",
    [
        ArchitectureScores,
        CopyScores,
        SplitSummary,
        FinetuningCurves,
        FinetuningSummary,
        FinetuningBudgets,
        LearningRates,
        SgdScores,
        SgdLearningRates,
    ],
)
def test_a_table_without_rows_is_refused(model: type[pa.DataFrameModel]) -> None:
    summaries = {SplitSummary: summarise_architectures(SCORES), FinetuningCurves: CURVES}
    summaries |= {ArchitectureScores: SCORES, FinetuningSummary: summarise_curves(CURVES, {"digits": 10})}
    summaries |= {FinetuningBudgets: compare_budgets(CURVES), LearningRates: RATES}
    summaries |= {SgdScores: SGD_SCORES, SgdLearningRates: SGD_RATES, CopyScores: COPY_SCORES}
    assert refusal(model, summaries[model][:0])[1] == "a table with rows"


def test_a_summary_of_any_initialisations_is_valid_also_when_read_from_csv() -> None:
    more = SCORES[SCORES["initialisation"] == "random"].assign(initialisation="zeros", top1=0.1)
    summary = summarise_architectures(pd.concat([SCORES, more]))
    assert {"zeros_top1", "zeros_top1_max", "zeros_top5", "zeros_running_top1", "zeros_nonfinite"} <= set(summary)
    read = SplitSummary.validate(pd.read_csv(StringIO(summary.to_csv(index=False))))
    pd.testing.assert_frame_equal(read, summary)
    assert refusal(SplitSummary, summary.assign(zeros_top1_max=10.0)) == ("zeros_top1_max", "a share, 0 to 1", "10.0")
    without_top5 = summary.drop(columns=[name for name in summary if name.endswith("top5")])
    assert "no_regex_column_match" in refusal(SplitSummary, without_top5)[1]


def test_a_target_that_is_never_reached_is_missing_also_when_read_from_csv() -> None:
    curves = CURVES.copy()
    curves.loc[curves["initialisation"] == "predicted", "test_top1"] = 0.0
    summary = summarise_curves(curves, {"digits": 10})
    assert summary["steps_to_target"].tolist() == [pd.NA, 5]
    read = FinetuningSummary.validate(pd.read_csv(StringIO(summary.to_csv(index=False))))
    pd.testing.assert_frame_equal(read, summary)
    assert refusal(FinetuningSummary, summary.assign(learning_rate=0.0))[1] == "finite and above 0"


def test_a_single_run_has_no_error_and_no_p_value_also_when_read_from_csv() -> None:
    budgets = compare_budgets(CURVES)
    assert budgets[["test_top1_error", "difference_error", "p_value", "corrected_p_value"]].isna().all(axis=None)
    assert budgets["difference"].isna().tolist() == [False] * 5 + [True] * 5
    read = FinetuningBudgets.validate(pd.read_csv(StringIO(budgets.to_csv(index=False))))
    pd.testing.assert_frame_equal(read, budgets)
    assert refusal(FinetuningBudgets, budgets.assign(p_value=1.5))[1] == "a share, 0 to 1"


@pytest.mark.parametrize(
    ("column", "value", "must_be"),
    [
        ("top1", 1.01, "a share, 0 to 1"),
        ("running_top1", np.nan, "not_nullable"),
        ("noisy_top1", -0.1, "a share, 0 to 1"),
        ("learning_rate", 0.0, "finite and above 0"),
        ("convergence_steps", 0, "a whole number, at least 1"),
        ("train_seconds", np.inf, "finite"),
    ],
)
def test_an_impossible_figure_of_a_trained_network_is_refused(column: str, value: float, must_be: str) -> None:
    table = SgdScores.validate(SGD_SCORES)
    assert table["convergence_steps"].isna().all() and table["loss"].isna().all()
    table.loc[0, column] = value
    assert refusal(SgdScores, table)[:2] == (column, must_be)


def test_a_trained_network_without_one_of_the_budgets_is_refused() -> None:
    assert refusal(SgdScores, SGD_SCORES.drop(index=3))[1] == "a table with every budget of each architecture"
