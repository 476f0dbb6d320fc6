from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from example_results import drop, edit, make_results, without_validation

from pipeline.errors import UserError
from pipeline.reporting.read_results import read_results


def refusal(results: Path) -> str:
    with pytest.raises(UserError) as error:
        read_results(results)
    message = str(error.value)
    assert message.count("\n") < 3, "at most three lines"
    return message


@pytest.mark.parametrize(
    ("file", "stage"),
    [
        ("generate/manifest.json", "generate"),
        ("train/history.csv", "train"),
        ("train/metrics.json", "train"),
        ("train/dropped.csv", "train"),
        ("train/checkpoint", "train"),
        ("evaluate/architectures.parquet", "evaluate"),
        ("evaluate/summary.csv", "evaluate"),
        ("finetune/curves.parquet", "finetune"),
        ("finetune/summary.csv", "finetune"),
        ("finetune/budgets.csv", "finetune"),
    ],
)
def test_a_missing_input_is_refused_with_its_name_and_the_stage_to_run(results: Path, file: str, stage: str) -> None:
    path = results / file
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    assert str(path) in refusal(results)
    assert f"dvc repro {stage}" in refusal(results)


@pytest.mark.parametrize(
    ("file", "column"),
    [
        ("train/history.csv", "learning_rate"),
        ("train/history.csv", "communication_seconds"),
        ("train/history.csv", "graph_seconds"),
        ("train/history.csv", "wait_seconds"),
        ("train/history.csv", "imbalance"),
        ("evaluate/architectures.parquet", "top1"),
        ("evaluate/architectures.parquet", "parameters"),
        ("evaluate/summary.csv", "random_top1_max"),
        ("finetune/curves.parquet", "test_top1"),
        ("finetune/summary.csv", "target_top1"),
        ("finetune/budgets.csv", "test_top1"),
    ],
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_refused_with_its_row(
    results: Path, file: str, column: str, value: float
) -> None:
    def change(table: pd.DataFrame) -> pd.DataFrame:
        table[column] = table[column].astype(float)
        table.loc[2, column] = value
        return table

    edit(results / file, change)
    assert f"{column} = {value} in row 3 of {results / file}: must be finite" in refusal(results)


@pytest.mark.parametrize("column", ["loss", "top1", "gradient_norm", "architecture_norm_median"])
def test_a_step_without_a_value_is_refused_unless_it_dropped_architectures(results: Path, column: str) -> None:
    path = results / "train" / "history.csv"
    drop(results, 8, ["a", "b"], all_of_them=True)
    read_results(results)

    def change(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[9, column] = np.nan
        return table

    edit(path, change)
    assert f"{column} = nan in row 10" in refusal(results)


def test_an_infinite_norm_is_refused_even_where_architectures_were_dropped(results: Path) -> None:
    drop(results, 8, ["a"])

    def change(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[7, "architecture_norm_max"] = np.inf
        return table

    edit(results / "train" / "history.csv", change)
    assert "architecture_norm_max = inf in row 8" in refusal(results)


def test_steps_that_do_not_follow_each_other_are_refused(results: Path) -> None:
    edit(results / "train" / "history.csv", lambda table: pd.concat([table, table[-1:]]))
    assert "step = 3000 in row 3001" in refusal(results)


# What was dropped in training


def test_dropped_architectures_are_read_as_they_are_named(results: Path) -> None:
    assert read_results(results).dropped.empty
    drop(results, 8, ["0012", "34e5"])
    assert list(read_results(results).dropped["identity"]) == ["0012", "34e5"]


def test_dropped_architectures_that_no_step_counts_are_refused(results: Path) -> None:
    path = results / "train" / "dropped.csv"
    drop(results, 8, ["a", "b", "c"])
    edit(path, lambda table: table[:2])
    assert f"dropped = 3 in row 8 of {results / 'train' / 'history.csv'}: must be 2, as in dropped.csv" in refusal(
        results
    )
    edit(path, lambda table: table[:0])
    assert "must be 0, as in dropped.csv" in refusal(results)


@pytest.mark.parametrize(("step", "right"), [(0, "a whole number, at least 1"), (3001, "1 to 3000")])
def test_an_architecture_that_was_dropped_outside_the_run_is_refused(results: Path, step: int, right: str) -> None:
    drop(results, step, ["a"])
    assert f"step = {step} in row 1 of {results / 'train' / 'dropped.csv'}: must be {right}" in refusal(results)


def test_a_row_of_several_steps_counts_what_they_dropped(results: Path) -> None:
    drop(results, 15, ["a"])
    drop(results, 20, ["b", "c"])

    def average(table: pd.DataFrame) -> pd.DataFrame:
        groups = np.arange(len(table)) // 10
        rows = table.groupby(groups).mean()
        return rows.assign(step=table.groupby(groups)["step"].max(), dropped=table.groupby(groups)["dropped"].sum())

    edit(results / "train" / "history.csv", average)
    assert read_results(results).history["dropped"][1] == 3


# Validation


def test_a_run_without_validation_is_read(results: Path) -> None:
    assert read_results(results).training.best_step == 2750
    without_validation(results)
    read = read_results(results)
    assert read.training.best_step is None
    assert "val_top1" not in read.history


@pytest.mark.parametrize("column", ["val_top1", "val_loss"])
def test_half_a_validation_is_refused(results: Path, column: str) -> None:
    edit(results / "train" / "history.csv", lambda table: table.drop(columns=column))
    assert f"history.csv has no column {column}" in refusal(results)


@pytest.mark.parametrize("name", ["val_top1", "best_step"])
def test_metrics_and_history_both_have_validation_or_neither_has(results: Path, name: str) -> None:
    path = results / "train" / "metrics.json"
    metrics = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in metrics.items() if key != name}))
    assert f"{path} has no {name}" in refusal(results)
    without_validation(results)
    path.write_text(json.dumps(metrics))
    assert "history.csv has no column val_top1" in refusal(results)


