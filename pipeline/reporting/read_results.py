"""What the stages measured, read back for the report and checked.

Complete, consistent, every number finite: what is not is refused, with the file and the stage that writes it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ghn import GHNConfig
from pipeline.errors import UserError
from pipeline.evaluation.networks import trained_ghn
from pipeline.params import SPLITS
from pipeline.reporting.training_plots import NORMS, TIME_PARTS

STEP_SECONDS = ("step_seconds", "graph_seconds", *TIME_PARTS)
ARCHITECTURE_NORMS = tuple(f"architecture_norm_{name}" for name in NORMS)
VALIDATION_COLUMNS = ("val_top1", "val_loss")
ACCURACIES = ("predicted_top1", "predicted_top5", "random_top1", "random_top5")


@dataclass(frozen=True)
class Results:
    """What the other stages measured, checked: complete, consistent, every number finite.

    `history` and `training` have validation, or neither has. `dropped` has a row for each architecture that was dropped
    in training. `architectures` and `accuracy` (a row a split) are in the order of the splits.
    """

    config: GHNConfig
    checkpoint: str
    manifest: dict[str, Any]
    history: pd.DataFrame
    training: dict[str, float]
    dropped: pd.DataFrame
    architectures: pd.DataFrame
    accuracy: pd.DataFrame
    curves: pd.DataFrame
    finetuning: pd.DataFrame

    @property
    def chance(self) -> float:
        return 1 / self.config.num_classes

    @property
    def kept_step(self) -> int | None:
        """The step whose weights are kept, if validation has chosen it."""
        return None if "best_step" not in self.training else int(self.training["best_step"])

    @property
    def test(self) -> pd.Series:
        """The row of `accuracy` that the headline shows."""
        return self.accuracy.set_index("split").loc["test"]


def read_results(folder: Path) -> Results:
    """What the other stages wrote under `folder`.

    Raises UserError, naming the file and the stage to run, if something is missing, not finite, not a share
    where a share is meant, or if two files contradict each other.
    """
    train, evaluate, finetune = folder / "train", folder / "evaluate", folder / "finetune"
    manifest = _read_json(folder / "generate" / "manifest.json", "generate", {"splits"})
    history, training, dropped = _read_training(train)
    architectures = _read_table(
        evaluate / "architectures.parquet",
        "evaluate",
        words=("split", "name", "identity"),
        numbers=("index", "parameters"),
        shares=ACCURACIES,
        optional=("predicted_loss", "random_loss"),  # missing where logits are not finite
    )
    accuracy = _read_table(
        evaluate / "summary.csv",
        "evaluate",
        words=("split",),
        numbers=("architectures",),
        shares=(*ACCURACIES, "predicted_top1_max", "random_top1_max"),
        optional=("predicted_top1_error", "random_top1_error"),  # a single architecture has no standard error
    )
    curves = _read_table(
        finetune / "curves.parquet",
        "finetune",
        words=("dataset", "initialisation"),
        numbers=("architecture", "seed", "step"),
        shares=("test_top1",),
    )
    finetuning = _read_table(
        finetune / "summary.csv",
        "finetune",
        words=("dataset", "initialisation"),
        numbers=("learning_rate", "runs", "classes"),
        shares=("test_top1", "target_top1"),
        optional=("test_top1_error", "steps_to_target"),  # a target may never be reached
    )
    _check_agreement(architectures, accuracy, evaluate)
    ghn, checkpoint = trained_ghn(train / "checkpoint")
    return Results(
        config=ghn.config,
        checkpoint=checkpoint,
        manifest=manifest,
        history=history,
        training=training,
        dropped=dropped,
        architectures=_insplit_order(architectures),
        accuracy=_insplit_order(accuracy),
        curves=curves,
        finetuning=finetuning,
    )


def _read_training(folder: Path) -> tuple[pd.DataFrame, dict[str, float], pd.DataFrame]:
    """The history, the metrics and the dropped architectures, which agree."""
    path = folder / "history.csv"
    unless_dropped = ("loss", "top1", "gradient_norm", *ARCHITECTURE_NORMS)
    history = _read_table(
        path,
        "train",
        numbers=("step", "learning_rate", *STEP_SECONDS, "imbalance", "images_per_second", "dropped"),
        shares=("top1", "val_top1"),
        optional=(*unless_dropped, *VALIDATION_COLUMNS),  # missing in a step that had to drop all of its architectures
        absent=VALIDATION_COLUMNS,
    )
    unexplained = history[list(unless_dropped)].isna() & (history["dropped"] == 0).to_numpy()[:, None]
    for column in unless_dropped:
        _check_rows(history, column, unexplained[column], "finite", path, "train")
    _check_rows(history, "step", history["step"].diff() <= 0, "above the one before", path, "train")
    training = _read_json(
        folder / "metrics.json",
        "train",
        {"loss", "top1", "steps", "seconds", "architectures_per_second", "parameters", "precision"},
    )
    _check_validation(history, training, folder)
    dropped = _read_table(
        folder / "dropped.csv", "train", words=("identity",), numbers=("step", "index"), may_be_empty=True
    )
    _check_dropped(history, dropped, folder)
    return history, training, dropped


def _read_table(
    path: Path,
    stage: str,
    *,
    words: tuple[str, ...] = (),
    numbers: tuple[str, ...] = (),
    shares: tuple[str, ...] = (),
    optional: tuple[str, ...] = (),
    absent: tuple[str, ...] = (),
    may_be_empty: bool = False,
) -> pd.DataFrame:
    """A table with at least these columns: `numbers` are finite, `shares` 0 to 1, `optional` may have gaps.

    Those of `absent` may be absent all together.
    """
    _check_exists(path, stage)
    try:
        # Identities of digits alone are words too.
        texts = dict.fromkeys(words, str)
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, dtype=texts)
    except (ValueError, OSError) as error:  # of pandas and of pyarrow: what they say about a damaged file
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}\n{_again(stage)}") from error
    if not any(column in table for column in absent):
        numbers, shares, optional = (tuple(c for c in some if c not in absent) for some in (numbers, shares, optional))
    missing = [column for column in (*words, *numbers, *shares, *optional) if column not in table]
    if missing:
        raise UserError(f"{path} has no column {missing[0]}\n{_again(stage)}")
    if table.empty and not may_be_empty:
        raise UserError(f"{path} has no rows\n{_again(stage)}")
    for column in words:
        table[column] = table[column].fillna("").astype(str)
    for column in dict.fromkeys((*numbers, *shares, *optional)):
        values = pd.to_numeric(table[column], errors="coerce")
        wrong = ~np.isfinite(values) & (table[column].notna() if column in optional else True)
        _check_rows(table, column, wrong, "finite", path, stage)
        if column in shares:
            _check_rows(table, column, (values < 0) | (values > 1), "a share, 0 to 1", path, stage)
        table[column] = values
    return table


def _check_rows(table: pd.DataFrame, column: str, wrong: pd.Series, right: str, path: Path, stage: str) -> None:
    if not wrong.any():
        return
    row = int(np.flatnonzero(wrong)[0])
    raise UserError(
        f"{column} = {table[column].iloc[row]} in row {row + 1} of {path}: must be {right}\n"
        f"{int(wrong.sum()):,} of {len(table):,} rows are wrong. {_again(stage)}"
    )


def _read_json(path: Path, stage: str, keys: set[str]) -> dict[str, Any]:
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


def _check_validation(history: pd.DataFrame, training: dict[str, float], folder: Path) -> None:
    """The history and the metrics both have validation or neither has, and what is kept was validated."""
    path, again = folder / "history.csv", _again("train")
    metrics = ("val_top1", "best_step")
    if "val_top1" not in history:
        if any(name in training for name in metrics):
            raise UserError(f"{path} has no column val_top1, but metrics.json beside it has validation\n{again}")
        return
    without_top1 = history["val_top1"].isna() & history["val_loss"].notna()
    _check_rows(history, "val_top1", without_top1, "there where val_loss is", path, "train")
    for name in metrics:
        if not isinstance(training.get(name), int | float):
            raise UserError(
                f"{folder / 'metrics.json'} has no {name}, but history.csv beside it has validation\n{again}"
            )
    if not 0 <= training["val_top1"] <= 1:
        value = training["val_top1"]
        raise UserError(f"val_top1 = {value} in {folder / 'metrics.json'}: must be a share, 0 to 1\n{again}")
    row = history[history["step"] >= training["best_step"]][:1]  # the one that has the step's values in its means
    if training["best_step"] < 1 or row["val_top1"].isna().all():
        raise UserError(
            f"best_step = {training['best_step']} in {folder / 'metrics.json'}: must be a step with validation in "
            f"history.csv\n{again}"
        )


def _check_dropped(history: pd.DataFrame, dropped: pd.DataFrame, folder: Path) -> None:
    """Each dropped architecture is counted in the row of its step."""
    path = folder / "history.csv"
    last = history["step"].iloc[-1]
    outside = (dropped["step"] < 1) | (dropped["step"] > last)
    _check_rows(dropped, "step", outside, f"1 to {last:.0f}, as in history.csv", folder / "dropped.csv", "train")
    rows = np.searchsorted(history["step"], dropped["step"])
    counts = pd.Series(np.bincount(rows, minlength=len(history)), index=history.index)
    wrong = counts != history["dropped"]
    if wrong.any():
        _check_rows(history, "dropped", wrong, f"{counts[wrong].iloc[0]}, as in dropped.csv", path, "train")


def _check_agreement(architectures: pd.DataFrame, accuracy: pd.DataFrame, folder: Path) -> None:
    """A summary that is not of these architectures would put wrong numbers on top of the page."""
    means = architectures.groupby("split")[list(ACCURACIES)].mean()
    counts = architectures.groupby("split").size()
    again = _again("evaluate")
    if "test" not in counts:
        raise UserError(f"{folder / 'architectures.parquet'} has no architecture of split test\n{again}")
    if set(counts.index) != set(accuracy["split"]) or accuracy["split"].duplicated().any():
        raise UserError(
            f"{folder}: summary.csv has the splits {', '.join(accuracy['split'])}\n"
            f"architectures.parquet has {', '.join(counts.index)}\n{again}"
        )
    for row in accuracy.to_dict("records"):
        split = row["split"]
        expected = {"architectures": counts[split], **means.loc[split]}
        for column, value in expected.items():
            if abs(row[column] - value) > 1e-3:
                raise UserError(
                    f"{column} of split {split} is {row[column]:.6g} in {folder / 'summary.csv'}\n"
                    f"but {value:.6g} over the rows of architectures.parquet\n{again}"
                )


def _again(stage: str) -> str:
    return f"`dvc repro --force {stage}` writes it again"


def _insplit_order(table: pd.DataFrame) -> pd.DataFrame:
    return table.sort_values("split", key=lambda splits: splits.map(split_order), kind="stable", ignore_index=True)


def split_order(split: str) -> int:
    """The place of a split in tables and plots."""
    order = (*SPLITS, "predefined")
    return order.index(split) if split in order else len(order)
