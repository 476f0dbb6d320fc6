from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from example_results import edit

from pipeline.errors import UserError
from pipeline.measurements import read_measurements


def refusal(results: Path) -> str:
    with pytest.raises(UserError) as error:
        read_measurements(results)
    message = str(error.value)
    assert message.count("\n") < 3, "at most three lines"
    return message


@pytest.mark.parametrize(
    ("file", "stage"),
    [
        ("generate/manifest.json", "generate"),
        ("train/history.csv", "train"),
        ("train/metrics.json", "train"),
        ("train/checkpoint", "train"),
        ("evaluate/architectures.parquet", "evaluate"),
        ("evaluate/summary.csv", "evaluate"),
        ("finetune/curves.parquet", "finetune"),
        ("finetune/summary.csv", "finetune"),
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
        ("evaluate/architectures.parquet", "predicted_top1"),
        ("evaluate/architectures.parquet", "parameters"),
        ("evaluate/summary.csv", "random_top1_max"),
        ("finetune/curves.parquet", "test_top1"),
        ("finetune/summary.csv", "target_top1"),
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


def test_a_step_without_a_loss_is_refused_unless_it_dropped_architectures(results: Path) -> None:
    def change(table: pd.DataFrame, dropped: int) -> pd.DataFrame:
        table.loc[7, ["loss", "top1"]] = np.nan
        table.loc[7, "dropped"] = dropped
        return table

    path = results / "train" / "history.csv"
    edit(path, lambda table: change(table, dropped=8))
    read_measurements(results)
    edit(path, lambda table: change(table, dropped=0))
    assert "loss = nan in row 8" in refusal(results)


def test_a_metric_that_is_not_finite_is_refused(results: Path) -> None:
    path = results / "train" / "metrics.json"
    path.write_text(path.read_text().replace('"steps": 3000', '"steps": NaN'))
    assert f"steps = nan in {path}: must be finite" in refusal(results)


def test_an_accuracy_in_percent_is_refused(results: Path) -> None:
    path = results / "evaluate" / "architectures.parquet"
    edit(path, lambda table: table.assign(random_top1=table["random_top1"] * 100))
    assert "must be a share, 0 to 1" in refusal(results)


def test_a_missing_column_is_refused_with_its_name(results: Path) -> None:
    path = results / "finetune" / "summary.csv"
    edit(path, lambda table: table.drop(columns="runs"))
    assert f"{path} has no column runs" in refusal(results)


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
    assert "predicted_top1 of split bn_free is" in refusal(results)


def test_a_summary_without_a_split_is_refused(results: Path) -> None:
    edit(results / "evaluate" / "summary.csv", lambda table: table[table["split"] != "deep"])
    assert "summary.csv has the splits" in refusal(results)


def test_an_evaluation_without_split_test_is_refused(results: Path) -> None:
    for file in ("architectures.parquet", "summary.csv"):
        edit(results / "evaluate" / file, lambda table: table[table["split"] != "test"])
    assert "no architecture of split test" in refusal(results)


def test_splits_come_in_the_order_of_the_design(results_of_a_run: Path) -> None:
    accuracy = read_measurements(results_of_a_run).accuracy
    assert list(accuracy["split"]) == ["test", "wide", "deep", "dense", "bn_free", "predefined"]