def test_a_validation_loss_may_be_missing_but_not_its_top1(results: Path) -> None:
    def change(table: pd.DataFrame, column: str) -> pd.DataFrame:
        table.loc[249, column] = np.nan
        return table

    path = results / "train" / "history.csv"
    edit(path, lambda table: change(table, "val_loss"))
    read_results(results)
    edit(path, lambda table: change(table.assign(val_loss=2.0), "val_top1"))
    assert "val_top1 = nan in row 1 " in refusal(results)


def test_validation_that_is_no_share_is_refused(results: Path) -> None:
    edit(results / "train" / "history.csv", lambda table: table.assign(val_top1=100 * table["val_top1"]))
    assert "must be a share, 0 to 1" in refusal(results)


@pytest.mark.parametrize("step", [0, 249, 2751, 4000])
def test_the_kept_step_was_validated(results: Path, step: int) -> None:
    path = results / "train" / "metrics.json"
    path.write_text(path.read_text().replace('"best_step": 2750', f'"best_step": {step}'))
    assert f"best_step = {step} in {path}: must be a step with validation in history.csv" in refusal(results)


def test_the_kept_step_may_be_within_a_row_of_several(results: Path) -> None:
    edit(results / "train" / "history.csv", lambda table: table.assign(step=table["step"] * 10))
    path = results / "train" / "metrics.json"
    path.write_text(path.read_text().replace('"best_step": 2750', '"best_step": 27495'))
    assert read_results(results).training.best_step == 27495


# What the other stages measured


def test_a_metric_that_is_not_finite_is_refused(results: Path) -> None:
    path = results / "train" / "metrics.json"
    path.write_text(path.read_text().replace('"steps": 3000', '"steps": NaN'))
    assert f"steps = nan in {path}: must be finite" in refusal(results)


def test_an_accuracy_in_percent_is_refused(results: Path) -> None:
    path = results / "evaluate" / "architectures.parquet"
    edit(path, lambda table: table.assign(top1=table["top1"] * 100))
    assert "must be a share, 0 to 1" in refusal(results)


