"""Summaries of the measured tables, for the stages and for the report."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd
from pandera.typing import DataFrame

from pipeline.evaluation.initialisations import BASELINE, HEADLINE
from pipeline.evaluation.tables import TOP1, ArchitectureScores, FinetuningCurves, FinetuningSummary, SplitSummary


def summarise_architectures(scores: DataFrame[ArchitectureScores]) -> DataFrame[SplitSummary]:
    """Return a row for each split: mean, standard error and maximum over its architectures, for each initialisation.

    Splits and initialisations keep their order. A split of one architecture has no standard error.
    """
    columns: dict[str, pd.Series] = {}
    nonfinite: dict[str, pd.Series] = {}
    for initialisation in scores["initialisation"].unique():
        own = scores[scores["initialisation"] == initialisation]
        splits = own.groupby("split", sort=False)
        columns |= {
            f"{initialisation}_top1": splits["top1"].mean(),
            f"{initialisation}_top1_error": splits["top1"].sem(),
            f"{initialisation}_top1_max": splits["top1"].max(),
            f"{initialisation}_top5": splits["top5"].mean(),
            f"{initialisation}_running_top1": splits["running_top1"].mean(),
        }
        nonfinite[initialisation] = own["loss"].isna().groupby(own["split"]).sum()
    architectures = scores[scores["initialisation"] == HEADLINE].groupby("split").size()
    columns = {"architectures": architectures, **columns, "nonfinite": nonfinite[HEADLINE]}
    columns |= {f"{initialisation}_nonfinite": counts for initialisation, counts in nonfinite.items()}
    summary = pd.DataFrame(columns).loc[scores["split"].unique()]  # pandas has sorted the splits
    return SplitSummary.validate(summary.rename_axis("split").reset_index())


def initialisations_of(summary: DataFrame[SplitSummary]) -> list[str]:
    """Return the initialisations that a summary has columns of, in their order."""
    return [column.removesuffix("_top1") for column in summary if re.match(TOP1, column)]


def summarise_curves(curves: DataFrame[FinetuningCurves], classes: Mapping[str, int]) -> DataFrame[FinetuningSummary]:
    """Return a row for each (dataset, images_per_class, initialisation), over all architectures and seeds.

    Args:
        curves: a row for each run and step.
        classes: the number of classes of each data set.
    """
    rows = []
    for (dataset, number), on_same_images in curves.groupby(["dataset", "images_per_class"], sort=False):
        steps = on_same_images["step"].max()
        target = mean_curve(on_same_images[on_same_images["initialisation"] == BASELINE]).iloc[-1]
        for initialisation, own in on_same_images.groupby("initialisation", sort=False):
            means = mean_curve(own)
            reached = means[means >= target]
            final = own[own["step"] == steps]["test_top1"]
            rows.append(
                {
                    "dataset": dataset,
                    "images_per_class": number,
                    "initialisation": initialisation,
                    "classes": classes[str(dataset)],
                    "steps": steps,
                    "learning_rate": own["learning_rate"].iloc[0],
                    "rate_is_inside": own["rate_is_inside"].iloc[0],
                    "runs": len(final),
                    "test_top1": final.mean(),
                    "test_top1_error": final.sem(),
                    "steps_to_target": reached.index[0] if len(reached) else None,
                    "share_to_target": reached.index[0] / steps if len(reached) else None,
                    "target_top1": target,
                }
            )
    return FinetuningSummary.validate(pd.DataFrame(rows))


def mean_curve(curves: pd.DataFrame) -> pd.Series:
    """Return the mean test accuracy over runs, by step in increasing order."""
    return curves.groupby("step")["test_top1"].mean()


def final_accuracies(summary: DataFrame[FinetuningSummary]) -> dict[str, float]:
    """Return the mean final accuracies by the names that MLflow knows them by, such as `digits_10_random_top1`."""
    return {f"{prefix_of(row)}_top1": row["test_top1"] for row in summary.to_dict("records")}


def prefix_of(row: Mapping[Hashable, Any]) -> str:
    """Return what the names of a row's figures begin with in MLflow, such as `digits_10_random`."""
    return f"{row['dataset']}_{row['images_per_class']}_{row['initialisation']}"
