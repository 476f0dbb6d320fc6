"""Results of the other stages, read for the report and checked with the contracts of the stages that wrote them.

They must be complete and consistent, and every number finite. An error names the file, and the stage to run again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ghn.models.config import GHNConfig
from pipeline.architectures.store import Manifest, content_digest_of
from pipeline.contracts import (
    read_raw_table,
    read_table,
    require_written,
    row_explanation,
    validated_table,
    write_again,
)
from pipeline.errors import UserError
from pipeline.evaluation.checkpoint import trained_ghn
from pipeline.evaluation.common_architectures import InitialisationScores
from pipeline.evaluation.detection_tables import DetectionCurves, DetectionSummary, ShownDetections
from pipeline.evaluation.initialisations import BASELINE, HEADLINE, INITIALISATIONS
from pipeline.evaluation.property_tables import PropertyScores
from pipeline.evaluation.study_summary import StudyScores
from pipeline.evaluation.summaries import summarise_architectures
from pipeline.evaluation.tables import (
    ArchitectureScores,
    FinetuningBudgets,
    FinetuningCurves,
    FinetuningSummary,
    SimilarityCorrelations,
    SimilarityToTraining,
    SplitSummary,
)
from pipeline.evaluation.traits import EvaluatedNetworks, TraitEffects
from pipeline.evaluation.worth import PredictionWorth
from pipeline.params import SPLITS
from pipeline.training.adaptation_tables import AdaptationSummary
from pipeline.training.conditioning_tables import ConditioningSummary
from pipeline.training.tables import VALIDATION_COLUMNS, DroppedArchitectures, TrainingMetrics, history_model

ROUNDING = 1e-3
"""Largest difference between a summary and the table that it summarises."""


@dataclass(frozen=True)
class StoredCounts:
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
        adaptation: a row for each (dataset, images_per_class, start).
        conditioning: a row for each data set of stage condition.
        detection: a row for each (backbone, initialisation).
        detection_curves: a row for each of these, each seed and each epoch.
        detection_scenes: test scenes, and what is found in them.
        study: a row for each (variant, split) of the study.
        initialisations: a row for each (split, initialisation), on the architectures that were trained by SGD too.
        worth: a row for each split, what a prediction is worth there.
        distances: a row for each (split, index, by): the nearest training architecture, and `top1` of predictions.
        correlations: a row for each (split, initialisation, by): of accuracy with that similarity.
        properties: a row for each (target, features): how well a property is predicted.
        networks: a row for each (split, index): traits, principal components of embeddings, and `top1` of predictions.
        traits: a row for each trait: accuracy of predictions with and without it.
    """

    config: GHNConfig
    checkpoint: str
    stored: StoredCounts
    history: pd.DataFrame
    training: TrainingMetrics
    dropped: pd.DataFrame
    architectures: pd.DataFrame
    accuracy: pd.DataFrame
    curves: pd.DataFrame
    finetuning: pd.DataFrame
    budgets: pd.DataFrame
    adaptation: pd.DataFrame
    conditioning: pd.DataFrame
    detection: pd.DataFrame
    detection_curves: pd.DataFrame
    detection_scenes: ShownDetections
    study: pd.DataFrame
    initialisations: pd.DataFrame
    worth: pd.DataFrame
    distances: pd.DataFrame
    correlations: pd.DataFrame
    properties: pd.DataFrame
    networks: pd.DataFrame
    traits: pd.DataFrame

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
    def detection_labels(self) -> dict[str, str]:
        """The labels of the initialisations of backbones by name, in their order."""
        own = {name: one.label for name, one in INITIALISATIONS.items()} | {"pretrained": "torchvision's checkpoint"}
        return {name: own.get(name, name) for name in dict.fromkeys(self.detection["initialisation"])}

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
    train, evaluate, finetune, compare = (folder / stage for stage in ("train", "evaluate", "finetune", "compare"))
    detect = folder / "detect"
    stored = _read_manifest(folder / "generate" / "manifest.json")
    history, training, dropped = _read_training(train)
    architectures = read_table(evaluate / "architectures.parquet", "evaluate", ArchitectureScores)
    accuracy = read_table(evaluate / "summary.csv", "evaluate", SplitSummary)
    _check_agreement(architectures, accuracy, evaluate)
    curves = read_table(finetune / "curves.parquet", "finetune", FinetuningCurves)
    finetuning = read_table(finetune / "summary.csv", "finetune", FinetuningSummary)
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
        budgets=read_table(finetune / "budgets.csv", "finetune", FinetuningBudgets),
        adaptation=read_table(folder / "adapt" / "summary.csv", "adapt", AdaptationSummary),
        conditioning=read_table(folder / "condition" / "summary.csv", "condition", ConditioningSummary),
        detection=read_table(detect / "summary.csv", "detect", DetectionSummary),
        detection_curves=read_table(detect / "curves.parquet", "detect", DetectionCurves),
        detection_scenes=_read_scenes(detect / "shown.json"),
        study=read_table(compare / "study.csv", "compare", StudyScores),
        initialisations=_in_split_order(read_table(compare / "initialisations.csv", "compare", InitialisationScores)),
        worth=_in_split_order(read_table(compare / "worth.csv", "compare", PredictionWorth)),
        distances=_with_accuracy(
            read_table(evaluate / "similarity.parquet", "evaluate", SimilarityToTraining), architectures
        ),
        correlations=read_table(evaluate / "similarity.csv", "evaluate", SimilarityCorrelations),
        properties=read_table(folder / "properties" / "scores.csv", "properties", PropertyScores),
        networks=_with_accuracy(
            read_table(evaluate / "networks.parquet", "evaluate", EvaluatedNetworks), architectures
        ),
        traits=read_table(evaluate / "traits.csv", "evaluate", TraitEffects),
    )