def test_a_missing_column_is_refused_with_its_name(results: Path) -> None:
    path = results / "finetune" / "summary.csv"
    edit(path, lambda table: table.drop(columns="runs"))
    assert f"{path} has no column runs" in refusal(results)


def test_a_summary_without_the_columns_of_an_initialisation_is_refused(results: Path) -> None:
    path = results / "evaluate" / "summary.csv"
    edit(path, lambda table: table.drop(columns="random_top5"))
    assert f"{path} has no column random_top5" in refusal(results)


@pytest.mark.parametrize("initialisation", ["predicted", "random"])
def test_an_evaluation_without_what_the_headline_names_is_refused(results: Path, initialisation: str) -> None:
    path = results / "evaluate" / "architectures.parquet"
    edit(path, lambda table: table[table["initialisation"] != initialisation])
    assert f"{path} has no row of initialisation {initialisation}" in refusal(results)


def test_an_architecture_without_one_of_the_initialisations_is_refused(results: Path) -> None:
    path = results / "evaluate" / "architectures.parquet"
    edit(path, lambda table: table[1:])
    assert f"{path}: must be a table with every initialisation of each architecture" in refusal(results)


def test_a_row_that_is_there_twice_is_refused(results: Path) -> None:
    path = results / "evaluate" / "architectures.parquet"
    edit(path, lambda table: pd.concat([table, table[:1]], ignore_index=True))
    assert f"split = test in row 1 of {path}: must be in one row alone" in refusal(results)


def test_text_in_a_column_of_numbers_is_refused(results: Path) -> None:
    path = results / "finetune" / "summary.csv"
    edit(path, lambda table: table.assign(test_top1=["0.5", "good", *["0.5"] * (len(table) - 2)]))
    assert f"test_top1 = good in row 2 of {path}: must be a number" in refusal(results)


def test_a_count_of_logits_that_are_not_finite_of_other_architectures_is_refused(results: Path) -> None:
    path = results / "evaluate" / "summary.csv"
    edit(path, lambda table: table.assign(random_nonfinite=table["random_nonfinite"] + 1))
    assert "random_nonfinite of split test is 1" in refusal(results)


def test_a_table_without_rows_is_refused(results: Path) -> None:
    path = results / "train" / "history.csv"
    edit(path, lambda table: table[:0])
    assert f"{path} has no rows" in refusal(results)


@pytest.mark.parametrize("file", ["evaluate/architectures.parquet", "train/metrics.json", "train/history.csv"])
def test_a_damaged_file_is_refused_with_its_name(results: Path, file: str) -> None:
    (results / file).write_bytes(b"")
    assert str(results / file) in refusal(results)


def test_a_summary_of_other_architectures_is_refused(results: Path) -> None:
    path = results / "evaluate" / "summary.csv"
    edit(path, lambda table: table.assign(predicted_top1=table["predicted_top1"] + 0.2))
    assert "predicted_top1 of split test is" in refusal(results)


def test_a_summary_without_a_split_is_refused(results: Path) -> None:
    edit(results / "evaluate" / "summary.csv", lambda table: table[table["split"] != "deep"])
    assert "summary.csv has the splits" in refusal(results)


def test_an_evaluation_without_split_test_is_refused(results: Path) -> None:
    for file in ("architectures.parquet", "summary.csv"):
        edit(results / "evaluate" / file, lambda table: table[table["split"] != "test"])
    assert "no architecture of split test" in refusal(results)


def test_splits_come_in_the_order_of_the_design(results_of_a_run: Path) -> None:
    accuracy = read_results(results_of_a_run).accuracy
    assert list(accuracy["split"]) == ["test", "wide", "deep", "dense", "bn_free", "predefined"]


def test_initialisations_come_in_the_order_of_the_registry_and_others_after_them(tmp_path: Path) -> None:
    folder = make_results(tmp_path / "results", others=["sgd"])
    path = folder / "evaluate" / "architectures.parquet"
    edit(path, lambda table: table.sort_values(["split", "index", "initialisation"], ascending=[True, True, False]))
    assert read_results(folder).labels == {
        "predicted": "predicted parameters",
        "random": "random initialisation",
        "sgd": "sgd",
    }
