"""Results of the other stages, read for the report and checked with the contracts of the stages that wrote them.

They must be complete and consistent, and every number finite. An error names the file, and the stage to run again.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pandera.pandas as pa
from pandera.errors import SchemaError, SchemaErrorReason, SchemaErrors

from ghn.models.config import GHNConfig
from pipeline.architectures.store import Manifest, content_digest_of
from pipeline.errors import UserError
from pipeline.evaluation.initialisations import BASELINE, HEADLINE, INITIALISATIONS
from pipeline.evaluation.networks import trained_ghn
from pipeline.evaluation.summaries import summarise_architectures
from pipeline.evaluation.tables import (
    ArchitectureScores,
    FinetuningBudgets,
    FinetuningCurves,
    FinetuningSummary,
    SplitSummary,
)
from pipeline.params import SPLITS
from pipeline.training.tables import VALIDATION_COLUMNS, DroppedArchitectures, TrainingMetrics, history_model

TEXT_COLUMNS = ("split", "name", "identity", "dataset", "initialisation")
"""Read as text: a hash or a name may consist of digits alone."""

ROUNDING = 1e-3
"""Largest difference between a summary and the table that it summarises."""


@dataclass(frozen=True)
class StoredArchitectures:
    """The architectures that stage generate has stored: rows by split, the number of files, and their digest."""

    rows: dict[str, int]
    files: int
    digest: str


@dataclass(frozen=True)
class Results:
    """Checked results of all stages.

    Attributes:
        config: that of the trained hypernetwork.
        checkpoint: the digest of its files.
        stored: the architectures of all splits.
        history: a row for each step or several; with columns of validation only if `training` has validation too.
        training: the metrics of stage train.
        dropped: a row for each architecture that was dropped in training.
        architectures: a row for each (split, index, initialisation), ordered by split.
        accuracy: a row for each split, in the same order.
        curves: a row for each measurement of fine-tuning.
        finetuning: a row for each (dataset, images_per_class, initialisation).
        budgets: a row for each of these and each budget.
    """

    config: GHNConfig
    checkpoint: str
    stored: StoredArchitectures
    history: pd.DataFrame
    training: TrainingMetrics
    dropped: pd.DataFrame
    architectures: pd.DataFrame
    accuracy: pd.DataFrame
    curves: pd.DataFrame
    finetuning: pd.DataFrame
    budgets: pd.DataFrame

    @property
    def chance(self) -> float:
        """The accuracy of guessing."""
        return 1 / self.config.num_classes

    @property
    def headline(self) -> pd.Series:
        """The row of `accuracy` at the top of the page."""
        return self.accuracy.set_index("split").loc["test"]

    @property
    def labels(self) -> dict[str, str]:
        """The labels of the measured initialisations by name, in the order of the registry."""
        measured = dict.fromkeys([*self.architectures["initialisation"], *self.curves["initialisation"]])
        names = [name for name in INITIALISATIONS if name in measured]
        names += [name for name in measured if name not in INITIALISATIONS]  # measured when it was registered
        return {name: INITIALISATIONS[name].label if name in INITIALISATIONS else name for name in names}

    @property
    def evaluated(self) -> dict[str, str]:
        """The labels of the initialisations in `architectures` and `accuracy`."""
        measured = set(self.architectures["initialisation"])
        return {name: label for name, label in self.labels.items() if name in measured}


def read_results(folder: Path) -> Results:
    """Read and check what the other stages wrote below `folder`.

    Raises:
        UserError: something is missing, is not what the contracts want, or two files contradict each other. The message
            names the file and the stage to run.
    """
    train, evaluate, finetune = folder / "train", folder / "evaluate", folder / "finetune"
    stored = _read_manifest(folder / "generate" / "manifest.json")
    history, training, dropped = _read_training(train)
    architectures = _read_table(evaluate / "architectures.parquet", "evaluate", ArchitectureScores)
    accuracy = _read_table(evaluate / "summary.csv", "evaluate", SplitSummary)
    _check_agreement(architectures, accuracy, evaluate)
    curves = _read_table(finetune / "curves.parquet", "finetune", FinetuningCurves)
    finetuning = _read_table(finetune / "summary.csv", "finetune", FinetuningSummary)
    ghn, checkpoint = trained_ghn(train / "checkpoint")
    return Results(
        config=ghn.config,
        checkpoint=checkpoint,
        stored=stored,
        history=history,
        training=training,
        dropped=dropped,
        architectures=_in_split_order(architectures),
        accuracy=_in_split_order(accuracy),
        curves=curves,
        finetuning=finetuning,
        budgets=_read_table(finetune / "budgets.csv", "finetune", FinetuningBudgets),
    )


def split_order(split: str) -> int:
    """Return the place of a split in tables and plots."""
    order = (*SPLITS, "predefined")
    return order.index(split) if split in order else len(order)


def _in_split_order(table: pd.DataFrame) -> pd.DataFrame:
    return table.sort_values("split", key=lambda splits: splits.map(split_order), kind="stable", ignore_index=True)


def _read_manifest(path: Path) -> StoredArchitectures:
    manifest = Manifest(splits=_read_json(path, "generate", {"splits"})["splits"])
    splits = manifest["splits"]
    return StoredArchitectures(
        rows={name: split["rows"] for name, split in splits.items()},
        files=sum(len(split["shards"]) for split in splits.values()),
        digest=content_digest_of(manifest),
    )


def _read_training(folder: Path) -> tuple[pd.DataFrame, TrainingMetrics, pd.DataFrame]:
    """Return the history, the metrics and the dropped architectures, which agree."""
    path = folder / "history.csv"
    history = _read_raw(path, "train")
    history = _validated(history, history_model(history.columns), path, "train")
    training = _read_metrics(folder / "metrics.json")
    _check_validation(history, training, folder)
    dropped = _read_table(folder / "dropped.csv", "train", DroppedArchitectures)
    _check_dropped(history, dropped, folder)
    return history, training, dropped


def _read_metrics(path: Path) -> TrainingMetrics:
    known = fields(TrainingMetrics)
    content = _read_json(path, "train", {field.name for field in known if field.default is MISSING})
    return TrainingMetrics(**{field.name: content[field.name] for field in known if field.name in content})


# One file


def _read_table(path: Path, stage: str, model: type[pa.DataFrameModel]) -> pd.DataFrame:
    return _validated(_read_raw(path, stage), model, path, stage)


def _read_raw(path: Path, stage: str) -> pd.DataFrame:
    """Return a table as it is in its file."""
    _check_exists(path, stage)
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        return pd.read_csv(path, dtype=dict.fromkeys(TEXT_COLUMNS, str))
    except (ValueError, OSError) as error:  # those of pandas and of pyarrow about a damaged file
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}\n{_again(stage)}") from error


def _validated(table: pd.DataFrame, model: type[pa.DataFrameModel], path: Path, stage: str) -> pd.DataFrame:
    """Return the table with the types of its contract.

    Raises:
        UserError: the table breaks the contract; the message names the missing column, or the first wrong row.
    """
    try:
        return model.validate(table, lazy=True)
    except SchemaErrors as errors:
        problems: list[SchemaError] = errors.schema_errors
        missing = [name for problem in problems for name in _missing_columns(problem)]
        if missing:
            raise UserError(f"{path} has no column {missing[0]}\n{_again(stage)}") from errors
        if table.empty:
            raise UserError(f"{path} has no rows\n{_again(stage)}") from errors
        # Failed conversions come first, and explain the other problems of their column.
        raise UserError(_explanation(problems[0], table, path, stage)) from errors


def _missing_columns(problem: SchemaError) -> list[str]:
    if problem.reason_code is SchemaErrorReason.COLUMN_NOT_IN_DATAFRAME:
        return [str(problem.failure_cases)]
    if problem.reason_code is SchemaErrorReason.INVALID_COLUMN_NAME:  # no column matches a pattern such as ^.+_top1$
        pattern = re.search(r"\^\.\+(.*)\$", str(problem.check))
        return [f"…{pattern[1]}"] if pattern else []
    return []


def _explanation(problem: SchemaError, table: pd.DataFrame, path: Path, stage: str) -> str:
    """Return the first wrong value, its row, and what would be right."""
    cases = problem.failure_cases
    if not isinstance(cases, pd.DataFrame):
        return f"{path}: must be {_right(problem, None)}\n{_again(stage)}"
    name = problem.check.name if isinstance(problem.check, pa.Check) else None
    if "column" not in cases:
        column, rows = str(problem.schema.name), cases["index"]
    elif name in table:  # a check of whole rows with the name of a column; its cases are whole rows
        column, rows = str(name), cases["index"]
    else:
        column = str(cases["column"].iloc[0])
        rows = cases["index"][cases["column"] == column]
    right = _right(problem, table[column].iloc[int(rows.min())])
    return _row_explanation(table, column, int(rows.min()), right, rows.nunique(), path, stage)


def _right(problem: SchemaError, value: Any) -> str:
    """Return what a value must be, in words."""
    if isinstance(value, float) and not math.isfinite(value):
        return "finite"
    if problem.reason_code in (SchemaErrorReason.DATATYPE_COERCION, SchemaErrorReason.WRONG_DATATYPE):
        return "a number"
    if problem.reason_code is SchemaErrorReason.DUPLICATES:
        return "in one row alone"
    return str(getattr(problem.check, "error", problem.check))


def _row_explanation(table: pd.DataFrame, column: str, row: int, right: str, wrong: int, path: Path, stage: str) -> str:
    return (
        f"{column} = {table[column].iloc[row]} in row {row + 1} of {path}: must be {right}\n"
        f"{wrong:,} of {len(table):,} rows are wrong. {_again(stage)}"
    )


def _read_json(path: Path, stage: str, keys: set[str]) -> dict[str, Any]:
    """Return the content of a JSON file that has these keys and only finite numbers."""
    _check_exists(path, stage)
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}\n{_again(stage)}") from error
    for name, value in _leaves(content):
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{name} = {value} in {path}: must be finite\n{_again(stage)}")
    missing = sorted(keys - content.keys()) if isinstance(content, dict) else sorted(keys)
    if missing:
        raise UserError(f"{path} has no {missing[0]}\n{_again(stage)}")
    return content


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(inner, f"{name}.{key}".removeprefix("."))
        return
    yield name, value


def _check_exists(path: Path, stage: str) -> None:
    if not path.is_file():
        raise UserError(f"{path} not found: stage {stage} writes it, run `dvc repro {stage}`")


def _again(stage: str) -> str:
    return f"`dvc repro --force {stage}` writes it again"


# Files that must agree


def _check_validation(history: pd.DataFrame, training: TrainingMetrics, folder: Path) -> None:
    """Check that history and metrics both have validation or neither has, and that the kept step was validated."""
    path, metrics, again = folder / "history.csv", folder / "metrics.json", _again("train")
    if not set(VALIDATION_COLUMNS) & set(history):
        if training.val_top1 is not None or training.best_step is not None:
            raise UserError(f"{path} has no column val_top1, but metrics.json beside it has validation\n{again}")
        return
    if training.val_top1 is None or training.best_step is None:
        name = "val_top1" if training.val_top1 is None else "best_step"
        raise UserError(f"{metrics} has no {name}, but history.csv beside it has validation\n{again}")
    if not 0 <= training.val_top1 <= 1:
        raise UserError(f"val_top1 = {training.val_top1} in {metrics}: must be a share, 0 to 1\n{again}")
    row = history[history["step"] >= training.best_step][:1]  # its means have those of the step
    if training.best_step < 1 or row["val_top1"].isna().all():
        raise UserError(
            f"best_step = {training.best_step} in {metrics}: must be a step with validation in history.csv\n{again}"
        )


def _check_dropped(history: pd.DataFrame, dropped: pd.DataFrame, folder: Path) -> None:
    """Check that each dropped architecture is counted in the row of its step."""
    path, last = folder / "dropped.csv", history["step"].iloc[-1]
    outside = np.flatnonzero(dropped["step"] > last)
    if len(outside):
        right = f"1 to {last}, as in history.csv"
        raise UserError(_row_explanation(dropped, "step", int(outside[0]), right, len(outside), path, "train"))
    rows = np.searchsorted(history["step"], dropped["step"])
    counts = np.bincount(rows, minlength=len(history))
    wrong = np.flatnonzero(counts != history["dropped"])
    if len(wrong):
        right = f"{counts[wrong[0]]}, as in dropped.csv"
        path = folder / "history.csv"
        raise UserError(_row_explanation(history, "dropped", int(wrong[0]), right, len(wrong), path, "train"))


def _check_agreement(architectures: pd.DataFrame, accuracy: pd.DataFrame, folder: Path) -> None:
    """Check that the summary is that of the architectures; another one would put wrong numbers on top of the page."""
    table, summary, again = folder / "architectures.parquet", folder / "summary.csv", _again("evaluate")
    if "test" not in set(architectures["split"]):
        raise UserError(f"{table} has no architecture of split test\n{again}")
    for name in (HEADLINE, BASELINE):
        if name not in set(architectures["initialisation"]):
            raise UserError(f"{table} has no row of initialisation {name}\n{again}")
    expected = summarise_architectures(architectures).set_index("split")
    missing = [column for column in expected if column not in accuracy]
    if missing:
        raise UserError(f"{summary} has no column {missing[0]}\n{again}")
    if set(expected.index) != set(accuracy["split"]):
        raise UserError(
            f"{folder}: summary.csv has the splits {', '.join(accuracy['split'])}\n"
            f"architectures.parquet has {', '.join(expected.index)}\n{again}"
        )
    for row in accuracy.to_dict("records"):
        split = row["split"]
        for column, value in expected.loc[split].items():
            if not np.isclose(row[column], value, rtol=0, atol=ROUNDING, equal_nan=True):
                raise UserError(
                    f"{column} of split {split} is {row[column]:.6g} in {summary}\n"
                    f"but {value:.6g} over the rows of architectures.parquet\n{again}"
                )