def _read_scenes(path: Path) -> ShownDetections:
    content = _read_json(path, "detect", set(ShownDetections.__annotations__))
    return ShownDetections(classes=content["classes"], scenes=content["scenes"], found=content["found"])


def _with_accuracy(networks: pd.DataFrame, architectures: pd.DataFrame) -> pd.DataFrame:
    """Return rows of networks with the accuracy of predictions, in the order of the splits."""
    predicted = architectures[architectures["initialisation"] == HEADLINE]
    return _in_split_order(networks.merge(predicted[["split", "index", "top1"]], on=["split", "index"]))


def split_order(split: str) -> int:
    """Return the place of a split in tables and plots."""
    order = (*SPLITS, "predefined")
    return order.index(split) if split in order else len(order)


def _in_split_order(table: pd.DataFrame) -> pd.DataFrame:
    return table.sort_values("split", key=lambda splits: splits.map(split_order), kind="stable", ignore_index=True)


def _read_manifest(path: Path) -> StoredCounts:
    manifest = Manifest(splits=_read_json(path, "generate", {"splits"})["splits"])
    splits = manifest["splits"]
    return StoredCounts(
        rows={name: split["rows"] for name, split in splits.items()},
        files=sum(len(split["shards"]) for split in splits.values()),
        digest=content_digest_of(manifest),
    )


def _read_training(folder: Path) -> tuple[pd.DataFrame, TrainingMetrics, pd.DataFrame]:
    """Return the history, the metrics and the dropped architectures, which agree."""
    path = folder / "history.csv"
    history = read_raw_table(path, "train")
    history = validated_table(history, history_model(history.columns), path, "train")
    training = _read_metrics(folder / "metrics.json")
    _check_validation(history, training, folder)
    dropped = read_table(folder / "dropped.csv", "train", DroppedArchitectures)
    _check_dropped(history, dropped, folder)
    return history, training, dropped


def _read_metrics(path: Path) -> TrainingMetrics:
    known = fields(TrainingMetrics)
    content = _read_json(path, "train", {field.name for field in known if field.default is MISSING})
    return TrainingMetrics(**{field.name: content[field.name] for field in known if field.name in content})


# One file


def _read_json(path: Path, stage: str, keys: set[str]) -> dict[str, Any]:
    """Return the content of a JSON file that has these keys and only finite numbers."""
    require_written(path, stage)
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}\n{write_again(stage)}") from error
    for name, value in _leaves(content):
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{name} = {value} in {path}: must be finite\n{write_again(stage)}")
    missing = sorted(keys - content.keys()) if isinstance(content, dict) else sorted(keys)
    if missing:
        raise UserError(f"{path} has no {missing[0]}\n{write_again(stage)}")
    return content


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(inner, f"{name}.{key}".removeprefix("."))
        return
    yield name, value


# Files that must agree


def _check_validation(history: pd.DataFrame, training: TrainingMetrics, folder: Path) -> None:
    """Check that history and metrics both have validation or neither has, and that the kept step was validated."""
    path, metrics, again = folder / "history.csv", folder / "metrics.json", write_again("train")
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
        raise UserError(row_explanation(dropped, "step", int(outside[0]), right, len(outside), path, "train"))
    rows = np.searchsorted(history["step"], dropped["step"])
    counts = np.bincount(rows, minlength=len(history))
    wrong = np.flatnonzero(counts != history["dropped"])
    if len(wrong):
        right = f"{counts[wrong[0]]}, as in dropped.csv"
        path = folder / "history.csv"
        raise UserError(row_explanation(history, "dropped", int(wrong[0]), right, len(wrong), path, "train"))


def _check_agreement(architectures: pd.DataFrame, accuracy: pd.DataFrame, folder: Path) -> None:
    """Check that the summary is that of the architectures; another one would put wrong numbers on top of the page."""
    table, summary, again = folder / "architectures.parquet", folder / "summary.csv", write_again("evaluate")
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
